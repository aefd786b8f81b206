// Registers cells that users wrote, as two private ops, of which customlstm/jit/register.py is the face:
//
//   _register_cell(str name, int[] sizes, str unit_parameters) -> ()
//
//   sizes            gates, states, values saved for backward
//   unit_parameters  names, separated by spaces
//
//   _register_cpu_kernels(str name, int type, int forward, int backward) -> ()
//
//   type               StorageType
//   forward, backward  addresses of the functions customlstm_forward and customlstm_backward of the cell's library,
//                      which stays loaded
#include <torch/csrc/stable/library.h>

#include <sstream>

#include "cell_registry.h"
#include "checks.h"
#include "op_string.h"

namespace customlstm {

namespace {

constexpr size_t kSizes = 3;

void register_cell_op(OpString name, std::vector<int64_t> sizes, OpString unit_parameters) {
  check(sizes.size() == kSizes, "sizes has ", sizes.size(), " numbers, expected ", kSizes);
  std::istringstream words(unit_parameters.text);
  std::vector<std::string> names;
  for (std::string word; words >> word;) names.push_back(word);
  register_cell(name.text, sizes[0], sizes[1], sizes[2], names);
}

void register_cpu_kernels_op(OpString name, int64_t type, int64_t forward, int64_t backward) {
  check(type >= 0 && type < kStorageTypes, "type is ", type, ", expected 0 to ", kStorageTypes - 1);
  check(forward != 0 && backward != 0, "forward and backward must be addresses of functions");
  CellKernels kernels = {};
  reinterpret_cast<void (*)(ForwardKernels*)>(forward)(&kernels.forward);
  reinterpret_cast<void (*)(BackwardKernels*)>(backward)(&kernels.backward);
  register_cpu_kernels(name.text, static_cast<StorageType>(type), kernels);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(customlstm, m) {
  m.def("_register_cell(str name, int[] sizes, str unit_parameters) -> ()");
  m.def("_register_cpu_kernels(str name, int type, int forward, int backward) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(customlstm, CompositeExplicitAutograd, m) {
  m.impl("_register_cell", TORCH_BOX(&register_cell_op));
  m.impl("_register_cpu_kernels", TORCH_BOX(&register_cpu_kernels_op));
}

}  // namespace customlstm
