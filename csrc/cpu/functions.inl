// What a cell that customlstm.jit has written may use beyond + - *, fma, sigmoid and tanh, on Pack, the value type of
// the CPU. For the whole range of the arguments, other than exp() and expm1() of math.inl: results overflow to infinity
// and underflow to zero through the subnormal numbers, NaN goes through, and outside of its domain a function is NaN.
// Errors: exp, expm1, log, log1p, rsqrt at most 2 units in the last place in float and double; the arithmetic, sqrt and
// what rounds to integers as IEEE 754 says; the rest is the C library's, lane by lane. tests/jit/test_functions.py
// measures them. Included after math.inl; for what may stand here see the head of vec.inl.

template <class S>
struct FunctionConstants;
template <>
struct FunctionConstants<float> {
  using Unsigned = uint32_t;
  static constexpr float kLowest = -104.0f, kHighest = 88.8f;   // exp() is 0 below and infinity above
  static constexpr float kSmallestNormal = 1.17549435e-38f;
  static constexpr float kFromSubnormal = 33554432.0f;          // 2^25
  static constexpr int kFromSubnormalExponent = 25;
  static constexpr Unsigned kOne = 0x3f800000, kRootHalf = 0x3f3504f3, kMantissaBits = 0x007fffff;
  static constexpr Unsigned kTwoToMantissa = 0x4b000000;        // 2^23, whose low bits are a place for an integer
  static constexpr float kTwoToMantissaValue = 8388608.0f;
};
template <>
struct FunctionConstants<double> {
  using Unsigned = uint64_t;
  static constexpr double kLowest = -746.0, kHighest = 709.79;
  static constexpr double kSmallestNormal = 2.2250738585072014e-308;
  static constexpr double kFromSubnormal = 18014398509481984.0;   // 2^54
  static constexpr int kFromSubnormalExponent = 54;
  static constexpr Unsigned kOne = 0x3ff0000000000000, kRootHalf = 0x3fe6a09e667f3bcd;
  static constexpr Unsigned kMantissaBits = 0x000fffffffffffff;
  static constexpr Unsigned kTwoToMantissa = 0x4330000000000000;
  static constexpr double kTwoToMantissaValue = 4503599627370496.0;
};

