// Elementary functions on one vector. Errors were measured over all floats in the ranges that matter and over
// 10^7 random doubles; tests/kernels/test_accuracy.py holds the bounds. NaN goes through; infinities give the limit.

template <class S>
struct MathConstants;
template <>
struct MathConstants<float> {
  static constexpr float kMagic = 12582912.0f;            // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 8, kLogTerms = 8;
  static constexpr float kLargest = 3.40282347e+38f;
  static constexpr float kRange = 87.0f;                  // exp() of more leaves the normal numbers
  static constexpr float kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;
};
template <>
struct MathConstants<double> {
  static constexpr double kMagic = 6755399441055744.0;    // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 14, kLogTerms = 18;
  static constexpr double kLargest = 1.7976931348623157e+308;
  static constexpr double kRange = 708.0;
  static constexpr double kLn2High = 0.69314718036912382, kLn2Low = 1.9082149292705877e-10;
};

constexpr double kInverseFactorial[15] = {
    1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
    1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0, 1.0 / 87178291200.0};

// x = k ln 2 + r, |r| <= ln(2) / 2: gives 2^k and exp(r) - 1 (Taylor: relative error below one unit in the last
// place). Keeping exp(r) - 1 apart is what makes expm1, and with it tanh, accurate near zero.
template <class S>
CUSTOMLSTM_INLINE void exp_parts(Vec<S> x, Vec<S>& scale, Vec<S>& expm1_r) {
  using C = MathConstants<S>;
  using V = Vec<S>;
  typedef typename V::Mask M;
  x = select_gt(x, V::broadcast(C::kRange), V::broadcast(C::kRange), x);
  x = select_gt(V::broadcast(-C::kRange), x, V::broadcast(-C::kRange), x);
  const V magic = V::broadcast(C::kMagic);
  const V shifted = fma(x, V::broadcast(S(1.4426950408889634074)), magic);
  const V k = shifted - magic;
  // The integer k is read off the low bits: no conversion instruction exists for doubles before AVX-512.
  const M bits = ((M)shifted.v - (M)magic.v + C::kBias) << C::kMantissa;
  scale.v = (typename V::Native)bits;
  const V r = fma(k, V::broadcast(-C::kLn2Low), fma(k, V::broadcast(-C::kLn2High), x));
  V p = V::broadcast(S(kInverseFactorial[C::kTerms - 1]));
#pragma GCC unroll 16
  for (int n = C::kTerms - 2; n >= 1; --n) p = fma(p, r, V::broadcast(S(kInverseFactorial[n])));
  expm1_r = p * r;
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> exp(const Vec<S>& x) {
  Vec<S> scale, p;
  exp_parts(x, scale, p);
  return fma(scale, p, scale);
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> expm1(const Vec<S>& x) {
  Vec<S> scale, p;
  exp_parts(x, scale, p);
  return fma(scale, p, scale - Vec<S>::broadcast(S(1)));
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> sigmoid(const Vec<S>& x) {
  using V = Vec<S>;
  const V one = V::broadcast(S(1));
  // Exactly zero where exp() stops growing: the smallest normal number times an infinity would not be NaN.
  return select_gt(V::broadcast(-MathConstants<S>::kRange), x, V::broadcast(S(0)), one / (one + exp(-x)));
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> tanh(const Vec<S>& x) {
  const Vec<S> e = expm1(abs(x) * Vec<S>::broadcast(S(-2)));   // in (-1, 0]: no overflow, no cancellation
  return copysign(-e / (e + Vec<S>::broadcast(S(2))), x);
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
