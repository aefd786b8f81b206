// What the matrix products multiply. Usually values of the accumulation type S; where the CPU multiplies bfloat16 with
// itself, pairs of them, each in the place of one S. A row of n values then has `elements(n)` elements, of which the
// last is half empty for an odd n, and everything that only moves elements is the same code for both.

template <class S>
struct PlainOperand {
  using Stored = S;
  static CUSTOMLSTM_INLINE int64_t elements(int64_t n) { return n; }
  static CUSTOMLSTM_INLINE Vec<S> multiply_add(const Vec<S>& a, const Vec<S>& b, const Vec<S>& c) {
    return fma(a, b, c);
  }
  // Values unit .. of a row of elements.
  static CUSTOMLSTM_INLINE void store(const Vec<S>& x, S* row, int64_t unit) { x.store(row + unit); }
  // n values, a stride apart, become a row of elements, and back.
  template <class T>
  static CUSTOMLSTM_INLINE void fill_row(const T* from, int64_t stride, S* row, int64_t n) {
    widen(from, stride, row, n);
  }
  template <class T>
  static CUSTOMLSTM_INLINE void read_row(const S* row, T* to, int64_t n) {
    narrow(row, to, n);
  }
  // A matrix as its elements: those of the storage type, converted where they are read.
  template <class T>
  static CUSTOMLSTM_INLINE const T* matrix(const T* m) {
    return m;
  }
  static CUSTOMLSTM_INLINE bool whole_elements(int64_t) { return true; }
};

template <class T>
struct OperandOf {
  using Type = PlainOperand<typename AccumulationOf<T>::Type>;
};

#if CUSTOMLSTM_HAS_BF16
struct PairOperand {
  using Stored = BFloat16;
  static CUSTOMLSTM_INLINE int64_t elements(int64_t n) { return (n + 1) / 2; }
  static CUSTOMLSTM_INLINE Vec<float> multiply_add(const Vec<float>& a, const Vec<float>& b, const Vec<float>& c) {
    return {(Vec<float>::Native)_mm512_dpbf16_ps((__m512)c.v, (__m512bh)a.v, (__m512bh)b.v)};
  }
  static CUSTOMLSTM_INLINE void store(const Vec<float>& x, float* row, int64_t unit) {
    const __m256bh pairs = _mm512_cvtneps_pbh((__m512)x.v);
    __builtin_memcpy(reinterpret_cast<BFloat16*>(row) + unit, &pairs, sizeof(pairs));
  }
  static CUSTOMLSTM_INLINE void fill_row(const BFloat16* from, int64_t stride, float* row, int64_t n) {
    BFloat16* to = reinterpret_cast<BFloat16*>(row);
    if (stride == 1) {
      __builtin_memcpy(to, from, size_t(n) * sizeof(BFloat16));
    } else {
      for (int64_t k = 0; k < n; ++k) to[k] = from[k * stride];
    }
    if (n % 2) to[n] = BFloat16{0};
  }
  static CUSTOMLSTM_INLINE void read_row(const float* row, BFloat16* to, int64_t n) {
    __builtin_memcpy(to, row, size_t(n) * sizeof(BFloat16));
  }
  static CUSTOMLSTM_INLINE const float* matrix(const BFloat16* m) { return reinterpret_cast<const float*>(m); }
  // Whether rows of n values, one after the other, are rows of elements as they lie.
  static CUSTOMLSTM_INLINE bool whole_elements(int64_t n) { return n % 2 == 0; }
};
template <>
struct OperandOf<BFloat16> {
  using Type = PairOperand;
};

CUSTOMLSTM_INLINE void store_as(const Vec<float>& x, BFloat16* p, int n) {
  const __m256bh narrow = _mm512_cvtneps_pbh((__m512)x.v);
  if (n == Vec<float>::kLanes) {
    __builtin_memcpy(p, &narrow, sizeof(narrow));
  } else {
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow);
  }
}
#endif