// clang-format off
template <class S>
CUSTOMLSTM_INLINE Vec<S> select_eq(const Vec<S>& a, const Vec<S>& b, const Vec<S>& x, const Vec<S>& y) {
  return {a.v == b.v ? x.v : y.v};
}
// NaN where either is, as torch.maximum has it.
template <class S>
CUSTOMLSTM_INLINE Vec<S> maximum(const Vec<S>& a, const Vec<S>& b) {
  return select_eq(a, a, select_gt(a, b, a, b), a);
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> minimum(const Vec<S>& a, const Vec<S>& b) {
  return select_eq(a, a, select_gt(b, a, a, b), a);
}
template <class S> CUSTOMLSTM_INLINE Vec<S> reciprocal(const Vec<S>& x) { return Vec<S>::broadcast(S(1)) / x; }
// clang-format on

#if CUSTOMLSTM_HAS_FMA && CUSTOMLSTM_VECTOR_BYTES == 64
CUSTOMLSTM_INLINE Vec<float> sqrt(const Vec<float>& x) {
  return {(Vec<float>::Native)_mm512_maskz_sqrt_ps(kAllLanes, (__m512)x.v)};
}
CUSTOMLSTM_INLINE Vec<double> sqrt(const Vec<double>& x) {
  return {(Vec<double>::Native)_mm512_maskz_sqrt_pd(__mmask8(kAllLanes), (__m512d)x.v)};
}
#elif CUSTOMLSTM_HAS_FMA && CUSTOMLSTM_VECTOR_BYTES == 32
CUSTOMLSTM_INLINE Vec<float> sqrt(const Vec<float>& x) { return {(Vec<float>::Native)_mm256_sqrt_ps((__m256)x.v)}; }
CUSTOMLSTM_INLINE Vec<double> sqrt(const Vec<double>& x) { return {(Vec<double>::Native)_mm256_sqrt_pd((__m256d)x.v)}; }
#else
CUSTOMLSTM_INLINE float sqrt_of(float x) { return __builtin_sqrtf(x); }
CUSTOMLSTM_INLINE double sqrt_of(double x) { return __builtin_sqrt(x); }
template <class S>
CUSTOMLSTM_INLINE Vec<S> sqrt(const Vec<S>& x) {
  S lanes[Vec<S>::kLanes];
  x.store(lanes);
  for (int i = 0; i < Vec<S>::kLanes; ++i) lanes[i] = sqrt_of(lanes[i]);
  return Vec<S>::load(lanes);
}
#endif

template <class S>
CUSTOMLSTM_INLINE Vec<S> rsqrt(const Vec<S>& x) {
  return reciprocal(sqrt(x));
}

// 2^k for an integer k among the exponents of normal numbers.
template <class S>
CUSTOMLSTM_INLINE Vec<S> power_of_two(const Vec<S>& k) {
  using C = MathConstants<S>;
  typedef typename Vec<S>::Mask M;
  const M bits = (M)(k + Vec<S>::broadcast(C::kMagic)).v << C::kMantissa;
  return {(typename Vec<S>::Native)(bits + (typename Vec<S>::Int(C::kBias) << C::kMantissa))};
}

// x = k ln 2 + r for x between kLowest and kHighest: k and expm1(r). See exp_parts(), whose 2^k has no room for them.
template <class S>
CUSTOMLSTM_INLINE void exp_parts_of_all(const Vec<S>& x, Vec<S>& k, Vec<S>& expm1_r) {
  using C = MathConstants<S>;
  using V = Vec<S>;
  const V magic = V::broadcast(C::kMagic);
  k = fma(x, V::broadcast(S(1.4426950408889634074)), magic) - magic;
  const V r = fma(k, V::broadcast(-C::kLn2Low), fma(k, V::broadcast(-C::kLn2High), x));
  expm1_r = fma(expm1_polynomial(r) * r, r, r);
}

// The scale in two factors, of which both are normal where the result is not.
template <class S>
CUSTOMLSTM_INLINE Vec<S> exp_of_all(const Vec<S>& x) {
  using C = FunctionConstants<S>;
  using V = Vec<S>;
  const V magic = V::broadcast(MathConstants<S>::kMagic);
  V k, p;
  exp_parts_of_all(at_least(V::broadcast(C::kLowest), at_most(V::broadcast(C::kHighest), x)), k, p);
  const V half = fma(k, V::broadcast(S(0.5)), magic) - magic;
  const V scale = power_of_two(half);
  return fma(scale, p, scale) * power_of_two(k - half);
}

// Half of it first: 2^k itself may be infinite where the result is not.
template <class S>
CUSTOMLSTM_INLINE Vec<S> expm1_of_all(const Vec<S>& x) {
  using C = FunctionConstants<S>;
  using V = Vec<S>;
  V k, p;
  exp_parts_of_all(at_least(V::broadcast(S(-50)), at_most(V::broadcast(C::kHighest), x)), k, p);
  const V scale = power_of_two(k - V::broadcast(S(1)));
  const V y = fma(scale, p, scale - V::broadcast(S(0.5))) * V::broadcast(S(2));
  return select_eq(x, V::broadcast(S(0)), x, y);   // the sign of zero
}

// log(1 + f) - f + f^2 / 2 over s = f / (2 + f), from even powers of s (FreeBSD msun's e_log.c and e_logf.c). Its error
// is below 2^-34 in float and 2^-58 in double.
CUSTOMLSTM_INLINE Vec<float> log_polynomial(const Vec<float>& z) {
  using V = Vec<float>;
  const V p = fma(fma(V::broadcast(0.24279078841f), z, V::broadcast(0.28498786688f)), z, V::broadcast(0.40000972152f));
  return fma(p, z, V::broadcast(0.66666662693f)) * z;
}
constexpr double kLogDouble[] = {6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
                                 2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
                                 1.479819860511658591e-01};
CUSTOMLSTM_INLINE Vec<double> log_polynomial(const Vec<double>& z) {
  Vec<double> p = Vec<double>::broadcast(kLogDouble[6]);
#pragma GCC unroll 8
  for (int n = 5; n >= 0; --n) p = fma(p, z, Vec<double>::broadcast(kLogDouble[n]));
  return p * z;
}

// x = 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), for positive normal x.
template <class S>
CUSTOMLSTM_INLINE void log_parts(const Vec<S>& x, Vec<S>& k, Vec<S>& f) {
  using C = FunctionConstants<S>;
  using V = Vec<S>;
  using Unsigned = typename C::Unsigned;
  typedef Unsigned U __attribute__((vector_size(CUSTOMLSTM_VECTOR_BYTES)));
  constexpr int kMantissa = MathConstants<S>::kMantissa;
  const U bits = (U)x.v + Unsigned(C::kOne - C::kRootHalf);
  const U exponent = (bits >> kMantissa) | C::kTwoToMantissa;
  const U mantissa = (bits & C::kMantissaBits) + C::kRootHalf;
  k.v = (typename V::Native)exponent;
  k = k - V::broadcast(C::kTwoToMantissaValue + S(MathConstants<S>::kBias));
  f.v = (typename V::Native)mantissa;
  f = f - V::broadcast(S(1));
}

// k ln 2 + log(1 + f) + correction
template <class S>
CUSTOMLSTM_INLINE Vec<S> log_sum(const Vec<S>& k, const Vec<S>& f, const Vec<S>& correction) {
  using C = MathConstants<S>;
  using V = Vec<S>;
  const V s = f / (f + V::broadcast(S(2)));
  const V half_square = f * f * V::broadcast(S(0.5));
  const V tail = fma(s, half_square + log_polynomial(s * s), fma(k, V::broadcast(C::kLn2Low), correction));
  return fma(k, V::broadcast(C::kLn2High), f - (half_square - tail));
}

// y where x is a positive finite number, else the limit, or NaN.
template <class S>
CUSTOMLSTM_INLINE Vec<S> within_domain_of_log(const Vec<S>& x, const Vec<S>& y) {
  using V = Vec<S>;
  const V zero = V::broadcast(S(0)), infinity = V::broadcast(S(__builtin_inf()));
  const V limit = select_eq(x, zero, -infinity, select_eq(x, infinity, x, V::broadcast(S(__builtin_nan("")))));
  return select_gt(x, zero, select_gt(infinity, x, y, limit), limit);
}

template <class S>
CUSTOMLSTM_INLINE Vec<S> log_of_all(const Vec<S>& x) {
  using C = FunctionConstants<S>;
  using V = Vec<S>;
  const V smallest = V::broadcast(C::kSmallestNormal), zero = V::broadcast(S(0));
  V k, f;
  log_parts(select_gt(smallest, x, x * V::broadcast(C::kFromSubnormal), x), k, f);
  k = k - select_gt(smallest, x, V::broadcast(S(C::kFromSubnormalExponent)), zero);
  return within_domain_of_log(x, log_sum(k, f, zero));
}

// log(u) for u = 1 + x as it is rounded, and what the rounding took, over u. Near zero u has no part in it.
template <class S>
CUSTOMLSTM_INLINE Vec<S> log1p_of_all(const Vec<S>& x) {
  using V = Vec<S>;
  const V one = V::broadcast(S(1)), zero = V::broadcast(S(0));
  const V u = one + x;
  V k, f;
  log_parts(u, k, f);
  const V lost = select_gt(x, one, one - (u - x), x - (u - one)) / u;
  f = select_eq(k, zero, x, f);
  const V y = log_sum(k, f, select_eq(k, zero, zero, lost));
  return select_eq(x, zero, x, within_domain_of_log(u, y));   // the sign of zero
}

#define CUSTOMLSTM_PACK_UNARY(NAME, FUNCTION)                                  \
  template <class S, int R>                                                    \
  CUSTOMLSTM_INLINE Pack<S, R> NAME(const Pack<S, R>& x) {                     \
    Pack<S, R> y;                                                              \
    for (int r = 0; r < R; ++r) y.row[r] = FUNCTION(x.row[r]);                 \
    return y;                                                                  \
  }
#define CUSTOMLSTM_PACK_BINARY(NAME, FUNCTION)                                 \
  template <class S, int R>                                                    \
  CUSTOMLSTM_INLINE Pack<S, R> NAME(const Pack<S, R>& a, const Pack<S, R>& b) { \
    Pack<S, R> y;                                                              \
    for (int r = 0; r < R; ++r) y.row[r] = FUNCTION(a.row[r], b.row[r]);       \
    return y;                                                                  \
  }
#define CUSTOMLSTM_PACK_SELECT(NAME)                                                                             \
  template <class S, int R>                                                                                      \
  CUSTOMLSTM_INLINE Pack<S, R> NAME(const Pack<S, R>& a, const Pack<S, R>& b, const Pack<S, R>& x,               \
                                    const Pack<S, R>& y) {                                                       \
    Pack<S, R> z;                                                                                                \
    for (int r = 0; r < R; ++r) z.row[r] = NAME(a.row[r], b.row[r], x.row[r], y.row[r]);                         \
    return z;                                                                                                    \
  }
// One lane after the other, in one copy that is called: inlined they would be most of a cell's code.
#define CUSTOMLSTM_LANES_UNARY(NAME)                                                                  \
  CUSTOMLSTM_INLINE float NAME##_lane(float x) { return __builtin_##NAME##f(x); }                     \
  CUSTOMLSTM_INLINE double NAME##_lane(double x) { return __builtin_##NAME(x); }                      \
  template <class S>                                                                                  \
  CUSTOMLSTM_NOINLINE void NAME##_lanes(S* x) {                                                       \
    for (int i = 0; i < Vec<S>::kLanes; ++i) x[i] = NAME##_lane(x[i]);                                \
  }                                                                                                   \
  template <class S>                                                                                  \
  CUSTOMLSTM_INLINE Vec<S> NAME(const Vec<S>& x) {                                                    \
    S lanes[Vec<S>::kLanes];                                                                          \
    x.store(lanes);                                                                                   \
    NAME##_lanes(lanes);                                                                              \
    return Vec<S>::load(lanes);                                                                       \
  }                                                                                                   \
  CUSTOMLSTM_PACK_UNARY(NAME, NAME)
