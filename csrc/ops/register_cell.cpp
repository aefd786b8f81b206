// How customlstm/jit/register.py makes a user's cell known: a function that it calls by way of ctypes. Not an op, which
// a saved graph could call, with an address of its own.
#include <sstream>

#include "cell_registry.h"
#include "checks.h"

using customlstm::BackwardKernels;
using customlstm::CellSizes;
using customlstm::ForwardKernels;

namespace customlstm {

namespace {

void register_library(const std::string& name, const std::string& unit_parameters, int64_t type,
                      void (*sizes)(CellSizes*), void (*forward)(ForwardKernels*), void (*backward)(BackwardKernels*)) {
  check(type >= 0 && type < kStorageTypes, "type is ", type, ", expected 0 to ", kStorageTypes - 1);
  std::istringstream words(unit_parameters);
  std::vector<std::string> names;
  for (std::string word; words >> word;) names.push_back(word);
  CellSizes own = {};
  sizes(&own);
  CellKernels kernels = {};
  forward(&kernels.forward);
  backward(&kernels.backward);
  register_cell(name, own, names);
  register_cpu_kernels(name, static_cast<StorageType>(type), kernels);
}

}  // namespace

}  // namespace customlstm

// name: under which the ops know the cell; unit_parameters: names, separated by spaces; type: StorageType; the functions
// are those of the cell's library, which stays loaded. Returns null, or why not, until the thread's next call.
extern "C" __attribute__((visibility("default"))) const char* customlstm_register_cell(
    const char* name, const char* unit_parameters, int64_t type, void (*sizes)(CellSizes*),
    void (*forward)(ForwardKernels*), void (*backward)(BackwardKernels*)) {
  static thread_local std::string error;
  try {
    customlstm::register_library(name, unit_parameters, type, sizes, forward, backward);
    return nullptr;
  } catch (const std::exception& reason) {
    error = reason.what();
    return error.c_str();
  }
}
