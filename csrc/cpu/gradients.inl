// Gradients that need no order of steps: of the input (one product over all rows) and of the weights (one product
// whose depth is all rows of the call). Each thread owns its part of the result, so there is nothing to reduce
// between threads and their number changes no bit.

// The rows within their sequence's length, in order of time; those of time t begin at begin[t].
struct RowList {
  int64_t* time;
  int64_t* column;
  int64_t* begin;   // [T + 1]

  void fill(const Geometry& g) const {
    int64_t n = 0;
    for (int64_t t = 0; t < g.steps; ++t) {
      begin[t] = n;
      for (int64_t b = 0; b < g.batch; ++b) {
        if (g.lengths[b] <= t) continue;
        time[n] = t;
        column[n] = b;
        ++n;
      }
    }
    begin[g.steps] = n;
  }
};

// The gradients of the pre-activations are never there for all steps at once, which would be as much memory as all
// that forward saved. Backward goes over the steps in blocks: the recurrence of a block, then the products over its
// rows, while these are in cache. In direction 0 blocks are counted from the last time, in direction 1 from the first.
template <class S>
struct StepBlocks {
  int64_t steps;          // of one block, but the last
  S* grad_gates;          // [rows of a block, D, GradientRow]
  S* grad_hidden_state;   // [rows of a block, D, P] when projecting: gradient of h
  int64_t index;

  CUSTOMLSTM_INLINE int64_t count(const Geometry& g) const { return ceil_div(g.steps, steps); }
  // Times begin .. end - 1.
  CUSTOMLSTM_INLINE Range times(const Geometry& g, int64_t direction) const {
    const int64_t begin = index * steps, end = min64(g.steps, begin + steps);
    if (direction == 0) return {g.steps - end, g.steps - begin};
    return {begin, end};
  }
  // Position of a row in the arrays above.
  CUSTOMLSTM_INLINE int64_t at(const Geometry& g, int64_t direction, int64_t t, int64_t column) const {
    const int64_t row = g.step_row[t] + column - g.step_row[times(g, direction).begin];
    return row * g.directions + direction;
  }
  // Whether a row of this block and direction had its part of the input's gradient from the other direction before.
  CUSTOMLSTM_INLINE bool comes_second(const Geometry& g, int64_t direction, int64_t t) const {
    if (g.directions == 1) return false;
    return direction == 0 ? t / steps < index : (g.steps - 1 - t) / steps <= index;
  }
};

// What a row of gradients of the gates holds, in elements: the gradients of the cell's per-unit parameters at this step
// follow those of the gates, since both are summed over the rows. With layer norm come then, for each product that is
// normalised, its own gradient and the step's part of its gain's; for the cell state those of gain and bias.
template <class Cell, class Operand>
struct GradientRow {
  static CUSTOMLSTM_INLINE int64_t size(const Geometry& g) {
    if constexpr (kIsNormalised<Cell>) return cell_bias(g) + (g.norms[kNormCell] ? cell_part(g) : 0);
    return plain(g);
  }
  // Where the gradient of W_ih x or W_hh h begins: that of the gates, where no norm comes between.
  static CUSTOMLSTM_INLINE int64_t product(const Geometry& g, int place) {
    if constexpr (!kIsNormalised<Cell>) return 0;
    if (!g.norms[place]) return 0;
    return plain(g) + (place == kNormRecurrent && g.norms[kNormInput] ? 2 * gate_part(g) : 0);
  }
  static CUSTOMLSTM_INLINE int64_t gain(const Geometry& g, int place) {
    if (place != kNormCell) return product(g, place) + gate_part(g);
    return plain(g) + 2 * gate_part(g) * (int64_t(g.norms[kNormInput]) + int64_t(g.norms[kNormRecurrent]));
  }
  static CUSTOMLSTM_INLINE int64_t cell_bias(const Geometry& g) {
    return gain(g, kNormCell) + (g.norms[kNormCell] ? cell_part(g) : 0);
  }

 private:
  static CUSTOMLSTM_INLINE int64_t plain(const Geometry& g) {
    return Operand::elements((Cell::kGates + g.unit_parameters) * g.hidden_size);
  }
  static CUSTOMLSTM_INLINE int64_t gate_part(const Geometry& g) {
    return Operand::elements(Cell::kGates * g.hidden_size);
  }
  static CUSTOMLSTM_INLINE int64_t cell_part(const Geometry& g) { return Operand::elements(g.hidden_size); }
};
template <class Cell, class Operand>
CUSTOMLSTM_INLINE int64_t gradient_row(const Geometry& g) {
  return GradientRow<Cell, Operand>::size(g);
}