#define CUSTOMLSTM_LANES_BINARY(NAME)                                                                 \
  CUSTOMLSTM_INLINE float NAME##_lane(float x, float y) { return __builtin_##NAME##f(x, y); }         \
  CUSTOMLSTM_INLINE double NAME##_lane(double x, double y) { return __builtin_##NAME(x, y); }         \
  template <class S>                                                                                  \
  CUSTOMLSTM_NOINLINE void NAME##_lanes(S* x, const S* y) {                                           \
    for (int i = 0; i < Vec<S>::kLanes; ++i) x[i] = NAME##_lane(x[i], y[i]);                          \
  }                                                                                                   \
  template <class S>                                                                                  \
  CUSTOMLSTM_INLINE Vec<S> NAME(const Vec<S>& x, const Vec<S>& y) {                                   \
    S lanes[Vec<S>::kLanes], others[Vec<S>::kLanes];                                                  \
    x.store(lanes);                                                                                   \
    y.store(others);                                                                                  \
    NAME##_lanes(lanes, others);                                                                      \
    return Vec<S>::load(lanes);                                                                       \
  }                                                                                                   \
  CUSTOMLSTM_PACK_BINARY(NAME, NAME)

CUSTOMLSTM_PACK_UNARY(operator-, -)
CUSTOMLSTM_PACK_UNARY(abs, abs)
CUSTOMLSTM_PACK_UNARY(reciprocal, reciprocal)
CUSTOMLSTM_PACK_UNARY(sqrt, sqrt)
CUSTOMLSTM_PACK_UNARY(rsqrt, rsqrt)
CUSTOMLSTM_PACK_UNARY(exp, exp_of_all)
CUSTOMLSTM_PACK_UNARY(expm1, expm1_of_all)
CUSTOMLSTM_PACK_UNARY(log, log_of_all)
CUSTOMLSTM_PACK_UNARY(log1p, log1p_of_all)
CUSTOMLSTM_PACK_BINARY(operator/, operator/)
CUSTOMLSTM_PACK_BINARY(maximum, maximum)
CUSTOMLSTM_PACK_BINARY(minimum, minimum)
CUSTOMLSTM_PACK_SELECT(select_gt)
CUSTOMLSTM_PACK_SELECT(select_ge)
CUSTOMLSTM_PACK_SELECT(select_eq)

