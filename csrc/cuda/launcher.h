// How a kernel is started. A kernel is a struct with
//
//   using Params = ...;                          plain data of at most 4 KB, passed by value
//   static constexpr int kThreads = ...;         most threads a block
//   static constexpr const char* kName = ...;
//   static CUSTOMLSTM_DEVICE void run(const Params&);
//
// and a Launcher has two member templates: cuda_launcher.cuh enqueues on a stream, device/host_executor.h runs on the
// CPU.
//
//   launch<Kernel>(const Launch&, const Kernel::Params&)
//   launch_loaded(const void* handle, const char* name, int most_threads, const Launch&, const Params&)
//
// The second starts a kernel that was compiled apart from this library (written_kernels.h): `handle` is what the
// launcher knows it by, Params those that it was compiled for.
#pragma once

#include <cstdint>

namespace customlstm {
namespace cuda {

struct Launch {
  int32_t grid_x, grid_y, grid_z;
  int32_t threads;           // a block, a multiple of 32
  int64_t shared_bytes;      // dynamic shared memory
  int32_t cluster;           // blocks along x that form a cluster; 1: none
  bool cooperative;          // all blocks must be resident at once, or the launch is refused
};

}  // namespace cuda
}  // namespace customlstm
