// All kernels of one instruction set. The including file has opened the set's namespace, set its #pragma target and
// defined CUSTOMLSTM_VECTOR_BYTES, CUSTOMLSTM_HAS_FMA and CUSTOMLSTM_ISA_NAME. The order is that of use.

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
#include "in_place.inl"
#include "dot.inl"

#include "../cells/standard.inl"
#include "../cells/configurable.inl"

#include "forward_tiles.inl"
#include "forward.inl"
#include "gradients.inl"
#include "backward.inl"

#define CUSTOMLSTM_EACH_CELL(KERNEL, FUNCTION, T) \
  { KERNEL<T, StandardCell>::FUNCTION, KERNEL<T, ConfigurableCell>::FUNCTION }
// Packed weights are the same for every cell.
#if CUSTOMLSTM_HAS_BF16   // the rest comes from the instruction set without it: see dispatch.cpp
#define CUSTOMLSTM_EACH_TYPE(KERNEL, FUNCTION) \
  { {}, {}, CUSTOMLSTM_EACH_CELL(KERNEL, FUNCTION, BFloat16), {} }
#define CUSTOMLSTM_EACH_PACKING(FUNCTION) \
  { nullptr, nullptr, Forward<BFloat16, StandardCell>::FUNCTION, nullptr }
#else
#define CUSTOMLSTM_EACH_TYPE(KERNEL, FUNCTION)                                                     \
  {                                                                                                \
    CUSTOMLSTM_EACH_CELL(KERNEL, FUNCTION, float), CUSTOMLSTM_EACH_CELL(KERNEL, FUNCTION, double), \
        CUSTOMLSTM_EACH_CELL(KERNEL, FUNCTION, BFloat16), CUSTOMLSTM_EACH_CELL(KERNEL, FUNCTION, Half) \
  }
#define CUSTOMLSTM_EACH_PACKING(FUNCTION)                                                                 \
  {                                                                                                       \
    Forward<float, StandardCell>::FUNCTION, Forward<double, StandardCell>::FUNCTION,                      \
        Forward<BFloat16, StandardCell>::FUNCTION, Forward<Half, StandardCell>::FUNCTION                  \
  }
#endif

const KernelTable kTable = {
    CUSTOMLSTM_ISA_NAME,
    CUSTOMLSTM_EACH_PACKING(packed_bytes),
    CUSTOMLSTM_EACH_PACKING(pack_to_keep),
    CUSTOMLSTM_EACH_TYPE(Forward, workspace),
    CUSTOMLSTM_EACH_TYPE(Forward, run),
    CUSTOMLSTM_EACH_TYPE(Backward, workspace),
    CUSTOMLSTM_EACH_TYPE(Backward, run),
};
