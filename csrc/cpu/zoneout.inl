// Zoneout (Krueger et al. 2016): a state is mixed with what it was. A mask selects rather than multiplies, so that a
// NaN or infinity goes no further than the side it is on.

CUSTOMLSTM_INLINE bool is_on(const Zoneout& z) { return z.mask || z.rate > 0; }

// Whether anything comes between what the cell computes and the next step. A call without it pays nothing for it.
CUSTOMLSTM_INLINE bool changes_states(const Geometry& g) {
  return g.recurrent_mask || is_on(g.zoneout_h) || is_on(g.zoneout_c);
}

// `lanes` flags as 0 and 1; the other lanes are 0.
template <class S>
CUSTOMLSTM_INLINE Vec<S> load_flags(const uint8_t* p, int lanes) {
  constexpr int kLanes = Vec<S>::kLanes;
  alignas(64) S flags[kLanes];
  if (lanes == kLanes) {
    for (int k = 0; k < kLanes; ++k) flags[k] = S(p[k]);
  } else {
    for (int k = 0; k < kLanes; ++k) flags[k] = k < lanes ? S(p[k]) : S(0);
  }
  return Vec<S>::load(flags);
}

// The new state of `lanes` units from position `at` of the masks on.
template <class S>
CUSTOMLSTM_INLINE Vec<S> mix(const Zoneout& z, const Vec<S>& before, const Vec<S>& computed, int64_t at, int lanes) {
  if (z.mask) return select_gt(load_flags<S>(z.mask + at, lanes), Vec<S>::broadcast(S(0)), before, computed);
  return Vec<S>::broadcast(S(z.rate)) * before + Vec<S>::broadcast(S(1) - S(z.rate)) * computed;
}

// Of the gradient of the new state, what goes to the old one (`before`) and what to the one that was computed.
template <class S>
CUSTOMLSTM_INLINE void split(const Zoneout& z, const Vec<S>& gradient, int64_t at, int lanes, Vec<S>& before,
                             Vec<S>& computed) {
  const Vec<S> zero = Vec<S>::broadcast(S(0));
  if (z.mask) {
    const Vec<S> keep = load_flags<S>(z.mask + at, lanes);
    before = select_gt(keep, zero, gradient, zero);
    computed = select_gt(keep, zero, zero, gradient);
  } else {
    before = Vec<S>::broadcast(S(z.rate)) * gradient;
    computed = Vec<S>::broadcast(S(1) - S(z.rate)) * gradient;
  }
}
