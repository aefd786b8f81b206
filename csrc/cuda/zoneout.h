// Zoneout (Krueger et al. 2016): a state is mixed with what it was. A mask selects rather than multiplies, so that a NaN
// or infinity goes no further than the side it is on.
#pragma once

#include "block.h"

namespace customlstm {
namespace cuda {

CUSTOMLSTM_DEVICE bool is_on(const Zoneout& z) { return z.mask != nullptr || z.rate > 0; }

// The share of the old state at position `at` of `count` masks.
template <class S>
CUSTOMLSTM_DEVICE S kept_share(const Zoneout& z, int64_t count, int64_t at) {
  if (!z.mask) return S(z.rate);
  return device::Global<const uint8_t>(z.mask, count, "zoneout mask").read(at) ? S(1) : S(0);
}

// `share` of a, the rest of b; all of one is none of the other.
template <class S>
CUSTOMLSTM_DEVICE S mix(S share, S a, S b) {
  if (share == S(0)) return b;
  if (share == S(1)) return a;
  return share * a + (S(1) - share) * b;
}
template <class S>
CUSTOMLSTM_DEVICE S part(S share, S x) {
  return share == S(0) ? S(0) : share * x;
}

}  // namespace cuda
}  // namespace customlstm
