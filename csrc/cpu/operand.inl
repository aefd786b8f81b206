// What the matrix products multiply. Usually values of the accumulation type S; where the CPU multiplies bfloat16 with
// itself, pairs of them, each in the place of one S. A row of n values then has `elements(n)` elements, of which the
// last is half empty for an odd n, and everything that only moves elements is the same code for both.

template <class S>
struct PlainOperand {
  using Stored = S;
  // Where a sum goes over rows, as many rows make a row of elements.
  static constexpr int kRows = 1;
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
  // `lanes` values from position `at` of a row of elements, and single values of one.
  static CUSTOMLSTM_INLINE void store_part(const Vec<S>& x, S* row, int64_t at, int lanes) {
    store_as(x, row + at, lanes);
  }
  static CUSTOMLSTM_INLINE void set(S* row, int64_t at, S value) { row[at] = value; }
  static CUSTOMLSTM_INLINE S get(const S* row, int64_t at) { return row[at]; }
  // Element `at` over kRows rows of elements, of which those beyond the first may be null: zeros.
  static CUSTOMLSTM_INLINE S join(const S* const (&rows)[kRows], int64_t at) { return rows[0][at]; }
  static CUSTOMLSTM_INLINE void join_rows(const S (*rows)[panel_width<S>()], S* to) {
    __builtin_memcpy(to, rows[0], sizeof(rows[0]));
  }
};

template <class T>
struct OperandOf {
  using Type = PlainOperand<typename AccumulationOf<T>::Type>;
};

#if CUSTOMLSTM_HAS_BF16
struct PairOperand {
  using Stored = BFloat16;
  static constexpr int kRows = 2;
  static CUSTOMLSTM_INLINE int64_t elements(int64_t n) { return (n + 1) / 2; }
  // Both products are added to c in float32. The instruction takes subnormal factors for zero.
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
  static CUSTOMLSTM_INLINE void store_part(const Vec<float>& x, float* row, int64_t at, int lanes);
  static CUSTOMLSTM_INLINE void set(float* row, int64_t at, float value) {
    from_float(value, reinterpret_cast<BFloat16*>(row) + at);
  }
  static CUSTOMLSTM_INLINE float get(const float* row, int64_t at) {
    return to_float(reinterpret_cast<const BFloat16*>(row)[at]);
  }
  static CUSTOMLSTM_INLINE float join(const float* const (&rows)[kRows], int64_t at) {
    const uint32_t low = reinterpret_cast<const BFloat16*>(rows[0])[at].bits;
    const uint32_t high = rows[1] ? reinterpret_cast<const BFloat16*>(rows[1])[at].bits : 0;
    const uint32_t bits = low | high << 16;
    float pair;
    __builtin_memcpy(&pair, &bits, sizeof(pair));
    return pair;
  }
  static CUSTOMLSTM_INLINE void join_rows(const BFloat16 (*rows)[panel_width<float>()], float* to) {
    for (int64_t k = 0; k < panel_width<float>(); ++k) {
      const uint32_t bits = rows[0][k].bits | uint32_t(rows[1][k].bits) << 16;
      __builtin_memcpy(to + k, &bits, sizeof(bits));
    }
  }
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
CUSTOMLSTM_INLINE void PairOperand::store_part(const Vec<float>& x, float* row, int64_t at, int lanes) {
  store_as(x, reinterpret_cast<BFloat16*>(row) + at, lanes);
}
#endif
