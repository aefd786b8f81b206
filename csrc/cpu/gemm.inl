// The one matrix product that everything uses: a tile of R rows times a panel of four vectors of columns, held in
// registers. Each element is accumulated over k strictly in order, whatever the tile or the number of threads, so
// neither changes a bit of the result. The order is one of blocks of fixed length, each summed from zero, then added:
// in one chain over hundreds of products the rounding errors would grow to several times those of a good library.

// Rows of a tile: R * 4 accumulators, the panel's row and one factor must fit the register file.
#if CUSTOMLSTM_VECTOR_BYTES == 64
constexpr int kTileRows = 6;   // 24 + 4 of 32 registers; the factor is a broadcast memory operand
#elif CUSTOMLSTM_VECTOR_BYTES == 32
constexpr int kTileRows = 3;   // 12 + 3 + 1 of 16 registers
#else
constexpr int kTileRows = 2;   // 8 + 4 + 1 and a temporary, there being no fused multiply-add
#endif
constexpr int kPanelVectors = 4;   // a panel of a gate matrix has one vector of each gate instead

// Rows of a tile over a panel with a vector of each of G gates.
template <int G>
constexpr int gate_tile_rows() {
  constexpr int kRows = kTileRows * kPanelVectors / (G > kPanelVectors ? G : kPanelVectors);
  return kRows > 0 ? kRows : 1;
}

template <class S>
constexpr int64_t panel_width() {
  return kPanelVectors * Vec<S>::kLanes;
}
CUSTOMLSTM_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CUSTOMLSTM_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
CUSTOMLSTM_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
template <class S>
CUSTOMLSTM_INLINE int64_t padded(int64_t n) {
  return ceil_div(n, panel_width<S>()) * panel_width<S>();
}

#include "operand.inl"

// Products that are summed from zero before they are added to the rest. Weight gradients get shorter blocks: their
// terms have no activation to damp them, and their sums are the longest.
constexpr int64_t kSumBlock = 128, kGradientSumBlock = 32;

// V: vectors of the panel that are used, of the P that it has; the last panel of a matrix may have columns for fewer.
template <class S, int R, int V = kPanelVectors, class Operand = PlainOperand<S>, int P = kPanelVectors>
struct Tile {
  static constexpr int64_t kPanelWidth = P * Vec<S>::kLanes;
  Vec<S> acc[R][V];

  CUSTOMLSTM_INLINE void zero() {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] = Vec<S>::broadcast(S(0));
  }
  CUSTOMLSTM_INLINE void load(const S* p, int64_t row_stride) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] = Vec<S>::load(p + r * row_stride + v * Vec<S>::kLanes);
  }
  CUSTOMLSTM_INLINE void store(S* p, int64_t row_stride) const {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v].store(p + r * row_stride + v * Vec<S>::kLanes);
  }
  CUSTOMLSTM_INLINE void add(const S* p, int64_t row_stride) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        acc[r][v] = acc[r][v] + Vec<S>::load(p + r * row_stride + v * Vec<S>::kLanes);
  }
  CUSTOMLSTM_INLINE void multiply_one(const S* const (&factors)[R], int64_t k, const S* panel) {
    Vec<S> b[V];
    for (int v = 0; v < V; ++v) b[v] = Vec<S>::load(panel + v * Vec<S>::kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec<S> a = Vec<S>::broadcast(factors[r][k]);
      for (int v = 0; v < V; ++v) acc[r][v] = Operand::multiply_add(a, b[v], acc[r][v]);
    }
  }
  // What a sum starts from and what is added to it at the end; null: nothing. Row r is `stride` elements further.
  struct Ends {
    const S* first;
    int64_t first_stride;
    const S* last;
    int64_t last_stride;
  };
  // out[r] = first[r] + (sum over k of rows[r][k * step] * panel[k], in blocks) + last[r]. Sums of more than one block
  // wait in `out`: two tiles do not fit the registers.
  template <int64_t kBlock>
  static CUSTOMLSTM_INLINE void multiply(const S* const (&rows)[R], int64_t step, const S* panel, int64_t depth,
                                         const Ends& ends, S* out, int64_t stride) {
    int64_t k = 0;
    do {
      const bool begin = k == 0;
      const int64_t end = min64(depth, k + kBlock);
      Tile part;
      part.zero();
      for (; k < end; ++k) part.multiply_one(rows, k * step, panel + k * kPanelWidth);
      if (!begin) {
        part.add(out, stride);
      } else if (ends.first) {
        part.add(ends.first, ends.first_stride);
      }
      if (k >= depth && ends.last) part.add(ends.last, ends.last_stride);
      part.store(out, stride);
    } while (k < depth);
  }
};

// Calls with a compile-time `V` for that many vectors of a panel.
#define CUSTOMLSTM_WITH_VECTORS(count, CALL) \
  switch (count) {                           \
    case 1: CALL(1); break;                  \
    case 2: CALL(2); break;                  \
    case 3: CALL(3); break;                  \
    default: CALL(4); break;                 \
  }

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

