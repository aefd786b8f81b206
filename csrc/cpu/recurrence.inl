// The recurrence around a cell, for one instruction set. The including file has opened a namespace of that set and
// included its header from isa/; cells come after this. The order is that of use.

#define CUSTOMLSTM_INLINE inline __attribute__((always_inline))
#define CUSTOMLSTM_NOINLINE __attribute__((noinline))

#include "vec.inl"
#include "math.inl"
#include "piecewise.inl"
#include "activations.inl"
#include "storage.inl"
#include "gemm.inl"
#include "layout.inl"
#include "zoneout.inl"
#include "layer_norm.inl"
#include "in_place.inl"
#include "dot.inl"

#include "forward_tiles.inl"
#include "forward_norm.inl"
#include "forward_layout.inl"
#include "forward.inl"
#include "gradients.inl"
#include "backward.inl"

template <class Cell>
constexpr CellSizes cell_sizes() {
  return {Cell::kGates, Cell::kStates, Cell::kSaved, Cell::kParameters};
}
template <class T, class Cell>
constexpr ForwardKernels forward_kernels() {
  using Kernel = Forward<T, Cell>;
  return {&Kernel::packed_bytes, &Kernel::pack_to_keep, &Kernel::workspace, &Kernel::run};
}
template <class T, class Cell>
constexpr BackwardKernels backward_kernels() {
  using Kernel = Backward<T, Cell>;
  return {&Kernel::workspace, &Kernel::run};
}
