// Zoneout (Krueger et al. 2016): a state is mixed with what it was. A mask selects rather than multiplies, so that a
// NaN or infinity goes no further than the side it is on.
#pragma once

#include "block.h"

namespace customlstm {
namespace cuda {

CUSTOMLSTM_DEVICE bool is_on(const Zoneout& z) { return z.mask != nullptr || z.rate > 0; }

// What becomes of one state of one unit: the mask there, or the rate.
template <class S>
struct Kept {
  bool masked, all;   // all: of the old state, by a mask
  S rate;

  // Position `at` of `count` masks.
  CUSTOMLSTM_DEVICE Kept(const Zoneout& z, int64_t count, int64_t at) : masked(z.mask != nullptr), rate(S(z.rate)) {
    all = masked && device::Global<const uint8_t>(z.mask, count, "zoneout mask").read(at) != 0;
  }
  CUSTOMLSTM_DEVICE S mix(S before, S computed) const {
    if (masked) return all ? before : computed;
    return rate * before + (S(1) - rate) * computed;
  }
  // Of the gradient of the new state, the part of the old one and that of the one that was computed.
  CUSTOMLSTM_DEVICE S to_before(S gradient) const {
    if (masked) return all ? gradient : S(0);
    return rate * gradient;
  }
  CUSTOMLSTM_DEVICE S to_computed(S gradient) const {
    if (masked) return all ? S(0) : gradient;
    return (S(1) - rate) * gradient;
  }
};

}  // namespace cuda
}  // namespace customlstm
