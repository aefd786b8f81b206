// The device primitives on a GPU, sm_80 and later: see device.h for what each one promises. The only file with
// intrinsics and PTX. CUSTOMLSTM_DEBUG adds bounds checks; without it an array is its pointer and nothing more.
#pragma once

#if !defined(__CUDACC_RTC__)   // which has printf and the mathematical functions without a header
#include <cmath>
#include <cstdio>
#endif

#include "fast_math.h"
#include "vector.h"

namespace customlstm {
namespace device {

// --- threads

CUSTOMLSTM_DEVICE int thread_index() { return int(threadIdx.x); }
CUSTOMLSTM_DEVICE int block_threads() { return int(blockDim.x); }
CUSTOMLSTM_DEVICE int lane() { return int(threadIdx.x % 32); }
CUSTOMLSTM_DEVICE int warp() { return int(threadIdx.x / 32); }
CUSTOMLSTM_DEVICE int block_x() { return int(blockIdx.x); }
CUSTOMLSTM_DEVICE int block_y() { return int(blockIdx.y); }
CUSTOMLSTM_DEVICE int block_z() { return int(blockIdx.z); }
CUSTOMLSTM_DEVICE void sync_block() { __syncthreads(); }
CUSTOMLSTM_DEVICE void sync_warp() { __syncwarp(); }

// How many groups of loads a kernel may hold in registers ahead of their use. ptxas 13.0 spills for sm_100 with more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kMostLoadsAhead = 1;
#else
constexpr int kMostLoadsAhead = 8;
#endif

// --- arrays

// Where an access goes wrong: says so, and ends the kernel.
class Bounds {
 public:
#if defined(CUSTOMLSTM_DEBUG)
  CUSTOMLSTM_DEVICE Bounds(int64_t count, const char* name) : count_(count), name_(name) {}
  CUSTOMLSTM_DEVICE void check(int64_t i, int elements) const {
    if (i >= 0 && i % elements == 0 && i + elements <= count_) return;
    printf("customlstm: elements %lld to %lld of '%s', which has %lld: block (%u, %u, %u), thread %u\n",
           (long long)i, (long long)(i + elements - 1), name_, (long long)count_, blockIdx.x, blockIdx.y, blockIdx.z,
           threadIdx.x);
    __trap();
  }

 private:
  int64_t count_;
  const char* name_;
#else
  CUSTOMLSTM_DEVICE Bounds(int64_t, const char*) {}
  CUSTOMLSTM_DEVICE void check(int64_t, int) const {}
#endif
};

// The 32-bit words in which a vector is moved: 1, 2 or 4 at a time. Copied through char, so that an array may be
// written as one type and read as another.
template <class T, int N>
struct Words {
  static constexpr int kBytes = int(sizeof(T)) * N, kAccess = kBytes < 16 ? kBytes : 16;
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16 || kBytes == 32, "a vector has 4, 8, 16 or 32 bytes");
  uint32_t w[kBytes / 4];

  CUSTOMLSTM_DEVICE Words() {}
  CUSTOMLSTM_DEVICE explicit Words(const Vector<T, N>& from) { memcpy(w, from.v, kBytes); }
  CUSTOMLSTM_DEVICE Vector<T, N> vector() const {
    Vector<T, N> to;
    memcpy(to.v, w, kBytes);
    return to;
  }
};

template <class T, int N>
CUSTOMLSTM_DEVICE Vector<T, N> load_vector(const T* from) {
  using W = Words<T, N>;
  W words;
#pragma unroll
  for (int at = 0; at < W::kBytes; at += W::kAccess) {
    const char* source = reinterpret_cast<const char*>(from) + at;
    memcpy(words.w + at / 4, __builtin_assume_aligned(source, W::kAccess), W::kAccess);
  }
  return words.vector();
}
template <class T, int N>
CUSTOMLSTM_DEVICE void store_vector(T* to, const Vector<T, N>& value) {
  using W = Words<T, N>;
  const W words(value);
#pragma unroll
  for (int at = 0; at < W::kBytes; at += W::kAccess) {
    memcpy(__builtin_assume_aligned(reinterpret_cast<char*>(to) + at, W::kAccess), words.w + at / 4, W::kAccess);
  }
}

template <class T>
struct RemoveConst {
  using Type = T;
};
template <class T>
struct RemoveConst<const T> {
  using Type = T;
};

template <class T>
class Global {
 public:
  using Value = typename RemoveConst<T>::Type;

