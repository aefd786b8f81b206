// What the torch side calls. Implemented once for the GPU (kernels.cu and its neighbours) and once on the host executor
// (tests), from the same driver.h. Every function enqueues on `stream` (a cudaStream_t), returns without waiting, and
// throws std::runtime_error with the kernel's name where a launch is refused.
#pragma once

#include "params.h"
#include "plan.h"
#include "tiling.h"

namespace customlstm {
namespace cuda {

// Limits of a device, read once for each.
const DeviceLimits& device_limits(int device);

// Makes the device's context that of this thread, as every launch does: cuBLAS warns where it is asked first.
void make_current(int device);

// The compute capabilities the kernels were compiled for, as nvcc writes them: __CUDA_ARCH_LIST__ as text.
const char* architectures();

int64_t forward_workspace(MathKind math, const ForwardParams& params, const Tiling& tiling);   // bytes
void forward(MathKind math, const ForwardParams& params, const Tiling& tiling, void* stream);

int64_t backward_workspace(MathKind math, const BackwardParams& params, const Tiling& tiling);
void backward(MathKind math, const BackwardParams& params, const Tiling& tiling, void* stream);

void previous_hidden(StorageType type, const PreviousHiddenParams& params, void* stream);

// Copies `bytes` (a multiple of 8) of host memory to the device as arguments of a kernel, as many launches as that
// takes: unlike a copy from pageable memory it never waits for the device, `host` may change once this returns, and a
// CUDA graph replays it with the bytes of its capture. Meant for [T] and [B] integers.
void upload(const void* host, int64_t bytes, void* device, void* stream);

// Zeroes the rows beyond a length of an array [rows, row_bytes]; row_bytes is a multiple of 2. Nothing to do where
// sequences.lengths is null or the rows are packed (sequences.step_row is not null).
void zero_padding(const Sizes& size, const Sequences& sequences, int64_t row_bytes, void* rows, void* stream);

}  // namespace cuda
}  // namespace customlstm
