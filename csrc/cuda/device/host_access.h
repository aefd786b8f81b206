// What the primitives in host.h ask of the host executor. Every function takes the place in the source from which the
// kernel called, for the report in case of an error.
#pragma once

#include <cstdint>

namespace customlstm {
namespace device {
namespace host {

// As a defaulted argument, Place::here() is evaluated where the call stands.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Where the running thread stands in the grid.
struct Position {
  int thread, threads;      // in the block
  int x, y, z;              // the block
  int cluster_rank, cluster_size;
};
extern const Position* self;

struct Array {
  const void* data;
  int64_t count;
  int32_t element_bytes;
  bool shared;
  const char* name;
};

enum class Access : uint8_t { kRead, kReadFresh, kWrite, kRelease, kAcquire, kCopyStart, kCopyEnd };

// Checks bounds, alignment and races of an access to elements i .. i + n - 1.
void access(Access kind, const Array& array, int64_t i, int n, Place place);

Array shared_array(int64_t byte_offset, int64_t count, int32_t element_bytes, const char* name, Place place);
// The same array in another block of the cluster.
Array remote_array(const Array& array, int rank, Place place);

void release(const Array& flags, int64_t i, uint32_t value, Place place);
uint32_t acquire(const Array& flags, int64_t i, Place place);
void pause(Place place);

void copy_start(const Array& to, int64_t i, const Array& from, int64_t j, int bytes, Place place);
void copy_commit();
void copy_wait(int pending);

void sync_block(Place place);
void sync_cluster(Place place);

// An operation of the whole warp: each lane hands in its arguments; the last one calls `compute` (null: only a
// barrier, after which the lanes see each other's writes) with those of all, and all go on.
struct LaneArguments {
  const void* in[2];
  void* out;
};
using WarpCompute = void (*)(const LaneArguments* const (&lanes)[32]);
void warp_wide(const char* what, const LaneArguments& mine, WarpCompute compute, Place place);

void compute_mma_bf16(const LaneArguments* const (&lanes)[32]);
void compute_mma_f16(const LaneArguments* const (&lanes)[32]);
void compute_mma_tf32(const LaneArguments* const (&lanes)[32]);

}  // namespace host
}  // namespace device
}  // namespace customlstm