  CUSTOMLSTM_DEVICE Global(T* pointer, int64_t count, const char* name) : pointer_(pointer), bounds_(count, name) {}

  CUSTOMLSTM_DEVICE Value read(int64_t i) const { return *address<1>(i); }
  CUSTOMLSTM_DEVICE void write(int64_t i, Value value) const { *address<1>(i) = value; }

  template <int N>
  CUSTOMLSTM_DEVICE Vector<Value, N> read_vector(int64_t i) const {
    return load_vector<Value, N>(address<N>(i));
  }
  template <int N>
  CUSTOMLSTM_DEVICE void write_vector(int64_t i, const Vector<Value, N>& value) const {
    store_vector<Value, N>(address<N>(i), value);
  }

  // From the L2, which all blocks share. Relaxed: what orders it after another block's writes is an acquire.
  template <int N>
  CUSTOMLSTM_DEVICE Vector<Value, N> read_fresh(int64_t i) const {
    using W = Words<Value, N>;
    const size_t from = __cvta_generic_to_global(address<N>(i));
    W words;
    if constexpr (W::kBytes == 4) {
      asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(words.w[0]) : "l"(from) : "memory");
    } else if constexpr (W::kBytes == 8) {
      asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];"
                   : "=r"(words.w[0]), "=r"(words.w[1])
                   : "l"(from)
                   : "memory");
    } else {
#pragma unroll
      for (int at = 0; at < W::kBytes; at += 16) {
        uint32_t* w = words.w + at / 4;
        asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                     : "l"(from + at)
                     : "memory");
      }
    }
    return words.vector();
  }

  // The address of `elements` elements from the i-th on.
  template <int elements>
  CUSTOMLSTM_DEVICE T* address(int64_t i) const {
    bounds_.check(i, elements);
    return pointer_ + i;
  }

 private:
  T* pointer_;
  Bounds bounds_;
};

// 128 bytes: any alignment that an access or an asynchronous copy could want.
extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];

// Holds the offset and not the pointer: then the compiler knows at every access that the memory is shared.
template <class T>
class Shared {
 public:
  CUSTOMLSTM_DEVICE Shared(int64_t byte_offset, int64_t count, const char* name)
      : byte_offset_(int(byte_offset)), bounds_(count, name) {}

  CUSTOMLSTM_DEVICE T read(int i) const { return *address<1>(i); }
  CUSTOMLSTM_DEVICE void write(int i, T value) const { *address<1>(i) = value; }

  template <int N>
  CUSTOMLSTM_DEVICE Vector<T, N> read_vector(int i) const {
    return load_vector<T, N>(address<N>(i));
  }
  template <int N>
  CUSTOMLSTM_DEVICE void write_vector(int i, const Vector<T, N>& value) const {
    store_vector<T, N>(address<N>(i), value);
  }

  template <int elements>
  CUSTOMLSTM_DEVICE T* address(int i) const {
    bounds_.check(i, elements);
    return reinterpret_cast<T*>(dynamic_shared_memory + byte_offset_) + i;
  }
  // The same in the shared window, for PTX.
  template <int elements>
  CUSTOMLSTM_DEVICE uint32_t window(int i) const {
    return uint32_t(__cvta_generic_to_shared(address<elements>(i)));
  }

 private:
  int byte_offset_;
  Bounds bounds_;
};

template <class T>
CUSTOMLSTM_DEVICE Shared<T> shared(int64_t byte_offset, int64_t count, const char* name) {
  return Shared<T>(byte_offset, count, name);
}

// --- flags between blocks

