// How customlstm/jit makes a user's cell known: functions that it calls by way of ctypes. Not ops, which a saved graph
// could call, with addresses of its own.
#include <sstream>

#include "cell_registry.h"
#include "checks.h"
#ifdef USE_CUDA
#include "../cuda/load_written.h"
#endif

using customlstm::BackwardKernels;
using customlstm::CellSizes;
using customlstm::ForwardKernels;

namespace customlstm {

namespace {

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

void register_library(const std::string& name, const std::string& unit_parameters, int64_t type,
                      void (*sizes)(CellSizes*), void (*forward)(ForwardKernels*), void (*backward)(BackwardKernels*)) {
  check(type >= 0 && type < kStorageTypes, "type is ", type, ", expected 0 to ", kStorageTypes - 1);
  CellSizes own = {};
  sizes(&own);
  CellKernels kernels = {};
  forward(&kernels.forward);
  backward(&kernels.backward);
  register_cell(name, own, words_of(unit_parameters));
  register_cpu_kernels(name, static_cast<StorageType>(type), kernels);
}

#ifdef USE_CUDA
void register_images(const std::string& name, const std::string& unit_parameters, CellSizes sizes, int64_t math,
                     int64_t capability, int64_t device, const void* const* images, int64_t image_count) {
  check(math >= 0 && math < cuda::kMathKinds, "math is ", math, ", expected 0 to ", cuda::kMathKinds - 1);
  check(image_count >= 1, "image_count is ", image_count, ", expected at least 1");
  const std::vector<std::string> names = words_of(unit_parameters);
  sizes.unit_parameters = static_cast<int64_t>(names.size());
  const cuda::WrittenKernels kernels = cuda::load_written(static_cast<int>(device), images, image_count);
  register_cell(name, sizes, names);
  register_cuda_kernels(name, static_cast<cuda::MathKind>(math), static_cast<int>(capability), kernels);
}
#endif

// What `work` throws, as text that stays until the thread's next call; null where it throws nothing.
template <class Work>
const char* why_not(const Work& work) {
  static thread_local std::string error;
  try {
    work();
    return nullptr;
  } catch (const std::exception& reason) {
    error = reason.what();
    return error.c_str();
  }
}

}  // namespace

}  // namespace customlstm

// name: under which the ops know the cell; unit_parameters: names, separated by spaces; type: StorageType; the
// functions are those of the cell's library, which stays loaded. Returns null, or why not: text that holds until the
// thread's next call.
extern "C" __attribute__((visibility("default"))) const char* customlstm_register_cell(
    const char* name, const char* unit_parameters, int64_t type, void (*sizes)(CellSizes*),
    void (*forward)(ForwardKernels*), void (*backward)(BackwardKernels*)) {
  return customlstm::why_not(
      [&] { customlstm::register_library(name, unit_parameters, type, sizes, forward, backward); });
}

#ifdef USE_CUDA
// The same for its kernels on GPUs. gates, states, saved: those of the struct; math: MathKind; capability: 90 for 9.0,
// that of `device`, an index; images: cubins for it, which cuda::load_written describes and which may be freed after
// the call.
extern "C" __attribute__((visibility("default"))) const char* customlstm_register_cuda_cell(
    const char* name, const char* unit_parameters, int64_t gates, int64_t states, int64_t saved, int64_t math,
    int64_t capability, int64_t device, const void* const* images, int64_t image_count) {
  return customlstm::why_not([&] {
    customlstm::register_images(name, unit_parameters, {gates, states, saved, 0}, math, capability, device, images,
                                image_count);
  });
}
#endif
