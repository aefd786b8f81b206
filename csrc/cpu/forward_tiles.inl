// The scratch memory of forward, and what works on one tile of it: the products and the cell.

template <class S>
struct ForwardWorkspace {
  S *w_ih[2], *w_hh[2], *w_hr[2], *bias[2];   // packed: panel by panel
  S* unit_parameters[2];                      // [parameters, padded H]
  const void *matrix_ih[2], *matrix_hh[2];    // T, where they are not packed
  S* h[2];                                    // [D, B, padded P] the state before and after a step, in turn
  S* unmasked[2];                             // the same; h itself, but where W_hh is multiplied by a part of it only
  S* factors;                                 // [D, B, padded P] that part, where there is a mask
  S* held;                                    // [D, B, padded P] h_{t-1}, where zoneout mixes it with h_t
  S* c;                                       // [D, B, cell states, padded H]
  S* projecting;                              // [D, B, padded H] h before the projection
  S* x;                                       // of this thread: [chunk, L]
  S* gates_x;                                 // [unit blocks, chunk, gates * lanes], of the team if it shares the units
  S* panel;                                   // of this thread: one that is packed in turn
  NormParameters<S> norms[2];                 // these three only where there is layer norm
  S* products;                                // [unit blocks, rows of a block, gates * lanes] of W_hh h, as gates_x
  S* norm_rows;                               // of this thread: rows that go through the cell
  const S** x_rows;                           // [chunk] rows of the input, or of x where they must be converted
  int64_t h_stride, c_stride;                 // of a state; a row of c has several where the cell has
  int64_t c_row_stride;

  CUSTOMLSTM_INLINE S* h_row(const Geometry& g, const Job& job, int64_t parity, int64_t i) const {
    return h[parity] + (job.direction * g.batch + job.first_row + i) * h_stride;
  }
  CUSTOMLSTM_INLINE S* unmasked_row(const Geometry& g, const Job& job, int64_t parity, int64_t i) const {
    return unmasked[parity] + (job.direction * g.batch + job.first_row + i) * h_stride;
  }
  CUSTOMLSTM_INLINE S* factor_row(const Geometry& g, const Job& job, int64_t i) const {
    return factors + (job.direction * g.batch + job.first_row + i) * padded<S>(g.output_size);
  }
  CUSTOMLSTM_INLINE S* held_row(const Geometry& g, const Job& job, int64_t i) const {
    return held + (job.direction * g.batch + job.first_row + i) * padded<S>(g.output_size);
  }
  CUSTOMLSTM_INLINE S* c_row(const Geometry& g, const Job& job, int64_t i) const {
    return c + (job.direction * g.batch + job.first_row + i) * c_row_stride;
  }
  CUSTOMLSTM_INLINE S* projecting_row(const Geometry& g, const Job& job, int64_t i) const {
    return projecting + (job.direction * g.batch + job.first_row + i) * c_stride;
  }
};

// The register tiles. They know the accumulation type S and the operand only, so that float32 and the 16-bit types that
// are multiplied as float32 share them (they are nearly all of the code and of the time to compile it); `output` is
// null where it needs a conversion.
template <class S, class Cell, class Operand>
struct ForwardTiles {
  static constexpr int kLanes = Vec<S>::kLanes;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates;
  static constexpr int64_t kGateWidth = kGates * kLanes, kWidth = kPanelVectors * kLanes;
  using Workspace = ForwardWorkspace<S>;
  using Stored = typename Operand::Stored;
  template <int R>
  using GateProducts = Tile<S, R, kGates, Operand, kGates>;
  template <int R>
  using Products = Tile<S, R, kPanelVectors, Operand>;

  template <int R>
  static CUSTOMLSTM_NOINLINE void project_tile(const S* const* x, int64_t depth, const S* panel, const S* bias,
                                               S* out) {
    const S* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = x[r];
    GateProducts<R>::template multiply<kSumBlock>(rows, 1, panel, depth, {bias, 0, nullptr, 0}, out, kGateWidth);
  }

