// The cell's parameters with one value a hidden unit, such as peephole weights, as the recurrences read them.
#pragma once

#include "block.h"
#include "scalar.h"

namespace customlstm {
namespace cuda {

template <class T>
struct UnitParameters {
  const T* of[2][kMaxUnitParameters];   // [H] each, by direction
  int32_t count;
};

// Those of one unit; what the call does not have is zero.
template <class M, class CellT>
CUSTOMLSTM_DEVICE void load_unit_parameters(const UnitParameters<typename M::T>& from, int direction, int64_t hidden,
                                            int64_t unit, Scalar<typename M::S>* to) {
#pragma unroll
  for (int k = 0; k < CellT::kParameters; ++k) {
    to[k].x = typename M::S(0);
    if (k < from.count) to[k].x = M::widen(array(from.of[direction][k], hidden, "unit parameters").read(unit));
  }
}

}  // namespace cuda
}  // namespace customlstm
