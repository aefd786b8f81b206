// Layer normalisation (Ba et al. 2016): what a row's statistics are, and the gains and biases of a call. A row is one
// product of one sequence at one step, with the units of its gates as parts, or its cell state.

// NormalisedCell says true. For the others nothing of this is compiled, and their calls pay nothing for it.
template <class Cell>
constexpr bool kIsNormalised = false;

constexpr double kNormEpsilon = 1e-5;   // of torch.nn.LayerNorm

// x is normalised to (x - mean) * scale.
template <class S>
struct Norm {
  S mean, scale;

  template <class V>
  CUSTOMLSTM_INLINE V apply(const V& x) const {
    return (x - V::broadcast(mean)) * V::broadcast(scale);
  }
};

CUSTOMLSTM_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
CUSTOMLSTM_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class S>
CUSTOMLSTM_INLINE S sum_of_lanes(const Vec<S>& x) {
  constexpr int kLanes = Vec<S>::kLanes;
  alignas(64) S lanes[kLanes];
  x.store(lanes);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int k = 0; k < width; ++k) lanes[k] += lanes[k + width];
  return lanes[0];
}

// Of a row of G parts of n values, a stride apart. In two passes, since a mean that is large beside the deviation would
// leave nothing of a difference of sums of squares. One thread goes over a whole row in an order of its own, so that
// neither the number of threads nor the rows beside it change a bit.
template <int G, class S>
CUSTOMLSTM_NOINLINE Norm<S> norm_of(const S* row, int64_t stride, int64_t n) {
  constexpr int kLanes = Vec<S>::kLanes;
  const Vec<S> zero = Vec<S>::broadcast(S(0));
  const int64_t whole = n - n % kLanes;
  const int rest = int(n - whole);
  const S count = S(G) * S(n);
  Vec<S> sums[G];
  for (int k = 0; k < G; ++k) sums[k] = rest > 0 ? load_as<S>(row + k * stride + whole, rest) : zero;
  for (int64_t unit = 0; unit < whole; unit += kLanes)
    for (int k = 0; k < G; ++k) sums[k] = sums[k] + Vec<S>::load(row + k * stride + unit);
  for (int k = 1; k < G; ++k) sums[0] = sums[0] + sums[k];
  const S mean = sum_of_lanes(sums[0]) / count;
  const Vec<S> means = Vec<S>::broadcast(mean);
  for (int k = 0; k < G; ++k) {
    const Vec<S> d = rest > 0 ? keep_first(load_as<S>(row + k * stride + whole, rest) - means, rest) : zero;
    sums[k] = d * d;
  }
  for (int64_t unit = 0; unit < whole; unit += kLanes) {
    for (int k = 0; k < G; ++k) {
      const Vec<S> d = Vec<S>::load(row + k * stride + unit) - means;
      sums[k] = fma(d, d, sums[k]);
    }
  }
  for (int k = 1; k < G; ++k) sums[0] = sums[0] + sums[k];
  return {mean, S(1) / square_root(sum_of_lanes(sums[0]) / count + S(kNormEpsilon))};
}

// One line more than the units need, because the parts of a row a power of two apart would lie in the same few sets of
// the cache.
template <class S>
CUSTOMLSTM_INLINE int64_t norm_stride(const Geometry& g) {
  return padded<S>(g.hidden_size) + Vec<S>::kLanes;
}

// Gains and biases of one direction in the accumulation type, a part for each gate; zero beyond H. A product that is
// not normalised has the gain 1, since its Norm is {0, 1}.
template <class S>
struct NormParameters {
  S* gain[kNormPlaces];   // [gates][stride], of the cell state [stride]
  S* bias;                // [gates][stride], all that is added to the products: b_ih and b_hh, too
  S* cell_bias;           // [stride]

  CUSTOMLSTM_INLINE void layout(const Geometry& g, Arena& arena) {
    const int64_t stride = norm_stride<S>(g);
    gain[kNormInput] = arena.take<S>(g.gates * stride);
    gain[kNormRecurrent] = arena.take<S>(g.gates * stride);
    gain[kNormCell] = arena.take<S>(stride);
    bias = arena.take<S>(g.gates * stride);
    cell_bias = arena.take<S>(stride);
  }

  template <class T>
  void fill(const Geometry& g, const DirectionWeights& from) const {
    set(g, g.gates, S(0), bias);
    set(g, 1, S(0), cell_bias);
    add<T>(g, from.b_ih, g.gates, bias);
    add<T>(g, from.b_hh, g.gates, bias);
    for (int place = 0; place < kNormPlaces; ++place) {
      const int64_t parts = place == kNormCell ? 1 : g.gates;
      set(g, parts, g.norms[place] ? S(0) : S(1), gain[place]);
      add<T>(g, from.norms[place].gain, parts, gain[place]);
      add<T>(g, from.norms[place].bias, parts, place == kNormCell ? cell_bias : bias);
    }
  }

 private:
  static void set(const Geometry& g, int64_t parts, S value, S* to) {
    const int64_t stride = norm_stride<S>(g);
    for (int64_t part = 0; part < parts; ++part, to += stride) {
      for (int64_t unit = 0; unit < g.hidden_size; ++unit) to[unit] = value;
      for (int64_t unit = g.hidden_size; unit < stride; ++unit) to[unit] = S(0);
    }
  }
  // to += from, [parts, H] of the storage type, or nothing.
  template <class T>
  static void add(const Geometry& g, const void* from, int64_t parts, S* to) {
    if (!from) return;
    const T* values = static_cast<const T*>(from);
    for (int64_t part = 0; part < parts; ++part, to += norm_stride<S>(g), values += g.hidden_size)
      for (int64_t unit = 0; unit < g.hidden_size; ++unit) to[unit] += S(to_float(values[unit]));
  }
};

// Whether forward keeps what the cell saves. Of both products, which it keeps as they were, that is found again; memory
// costs more than the arithmetic.
CUSTOMLSTM_INLINE bool keeps_gates(const Geometry& g) { return !(g.norms[kNormInput] && g.norms[kNormRecurrent]); }
// Values a unit that forward keeps for backward, without what zoneout adds: those of the cell, and each product that is
// normalised.
template <class Cell>
CUSTOMLSTM_INLINE int64_t kept_values(const Geometry& g) {
  const int64_t products = int64_t(g.norms[kNormInput]) + int64_t(g.norms[kNormRecurrent]);
  return (keeps_gates(g) ? Cell::kSaved : 0) + Cell::kGates * products;
}
// Where in them a product stands.
template <class Cell>
CUSTOMLSTM_INLINE int64_t kept_product(const Geometry& g, int place) {
  return (keeps_gates(g) ? Cell::kSaved : 0) + (place == kNormRecurrent && g.norms[kNormInput] ? Cell::kGates : 0);
}
