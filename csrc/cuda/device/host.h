// The device primitives on the CPU, for tests: the contract is in device.h, what is checked in host_executor.h. All
// functions take, last and defaulted, the place from which they are called.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../types.h"
#include "host_access.h"
#include "host_numbers.h"
#include "vector.h"

namespace customlstm {
namespace device {

constexpr int kMostLoadsAhead = 8;

inline int thread_index() { return host::self->thread; }
inline int block_threads() { return host::self->threads; }
inline int lane() { return host::self->thread % 32; }
inline int warp() { return host::self->thread / 32; }
inline int block_x() { return host::self->x; }
inline int block_y() { return host::self->y; }
inline int block_z() { return host::self->z; }
inline int cluster_rank() { return host::self->cluster_rank; }
inline int cluster_size() { return host::self->cluster_size; }

inline void sync_block(host::Place place = host::Place::here()) { host::sync_block(place); }
inline void sync_cluster(host::Place place = host::Place::here()) { host::sync_cluster(place); }
inline void sync_warp(host::Place place = host::Place::here()) {
  host::warp_wide("sync_warp", {}, nullptr, place);
}
inline void pause(host::Place place = host::Place::here()) { host::pause(place); }

// What Global and Shared have in common. `Index` is int64_t or int, so that a kernel gets the same conversions as on
// the GPU.
template <class T, class Index>
class CheckedArray {
 public:
  using Value = std::remove_const_t<T>;
  static_assert(std::is_trivially_copyable<Value>::value && sizeof(Value) <= 8, "an element of 1, 2, 4 or 8 bytes");

  Value read(Index i, host::Place place = host::Place::here()) const {
    return load<1>(host::Access::kRead, i, place).v[0];
  }
  void write(Index i, Value value, host::Place place = host::Place::here()) const {
    store<1>(i, {{value}}, place);
  }
  template <int N>
  Vector<Value, N> read_vector(Index i, host::Place place = host::Place::here()) const {
    check_width<N>();
    return load<N>(host::Access::kRead, i, place);
  }
  template <int N>
  void write_vector(Index i, const Vector<Value, N>& value, host::Place place = host::Place::here()) const {
    check_width<N>();
    store<N>(i, value, place);
  }

  const host::Array& array() const { return array_; }   // for the primitives of this file

 protected:
  explicit CheckedArray(const host::Array& array) : array_(array) {}

  template <int N>
  static void check_width() {
    constexpr int bytes = N * int(sizeof(Value));
    static_assert(bytes == 4 || bytes == 8 || bytes == 16 || bytes == 32, "a vector has 4, 8, 16 or 32 bytes");
  }
  template <int N>
  Vector<Value, N> load(host::Access kind, Index i, host::Place place) const {
    host::access(kind, array_, i, N, place);
    Vector<Value, N> value;
    std::memcpy(&value, static_cast<const Value*>(array_.data) + i, sizeof(value));
    return value;
  }
  template <int N>
  void store(Index i, const Vector<Value, N>& value, host::Place place) const {
    static_assert(!std::is_const<T>::value, "an array of const elements is only read");
    host::access(host::Access::kWrite, array_, i, N, place);
    std::memcpy(const_cast<Value*>(static_cast<const Value*>(array_.data)) + i, &value, sizeof(value));
  }

  host::Array array_;
};

template <class T>
class Global : public CheckedArray<T, int64_t> {
 public:
  using Value = typename CheckedArray<T, int64_t>::Value;
  Global(T* pointer, int64_t count, const char* name)
      : CheckedArray<T, int64_t>({pointer, count, int32_t(sizeof(T)), false, name}) {}

  template <int N>
  Vector<Value, N> read_fresh(int64_t i, host::Place place = host::Place::here()) const {
    this->template check_width<N>();
    return this->template load<N>(host::Access::kReadFresh, i, place);
  }
};

template <class T>
class Shared : public CheckedArray<T, int> {
 public:
  explicit Shared(const host::Array& array) : CheckedArray<T, int>(array) {}
};

template <class T>
Shared<T> shared(int64_t byte_offset, int64_t count, const char* name, host::Place place = host::Place::here()) {
  return Shared<T>(host::shared_array(byte_offset, count, sizeof(T), name, place));
}

inline void release(const Global<uint32_t>& flags, int64_t i, uint32_t value,
                    host::Place place = host::Place::here()) {
  host::release(flags.array(), i, value, place);
}
inline uint32_t acquire(const Global<uint32_t>& flags, int64_t i, host::Place place = host::Place::here()) {
  return host::acquire(flags.array(), i, place);
}

template <int N, class T>
void write_remote(const Shared<T>& array, int rank, int i, const Vector<T, N>& value,
                  host::Place place = host::Place::here()) {
  Shared<T>(host::remote_array(array.array(), rank, place)).template write_vector<N>(i, value, place);
}

template <int Bytes, class T, class U>
void copy_async(const Shared<T>& to, int i, const Global<U>& from, int64_t j,
                host::Place place = host::Place::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "a copy has 4, 8 or 16 bytes");
  static_assert(Bytes % sizeof(T) == 0 && Bytes % sizeof(U) == 0, "whole elements");
  host::copy_start(to.array(), i, from.array(), j, Bytes, place);
}
inline void copy_commit() { host::copy_commit(); }
template <int Pending>
void copy_wait() {
  host::copy_wait(Pending);
}

inline void mma_bf16(float* acc, const uint32_t* a, const uint32_t* b,
                     host::Place place = host::Place::here()) {
  host::warp_wide("mma_bf16", {{a, b}, acc}, host::compute_mma_bf16, place);
}
inline void mma_f16(float* acc, const uint32_t* a, const uint32_t* b,
                    host::Place place = host::Place::here()) {
  host::warp_wide("mma_f16", {{a, b}, acc}, host::compute_mma_f16, place);
}
inline void mma_tf32(float* acc, const uint32_t* a, const uint32_t* b,
                     host::Place place = host::Place::here()) {
  host::warp_wide("mma_tf32", {{a, b}, acc}, host::compute_mma_tf32, place);
}

namespace host {

template <class T>
struct Shuffled {
  T value;
  int mask;
  static void compute(const LaneArguments* const (&lanes)[32]) {
    for (int i = 0; i < 32; ++i) {
      const auto& mine = *static_cast<const Shuffled*>(lanes[i]->in[0]);
      *static_cast<T*>(lanes[i]->out) = static_cast<const Shuffled*>(lanes[(i ^ mine.mask) & 31]->in[0])->value;
    }
  }
  static T run(T value, int mask, Place place) {
    const Shuffled mine = {value, mask};
    T result;
    warp_wide("shuffle_xor", {{&mine, nullptr}, &result}, compute, place);
    return result;
  }
};

}  // namespace host

inline float shuffle_xor(float value, int mask, host::Place place = host::Place::here()) {
  return host::Shuffled<float>::run(value, mask, place);
}
inline double shuffle_xor(double value, int mask, host::Place place = host::Place::here()) {
  return host::Shuffled<double>::run(value, mask, place);
}
inline int shuffle_xor(int value, int mask, host::Place place = host::Place::here()) {
  return host::Shuffled<int>::run(value, mask, place);
}

}  // namespace device
}  // namespace customlstm