  // Rows i .. i + R - 1, units unit .. unit + kLanes - 1: recurrent product, cell, new state, saved values. With depth
  // 0 the product is in gates_x already.
  template <int R>
  static CUSTOMLSTM_NOINLINE void cell_tile(const ForwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                            int64_t parity, int64_t unit, int64_t i, const S* panel, int64_t depth,
                                            const S* gates_x, Stored* output) {
    const S* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = w.h_row(p.g, job, parity, i + r);
    // Through memory, which is the first-level cache: the cell needs more registers than the tile leaves.
    alignas(64) S gates[R * kGateWidth];
    GateProducts<R>::template multiply<kSumBlock>(rows, 1, panel, depth, {nullptr, 0, gates_x, kGateWidth}, gates,
                                                  kGateWidth);
    const CellStep step = {t, parity, unit, output};
    if (changes_states(p.g)) {
      all_cell_rows<R, true>(p, w, job, step, i, gates);
    } else {
      all_cell_rows<R, false>(p, w, job, step, i, gates);
    }
  }

  struct CellStep {
    int64_t t, parity, unit;
    Stored* output;
  };
  static constexpr int kCellRows = 2;   // rows through the cell at a time: more would spill

  template <int R, bool kChanged>
  static CUSTOMLSTM_INLINE void all_cell_rows(const ForwardParams& p, const Workspace& w, const Job& job,
                                              const CellStep& step, int64_t i, const S* gates) {
    int r = 0;
    for (; r + kCellRows <= R; r += kCellRows) {
      cell_rows<kCellRows, kChanged>(p, w, job, step, i + r, gates + r * kGateWidth);
    }
    if (r < R) cell_rows<1, kChanged>(p, w, job, step, i + r, gates + r * kGateWidth);
  }

  template <int R, bool kChanged>
  static CUSTOMLSTM_NOINLINE void cell_rows(const ForwardParams& p, const Workspace& w, const Job& job,
                                            const CellStep& step, int64_t i, const S* gates) {
    const Geometry& g = p.g;
    const int64_t unit = step.unit;
    Pack<S, R> a[kGates], c[kStates], c_before[kStates], h, saved[Cell::kSaved], parameters[Cell::kParameters + 1];
    for (int k = 0; k < kGates; ++k)
      for (int r = 0; r < R; ++r) a[k].row[r] = Vec<S>::load(gates + r * kGateWidth + k * kLanes);
    for (int s = 0; s < kStates; ++s) {
      for (int r = 0; r < R; ++r) c[s].row[r] = Vec<S>::load(w.c_row(g, job, i + r) + s * w.c_stride + unit);
      c_before[s] = c[s];
    }
    load_unit_parameters<Cell>(g, w.unit_parameters[job.direction], w.c_stride, unit, parameters);
    Cell::forward(*static_cast<const CellParams<S>*>(p.cell_params), a, parameters, c, h, saved);

    const int lanes = int(min64(kLanes, g.hidden_size - unit));
    const bool mixes_cells = kChanged && is_on(g.zoneout_c);
    const int64_t values = (Cell::kSaved + (mixes_cells ? kStates : 0)) * g.hidden_size;
    for (int r = 0; r < R; ++r) {
      const int64_t row = g.step_row[step.t] + job.columns[i + r];
      const int64_t place = row * g.directions + job.direction;
      Vec<S> before[kStates], computed[kStates];
      for (int s = 0; s < kStates; ++s) {
        before[s] = c_before[s].row[r];
        computed[s] = c[s].row[r];
      }
      store_states<kChanged>(p, w, job, step, i + r, lanes, before, computed, h.row[r]);
      if (p.gates) {
        S* to = static_cast<S*>(p.gates) + place * values + unit;
        const int64_t ahead = (job.direction == 0 ? g.batch : -g.batch) * g.directions * values;
        for (int k = 0; k < Cell::kSaved; ++k) __builtin_prefetch(to + ahead + k * g.hidden_size, 1, 2);
        for (int k = 0; k < Cell::kSaved; ++k) store_as(saved[k].row[r], to + k * g.hidden_size, lanes);
        if (!mixes_cells) continue;
        for (int s = 0; s < kStates; ++s) store_as(computed[s], to + (Cell::kSaved + s) * g.hidden_size, lanes);
      }
    }
  }

