// One SIMD vector, and a pack of R of them, with the operations that cells and kernels need.
// Compiled once per instruction set, inside that set's namespace and below its #pragma target: no includes here,
// and nothing from the standard library, because an inline function of a shared header compiled here could be the
// copy that the linker keeps, and would then crash on an older CPU. For the same reason there are no lambdas.
// The including file defines CUSTOMLSTM_VECTOR_BYTES and CUSTOMLSTM_HAS_FMA.

template <class S>
struct IntOf;
template <>
struct IntOf<float> {
  using Int = int32_t;
};
template <>
struct IntOf<double> {
  using Int = int64_t;
};

template <class S>
struct Vec {
  using Scalar = S;
  using Int = typename IntOf<S>::Int;
  typedef S Native __attribute__((vector_size(CUSTOMLSTM_VECTOR_BYTES)));
  typedef Int Mask __attribute__((vector_size(CUSTOMLSTM_VECTOR_BYTES)));
  static constexpr int kLanes = CUSTOMLSTM_VECTOR_BYTES / sizeof(S);
  Native v;

  static CUSTOMLSTM_INLINE Vec broadcast(S x) { return {x - Native{}}; }
  static CUSTOMLSTM_INLINE Vec load(const S* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof(Native));
    return r;
  }
  CUSTOMLSTM_INLINE void store(S* p) const { __builtin_memcpy(p, &v, sizeof(Native)); }
};

// clang-format off
template <class S> CUSTOMLSTM_INLINE Vec<S> operator+(const Vec<S>& a, const Vec<S>& b) { return {a.v + b.v}; }
template <class S> CUSTOMLSTM_INLINE Vec<S> operator-(const Vec<S>& a, const Vec<S>& b) { return {a.v - b.v}; }
template <class S> CUSTOMLSTM_INLINE Vec<S> operator*(const Vec<S>& a, const Vec<S>& b) { return {a.v * b.v}; }
template <class S> CUSTOMLSTM_INLINE Vec<S> operator/(const Vec<S>& a, const Vec<S>& b) { return {a.v / b.v}; }
template <class S> CUSTOMLSTM_INLINE Vec<S> operator-(const Vec<S>& a) { return {-a.v}; }
// select_*(a, b, x, y): x where the comparison of a with b holds, else y (so: y where a or b is NaN).
template <class S>
CUSTOMLSTM_INLINE Vec<S> select_gt(const Vec<S>& a, const Vec<S>& b, const Vec<S>& x, const Vec<S>& y) {
  return {a.v > b.v ? x.v : y.v};
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> select_ge(const Vec<S>& a, const Vec<S>& b, const Vec<S>& x, const Vec<S>& y) {
  return {a.v >= b.v ? x.v : y.v};
}
// clang-format on

// One rounding everywhere or nowhere: explicit, because contraction left to the compiler may differ between two
// instantiations of the same loop, and then the batch size or the number of threads would change bits.
#if CUSTOMLSTM_HAS_FMA && CUSTOMLSTM_VECTOR_BYTES == 64
CUSTOMLSTM_INLINE Vec<float> fma(const Vec<float>& a, const Vec<float>& b, const Vec<float>& c) {
  return {(Vec<float>::Native)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v)};
}
CUSTOMLSTM_INLINE Vec<double> fma(const Vec<double>& a, const Vec<double>& b, const Vec<double>& c) {
  return {(Vec<double>::Native)_mm512_fmadd_pd((__m512d)a.v, (__m512d)b.v, (__m512d)c.v)};
}
#elif CUSTOMLSTM_HAS_FMA && CUSTOMLSTM_VECTOR_BYTES == 32
CUSTOMLSTM_INLINE Vec<float> fma(const Vec<float>& a, const Vec<float>& b, const Vec<float>& c) {
  return {(Vec<float>::Native)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v)};
}
CUSTOMLSTM_INLINE Vec<double> fma(const Vec<double>& a, const Vec<double>& b, const Vec<double>& c) {
  return {(Vec<double>::Native)_mm256_fmadd_pd((__m256d)a.v, (__m256d)b.v, (__m256d)c.v)};
}
#else
template <class S>
CUSTOMLSTM_INLINE Vec<S> fma(const Vec<S>& a, const Vec<S>& b, const Vec<S>& c) {
  return {a.v * b.v + c.v};
}
#endif

