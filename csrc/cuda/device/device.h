// The device primitives: all that a kernel may use of the machine below it. Two implementations have this one
// interface: cuda.h (intrinsics and PTX, compiled by nvcc) and host.h (blocks, warps and threads as fibers on the
// CPU, with bounds, races and deadlocks checked). Kernels include this file and contain no intrinsic of their own,
// so the very source that runs on a GPU runs under test without one.
//
// In namespace customlstm::device:
//
//   thread_index() block_threads() lane() warp()      int; one-dimensional blocks, warps of 32
//   block_x() block_y() block_z()                     int
//   sync_block() sync_warp()                          all threads of the block / warp, which see each other's writes
//
//   Global<T>(pointer, count, "name")                 an array in device memory; T may be const
//   shared<T>(byte_offset, count, "name")             -> Shared<T>, an array in the block's dynamic shared memory
//     .read(i) .write(i, value)                       one element; i is int64_t for Global, int for Shared
//     .read_vector<N>(i) .write_vector<N>(i, v)       Vector<T, N>, N * sizeof(T) = 4, 8, 16 or 32 bytes, i % N == 0
//     .read_fresh<N>(i)                               Global only: not from a cache that another block's writes of
//                                                     this launch do not reach
//   A `count` of 0 with a null pointer is an array that must not be touched.
//
//   release(flags, i, value) acquire(flags, i)        Global<uint32_t>: a flag between blocks. What all threads of
//                                                     a block wrote before its last sync_block is seen by a thread
//                                                     that acquires the value, and by its block after a sync_block.
//   pause()                                           in every spin loop
//
//   cluster_rank() cluster_size()                     int; rank = block_x() % cluster size
//   sync_cluster()                                    all threads of the cluster; makes remote writes visible
//   write_remote<N>(shared, rank, i, v)               into the same array of another block of the cluster
//
//   copy_async<Bytes>(shared, i, global, j)           4, 8 or 16 bytes, aligned; complete after copy_wait
//   copy_commit() copy_wait<Pending>()                groups of copies of this thread; after copy_wait<N> all but the
//                                                     last N groups are done, seen by others after a sync_block
//
//   mma_bf16(acc, a, b) mma_f16(acc, a, b)            warp-wide m16n8k16, acc float[4], a uint32_t[4], b uint32_t[2]
//   mma_tf32(acc, a, b)                               warp-wide m16n8k8, a and b hold tf32 bit patterns
//   to_tf32(float) -> uint32_t                        rounded to nearest, ties away
//   shuffle_xor(value, mask)                          float, double, int
//
//   to_float(BFloat16 | Half) to_bf16(float) to_half(float)      nearest even
//   kMostLoadsAhead                                   how many groups of loads to hold in registers at most
//
//   exp, log1p, expm1, tanh ... of float and double are those of <cmath>; fast_sigmoid(float), fast_tanh(float)
//   may be less exact: at most 4 ulp or 5e-7 absolute.
#pragma once

#include "../../types.h"

#if defined(__CUDACC__)
#define CUSTOMLSTM_DEVICE __device__ __forceinline__
#include "cuda.h"
#else
#define CUSTOMLSTM_DEVICE inline
#include "host.h"
#endif