  // What the cell computed for one row, mixed with what was, to where the next step and the results want it.
  template <bool kChanged>
  static CUSTOMLSTM_INLINE void store_states(const ForwardParams& p, const Workspace& w, const Job& job,
                                             const CellStep& step, int64_t i, int lanes,
                                             const Vec<S> (&before)[kStates], const Vec<S> (&computed)[kStates],
                                             const Vec<S>& h) {
    const Geometry& g = p.g;
    const int64_t unit = step.unit, row = g.step_row[step.t] + job.columns[i];
    const int64_t place = row * g.directions + job.direction, state = place * g.hidden_size + unit;
    Vec<S> c[kStates];
    for (int s = 0; s < kStates; ++s) {
      c[s] = computed[s];
      if (kChanged && is_on(g.zoneout_c)) c[s] = mix(g.zoneout_c, before[s], computed[s], state, lanes);
      c[s].store(w.c_row(g, job, i) + s * w.c_stride + unit);
    }
    if (g.projection) {
      Operand::store(within(h, lanes), w.projecting_row(g, job, i), unit);
    } else {
      const Vec<S> h_t = new_state<kChanged>(g, w, job, step.t, 1 - step.parity, i, unit, lanes, h);
      if (step.output) store_as(h_t, step.output + place * g.output_size + unit, lanes);
    }
    if (p.c_all) {
      S* to = static_cast<S*>(p.c_all) + place * kStates * g.hidden_size + unit;
      for (int s = 0; s < kStates; ++s) store_as(c[s], to + s * g.hidden_size, lanes);
    }
    if (p.hidden) store_as(h, static_cast<S*>(p.hidden) + state, lanes);
  }

  // Lanes beyond the last unit are computed from nothing but zeros, and may be infinite all the same: where a pair of
  // values is one element of a product, the last one's other half would make it NaN.
  static CUSTOMLSTM_INLINE Vec<S> within(const Vec<S>& h, int lanes) {
    if constexpr (Operand::kRows == 1) return h;
    return keep_first(h, lanes);
  }

  // h_t of one row from what the cell computed: mixed with h_{t-1}, and stored with what W_hh is multiplied by.
  template <bool kChanged>
  static CUSTOMLSTM_INLINE Vec<S> new_state(const Geometry& g, const Workspace& w, const Job& job, int64_t t,
                                            int64_t parity, int64_t i, int64_t unit, int lanes, Vec<S> h) {
    if (kChanged && is_on(g.zoneout_h)) {
      const int64_t row = g.step_row[t] + job.columns[i];
      const int64_t at = (row * g.directions + job.direction) * g.output_size + unit;
      S* held = w.held_row(g, job, i) + unit;
      h = mix(g.zoneout_h, Vec<S>::load(held), h, at, lanes);
      h.store(held);
    }
    h = within(h, lanes);
    Operand::store(h, w.unmasked_row(g, job, parity, i), unit);
    if (kChanged && g.recurrent_mask) {
      Operand::store(masked(h, Vec<S>::load(w.factor_row(g, job, i) + unit)), w.h_row(g, job, parity, i), unit);
    }
    return h;
  }

  // h_t = W_hr h: rows i .. i + R - 1, columns first .. of the hidden state.
  template <int R>
  static CUSTOMLSTM_NOINLINE void projection_tile(const ForwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                                  int64_t parity, int64_t first, int64_t i, Stored* output) {
    const Geometry& g = p.g;
    const int64_t depth = Operand::elements(g.hidden_size);
    const S* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = w.projecting_row(g, job, i + r);
    alignas(64) S h[R * kWidth];
    Products<R>::template multiply<kSumBlock>(rows, 1, w.w_hr[job.direction] + first / kWidth * depth * kWidth, depth,
                                              {nullptr, 0, nullptr, 0}, h, kWidth);
    for (int r = 0; r < R; ++r) {
      const int64_t row = g.step_row[t] + job.columns[i + r];
      for (int64_t v = 0; v < kPanelVectors; ++v) {
        const int64_t unit = first + v * kLanes;
        const int lanes = int(max64(0, min64(kLanes, g.output_size - unit)));
        const Vec<S> part = Vec<S>::load(h + r * kWidth + v * kLanes);
        const Vec<S> h_t = new_state<true>(g, w, job, t, 1 - parity, i + r, unit, lanes, part);
        if (!output || lanes == 0) continue;
        store_as(h_t, output + (row * g.directions + job.direction) * g.output_size + unit, lanes);
      }
    }
  }
};
