// The one matrix product that everything uses: a tile of R rows times a panel of four vectors of columns, held in
// registers. Each element is accumulated over k strictly in order, whatever the tile or the number of threads, so
// neither changes a bit of the result. The order is one of blocks of fixed length, each summed from zero and then added:
// in one chain over hundreds of products the rounding errors would grow to several times those of a good library.

// Rows of a tile: R * 4 accumulators, the panel's row and one factor must fit the register file.
#if CUSTOMLSTM_VECTOR_BYTES == 64
constexpr int kTileRows = 6;   // 24 + 4 of 32 registers; the factor is a broadcast memory operand
#elif CUSTOMLSTM_VECTOR_BYTES == 32
constexpr int kTileRows = 3;   // 12 + 3 + 1 of 16 registers
#else
constexpr int kTileRows = 2;   // 8 + 4 + 1 and a temporary, there being no fused multiply-add
#endif
constexpr int kPanelVectors = 4;   // in the forward kernel: one vector of each gate

template <class S>
constexpr int64_t panel_width() {
  return kPanelVectors * Vec<S>::kLanes;
}
CUSTOMLSTM_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CUSTOMLSTM_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
template <class S>
CUSTOMLSTM_INLINE int64_t padded(int64_t n) {
  return ceil_div(n, panel_width<S>()) * panel_width<S>();
}

// Products that are summed from zero before they are added to the rest. Weight gradients get shorter blocks: their
// terms have no activation to damp them, and their sums are the longest.
constexpr int64_t kSumBlock = 128, kGradientSumBlock = 32;

template <class S, int R>
struct Tile {
  Vec<S> acc[R][kPanelVectors];

