// The CUDA side of the ops (csrc/ops/cuda_call.cpp, cuda_layer.cpp, cuda_gradients.cpp, word for word) on CPU tensors
// and the host executor, registered as customlstm_host::lstm_layer and its backward. What only a GPU has stands here.
#ifndef USE_CUDA
#error "compile with -DUSE_CUDA"
#endif
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>

#include "../../../csrc/cuda/kernels.h"
#include "../../../csrc/ops/layer_arguments.h"
#include "../../../csrc/ops/matrices.h"
#include "../../../csrc/ops/layer_ops.h"
#include "../../../csrc/ops/schema.h"

namespace torch::stable::accelerator {
struct NoDeviceGuard {
  explicit NoDeviceGuard(DeviceIndex) {}
};
}  // namespace torch::stable::accelerator

// Kept small, so that a test can cut a call into pieces.
#define CUSTOMLSTM_CHUNK_BYTES chunk_bytes()
static int64_t chunk_bytes() {
  const char* text = std::getenv("CUSTOMLSTM_HOST_CHUNK_BYTES");
  return text ? std::atoll(text) : int64_t{1} << 28;
}

// Counted, so that a test sees whether a call was cut.
namespace customlstm::cuda {
static int64_t forwards = 0;
static void counted_forward(MathKind math, const ForwardParams& params, const Tiling& tiling, void* stream) {
  ++forwards;
  forward(math, params, tiling, stream);
}
}  // namespace customlstm::cuda

#define is_cuda is_cpu
#define DeviceGuard NoDeviceGuard
#define forward counted_forward   // the headers that have a std::forward are included above
#include "../../../csrc/ops/cuda_call.cpp"
#include "../../../csrc/ops/cuda_gradients.cpp"
#include "../../../csrc/ops/cuda_layer.cpp"
#undef forward
#undef DeviceGuard
#undef is_cuda

#include "../../../csrc/cuda/device/host_executor.h"
#include "../../../csrc/cuda/dispatch.h"
#include "stream.h"

extern "C" {
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  const char* seed = std::getenv("CUSTOMLSTM_HOST_SEED");
  *stream = reinterpret_cast<void*>(seed ? std::atoll(seed) : 1ll);
  return 0;
}
AOTITorchError torch_get_current_cuda_blas_handle(void** handle) {
  *handle = nullptr;
  return 0;
}
int cublasGetMathMode(void*, int* mode) {
  *mode = std::getenv("CUSTOMLSTM_HOST_TF32") ? 3 : 0;
  return 0;
}
}

namespace customlstm {
namespace cuda {

const DeviceLimits& device_limits(int) {
  static const DeviceLimits h200 = {90, 132, 227 << 10, 60 << 20, 16, 8, true};
  static const DeviceLimits slice = {90, 2, 227 << 10, 60 << 20, 16, 8, true};   // where wide tilings pay
  return std::getenv("CUSTOMLSTM_HOST_SLICE") ? slice : h200;
}

void make_current(int) {}

void previous_hidden(StorageType type, const PreviousHiddenParams& params, void* stream) {
  HostLauncher launcher(make_stream(stream));
  switch (type) {
    case StorageType::kFloat32: return previous_hidden<float>(params, launcher);
    case StorageType::kFloat64: return previous_hidden<double>(params, launcher);
    case StorageType::kBFloat16: return previous_hidden<BFloat16>(params, launcher);
    case StorageType::kFloat16: return previous_hidden<Half>(params, launcher);
  }
}

void upload(const void* host, int64_t bytes, void* device, void* stream) {
  HostLauncher launcher(make_stream(stream));
  upload(launcher, host, bytes, device);
}

void zero_padding(const Sizes& size, const Sequences& sequences, int64_t row_bytes, void* rows, void* stream) {
  HostLauncher launcher(make_stream(stream));
  zero_padding(size, sequences, row_bytes, rows, launcher);
}

}  // namespace cuda

namespace {

int64_t forwards() { return cuda::forwards; }

}  // namespace

STABLE_TORCH_LIBRARY(customlstm_host, m) {
  m.def("forwards() -> int");
  m.def("lstm_layer" CUSTOMLSTM_LAYER_SCHEMA);
  m.def("lstm_layer_backward" CUSTOMLSTM_LAYER_BACKWARD_SCHEMA);
}

STABLE_TORCH_LIBRARY_IMPL(customlstm_host, CPU, m) {
  m.impl("lstm_layer", TORCH_BOX(&lstm_layer<cuda_layer_forward>));
  m.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward<cuda_layer_backward>));
}

STABLE_TORCH_LIBRARY_IMPL(customlstm_host, CompositeExplicitAutograd, m) {
  m.impl("forwards", TORCH_BOX(&forwards));
}

}  // namespace customlstm
