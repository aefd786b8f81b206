// Loading and storing the four storage types as vectors of the accumulation type S (float64: double, else float).

// 16-bit floating point, as bits: the arithmetic is always float32.
// (struct BFloat16 { uint16_t bits; } and Half come from kernels.h.)

template <class T>
struct AccumulationOf {
  using Type = float;
};
template <>
struct AccumulationOf<double> {
  using Type = double;
};

CUSTOMLSTM_INLINE float to_float(float x) { return x; }
CUSTOMLSTM_INLINE double to_float(double x) { return x; }
CUSTOMLSTM_INLINE float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

CUSTOMLSTM_INLINE void from_float(float x, float* y) { *y = x; }
CUSTOMLSTM_INLINE void from_float(double x, double* y) { *y = x; }
CUSTOMLSTM_INLINE void from_float(float x, BFloat16* y) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  // Round to nearest even; a NaN keeps its sign and becomes quiet, since rounding could carry it to infinity.
  y->bits = x == x ? uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : uint16_t((bits >> 16) | 0x40);
}

#if CUSTOMLSTM_HAS_FMA   // every CPU with FMA and AVX2 has F16C
CUSTOMLSTM_INLINE float to_float(Half x) { return _cvtsh_ss(x.bits); }
CUSTOMLSTM_INLINE void from_float(float x, Half* y) { y->bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#else
CUSTOMLSTM_INLINE float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  uint32_t bits;
  float y;
  if (magnitude >= 0x7c00) {                       // infinity or NaN
    bits = sign | 0x7f800000 | ((magnitude & 0x3ff) << 13);
    __builtin_memcpy(&y, &bits, 4);
    return y;
  }
  bits = magnitude << 13;                          // exponent off by 127-15: one exact product mends it, subnormals too
  __builtin_memcpy(&y, &bits, 4);
  y *= 5.192296858534828e33f;                      // 2^112
  return sign ? -y : y;
}
CUSTOMLSTM_INLINE void from_float(float x, Half* y) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) {
    y->bits = uint16_t(sign | 0x7e00);
  } else if (bits >= 0x477ff000) {                 // rounds to 2^16 or more
    y->bits = uint16_t(sign | 0x7c00);
  } else if (bits < 0x38800000) {                  // subnormal result: adding 0.5 aligns and rounds the mantissa
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, 4);
    y->bits = uint16_t(sign | (bits - 0x3f000000));
  } else {
    bits += 0xc8000fff + ((bits >> 13) & 1);       // exponent by 15 - 127, round to nearest even
    y->bits = uint16_t(sign | (bits >> 13));
  }
}
#endif

// n values of T become S. The loops vectorise; source and destination never overlap.
template <class T, class S>
CUSTOMLSTM_INLINE void widen(const T* __restrict__ from, int64_t stride, S* __restrict__ to, int64_t n) {
  if (stride == 1) {
    for (int64_t k = 0; k < n; ++k) to[k] = to_float(from[k]);
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] = to_float(from[k * stride]);
  }
}
template <class S, class T>
CUSTOMLSTM_INLINE void narrow(const S* __restrict__ from, T* __restrict__ to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) from_float(from[k], to + k);
}

// n values, a stride apart, in another type or the same.
template <class T, class S>
CUSTOMLSTM_INLINE void convert_row(const T* from, int64_t stride, S* to, int64_t n) {
  widen(from, stride, to, n);
}
CUSTOMLSTM_INLINE void convert_row(const BFloat16* from, int64_t stride, BFloat16* to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) to[k] = from[k * stride];
}
CUSTOMLSTM_INLINE void convert_row(const float* from, int64_t stride, BFloat16* to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) from_float(from[k * stride], to + k);
}

