// Gradients that need no order of steps: of the input (one product over all rows) and of the weights (one product
// whose depth is all rows of the call). Each thread owns its part of the result, so there is nothing to reduce
// between threads and their number changes no bit.

// The rows within their sequence's length, in order of time.
struct RowList {
  int64_t* time;
  int64_t* column;
  int64_t count;

  void fill(const Geometry& g) const {
    int64_t n = 0;
    for (int64_t t = 0; t < g.steps; ++t) {
      for (int64_t b = 0; b < g.batch; ++b) {
        if (g.lengths[b] <= t) continue;
        time[n] = t;
        column[n] = b;
        ++n;
      }
    }
  }
};

constexpr int64_t kWeightDepth = 256;   // rows of the call a block of the weight gradient's product goes over
constexpr int64_t kInputRows = 48;      // rows of the call a block of the input gradient covers

template <class S>
struct GradientScratch {
  S* factors;       // [tiles of gate rows][kWeightDepth][kTileRows]
  S* panel;         // [kWeightDepth][panel]
  S* row;           // sum of a block of gate rows
  S* grad_input;    // [kInputRows][padded L]
  const S** rows;   // [kInputRows]

  // Frozen weights and an input without gradient take nothing.
  CUSTOMLSTM_INLINE void layout(Arena& arena, const Geometry& g, int64_t gate_rows, bool weights, bool input) {
    const int64_t most = !weights ? 0 : gate_rows > g.output_size ? gate_rows : g.output_size;
    factors = arena.take<S>(ceil_div(most, kTileRows) * kTileRows * kWeightDepth);
    panel = arena.take<S>(weights ? kWeightDepth * panel_width<S>() : 0);
    row = arena.take<S>(most);
    grad_input = arena.take<S>(input ? kInputRows * padded<S>(g.input_size) : 0);
    rows = arena.take<const S*>(input ? kInputRows : 0);
  }
};

// R rows of a weight gradient times one panel of columns; a panel that sticks out is read and written in part.
template <class S>
CUSTOMLSTM_INLINE Vec<S> load_part(const S* row, int64_t at, int64_t count) {
  if (at >= count) return Vec<S>::broadcast(S(0));
  return load_as<S>(row + at, int(min64(Vec<S>::kLanes, count - at)));
}

template <class S, int R>
CUSTOMLSTM_NOINLINE void outer_tile(const S* factors, const S* panel, int64_t depth, S* to, int64_t stride,
                                           int64_t count, bool accumulate) {
  constexpr int kLanes = Vec<S>::kLanes;
  constexpr int64_t kWidth = kPanelVectors * kLanes;
  Tile<S, R> tile;
  tile.zero();
  tile.multiply_packed(factors, panel, depth);
  if (accumulate && count == kWidth) {
    tile.add(to, stride);
  } else if (accumulate) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kPanelVectors; ++v)
        tile.acc[r][v] = tile.acc[r][v] + load_part(to + r * stride, v * kLanes, count);
  }
  if (count == kWidth) {
    tile.store(to, stride);
    return;
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kPanelVectors; ++v)
      if (v * kLanes < count) {
        store_as(tile.acc[r][v], to + r * stride + v * kLanes, int(min64(kLanes, count - v * kLanes)));
      }
}

template <class T, class Cell>
struct Gradients {
  using S = typename AccumulationOf<T>::Type;
  static constexpr int kLanes = Vec<S>::kLanes;
  static constexpr int64_t kWidth = kPanelVectors * kLanes;
  enum class Source { kInput, kHiddenState, kHidden };

  const BackwardParams& p;
  const RowList& list;
  const GradientScratch<S>& scratch;
  int rank, size;

  CUSTOMLSTM_INLINE const S* gate_row(int64_t n, int64_t d) const {
    const Geometry& g = p.g;
    const int64_t row = g.step_row[list.time[n]] + list.column[n];
    return static_cast<const S*>(p.grad_gates) + (row * g.directions + d) * Cell::kGates * g.hidden_size;
  }

  // dL/dx = sum over directions of dL/da . W_ih
  void input(S* const* packed_w_ih) const {
    const Geometry& g = p.g;
    const int64_t depth = Cell::kGates * g.hidden_size, stride = padded<S>(g.input_size);
    const Range blocks = share(ceil_div(list.count, kInputRows), rank, size);
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int64_t first = block * kInputRows, count = min64(kInputRows, list.count - first);
      for (int64_t d = 0; d < g.directions; ++d) {
        for (int64_t i = 0; i < count; ++i) scratch.rows[i] = gate_row(first + i, d);
        for (int64_t n = 0; n * kWidth < g.input_size; ++n) {
          multiply_rows(scratch.rows, count, packed_w_ih[d] + n * depth * kWidth, depth,
                        scratch.grad_input + n * kWidth, stride, d > 0);
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = g.step_row[list.time[first + i]] + list.column[first + i];
        narrow(scratch.grad_input + i * stride, static_cast<T*>(p.grad_input) + row * g.input_size, g.input_size);
      }
    }
  }

