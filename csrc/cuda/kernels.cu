#include "cuda_launcher.cuh"
#include "dispatch.h"

#define CUSTOMLSTM_TEXT(...) #__VA_ARGS__
#define CUSTOMLSTM_VALUE(...) CUSTOMLSTM_TEXT(__VA_ARGS__)

namespace customlstm {
namespace cuda {

const char* architectures() { return CUSTOMLSTM_VALUE(__CUDA_ARCH_LIST__); }

void previous_hidden(StorageType type, const PreviousHiddenParams& params, void* stream) {
  CudaLauncher launcher{make_stream(stream)};
  switch (type) {
    case StorageType::kFloat32: return previous_hidden<float>(params, launcher);
    case StorageType::kFloat64: return previous_hidden<double>(params, launcher);
    case StorageType::kBFloat16: return previous_hidden<BFloat16>(params, launcher);
    case StorageType::kFloat16: return previous_hidden<Half>(params, launcher);
  }
}

void zero_padding(const Sizes& size, const Sequences& sequences, int64_t row_bytes, void* rows, void* stream) {
  CudaLauncher launcher{make_stream(stream)};
  zero_padding(size, sequences, row_bytes, rows, launcher);
}

void upload(const void* host, int64_t bytes, void* device, void* stream) {
  CudaLauncher launcher{make_stream(stream)};
  upload(launcher, host, bytes, device);
}

}  // namespace cuda
}  // namespace customlstm