constexpr int64_t kWeightDepth = 256;   // rows of the call a block of the weight gradient's product goes over
constexpr int64_t kInputRows = 48;      // rows of the call a block of the input gradient covers, usually

template <class S>
struct GradientScratch {
  // The team's, each thread its own tiles of them: [tiles of gate rows, or of W_hr's][depth][kTileRows].
  S *factors, *projection_factors;
  int64_t depth;    // kWeightDepth, or all rows of the call
  S* panel;         // [kWeightDepth][panel]
  S *row, *sum;     // of rows of gradients of gates: of a block of them, and of the blocks
  S* grad_input;    // [rows at a time][padded L]
  const S** rows;   // [rows at a time]
  S* weights;       // a panel of W_ih or W_hh that is packed in turn

  // Frozen weights and an input without gradient take nothing.
  CUSTOMLSTM_INLINE void layout_team(Arena& arena, const Geometry& g, int64_t gate_rows, bool weights) {
    depth = min64(kWeightDepth, g.valid_rows);
    const int64_t tile = kTileRows * depth;
    factors = arena.take<S>(weights ? ceil_div(gate_rows, kTileRows) * tile : 0);
    projection_factors = arena.take<S>(weights && g.projection ? ceil_div(g.output_size, kTileRows) * tile : 0);
  }
  CUSTOMLSTM_INLINE void layout_thread(Arena& arena, const Geometry& g, int64_t gate_rows, bool weights,
                                       int64_t input_rows) {
    panel = arena.take<S>(weights ? kWeightDepth * panel_width<S>() : 0);
    const int64_t values = gate_rows + g.unit_parameters * g.hidden_size;
    row = arena.take<S>(weights ? values : 0);
    sum = arena.take<S>(weights ? values : 0);
    grad_input = arena.take<S>(input_rows * padded<S>(g.input_size));
    rows = arena.take<const S*>(input_rows);
  }
};

// R rows of a weight gradient: the sum over rows of the call of factors [depth][R] times panel [depth], of which
// `count` columns in V vectors are wanted; the others may be beyond the gradient's end and are not written.
template <class Operand, class S, int R, int V>
CUSTOMLSTM_NOINLINE void outer_tile(const S* factors, const S* panel, int64_t depth, S* to, int64_t stride,
                                    int64_t count, bool accumulate) {
  constexpr int64_t kWidth = panel_width<S>(), kLanes = Vec<S>::kLanes;
  const S* columns[R];
  for (int r = 0; r < R; ++r) columns[r] = factors + r;
  // Rows of a large gradient lie pages apart, and each tile is in other ones than the one before.
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) __builtin_prefetch(to + r * stride + v * kLanes, 1);
  using Sums = Tile<S, R, V, Operand>;
  Sums sums;
  if (depth <= kGradientSumBlock) {
    sums.zero();
    for (int64_t k = 0; k < depth; ++k) sums.multiply_one(columns, k * R, panel + k * kWidth);
  } else {
    // More than one block of the sum passes through memory, which must not be the gradient that is added last.
    alignas(64) S out[R * kWidth];
    Sums::template multiply<kGradientSumBlock>(columns, R, panel, depth, {nullptr, 0, nullptr, 0}, out, kWidth);
    sums.load(out, kWidth);
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V && v * kLanes < count; ++v) {
      S* at = to + r * stride + v * kLanes;
      const int lanes = int(min64(kLanes, count - v * kLanes));
      Vec<S> sum = sums.acc[r][v];
      if (accumulate) sum = sum + load_as<S>(at, lanes);
      store_as(sum, at, lanes);
    }
  }
}

template <class Operand, class S>
CUSTOMLSTM_INLINE void outer_rows(int64_t rows, const S* factors, const S* panel, int64_t depth, S* to, int64_t stride,
                                  int64_t count, bool accumulate) {
#define CUSTOMLSTM_CALL_V(V) outer_tile<Operand, S, kTileRows, V>(factors, panel, depth, to, stride, count, accumulate)
#define CUSTOMLSTM_CALL(R) \
  outer_tile<Operand, S, R, kPanelVectors>(factors, panel, depth, to, stride, count, accumulate)
  if (rows == kTileRows) {
    CUSTOMLSTM_WITH_VECTORS(ceil_div(count, Vec<S>::kLanes), CUSTOMLSTM_CALL_V)
  } else {
    CUSTOMLSTM_WITH_ROWS(rows, CUSTOMLSTM_CALL)
  }
#undef CUSTOMLSTM_CALL_V
#undef CUSTOMLSTM_CALL
}