  CUSTOMLSTM_INLINE void zero() {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = Vec<S>::broadcast(S(0));
  }
  CUSTOMLSTM_INLINE void load(const S* p, int64_t row_stride) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = Vec<S>::load(p + r * row_stride + v * Vec<S>::kLanes);
  }
  CUSTOMLSTM_INLINE void store(S* p, int64_t row_stride) const {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kPanelVectors; ++v) acc[r][v].store(p + r * row_stride + v * Vec<S>::kLanes);
  }
  CUSTOMLSTM_INLINE void add(const S* p, int64_t row_stride) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kPanelVectors; ++v)
        acc[r][v] = acc[r][v] + Vec<S>::load(p + r * row_stride + v * Vec<S>::kLanes);
  }
  CUSTOMLSTM_INLINE void add(const Tile& other) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = acc[r][v] + other.acc[r][v];
  }
  CUSTOMLSTM_INLINE void multiply_one(const S* const (&factors)[R], int64_t k, const S* panel) {
    Vec<S> b[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) b[v] = Vec<S>::load(panel + v * Vec<S>::kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec<S> a = Vec<S>::broadcast(factors[r][k]);
      for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
  // acc += rows[r][k] * panel[k], k = 0 .. depth - 1
  CUSTOMLSTM_INLINE void multiply(const S* const (&rows)[R], const S* panel, int64_t depth) {
    for (int64_t k = 0; k < depth;) {
      const int64_t end = min64(depth, k + kSumBlock);
      Tile part;
      part.zero();
      for (; k < end; ++k) part.multiply_one(rows, k, panel + k * panel_width<S>());
      add(part);
    }
  }
  // The same with the R factors of each k side by side.
  CUSTOMLSTM_INLINE void multiply_packed(const S* factors, const S* panel, int64_t depth) {
    const S* columns[R];
    for (int r = 0; r < R; ++r) columns[r] = factors + r;
    for (int64_t k = 0; k < depth;) {
      const int64_t end = min64(depth, k + kGradientSumBlock);
      Tile part;
      part.zero();
      for (; k < end; ++k) part.multiply_one(columns, k * R, panel + k * panel_width<S>());
      add(part);
    }
  }
};

// Calls STATEMENT with a compile-time `R` for `count` rows (1 .. kTileRows).
#if CUSTOMLSTM_VECTOR_BYTES == 64
#define CUSTOMLSTM_WITH_ROWS(count, CALL) \
  switch (count) {                        \
    case 1: CALL(1); break;               \
    case 2: CALL(2); break;               \
    case 3: CALL(3); break;               \
    case 4: CALL(4); break;               \
    case 5: CALL(5); break;               \
    default: CALL(6); break;              \
  }
#elif CUSTOMLSTM_VECTOR_BYTES == 32
#define CUSTOMLSTM_WITH_ROWS(count, CALL) \
  switch (count) {                        \
    case 1: CALL(1); break;               \
    case 2: CALL(2); break;               \
    default: CALL(3); break;              \
  }
#else
#define CUSTOMLSTM_WITH_ROWS(count, CALL) \
  switch (count) {                        \
    case 1: CALL(1); break;               \
    default: CALL(2); break;              \
  }
#endif

// ---- packing: panel[k][vector][lane], columns beyond the end are zero ----

// Panel of hidden units `unit ..` of a gate matrix [4H, depth]: vector v holds gate v. Reading along k, four rows of
// the matrix at a time would be a gather; this order reads each row once and writes with a stride that stays in cache.
template <class T, class S>
CUSTOMLSTM_INLINE void pack_gates(const T* w, int64_t hidden, int64_t depth, int64_t unit, S* panel) {
  for (int v = 0; v < kPanelVectors; ++v) {
    for (int lane = 0; lane < Vec<S>::kLanes; ++lane) {
      S* to = panel + v * Vec<S>::kLanes + lane;
      if (unit + lane < hidden) {
        const T* row = w + (v * hidden + unit + lane) * depth;
        for (int64_t k = 0; k < depth; ++k) to[k * panel_width<S>()] = to_float(row[k]);
      } else {
        for (int64_t k = 0; k < depth; ++k) to[k * panel_width<S>()] = S(0);
      }
    }
  }
}

// Panel of rows `first ..` of a matrix [n, depth], transposed: the columns of matrix^T.
template <class T, class S>
CUSTOMLSTM_INLINE void pack_transposed(const T* m, int64_t n, int64_t depth, int64_t first, S* panel) {
  for (int64_t j = 0; j < panel_width<S>(); ++j) {
    for (int64_t k = 0; k < depth; ++k) {
      panel[k * panel_width<S>() + j] = first + j < n ? S(to_float(m[(first + j) * depth + k])) : S(0);
    }
  }
}

// One row of a panel: columns `first ..` of a contiguous row of n values.
template <class T, class S>
CUSTOMLSTM_INLINE void pack_row(const T* row, int64_t stride, int64_t n, int64_t first, S* to) {
  const int64_t count = min64(panel_width<S>(), n - first);
  widen(row + first * stride, stride, to, count);
  for (int64_t j = count; j < panel_width<S>(); ++j) to[j] = S(0);
}

// Panel of columns `first ..` of a matrix [depth, n].
template <class T, class S>
CUSTOMLSTM_INLINE void pack_columns(const T* m, int64_t depth, int64_t n, int64_t first, S* panel) {
  for (int64_t k = 0; k < depth; ++k) pack_row(m + k * n, 1, n, first, panel + k * panel_width<S>());
}

// out[i] (+)= rows[i] . panel for i < count, in blocks of k so that a block of the panel stays in cache over all rows.
constexpr int64_t kDepthBlock = 512;

template <class S>
CUSTOMLSTM_NOINLINE void multiply_rows(const S* const* rows, int64_t count, const S* panel, int64_t depth, S* out,
                                       int64_t out_stride, bool accumulate) {
  for (int64_t k0 = 0; k0 < depth || k0 == 0; k0 += kDepthBlock) {
    const int64_t kc = min64(kDepthBlock, depth - k0);
    for (int64_t i = 0; i < count; i += kTileRows) {
#define CUSTOMLSTM_CALL(R)                                              \
  {                                                                     \
    Tile<S, R> tile;                                                    \
    const S* a[R];                                                      \
    for (int r = 0; r < R; ++r) a[r] = rows[i + r] + k0;                \
    tile.zero();                                                        \
    tile.multiply(a, panel + k0 * panel_width<S>(), kc);                \
    if (accumulate || k0 > 0) tile.add(out + i * out_stride, out_stride); \
    tile.store(out + i * out_stride, out_stride);                       \
  }
      CUSTOMLSTM_WITH_ROWS(min64(kTileRows, count - i), CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
    }
  }
}
