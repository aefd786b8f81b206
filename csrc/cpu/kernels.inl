// All kernels of one instruction set, for the cells that need no compiler. The including file has opened the set's
// namespace and included its header from isa/.

#include "recurrence.inl"
#include "mask.inl"

#include "../cells/standard.inl"
#include "../cells/configurable.inl"
#include "../cells/normalised.inl"

// Packed weights are the same for every cell of four gates.
template <class T, class Cell>
constexpr CellKernels kernels_of() {
  using Packing = Forward<T, StandardCell>;
  CellKernels kernels = {forward_kernels<T, Cell>(), backward_kernels<T, Cell>()};
  kernels.forward.packed_bytes = &Packing::packed_bytes;
  kernels.forward.pack = &Packing::pack_to_keep;
  return kernels;
}

#define CUSTOMLSTM_EACH_CELL(T) \
  { kernels_of<T, StandardCell>(), kernels_of<T, ConfigurableCell>(), kernels_of<T, NormalisedCell>() }

const KernelTable kTable = {
    CUSTOMLSTM_ISA_NAME,
    &draw_flags,
#if CUSTOMLSTM_HAS_BF16   // the rest comes from the instruction set without it: see dispatch.cpp
    {{}, {}, CUSTOMLSTM_EACH_CELL(BFloat16), {}},
#else
    {CUSTOMLSTM_EACH_CELL(float), CUSTOMLSTM_EACH_CELL(double), CUSTOMLSTM_EACH_CELL(BFloat16),
     CUSTOMLSTM_EACH_CELL(Half)},
#endif
};