template <class T, class Cell>
struct Gradients {
  using S = typename AccumulationOf<T>::Type;
  using Operand = typename OperandOf<T>::Type;
  using Stored = typename Operand::Stored;
  static constexpr int kLanes = Vec<S>::kLanes, kRows = Operand::kRows;
  static constexpr int64_t kWidth = kPanelVectors * kLanes;
  using Row = GradientRow<Cell, Operand>;
  enum class Source { kInput, kHiddenState, kHidden };

  const BackwardParams& p;
  const RowList& list;
  const GradientScratch<S>& scratch;
  const StepBlocks<S>& blocks;
  int rank, size;

  CUSTOMLSTM_INLINE const S* gate_row(int64_t n, int64_t d) const {
    const int64_t at = blocks.at(p.g, d, list.time[n], list.column[n]);
    return blocks.grad_gates + at * gradient_row<Cell, Operand>(p.g);
  }
  // The rows of this block, as positions in the list.
  CUSTOMLSTM_INLINE Range rows(int64_t d) const {
    const Range times = blocks.times(p.g, d);
    return {list.begin[times.begin], list.begin[times.end]};
  }

  // How W_ih and W_hh are read. Elements of more than one row of a matrix must be packed; and without AVX2 to read
  // where it lies is slower than panels at every step, of 16-bit types, which it converts one by one, many times.
  static CUSTOMLSTM_INLINE WeightAccess access(WeightAccess planned, int64_t steps) {
    if (planned != WeightAccess::kTurned) return planned;
    if (kRows == 1 && (steps == 1 || CUSTOMLSTM_VECTOR_BYTES >= 32)) return planned;
    return steps == 1 ? WeightAccess::kPackedInTurn : WeightAccess::kPacked;
  }
  static CUSTOMLSTM_INLINE WeightAccess access_ih(const BackwardParams& p) {
    return access(p.plan.backward_w_ih, p.g.steps);
  }
  static CUSTOMLSTM_INLINE WeightAccess access_hh(const BackwardParams& p) {
    return access(p.plan.backward_w_hh, p.g.steps);
  }

  // W_ih or W_hh, [kGates * H, columns].
  struct Matrix {
    WeightAccess access;
    const T* rows;
    const S* packed;   // or null
    int64_t columns;
  };
  // out[i] (+)= rows[i] . matrix for `count` rows of gradients of gates and these panels of columns; `room` is for a
  // panel that is packed in turn.
  static void multiply(const Geometry& g, const Matrix& matrix, Range panels, const S* const* rows, int64_t count,
                       S* room, S* out, int64_t stride, bool accumulate) {
    const int64_t gate_rows = Cell::kGates * g.hidden_size, depth = Operand::elements(gate_rows), n = matrix.columns;
    if constexpr (kRows == 1) {
      if (matrix.access == WeightAccess::kTurned) {
        const Range columns = {panels.begin * kWidth, min64(panels.end * kWidth, n)};
        multiply_few_rows(rows, count, matrix.rows, gate_rows, n, columns, out, stride, accumulate);
        return;
      }
    }
    for (int64_t j = panels.begin; j < panels.end; ++j) {
      const bool in_turn = matrix.access == WeightAccess::kPackedInTurn;
      if (in_turn) pack_columns<Operand>(matrix.rows, gate_rows, n, j * kWidth, room);
      const S* panel = in_turn ? room : matrix.packed + j * depth * kWidth;
      multiply_rows<Operand>(rows, count, panel, min64(kWidth, n - j * kWidth), depth, out + j * kWidth, stride,
                             accumulate);
    }
  }
  // Rows of the call whose input gradient is computed at a time.
  static CUSTOMLSTM_INLINE int64_t input_rows(const BackwardParams& p) {
    return access_ih(p) == WeightAccess::kPackedInTurn ? kBlockRows : kInputRows;
  }

