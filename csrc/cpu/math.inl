// Elementary functions on one vector. Errors were measured over all floats in the ranges that matter and over
// 10^7 random doubles; tests/kernels/test_accuracy.py holds the bounds. NaN goes through; infinities give the limit.

template <class S>
struct MathConstants;
template <>
struct MathConstants<float> {
  static constexpr float kMagic = 12582912.0f;            // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr int kMantissa = 23, kBias = 127, kLogTerms = 8;
  static constexpr float kLargest = 3.40282347e+38f;
  static constexpr float kRange = 87.0f;                  // exp() of more leaves the normal numbers
  static constexpr float kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;
};
template <>
struct MathConstants<double> {
  static constexpr double kMagic = 6755399441055744.0;    // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023, kLogTerms = 18;
  static constexpr double kLargest = 1.7976931348623157e+308;
  static constexpr double kRange = 708.0;
  static constexpr double kLn2High = 0.69314718036912382, kLn2Low = 1.9082149292705877e-10;
};

// expm1(r) = r (1 + r (c0 + r (c1 + ...))) for |r| <= ln(2) / 2, with a relative error below a quarter of a unit in
// the last place: float the minimax polynomial, double the Taylor series.
constexpr float kExpm1Float[] = {0.5f, 0.16666543f, 0.041666284f, 0.0083665717f, 0.0013946424f};
constexpr double kExpm1Double[] = {1.0 / 2,           1.0 / 6,           1.0 / 24,           1.0 / 120,
                                   1.0 / 720,         1.0 / 5040,        1.0 / 40320,        1.0 / 362880,
                                   1.0 / 3628800,     1.0 / 39916800,    1.0 / 479001600,    1.0 / 6227020800.0};
CUSTOMLSTM_INLINE Vec<float> expm1_polynomial(const Vec<float>& r) {
  Vec<float> p = Vec<float>::broadcast(kExpm1Float[4]);
#pragma GCC unroll 16
  for (int n = 3; n >= 0; --n) p = fma(p, r, Vec<float>::broadcast(kExpm1Float[n]));
  return p;
}
CUSTOMLSTM_INLINE Vec<double> expm1_polynomial(const Vec<double>& r) {
  Vec<double> p = Vec<double>::broadcast(kExpm1Double[11]);
#pragma GCC unroll 16
  for (int n = 10; n >= 0; --n) p = fma(p, r, Vec<double>::broadcast(kExpm1Double[n]));
  return p;
}

// x = k ln 2 + r, |r| <= ln(2) / 2: gives 2^k and expm1(r). Keeping expm1(r) apart is what makes expm1, and with it
// tanh, accurate near zero. The argument must be within +-kRange.
template <class S>
CUSTOMLSTM_INLINE void exp_parts(const Vec<S>& x, Vec<S>& scale, Vec<S>& expm1_r) {
  using C = MathConstants<S>;
  using V = Vec<S>;
  typedef typename V::Mask M;
  const V magic = V::broadcast(C::kMagic);
  const V shifted = fma(x, V::broadcast(S(1.4426950408889634074)), magic);
  const V k = shifted - magic;
  // The integer k is in the low bits, and the magic number has zeros where the shift leaves something of it: no
  // conversion instruction exists for doubles before AVX-512.
  const M bits = ((M)shifted.v << C::kMantissa) + (typename V::Int(C::kBias) << C::kMantissa);
  scale.v = (typename V::Native)bits;
  const V r = fma(k, V::broadcast(-C::kLn2Low), fma(k, V::broadcast(-C::kLn2High), x));
  expm1_r = fma(expm1_polynomial(r) * r, r, r);
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> within_range(const Vec<S>& x) {
  using C = MathConstants<S>;
  return at_least(Vec<S>::broadcast(-C::kRange), at_most(Vec<S>::broadcast(C::kRange), x));
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> exp(const Vec<S>& x) {
  Vec<S> scale, p;
  exp_parts(within_range(x), scale, p);
  return fma(scale, p, scale);
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> expm1(const Vec<S>& x) {
  Vec<S> scale, p;
  exp_parts(within_range(x), scale, p);
  return fma(scale, p, scale - Vec<S>::broadcast(S(1)));
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> sigmoid(const Vec<S>& x) {
  using V = Vec<S>;
  const V one = V::broadcast(S(1));
  // Exactly zero where exp() stops growing: the smallest normal number times an infinity would not be NaN.
  return select_gt(V::broadcast(-MathConstants<S>::kRange), x, V::broadcast(S(0)), divide(one, one + exp(-x)));
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> tanh(const Vec<S>& x) {
  using V = Vec<S>;
  V scale, p;
  exp_parts(at_least(V::broadcast(-MathConstants<S>::kRange), abs(x) * V::broadcast(S(-2))), scale, p);
  const V e = fma(scale, p, scale - V::broadcast(S(1)));   // in (-1, 0]: no overflow, no cancellation
  return copysign(divide(e, e + V::broadcast(S(2))), x);
}

// log(1 + u) for u in [0, 1], as 2 artanh(u / (2 + u)): the argument is at most 1/3, so the series ends soon.
template <class S>
CUSTOMLSTM_INLINE Vec<S> log1p_unit(const Vec<S>& u) {
  using V = Vec<S>;
  const V s = u / (u + V::broadcast(S(2)));
  const V s2 = s * s;
  V p = V::broadcast(S(1.0 / (2 * MathConstants<S>::kLogTerms - 1)));
#pragma GCC unroll 20
  for (int n = MathConstants<S>::kLogTerms - 2; n >= 0; --n) p = fma(p, s2, V::broadcast(S(1.0 / (2 * n + 1))));
  return s * p * V::broadcast(S(2));
}

// The plain cell works on packs of rows, too.
template <class S, int R>
CUSTOMLSTM_INLINE Pack<S, R> sigmoid(const Pack<S, R>& x) {
  Pack<S, R> y;
  for (int r = 0; r < R; ++r) y.row[r] = sigmoid(x.row[r]);
  return y;
}
template <class S, int R>
CUSTOMLSTM_INLINE Pack<S, R> tanh(const Pack<S, R>& x) {
  Pack<S, R> y;
  for (int r = 0; r < R; ++r) y.row[r] = tanh(x.row[r]);
  return y;
}