// Rows `first ..` of a matrix [n, depth] as one vector of each panel row, the rows' values side by side; depth and
// values are those of the operand's elements. P: vectors of the panel.
template <int P, class T, class S>
CUSTOMLSTM_INLINE void pack_vector(const T* m, int64_t n, int64_t depth, int64_t first, S* to) {
  constexpr int kLanes = Vec<S>::kLanes;
  for (int64_t k = 0; k < depth; k += kLanes) {
    Vec<S> columns[kLanes];
    load_columns(m + first * depth + k, depth, n - first, depth - k, columns);
    const int64_t count = min64(kLanes, depth - k);
    for (int64_t j = 0; j < count; ++j) columns[j].store(to + (k + j) * P * kLanes);
  }
}
// The same for rows that do not end with a whole element, one by one.
template <class Operand, int P, class T, class S>
CUSTOMLSTM_NOINLINE void pack_split_rows(const T* m, int64_t n, int64_t depth, int64_t first, S* to) {
  for (int lane = 0; lane < Vec<S>::kLanes; ++lane) {
    for (int64_t k = 0; k < depth; k += 2) {
      S element = S(0);
      if (first + lane < n) Operand::fill_row(m + (first + lane) * depth + k, 1, &element, min64(2, depth - k));
      to[k / 2 * P * Vec<S>::kLanes + lane] = element;
    }
  }
}
template <class Operand, int P, class T, class S>
CUSTOMLSTM_INLINE void pack_elements(const T* m, int64_t n, int64_t depth, int64_t first, S* to) {
  if (Operand::whole_elements(depth)) {
    pack_vector<P>(Operand::matrix(m), n, Operand::elements(depth), first, to);
  } else {
    pack_split_rows<Operand, P>(m, n, depth, first, to);
  }
}

// Panel of hidden units `unit ..` of a gate matrix [G * H, depth]: vector v holds gate v.
template <class Operand, int G, class T, class S>
CUSTOMLSTM_NOINLINE void pack_gates(const T* w, int64_t hidden, int64_t depth, int64_t unit, S* panel) {
  for (int v = 0; v < G; ++v) {
    pack_elements<Operand, G>(w + v * hidden * depth, hidden, depth, unit, panel + v * Vec<S>::kLanes);
  }
}

// Panel of rows `first ..` of a matrix [n, depth], transposed: the columns of matrix^T.
template <class Operand, class T, class S>
CUSTOMLSTM_NOINLINE void pack_transposed(const T* m, int64_t n, int64_t depth, int64_t first, S* panel) {
  for (int v = 0; v < kPanelVectors; ++v) {
    pack_elements<Operand, kPanelVectors>(m, n, depth, first + v * Vec<S>::kLanes, panel + v * Vec<S>::kLanes);
  }
}

// One row of a panel: columns `first ..` of a row of n values.
template <class T, class To>
CUSTOMLSTM_INLINE void pack_row(const T* row, int64_t stride, int64_t n, int64_t first, To* to) {
  constexpr int64_t kWidth = panel_width<typename AccumulationOf<To>::Type>();
  const int64_t count = min64(kWidth, n - first);
  convert_row(row + first * stride, stride, to, count);
  for (int64_t j = count; j < kWidth; ++j) to[j] = To{};
}

// Panel of columns `first ..` of a matrix [depth, n], whose rows are what the products sum over.
template <class Operand, class T, class S>
CUSTOMLSTM_NOINLINE void pack_columns(const T* m, int64_t depth, int64_t n, int64_t first, S* panel) {
  constexpr int64_t kWidth = panel_width<S>();
  for (int64_t k = 0; k < depth; k += Operand::kRows) {
    typename Operand::Stored rows[Operand::kRows][kWidth] = {};
    for (int64_t j = 0; j < min64(Operand::kRows, depth - k); ++j) pack_row(m + (k + j) * n, 1, n, first, rows[j]);
    Operand::join_rows(rows, panel + k / Operand::kRows * kWidth);
  }
}

// out[i] (+)= rows[i] . panel for i < count, in blocks of k so that a block of the panel stays in cache over all rows.
constexpr int64_t kDepthBlock = 512;

template <class Operand, class S, int V>
CUSTOMLSTM_NOINLINE void multiply_rows_by(const S* const* rows, int64_t count, const S* panel, int64_t depth, S* out,
                                          int64_t out_stride, bool accumulate) {
  for (int64_t k0 = 0; k0 < depth || k0 == 0; k0 += kDepthBlock) {
    const int64_t kc = min64(kDepthBlock, depth - k0);
    for (int64_t i = 0; i < count; i += kTileRows) {
#define CUSTOMLSTM_CALL(R)                                                                                       \
  {                                                                                                              \
    const S* a[R];                                                                                               \
    for (int r = 0; r < R; ++r) a[r] = rows[i + r] + k0;                                                         \
    S* to = out + i * out_stride;                                                                                \
    using Products = Tile<S, R, V, Operand>;                                                                     \
    const typename Products::Ends ends = {accumulate || k0 > 0 ? to : nullptr, out_stride, nullptr, 0};          \
    Products::template multiply<kSumBlock>(a, 1, panel + k0 * panel_width<S>(), kc, ends, to, out_stride);       \
  }
      CUSTOMLSTM_WITH_ROWS(min64(kTileRows, count - i), CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
    }
  }
}

// `columns` of the panel are wanted; of the others some are written, too, up to a whole vector.
template <class Operand, class S>
CUSTOMLSTM_INLINE void multiply_rows(const S* const* rows, int64_t count, const S* panel, int64_t columns,
                                     int64_t depth, S* out, int64_t out_stride, bool accumulate) {
#define CUSTOMLSTM_CALL_V(V) multiply_rows_by<Operand, S, V>(rows, count, panel, depth, out, out_stride, accumulate)
  CUSTOMLSTM_WITH_VECTORS(ceil_div(columns, Vec<S>::kLanes), CUSTOMLSTM_CALL_V)
#undef CUSTOMLSTM_CALL_V
}