CUSTOMLSTM_LANES_UNARY(floor)
CUSTOMLSTM_LANES_UNARY(ceil)
CUSTOMLSTM_LANES_UNARY(trunc)
CUSTOMLSTM_LANES_UNARY(nearbyint)
CUSTOMLSTM_LANES_UNARY(exp2)
CUSTOMLSTM_LANES_UNARY(log2)
CUSTOMLSTM_LANES_UNARY(log10)
CUSTOMLSTM_LANES_UNARY(sin)
CUSTOMLSTM_LANES_UNARY(cos)
CUSTOMLSTM_LANES_UNARY(tan)
CUSTOMLSTM_LANES_UNARY(asin)
CUSTOMLSTM_LANES_UNARY(acos)
CUSTOMLSTM_LANES_UNARY(atan)
CUSTOMLSTM_LANES_UNARY(sinh)
CUSTOMLSTM_LANES_UNARY(cosh)
CUSTOMLSTM_LANES_UNARY(asinh)
CUSTOMLSTM_LANES_UNARY(acosh)
CUSTOMLSTM_LANES_UNARY(atanh)
CUSTOMLSTM_LANES_UNARY(erf)
CUSTOMLSTM_LANES_UNARY(erfc)
CUSTOMLSTM_LANES_BINARY(pow)
CUSTOMLSTM_LANES_BINARY(atan2)
CUSTOMLSTM_LANES_BINARY(fmod)

// Half to even, as torch.round: the rounding mode that every process starts with.
CUSTOMLSTM_PACK_UNARY(round, nearbyint)

#undef CUSTOMLSTM_PACK_UNARY
#undef CUSTOMLSTM_PACK_BINARY
#undef CUSTOMLSTM_PACK_SELECT
#undef CUSTOMLSTM_LANES_UNARY
#undef CUSTOMLSTM_LANES_BINARY