// Release and acquire are cumulative: with the sync_block on each side they order the accesses of whole blocks.
CUSTOMLSTM_DEVICE void release(const Global<uint32_t>& flags, int64_t i, uint32_t value) {
  const size_t to = __cvta_generic_to_global(flags.address<1>(i));
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
CUSTOMLSTM_DEVICE uint32_t acquire(const Global<uint32_t>& flags, int64_t i) {
  const size_t from = __cvta_generic_to_global(flags.address<1>(i));
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
CUSTOMLSTM_DEVICE void pause() { __nanosleep(20); }

// --- clusters: sm_90 and later; the plan chooses none elsewhere, where these only have to compile

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
CUSTOMLSTM_DEVICE void no_clusters() {
  __trap();
  __builtin_unreachable();   // so what follows in the kernel is not compiled either
}
CUSTOMLSTM_DEVICE int cluster_rank() { return no_clusters(), 0; }
CUSTOMLSTM_DEVICE int cluster_size() { return no_clusters(), 1; }
CUSTOMLSTM_DEVICE void sync_cluster() { no_clusters(); }
template <int N, class T>
CUSTOMLSTM_DEVICE void write_remote(const Shared<T>&, int, int, const Vector<T, N>&) {
  no_clusters();
}
#else
CUSTOMLSTM_DEVICE int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
CUSTOMLSTM_DEVICE int cluster_size() {
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
CUSTOMLSTM_DEVICE void sync_cluster() {
  // Not .aligned: the threads of a warp may come from loops of different lengths.
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}
template <int N, class T>
CUSTOMLSTM_DEVICE void write_remote(const Shared<T>& array, int rank, int i, const Vector<T, N>& value) {
  using W = Words<T, N>;
  const W words(value);
  uint32_t to;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(array.template window<N>(i)), "r"(rank));
  if constexpr (W::kBytes == 4) {
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(to), "r"(words.w[0]) : "memory");
  } else if constexpr (W::kBytes == 8) {
    asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(words.w[0]), "r"(words.w[1]) : "memory");
  } else {
#pragma unroll
    for (int at = 0; at < W::kBytes; at += 16) {
      const uint32_t* w = words.w + at / 4;
      asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + at), "r"(w[0]), "r"(w[1]), "r"(w[2]),
                   "r"(w[3])
                   : "memory");
    }
  }
}
#endif

// --- asynchronous copies

// 16 bytes pass by the L1; 4 and 8 go through it, so they must not fetch what another block wrote in this launch.
template <int Bytes, class T, class U>
CUSTOMLSTM_DEVICE void copy_async(const Shared<T>& to, int i, const Global<U>& from, int64_t j) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "4, 8 or 16 bytes");
  static_assert(Bytes % sizeof(T) == 0 && Bytes % sizeof(U) == 0, "whole elements");
  const uint32_t target = to.template window<Bytes / int(sizeof(T))>(i);
  const size_t source = __cvta_generic_to_global(from.template address<Bytes / int(sizeof(U))>(j));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(source), "n"(Bytes) : "memory");
  }
}
CUSTOMLSTM_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
CUSTOMLSTM_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// --- matrix products of a warp

CUSTOMLSTM_DEVICE void mma_bf16(float* acc, const uint32_t* a, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
CUSTOMLSTM_DEVICE void mma_f16(float* acc, const uint32_t* a, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
CUSTOMLSTM_DEVICE void mma_tf32(float* acc, const uint32_t* a, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

CUSTOMLSTM_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
CUSTOMLSTM_DEVICE double shuffle_xor(double value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
CUSTOMLSTM_DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// --- numbers

CUSTOMLSTM_DEVICE uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
// Not by cuda_bf16.h and cuda_fp16.h, which a machine that compiles at run time need not have.
CUSTOMLSTM_DEVICE float to_float(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
CUSTOMLSTM_DEVICE float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
CUSTOMLSTM_DEVICE BFloat16 to_bf16(float x) {
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
CUSTOMLSTM_DEVICE Half to_half(float x) {
  Half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

struct Approximations {
  static CUSTOMLSTM_DEVICE float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static CUSTOMLSTM_DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
};
CUSTOMLSTM_DEVICE float fast_sigmoid(float x) { return fast_sigmoid<Approximations>(x); }
CUSTOMLSTM_DEVICE float fast_tanh(float x) { return fast_tanh<Approximations>(x); }

}  // namespace device
}  // namespace customlstm