  // dL/dx = sum over directions of dL/da . W_ih, for the rows of this block in directions first .. last - 1, whose
  // times must be the same. Threads share the rows, or where these are few the columns.
  void input(S* const* packed_w_ih, int64_t first_direction, int64_t last_direction) const {
    const Geometry& g = p.g;
    const Range all = rows(first_direction);
    const int64_t at_once = input_rows(p);
    const int64_t blocks_of_rows = ceil_div(all.end - all.begin, at_once), panels = ceil_div(g.input_size, kWidth);
    // By whichever the busiest thread has less to do; where panels are packed in turn, rather by columns.
    const int64_t by_rows = ceil_div(blocks_of_rows, size) * panels;
    const int64_t by_columns = ceil_div(panels, size) * blocks_of_rows;
    const bool in_turn = access_ih(p) == WeightAccess::kPackedInTurn;
    const bool share_rows = by_rows < by_columns || (by_rows == by_columns && !in_turn);
    const Range parts = share_rows ? share(blocks_of_rows, rank, size) : Range{0, blocks_of_rows};
    const Range mine = share_rows ? Range{0, panels} : share(panels, rank, size);
    for (int64_t part = parts.begin; part < parts.end && mine.begin < mine.end; ++part) {
      const int64_t first = all.begin + part * at_once, count = min64(at_once, all.end - first);
      for (int64_t d = first_direction; d < last_direction; ++d) {
        for (int64_t i = 0; i < count; ++i) scratch.rows[i] = gate_row(first + i, d) + Row::product(g, kNormInput);
        const Matrix w_ih = {access_ih(p), static_cast<const T*>(p.weights[d].w_ih), packed_w_ih[d], g.input_size};
        multiply(g, w_ih, mine, scratch.rows, count, scratch.weights, scratch.grad_input, input_stride(),
                 d > first_direction);
      }
      store_input(first, count, mine, first_direction, last_direction);
    }
  }
  CUSTOMLSTM_INLINE int64_t input_stride() const { return padded<S>(p.g.input_size); }

