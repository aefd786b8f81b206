#include "load_written.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_launcher.cuh"

namespace customlstm {
namespace cuda {

namespace {

constexpr const char* kPasses[] = {"forward", "backward"};
constexpr int32_t kColumnTilesOfKernels[kColumnTileCounts] = {1, 4};

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();   // or the next call that looks would be blamed for it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(code) + ", " + cudaGetErrorString(code));
}

// The runtime's functions for libraries, which came with CUDA 12.8: looked up, because a reference to what an older
// runtime does not have would keep the whole package from being loaded. Theirs are the types of any version.
struct Libraries {
  using Library = void*;
  cudaError_t (*load)(Library*, const void* image, void*, void*, unsigned, void*, void*, unsigned);
  cudaError_t (*get_kernel)(void** kernel, Library, const char* name);
  cudaError_t (*unload)(Library);

  Libraries()
      : load(find<decltype(load)>("cudaLibraryLoadData")),
        get_kernel(find<decltype(get_kernel)>("cudaLibraryGetKernel")),
        unload(find<decltype(unload)>("cudaLibraryUnload")) {
    if (load && get_kernel && unload) return;
    int version = 0;
    check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
    throw std::runtime_error("the CUDA runtime of this process is " + std::to_string(version / 1000) + "." +
                             std::to_string(version % 1000 / 10) +
                             ", which loads no kernels that are compiled at run time; 12.8 or later does");
  }

  // Where the runtime lies that torch has brought.
  template <class Function>
  static Function find(const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  }
};

// Null where the library has no such kernel: each image holds some of them.
const void* find_kernel(const Libraries& libraries, void* library, const std::string& name) {
  void* kernel = nullptr;
  const cudaError_t code = libraries.get_kernel(&kernel, library, name.c_str());
  if (code == cudaErrorSymbolNotFound) {
    cudaGetLastError();
    return nullptr;
  }
  check(code, "cudaLibraryGetKernel");
  // The driver may read an image as late as here; what it does not take must be known before a call relies on it.
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), name.c_str());
  return kernel;
}

int take_kernels(const Libraries& libraries, void* library, WrittenKernels& kernels) {
  int found = 0;
  for (int pass = 0; pass < 2; ++pass) {
    auto& own = pass == 0 ? kernels.forward : kernels.backward;
    for (int variant = 0; variant < kVariants; ++variant) {
      for (const int32_t tiles : kColumnTilesOfKernels) {
        const std::string name = std::string("customlstm_") + kPasses[pass] + "_" + name_of(Variant(variant)) + "_" +
                                 std::to_string(tiles);
        const void* kernel = find_kernel(libraries, library, name);
        if (kernel == nullptr) continue;
        own[variant][column_tile_index(tiles)] = kernel;
        ++found;
      }
    }
  }
  return found;
}

// Back to the device that was current before.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

}  // namespace

WrittenKernels load_written(int device, const void* const* images, int64_t count) {
  const Libraries libraries;
  const OnDevice current(device);
  const launching::AllowDuringCapture allow;
  WrittenKernels kernels = {};
  std::vector<void*> loaded;
  try {
    for (int64_t k = 0; k < count; ++k) {
      void* library = nullptr;
      check(libraries.load(&library, images[k], nullptr, nullptr, 0, nullptr, nullptr, 0), "cudaLibraryLoadData");
      loaded.push_back(library);
      if (take_kernels(libraries, library, kernels) == 0) {
        throw std::runtime_error("image " + std::to_string(k) + " has no kernel of a cell");
      }
    }
  } catch (...) {
    for (void* library : loaded) libraries.unload(library);   // the next call tries again
    throw;
  }
  return kernels;
}

}  // namespace cuda
}  // namespace customlstm