// Stores the first n lanes as T. Whole vectors are the hot case; a tail of H that fills no vector goes the slow way.
template <class S, class T>
CUSTOMLSTM_INLINE void store_as(const Vec<S>& x, T* p, int n) {
  S lanes[Vec<S>::kLanes];
  x.store(lanes);
  if (n == Vec<S>::kLanes) {
    for (int k = 0; k < Vec<S>::kLanes; ++k) from_float(lanes[k], p + k);
  } else {
    for (int k = 0; k < n; ++k) from_float(lanes[k], p + k);
  }
}
// Without conversion a whole vector is one instruction, and with AVX-512 a part of one is, too.
template <class S>
CUSTOMLSTM_INLINE void store_part(const Vec<S>& x, S* p, int n) {
  S lanes[Vec<S>::kLanes];
  x.store(lanes);
  for (int k = 0; k < n; ++k) p[k] = lanes[k];
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> load_first(const S* p, int n) {
  S lanes[Vec<S>::kLanes];
  for (int k = 0; k < Vec<S>::kLanes; ++k) lanes[k] = k < n ? p[k] : S(0);
  return Vec<S>::load(lanes);
}
#if CUSTOMLSTM_VECTOR_BYTES == 32
CUSTOMLSTM_INLINE Vec<float> load_first(const float* p, int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {(Vec<float>::Native)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane))};
}
CUSTOMLSTM_INLINE Vec<double> load_first(const double* p, int n) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return {(Vec<double>::Native)_mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), lane))};
}
#endif
#if CUSTOMLSTM_VECTOR_BYTES == 64
CUSTOMLSTM_INLINE void store_part(const Vec<float>& x, float* p, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)x.v);
}
CUSTOMLSTM_INLINE void store_part(const Vec<double>& x, double* p, int n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)x.v);
}
CUSTOMLSTM_INLINE Vec<float> load_first(const float* p, int n) {
  return {(Vec<float>::Native)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)};
}
CUSTOMLSTM_INLINE Vec<double> load_first(const double* p, int n) {
  return {(Vec<double>::Native)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p)};
}
#endif
template <class S>
CUSTOMLSTM_INLINE void store_as(const Vec<S>& x, S* p, int n) {
  if (n == Vec<S>::kLanes) {
    x.store(p);
  } else {
    store_part(x, p, n);
  }
}

template <class S, class T>
CUSTOMLSTM_INLINE Vec<S> load_as(const T* p, int n) {
  S lanes[Vec<S>::kLanes];
  if (n == Vec<S>::kLanes) {
    for (int k = 0; k < Vec<S>::kLanes; ++k) lanes[k] = to_float(p[k]);
  } else {
    for (int k = 0; k < Vec<S>::kLanes; ++k) lanes[k] = k < n ? to_float(p[k]) : S(0);
  }
  return Vec<S>::load(lanes);
}
#if CUSTOMLSTM_VECTOR_BYTES == 64
CUSTOMLSTM_INLINE Vec<float> load_vector(const BFloat16* p) {
  const __m512i bits = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {(Vec<float>::Native)_mm512_maskz_slli_epi32(0xffff, bits, 16)};
}
CUSTOMLSTM_INLINE Vec<float> load_vector(const Half* p) {
  return {(Vec<float>::Native)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
#elif CUSTOMLSTM_VECTOR_BYTES == 32
CUSTOMLSTM_INLINE Vec<float> load_vector(const BFloat16* p) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {(Vec<float>::Native)_mm256_slli_epi32(bits, 16)};
}
CUSTOMLSTM_INLINE Vec<float> load_vector(const Half* p) {
  return {(Vec<float>::Native)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
#endif
#if CUSTOMLSTM_VECTOR_BYTES >= 32
template <class T>
CUSTOMLSTM_INLINE Vec<float> load_16bit(const T* p, int n) {
  constexpr int kLanes = Vec<float>::kLanes;
  if (n == kLanes) return load_vector(p);
  T lanes[kLanes] = {};
  for (int k = 0; k < n; ++k) lanes[k] = p[k];
  return load_vector(lanes);
}
template <>
CUSTOMLSTM_INLINE Vec<float> load_as<float, BFloat16>(const BFloat16* p, int n) {
  return load_16bit(p, n);
}
template <>
CUSTOMLSTM_INLINE Vec<float> load_as<float, Half>(const Half* p, int n) {
  return load_16bit(p, n);
}
#endif
template <>
CUSTOMLSTM_INLINE Vec<float> load_as<float, float>(const float* p, int n) {
  return n == Vec<float>::kLanes ? Vec<float>::load(p) : load_first(p, n);
}
template <>
CUSTOMLSTM_INLINE Vec<double> load_as<double, double>(const double* p, int n) {
  return n == Vec<double>::kLanes ? Vec<double>::load(p) : load_first(p, n);
}

// A square of a matrix whose rows lie `stride` apart, as columns: columns[k] holds value k of every row. Rows and
// columns beyond the end are zero.
template <class T, class S>
CUSTOMLSTM_INLINE void load_columns(const T* from, int64_t stride, int64_t rows, int64_t width,
                                    Vec<S> (&columns)[Vec<S>::kLanes]) {
  constexpr int n = Vec<S>::kLanes;
  if (rows >= n && width >= n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) columns[i] = load_as<S>(from + i * stride, n);
  } else {
    for (int i = 0; i < n; ++i) {
      columns[i] = i < rows ? load_as<S>(from + i * stride, width < n ? int(width) : n) : Vec<S>::broadcast(S(0));
    }
  }
  transpose(columns);
}