// The smaller or larger of a bound and x; a NaN in x goes through. The instructions return their second operand for a
// NaN, which GCC may not assume of a comparison and a selection.
template <class S>
CUSTOMLSTM_INLINE Vec<S> at_most(const Vec<S>& bound, const Vec<S>& x) {
  return select_gt(x, bound, bound, x);
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> at_least(const Vec<S>& bound, const Vec<S>& x) {
  return select_gt(bound, x, bound, x);
}
// a / b for b of size 1 to the largest exp().
template <class S>
CUSTOMLSTM_INLINE Vec<S> divide(const Vec<S>& a, const Vec<S>& b) {
  return a / b;
}
#if CUSTOMLSTM_HAS_FMA && CUSTOMLSTM_VECTOR_BYTES == 64
// With a mask of all lanes, because GCC 12 warns of its own header in the forms without one.
constexpr __mmask16 kAllLanes = 0xffff;
CUSTOMLSTM_INLINE Vec<float> at_most(const Vec<float>& bound, const Vec<float>& x) {
  return {(Vec<float>::Native)_mm512_maskz_min_ps(kAllLanes, (__m512)bound.v, (__m512)x.v)};
}
CUSTOMLSTM_INLINE Vec<float> at_least(const Vec<float>& bound, const Vec<float>& x) {
  return {(Vec<float>::Native)_mm512_maskz_max_ps(kAllLanes, (__m512)bound.v, (__m512)x.v)};
}
// Half of the time of a division: an estimate to 14 bits, and its remainder, which is exact, divided by estimate again.
CUSTOMLSTM_INLINE Vec<float> divide(const Vec<float>& a, const Vec<float>& b) {
  const Vec<float> y = {(Vec<float>::Native)_mm512_maskz_rcp14_ps(kAllLanes, (__m512)b.v)};
  const Vec<float> q = a * y;
  return fma(fma(-b, q, a), y, q);
}
#elif CUSTOMLSTM_HAS_FMA && CUSTOMLSTM_VECTOR_BYTES == 32
CUSTOMLSTM_INLINE Vec<float> at_most(const Vec<float>& bound, const Vec<float>& x) {
  return {(Vec<float>::Native)_mm256_min_ps((__m256)bound.v, (__m256)x.v)};
}
CUSTOMLSTM_INLINE Vec<float> at_least(const Vec<float>& bound, const Vec<float>& x) {
  return {(Vec<float>::Native)_mm256_max_ps((__m256)bound.v, (__m256)x.v)};
}
#endif

template <class S>
CUSTOMLSTM_INLINE Vec<S> abs(const Vec<S>& a) {
  typedef typename Vec<S>::Mask M;
  const M sign = (M)Vec<S>::broadcast(S(-0.0)).v;
  return {(typename Vec<S>::Native)((M)a.v & ~sign)};
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> copysign(const Vec<S>& magnitude, const Vec<S>& sign_of) {
  typedef typename Vec<S>::Mask M;
  const M sign = (M)Vec<S>::broadcast(S(-0.0)).v;
  return {(typename Vec<S>::Native)(((M)magnitude.v & ~sign) | ((M)sign_of.v & sign))};
}

// The halves of two vectors, lane by lane: {a0, b0, a1, b1, ...} of the lower or the upper ones.
#if defined(__GNUC__) && !defined(__clang__)
template <class S, int N>
struct Interleave;
#define CUSTOMLSTM_LOW_2 0, 2
#define CUSTOMLSTM_HIGH_2 1, 3
#define CUSTOMLSTM_LOW_4 0, 4, 1, 5
#define CUSTOMLSTM_HIGH_4 2, 6, 3, 7
#define CUSTOMLSTM_LOW_8 0, 8, 1, 9, 2, 10, 3, 11
#define CUSTOMLSTM_HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
#define CUSTOMLSTM_LOW_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define CUSTOMLSTM_HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
// __builtin_shuffle wants its mask as a constant where the instruction set has no shuffle by a variable one.
#define CUSTOMLSTM_INTERLEAVE(N)                                                                                \
  template <class S>                                                                                            \
  struct Interleave<S, N> {                                                                                     \
    typedef typename Vec<S>::Mask M;                                                                            \
    static CUSTOMLSTM_INLINE Vec<S> low(const Vec<S>& a, const Vec<S>& b) {                                     \
      return {__builtin_shuffle(a.v, b.v, (M){CUSTOMLSTM_LOW_##N})};                                            \
    }                                                                                                           \
    static CUSTOMLSTM_INLINE Vec<S> high(const Vec<S>& a, const Vec<S>& b) {                                    \
      return {__builtin_shuffle(a.v, b.v, (M){CUSTOMLSTM_HIGH_##N})};                                           \
    }                                                                                                           \
  };
CUSTOMLSTM_INTERLEAVE(2)
CUSTOMLSTM_INTERLEAVE(4)
CUSTOMLSTM_INTERLEAVE(8)
CUSTOMLSTM_INTERLEAVE(16)
#undef CUSTOMLSTM_INTERLEAVE

template <class S>
CUSTOMLSTM_INLINE Vec<S> interleave_low(const Vec<S>& a, const Vec<S>& b) {
  return Interleave<S, Vec<S>::kLanes>::low(a, b);
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> interleave_high(const Vec<S>& a, const Vec<S>& b) {
  return Interleave<S, Vec<S>::kLanes>::high(a, b);
}
#else
template <class S>
CUSTOMLSTM_INLINE Vec<S> interleave(const Vec<S>& a, const Vec<S>& b, int first) {
  S from[2][Vec<S>::kLanes], to[Vec<S>::kLanes];
  a.store(from[0]);
  b.store(from[1]);
  for (int i = 0; i < Vec<S>::kLanes; ++i) to[i] = from[i % 2][first + i / 2];
  return Vec<S>::load(to);
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> interleave_low(const Vec<S>& a, const Vec<S>& b) {
  return interleave(a, b, 0);
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> interleave_high(const Vec<S>& a, const Vec<S>& b) {
  return interleave(a, b, Vec<S>::kLanes / 2);
}
#endif

// m[i] lane j becomes m[j] lane i: as many perfect shuffles of the whole square as a vector's lanes can be halved.
template <class S>
CUSTOMLSTM_INLINE void transpose(Vec<S> (&m)[Vec<S>::kLanes]) {
  constexpr int n = Vec<S>::kLanes;
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
    Vec<S> next[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave_low(m[i], m[i + n / 2]);
      next[2 * i + 1] = interleave_high(m[i], m[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) m[i] = next[i];
  }
}

// R vectors that go through the same operations: the rows of one tile. Cells are written for any value type; with
// this one the branch on the activation is taken once per tile, and R independent chains hide latencies.
template <class S, int R>
struct Pack {
  using Scalar = S;
  Vec<S> row[R];
  static CUSTOMLSTM_INLINE Pack broadcast(S x) {
    Pack p;
    for (int r = 0; r < R; ++r) p.row[r] = Vec<S>::broadcast(x);
    return p;
  }
};

#define CUSTOMLSTM_PACK_BINARY(OP)                                                            \
  template <class S, int R>                                                                   \
  CUSTOMLSTM_INLINE Pack<S, R> operator OP(const Pack<S, R>& a, const Pack<S, R>& b) {        \
    Pack<S, R> y;                                                                             \
    for (int r = 0; r < R; ++r) y.row[r] = a.row[r] OP b.row[r];                              \
    return y;                                                                                 \
  }
CUSTOMLSTM_PACK_BINARY(+)
CUSTOMLSTM_PACK_BINARY(-)
CUSTOMLSTM_PACK_BINARY(*)
#undef CUSTOMLSTM_PACK_BINARY

// The first lanes; zero beyond them.
template <class S>
CUSTOMLSTM_INLINE Vec<S> keep_first(const Vec<S>& x, int lanes) {
  constexpr int kLanes = Vec<S>::kLanes;
  if (lanes >= kLanes) return x;
  alignas(64) S values[kLanes];
  x.store(values);
  for (int k = 0; k < kLanes; ++k) values[k] = k < lanes ? values[k] : S(0);
  return Vec<S>::load(values);
}

// x where m > 0, else 0.
template <class S, int R>
CUSTOMLSTM_INLINE Pack<S, R> where_positive(const Pack<S, R>& m, const Pack<S, R>& x) {
  const Vec<S> zero = Vec<S>::broadcast(S(0));
  Pack<S, R> y;
  for (int r = 0; r < R; ++r) y.row[r] = select_gt(m.row[r], zero, x.row[r], zero);
  return y;
}

template <class S, int R>
CUSTOMLSTM_INLINE Pack<S, R> fma(const Pack<S, R>& a, const Pack<S, R>& b, const Pack<S, R>& c) {
  Pack<S, R> y;
  for (int r = 0; r < R; ++r) y.row[r] = fma(a.row[r], b.row[r], c.row[r]);
  return y;
}