  void weights(int64_t d) const {
    const Geometry& g = p.g;
    const auto& to = p.grad_weights[d];
    if (to.w_ih || to.w_hh || to.bias) {
      const int64_t gate_rows = Cell::kGates * g.hidden_size;
      // Whole tiles, so that two threads never write one cache line's worth of factors for the other.
      const Range tiles = share(ceil_div(gate_rows, kTileRows), rank, size);
      const int64_t begin = tiles.begin * kTileRows, end = min64(tiles.end * kTileRows, gate_rows);
      for (int64_t first = 0; first < list.count && begin < end; first += kWeightDepth) {
        const int64_t depth = min64(kWeightDepth, list.count - first);
        pack_factors(d, first, depth, begin, end, static_cast<S*>(to.bias));
        if (to.w_ih) outer(d, Source::kInput, g.input_size, first, depth, begin, end, static_cast<S*>(to.w_ih));
        if (to.w_hh) outer(d, Source::kHiddenState, g.output_size, first, depth, begin, end, static_cast<S*>(to.w_hh));
      }
    }
    if (to.w_hr) {
      const Range tiles = share(ceil_div(g.output_size, kTileRows), rank, size);
      const int64_t begin = tiles.begin * kTileRows, end = min64(tiles.end * kTileRows, g.output_size);
      for (int64_t first = 0; first < list.count && begin < end; first += kWeightDepth) {
        const int64_t depth = min64(kWeightDepth, list.count - first);
        pack_projection_factors(d, first, depth, begin, end);
        outer(d, Source::kHidden, g.hidden_size, first, depth, begin, end, static_cast<S*>(to.w_hr));
      }
    }
  }

  // The factors of kTileRows gate rows side by side: read along a row they would lie a power of two apart, all in the
  // same few sets of the cache. The bias gradient is their sum, taken on the way.
  void pack_factors(int64_t d, int64_t first, int64_t depth, int64_t begin, int64_t end, S* bias) const {
    for (int64_t k = 0; k < depth; ++k) {
      const S* from = gate_row(first + k, d);
      pack_factor_row(from, k, begin, end);
      if (!bias) continue;
      if (k == 0) {
        for (int64_t m = begin; m < end; ++m) scratch.row[m] = from[m];
      } else {
        for (int64_t m = begin; m < end; ++m) scratch.row[m] += from[m];
      }
    }
    if (!bias) return;
    if (first == 0) {
      for (int64_t m = begin; m < end; ++m) bias[m] = scratch.row[m];
    } else {
      for (int64_t m = begin; m < end; ++m) bias[m] += scratch.row[m];
    }
  }

  CUSTOMLSTM_INLINE void pack_factor_row(const S* from, int64_t k, int64_t begin, int64_t end) const {
    for (int64_t m = begin; m < end; m += kTileRows) {
      S* to = scratch.factors + (m - begin) * kWeightDepth;
      const int64_t count = min64(kTileRows, end - m);
      for (int64_t r = 0; r < count; ++r) to[k * count + r] = from[m + r];
    }
  }

  void pack_projection_factors(int64_t d, int64_t first, int64_t depth, int64_t begin, int64_t end) const {
    const Geometry& g = p.g;
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t row = g.step_row[list.time[first + k]] + list.column[first + k];
      pack_factor_row(static_cast<const S*>(p.grad_hidden_state) + (row * g.directions + d) * g.output_size, k, begin,
                      end);
    }
  }

  // Columns first_column .. of the other factor's row for valid row n.
  CUSTOMLSTM_INLINE void pack_source(Source source, int64_t d, int64_t n, int64_t columns, int64_t first_column,
                                     S* to) const {
    const Geometry& g = p.g;
    const int64_t t = list.time[n], b = list.column[n];
    if (source == Source::kInput) {
      pack_row(static_cast<const T*>(p.input) + g.step_input[t] + b * g.input_column_stride, g.input_feature_stride,
               columns, first_column, to);
    } else if (source == Source::kHidden) {
      const int64_t at = ((g.step_row[t] + b) * g.directions + d) * g.hidden_size;
      pack_row(static_cast<const S*>(p.hidden) + at, 1, columns, first_column, to);
    } else {   // the hidden state that entered the step
      const T* h = nullptr;
      if (is_cut(g, d, t, b)) {
      } else if (is_first(g, d, t, b)) {
        if (p.h_0) h = static_cast<const T*>(p.h_0) + (d * g.batch + b) * g.output_size;
      } else {
        const int64_t from = g.step_row[d == 0 ? t - 1 : t + 1] + b;
        h = static_cast<const T*>(p.output) + (from * g.directions + d) * g.output_size;
      }
      if (h) {
        pack_row(h, 1, columns, first_column, to);
      } else {
        for (int64_t k = 0; k < kWidth; ++k) to[k] = S(0);
      }
    }
  }

  // grad[m][n] (+)= sum over rows of factor[m] * source[n], for m in begin .. end - 1.
  void outer(int64_t d, Source source, int64_t columns, int64_t first, int64_t depth, int64_t begin, int64_t end,
             S* grad) const {
    for (int64_t n = 0; n < columns; n += kWidth) {
      for (int64_t k = 0; k < depth; ++k) pack_source(source, d, first + k, columns, n, scratch.panel + k * kWidth);
      for (int64_t m = begin; m < end; m += kTileRows) {
        const S* factors = scratch.factors + (m - begin) * kWeightDepth;
        S* to = grad + m * columns + n;
#define CUSTOMLSTM_CALL(R) outer_tile<S, R>(factors, scratch.panel, depth, to, columns, min64(kWidth, columns - n), first > 0)
        CUSTOMLSTM_WITH_ROWS(min64(kTileRows, end - m), CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
      }
    }
  }
};
