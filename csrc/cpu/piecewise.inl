// Piecewise-linear functions: in which segment each lane lies, and where that starts. Segments whose starts fit two
// registers are found by halving, with lookups in registers; longer lists by one comparison after the other.

// Up to N registers of table entries, read by each lane at an index of its own.
template <class S, int N>
struct Table {
  static constexpr bool kExists = false;
};

#if CUSTOMLSTM_HAS_FMA && CUSTOMLSTM_VECTOR_BYTES == 64
template <int N>
struct Table<float, N> {
  static constexpr bool kExists = true;
  using Index = Vec<float>::Mask;
  __m512 part[N];
  CUSTOMLSTM_INLINE Table(const float* entries, int count, float beyond) {
    for (int n = 0; n < N; ++n) {
      const int here = count - n * 16;
      const __mmask16 mask = here >= 16 ? 0xffff : here <= 0 ? 0 : __mmask16((1u << here) - 1);
      part[n] = _mm512_mask_loadu_ps((__m512)Vec<float>::broadcast(beyond).v, mask, entries + n * 16);
    }
  }
  CUSTOMLSTM_INLINE Vec<float> at(const Index& index) const {
    constexpr __mmask16 kAll = 0xffff;
    if (N == 1) return {(Vec<float>::Native)_mm512_maskz_permutexvar_ps(kAll, (__m512i)index, part[0])};
    return {(Vec<float>::Native)_mm512_permutex2var_ps(part[0], (__m512i)index, part[N - 1])};
  }
};
template <int N>
struct Table<double, N> {
  static constexpr bool kExists = true;
  using Index = Vec<double>::Mask;
  __m512d part[N];
  CUSTOMLSTM_INLINE Table(const double* entries, int count, double beyond) {
    for (int n = 0; n < N; ++n) {
      const int here = count - n * 8;
      const __mmask8 mask = here >= 8 ? 0xff : here <= 0 ? 0 : __mmask8((1u << here) - 1);
      part[n] = _mm512_mask_loadu_pd((__m512d)Vec<double>::broadcast(beyond).v, mask, entries + n * 8);
    }
  }
  CUSTOMLSTM_INLINE Vec<double> at(const Index& index) const {
    constexpr __mmask8 kAll = 0xff;
    if (N == 1) return {(Vec<double>::Native)_mm512_maskz_permutexvar_pd(kAll, (__m512i)index, part[0])};
    return {(Vec<double>::Native)_mm512_permutex2var_pd(part[0], (__m512i)index, part[N - 1])};
  }
};
#elif CUSTOMLSTM_HAS_FMA && CUSTOMLSTM_VECTOR_BYTES == 32
template <int N>
struct Table<float, N> {
  static constexpr bool kExists = true;
  using Index = Vec<float>::Mask;
  __m256 part[N];
  CUSTOMLSTM_INLINE Table(const float* entries, int count, float beyond) {
    for (int n = 0; n < N; ++n) {
      float padded[8];
      for (int j = 0; j < 8; ++j) padded[j] = n * 8 + j < count ? entries[n * 8 + j] : beyond;
      part[n] = _mm256_loadu_ps(padded);
    }
  }
  CUSTOMLSTM_INLINE Vec<float> at(const Index& index) const {
    const __m256 low = _mm256_permutevar8x32_ps(part[0], (__m256i)index);   // looks at three bits of the index
    if (N == 1) return {(Vec<float>::Native)low};
    const __m256 high = _mm256_permutevar8x32_ps(part[N - 1], (__m256i)index);
    return {(Vec<float>::Native)_mm256_blendv_ps(low, high, (__m256)(index << 28))};   // the fourth, as a sign
  }
};
#endif

// The last j with x[j] <= t, or 0 (so also for NaN), of every row; then start[r] = x[j] and so on.
template <int N, class S, int R>
CUSTOMLSTM_INLINE void find_by_halving(const Activation<S>& f, const Pack<S, R>& t, Vec<S> (&x)[R], Vec<S> (&y)[R],
                                       Vec<S> (&slope)[R]) {
  typedef typename Table<S, N>::Index Index;
  // Nothing is >= NaN, so no lane gets beyond the last segment.
  const Table<S, N> starts(f.x, f.segments, S(__builtin_nan(""))), values(f.y, f.segments, S(0)),
      slopes(f.slope, f.segments, S(0));
  Index found[R];
  for (int r = 0; r < R; ++r) found[r] = Index{};
#pragma GCC unroll 8
  for (int step = N * Vec<S>::kLanes / 2; step > 0; step /= 2) {
    for (int r = 0; r < R; ++r) {
      const Index next = found[r] + step;
      found[r] = t.row[r].v >= starts.at(next).v ? next : found[r];
    }
  }
  for (int r = 0; r < R; ++r) {
    x[r] = starts.at(found[r]);
    y[r] = values.at(found[r]);
    slope[r] = slopes.at(found[r]);
  }
}

template <class S, int R>
CUSTOMLSTM_INLINE void find_one_by_one(const Activation<S>& f, const Pack<S, R>& t, Vec<S> (&x)[R], Vec<S> (&y)[R],
                                       Vec<S> (&slope)[R]) {
  for (int r = 0; r < R; ++r) {
    x[r] = Vec<S>::broadcast(f.x[0]);
    y[r] = Vec<S>::broadcast(f.y[0]);
    slope[r] = Vec<S>::broadcast(f.slope[0]);
  }
  for (int32_t j = 1; j < f.segments; ++j) {
    const Vec<S> x_j = Vec<S>::broadcast(f.x[j]), y_j = Vec<S>::broadcast(f.y[j]);
    const Vec<S> slope_j = Vec<S>::broadcast(f.slope[j]);
    for (int r = 0; r < R; ++r) {
      x[r] = select_ge(t.row[r], x_j, x_j, x[r]);
      y[r] = select_ge(t.row[r], x_j, y_j, y[r]);
      slope[r] = select_ge(t.row[r], x_j, slope_j, slope[r]);
    }
  }
}

template <class S, int R>
CUSTOMLSTM_INLINE void find_segments(const Activation<S>& f, const Pack<S, R>& t, Vec<S> (&x)[R], Vec<S> (&y)[R],
                                     Vec<S> (&slope)[R]) {
  if constexpr (Table<S, 1>::kExists) {
    if (f.segments <= Vec<S>::kLanes) return find_by_halving<1>(f, t, x, y, slope);
    if (f.segments <= 2 * Vec<S>::kLanes) return find_by_halving<2>(f, t, x, y, slope);
  }
  find_one_by_one(f, t, x, y, slope);
}