  // Rows first .. first + count - 1 of the list, these panels of columns.
  void store_input(int64_t first, int64_t count, Range panels, int64_t first_direction, int64_t last_direction) const {
    const Geometry& g = p.g;
    const int64_t begin = panels.begin * kWidth, columns = min64(panels.end * kWidth, g.input_size) - begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = list.time[first + i];
      S* from = scratch.grad_input + i * input_stride() + begin;
      T* to = static_cast<T*>(p.grad_input) + (g.step_row[t] + list.column[first + i]) * g.input_size + begin;
      if (last_direction - first_direction < g.directions && blocks.comes_second(g, first_direction, t)) {
        for (int64_t k = 0; k < columns; ++k) from[k] += S(to_float(to[k]));
      }
      narrow(from, to, columns);
    }
  }

  // Adds this block's rows to the gradients of the weights of a direction; the first block sets them.
  void weights(int64_t d) const {
    const Geometry& g = p.g;
    const auto& to = p.grad_weights[d];
    const Range all = rows(d);
    const bool accumulate = any_before(d);
    if (to.w_ih || to.w_hh || to.bias) {
      const int64_t gate_rows = Cell::kGates * g.hidden_size;
      // Whole tiles, so that two threads never write one cache line's worth of factors for the other.
      const Range tiles = share(ceil_div(gate_rows, kTileRows), rank, size);
      const int64_t begin = tiles.begin * kTileRows, end = min64(tiles.end * kTileRows, gate_rows);
      for (int64_t first = all.begin; first < all.end && begin < end; first += kWeightDepth) {
        const int64_t depth = min64(kWeightDepth, all.end - first);
        const Part part = {first, depth, begin, end, accumulate || first > all.begin};
        const int64_t ih = Row::product(g, kNormInput), hh = Row::product(g, kNormRecurrent);
        pack_factors(d, part, ih, ih == 0 ? to.bias : nullptr);
        if (to.w_ih) outer(d, Source::kInput, g.input_size, part, static_cast<S*>(to.w_ih));
        if (hh != ih) pack_factors(d, part, hh, hh == 0 ? to.bias : nullptr);
        if (to.w_hh) outer(d, Source::kHiddenState, g.output_size, part, static_cast<S*>(to.w_hh));
      }
    }
    for (int64_t k = 0; k < g.unit_parameters; ++k) {
      sum_values(d, 0, {(Cell::kGates + k) * g.hidden_size, g.hidden_size}, all, accumulate, to.unit_parameters[k]);
    }
    if constexpr (kIsNormalised<Cell>) sum_norms(d, all, accumulate);
    if (to.w_hr) {
      const Range tiles = share(ceil_div(g.output_size, kTileRows), rank, size);
      const int64_t begin = tiles.begin * kTileRows, end = min64(tiles.end * kTileRows, g.output_size);
      for (int64_t first = all.begin; first < all.end && begin < end; first += kWeightDepth) {
        const int64_t depth = min64(kWeightDepth, all.end - first);
        const Part part = {first, depth, begin, end, accumulate || first > all.begin};
        pack_projection_factors(d, part);
        outer(d, Source::kHidden, g.hidden_size, part, static_cast<S*>(to.w_hr));
      }
    }
  }

  // Rows first .. first + depth - 1 of the list, for the rows begin .. end - 1 of a gradient.
  struct Part {
    int64_t first, depth, begin, end;
    bool accumulate;
  };

  // Whether a block before this one had rows of this direction: then the gradients hold their sum.
  CUSTOMLSTM_INLINE bool any_before(int64_t d) const {
    const Range times = blocks.times(p.g, d);
    return d == 0 ? list.begin[p.g.steps] > list.begin[times.end] : list.begin[times.begin] > 0;
  }

  // The factors of kTileRows gate rows side by side: read along a row they would lie a power of two apart, all in the
  // same few sets of the cache. The bias gradient is their sum, taken on the way, in blocks like the products. They
  // begin at element `section` of a row.
  void pack_factors(int64_t d, const Part& part, int64_t section, void* bias) const {
    for (int64_t k = 0; k < part.depth; k += kRows) {
      const S* from[kRows] = {};
      for (int64_t j = 0; j < kRows && k + j < part.depth; ++j) from[j] = gate_row(part.first + k + j, d) + section;
      pack_factor_row(from, k / kRows, part, scratch.factors);
      for (int64_t j = 0; bias && j < kRows && from[j]; ++j) add_to_sums(from[j], k + j, part);
    }
    if (bias) store_sums(part, 0, static_cast<S*>(bias));
  }

  // Values of a row, counted from an element of it.
  struct Values {
    int64_t first, count;
  };
  // The gradient of a per-unit parameter, or of a gain or bias of layer norm, is the sum of what the cell left beside
  // the gates; null: not wanted.
  void sum_values(int64_t d, int64_t section, Values values, Range all, bool accumulate, void* to) const {
    if (!to) return;
    const int64_t offset = values.first;
    const Range units = share(values.count, rank, size);
    for (int64_t first = all.begin; first < all.end; first += kWeightDepth) {
      const int64_t depth = min64(kWeightDepth, all.end - first);
      const Part part = {first, depth, offset + units.begin, offset + units.end, accumulate || first > all.begin};
      for (int64_t row = 0; row < depth; ++row) add_to_sums(gate_row(first + row, d) + section, row, part);
      store_sums(part, offset, static_cast<S*>(to));
    }
  }

  void sum_norms(int64_t d, Range all, bool accumulate) const {
    const Geometry& g = p.g;
    const auto& to = p.grad_weights[d];
    const Values gates = {0, Cell::kGates * g.hidden_size}, units = {0, g.hidden_size};
    for (const int place : {kNormInput, kNormRecurrent}) {
      sum_values(d, Row::gain(g, place), gates, all, accumulate, to.norms[place].gain);
    }
    sum_values(d, Row::gain(g, kNormCell), units, all, accumulate, to.norms[kNormCell].gain);
    sum_values(d, Row::cell_bias(g), units, all, accumulate, to.norms[kNormCell].bias);
    // Where both products are normalised, no factors were packed of the gradient of the gates itself.
    if (g.norms[kNormInput] && g.norms[kNormRecurrent]) sum_values(d, 0, gates, all, accumulate, to.bias);
  }
  CUSTOMLSTM_INLINE void store_sums(const Part& part, int64_t offset, S* to) const {
    end_block(part, part.depth <= kGradientSumBlock);
    for (int64_t m = part.begin; m < part.end; ++m) {
      S& sum = to[m - offset];
      sum = (part.accumulate ? sum : S(0)) + scratch.sum[m];
    }
  }

  // Row k of a part, summed in blocks.
  CUSTOMLSTM_INLINE void add_to_sums(const S* from, int64_t k, const Part& part) const {
    if (k % kGradientSumBlock > 0) {
      for (int64_t m = part.begin; m < part.end; ++m) scratch.row[m] += Operand::get(from, m);
    } else {
      if (k > 0) end_block(part, k == kGradientSumBlock);
      for (int64_t m = part.begin; m < part.end; ++m) scratch.row[m] = Operand::get(from, m);
    }
  }
  CUSTOMLSTM_INLINE void end_block(const Part& part, bool first) const {
    for (int64_t m = part.begin; m < part.end; ++m) scratch.sum[m] = (first ? S(0) : scratch.sum[m]) + scratch.row[m];
  }

  CUSTOMLSTM_INLINE void pack_factor_row(const S* const (&from)[kRows], int64_t k, const Part& part, S* factors) const {
    for (int64_t m = part.begin; m < part.end; m += kTileRows) {
      S* to = factors + m * scratch.depth;
      const int64_t count = min64(kTileRows, part.end - m);
      if (kRows == 1 && count == kTileRows) {
        __builtin_memcpy(to + k * kTileRows, from[0] + m, kTileRows * sizeof(S));
      } else {
        for (int64_t r = 0; r < count; ++r) to[k * count + r] = Operand::join(from, m + r);
      }
    }
  }

  void pack_projection_factors(int64_t d, const Part& part) const {
    for (int64_t k = 0; k < part.depth; k += kRows) {
      const S* from[kRows] = {};
      for (int64_t j = 0; j < kRows && k + j < part.depth; ++j) {
        const int64_t n = part.first + k + j;
        const int64_t at = blocks.at(p.g, d, list.time[n], list.column[n]);
        from[j] = blocks.grad_hidden_state + at * Operand::elements(p.g.output_size);
      }
      pack_factor_row(from, k / kRows, part, scratch.projection_factors);
    }
  }

  // Columns first_column .. of the other factor's row for valid row n.
  CUSTOMLSTM_INLINE void pack_source(Source source, int64_t d, int64_t n, int64_t columns, int64_t first_column,
                                     Stored* to) const {
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
      if (h && g.recurrent_mask) {
        pack_masked_row(h, d, b, columns, first_column, to);
      } else if (h) {
        pack_row(h, 1, columns, first_column, to);
      } else {
        for (int64_t k = 0; k < kWidth; ++k) to[k] = Stored{};
      }
    }
  }

  // As pack_row, of what W_hh was multiplied by.
  void pack_masked_row(const T* h, int64_t d, int64_t b, int64_t columns, int64_t first_column, Stored* to) const {
    S row[kWidth];
    const int64_t count = min64(kWidth, columns - first_column);
    for (int64_t k = 0; k < count; ++k) {
      row[k] = masked(S(to_float(h[first_column + k])), recurrent_factor<S>(p.g, d, b, first_column + k));
    }
    pack_row(row, 1, count, 0, to);
  }

  // grad[m][n] (+)= sum over rows of factor[m] * source[n]. Of few rows several panels fit the scratch memory, and the
  // gradient is written along its own rows: of a single step that is most of the work.
  void outer(int64_t d, Source source, int64_t columns, const Part& part, S* grad) const {
    const int64_t depth = ceil_div(part.depth, kRows), panel_size = depth * kWidth;
    const int64_t at_once = kWeightDepth / depth * kWidth;
    for (int64_t first = 0; first < columns; first += at_once) {
      const int64_t end = min64(columns, first + at_once);
      for (int64_t n = first; n < end; n += kWidth) {
        pack_panel(d, source, columns, part, n, scratch.panel + (n - first) / kWidth * panel_size);
      }
      for (int64_t m = part.begin; m < part.end; m += kTileRows) {
        const S* factors = source == Source::kHidden ? scratch.projection_factors : scratch.factors;
        factors += m * scratch.depth;
        for (int64_t n = first; n < end; n += kWidth) {
          const S* panel = scratch.panel + (n - first) / kWidth * panel_size;
          outer_rows<Operand>(min64(kTileRows, part.end - m), factors, panel, depth, grad + m * columns + n, columns,
                              min64(kWidth, columns - n), part.accumulate);
        }
      }
    }
  }

  // Columns n .. of the source, all rows of the part.
  void pack_panel(int64_t d, Source source, int64_t columns, const Part& part, int64_t n, S* panel) const {
    for (int64_t k = 0; k < part.depth; k += kRows) {
      Stored rows[kRows][kWidth] = {};
      for (int64_t j = 0; j < kRows && k + j < part.depth; ++j) {
        pack_source(source, d, part.first + k + j, columns, n, rows[j]);
      }
      Operand::join_rows(rows, panel + k / kRows * kWidth);
    }
  }
};
