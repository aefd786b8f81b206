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
template <class S> CUSTOMLSTM_INLINE Vec<S> select_gt(const Vec<S>& a, const Vec<S>& b, const Vec<S>& x, const Vec<S>& y) { return {a.v > b.v ? x.v : y.v}; }
template <class S> CUSTOMLSTM_INLINE Vec<S> select_ge(const Vec<S>& a, const Vec<S>& b, const Vec<S>& x, const Vec<S>& y) { return {a.v >= b.v ? x.v : y.v}; }
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

template <class S, int R>
CUSTOMLSTM_INLINE Pack<S, R> fma(const Pack<S, R>& a, const Pack<S, R>& b, const Pack<S, R>& c) {
  Pack<S, R> y;
  for (int r = 0; r < R; ++r) y.row[r] = fma(a.row[r], b.row[r], c.row[r]);
  return y;
}
