// The cell with layer normalisation, forward. The sums over a row come between the products and the cell, and between
// the two halves of the cell, so the products of all units are there first, and then a row goes through the cell as a
// whole, in one thread.

template <class S, class Cell, class Operand>
struct NormalisedForward {
  static constexpr int kLanes = Vec<S>::kLanes, kGates = Cell::kGates;
  static constexpr int64_t kGateWidth = kGates * kLanes;
  static constexpr int kCellRows = 2;   // rows through the cell at a time
  using Workspace = ForwardWorkspace<S>;
  using Tiles = ForwardTiles<S, Cell, Operand>;
  using CellStep = typename Tiles::CellStep;

  // What a thread needs of a row while it is at it: both products, the new cell state and the output gate.
  static constexpr int kRowParts = 2 * kGates + 2;
  static CUSTOMLSTM_INLINE int64_t scratch_size(const Geometry& g) { return kCellRows * kRowParts * norm_stride<S>(g); }
  static CUSTOMLSTM_INLINE S* part_of(const Geometry& g, const Workspace& w, int row, int part) {
    return w.norm_rows + (row * kRowParts + part) * norm_stride<S>(g);
  }
  static constexpr int kState = 2 * kGates, kOutputGate = kState + 1;

  // Products of a step as [unit block][row][gate][lane], from the first row that is wanted.
  struct Products {
    const S* from;
    int64_t block_stride;
  };

  // This thread's share of the sequences i0 .. i0 + count - 1 of a step.
  static void run(const ForwardParams& p, const Workspace& w, const Job& job, const CellStep& step, int64_t i0,
                  int64_t count, const Products& input, const Products& recurrent) {
    const bool changed = changes_states(p.g);
    const Range rows = share(count, job.rank, job.size);
    for (int64_t i = rows.begin; i < rows.end; i += kCellRows) {
      const Products x = {input.from + i * kGateWidth, input.block_stride};
      const Products h = {recurrent.from + i * kGateWidth, recurrent.block_stride};
#define CUSTOMLSTM_CALL(R, CHANGED) cell_rows<R, CHANGED>(p, w, job, step, i0 + i, x, h)
      if (rows.end - i >= kCellRows) {
        changed ? CUSTOMLSTM_CALL(kCellRows, true) : CUSTOMLSTM_CALL(kCellRows, false);
      } else {
        changed ? CUSTOMLSTM_CALL(1, true) : CUSTOMLSTM_CALL(1, false);
      }
#undef CUSTOMLSTM_CALL
    }
  }

 private:
  // Sequences i .. i + R - 1 of a step from their products.
  template <int R, bool kChanged>
  static CUSTOMLSTM_NOINLINE void cell_rows(const ForwardParams& p, const Workspace& w, const Job& job,
                                            const CellStep& step, int64_t i, const Products& input,
                                            const Products& recurrent) {
    const Geometry& g = p.g;
    const Products* const products[2] = {&input, &recurrent};
    Norm<S> norms[2][R];
    for (int place = 0; place < 2; ++place) {
      for (int r = 0; r < R; ++r) {
        S* product = part_of(g, w, r, place * kGates);
        gather(g, *products[place], r, product);
        norms[place][r] = {S(0), S(1)};
        if (g.norms[place]) norms[place][r] = norm_of<kGates>(product, norm_stride<S>(g), g.hidden_size);
        if (p.gates && g.norms[place]) save_product(p, w, job, step.t, i + r, r, place);
      }
    }
    first_half<R, kChanged>(p, w, job, step.t, i, norms);
    Norm<S> states[R];
    for (int r = 0; r < R; ++r) {
      states[r] = g.norms[kNormCell] ? norm_of<1>(part_of(g, w, r, kState), 0, g.hidden_size) : Norm<S>{S(0), S(1)};
    }
    second_half<R, kChanged>(p, w, job, step, i, states);
  }

  // One row of a product to [gate][stride], where its sums go over whole vectors.
  static CUSTOMLSTM_INLINE void gather(const Geometry& g, const Products& product, int64_t row, S* to) {
    const int64_t stride = norm_stride<S>(g);
    const S* from = product.from + row * kGateWidth;
    for (int64_t unit = 0; unit < g.hidden_size; unit += kLanes, from += product.block_stride)
      for (int k = 0; k < kGates; ++k) Vec<S>::load(from + k * kLanes).store(to + k * stride + unit);
  }

  static CUSTOMLSTM_INLINE int64_t values_of(const Geometry& g, bool mixes_cells) {
    return (kept_values<Cell>(g) + (mixes_cells ? 1 : 0)) * g.hidden_size;
  }
  // Where the values of a row that are kept for backward begin.
  static CUSTOMLSTM_INLINE S* kept_row(const ForwardParams& p, const Job& job, int64_t t, int64_t i) {
    const int64_t place = (p.g.step_row[t] + job.columns[i]) * p.g.directions + job.direction;
    return static_cast<S*>(p.gates) + place * values_of(p.g, is_on(p.g.zoneout_c));
  }

  static CUSTOMLSTM_INLINE void save_product(const ForwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                             int64_t i, int r, int place) {
    const Geometry& g = p.g;
    S* to = kept_row(p, job, t, i) + kept_product<Cell>(g, place) * g.hidden_size;
    for (int k = 0; k < kGates; ++k) {
      const S* from = part_of(g, w, r, place * kGates + k);
      __builtin_memcpy(to + k * g.hidden_size, from, size_t(g.hidden_size) * sizeof(S));
    }
  }

  // From the products to the new cell state and the output gate.
  template <int R, bool kChanged>
  static CUSTOMLSTM_INLINE void first_half(const ForwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                           int64_t i, const Norm<S> (&norms)[2][R]) {
    const Geometry& g = p.g;
    const int64_t stride = norm_stride<S>(g);
    const NormParameters<S>& own = w.norms[job.direction];
    const CellParams<S>& params = *static_cast<const CellParams<S>*>(p.cell_params);
    for (int64_t unit = 0; unit < g.hidden_size; unit += kLanes) {
      Pack<S, R> a[kGates], c[1], o, saved[Cell::kSaved], parameters[Cell::kParameters + 1];
      for (int k = 0; k < kGates; ++k) {
        const int64_t at = k * stride + unit;
        const Vec<S> gain_x = Vec<S>::load(own.gain[kNormInput] + at), bias = Vec<S>::load(own.bias + at);
        const Vec<S> gain_h = Vec<S>::load(own.gain[kNormRecurrent] + at);
        for (int r = 0; r < R; ++r) {
          const Vec<S> x = norms[0][r].apply(Vec<S>::load(part_of(g, w, r, k) + unit));
          const Vec<S> h = norms[1][r].apply(Vec<S>::load(part_of(g, w, r, kGates + k) + unit));
          a[k].row[r] = fma(gain_h, h, fma(gain_x, x, bias));
        }
      }
      for (int r = 0; r < R; ++r) c[0].row[r] = Vec<S>::load(w.c_row(g, job, i + r) + unit);
      load_unit_parameters<Cell>(g, w.unit_parameters[job.direction], w.c_stride, unit, parameters);
      Cell::forward_state(params, a, parameters, c, o, saved);
      const int lanes = int(min64(kLanes, g.hidden_size - unit));
      for (int r = 0; r < R; ++r) {
        c[0].row[r].store(part_of(g, w, r, kState) + unit);
        o.row[r].store(part_of(g, w, r, kOutputGate) + unit);
        if (!p.gates) continue;
        S* to = kept_row(p, job, t, i + r) + unit;
        for (int k = 0; k < Cell::kSaved && keeps_gates(g); ++k) {
          store_as(saved[k].row[r], to + k * g.hidden_size, lanes);
        }
        if (kChanged && is_on(g.zoneout_c)) {
          store_as(c[0].row[r], to + kept_values<Cell>(g) * g.hidden_size, lanes);
        }
      }
    }
  }

  // From there to h, and both states to where the next step and the results want them.
  template <int R, bool kChanged>
  static CUSTOMLSTM_INLINE void second_half(const ForwardParams& p, const Workspace& w, const Job& job,
                                            const CellStep& step, int64_t i, const Norm<S> (&norms)[R]) {
    const Geometry& g = p.g;
    const NormParameters<S>& own = w.norms[job.direction];
    const CellParams<S>& params = *static_cast<const CellParams<S>*>(p.cell_params);
    for (int64_t unit = 0; unit < g.hidden_size; unit += kLanes) {
      const Vec<S> gain = Vec<S>::load(own.gain[kNormCell] + unit), bias = Vec<S>::load(own.cell_bias + unit);
      Pack<S, R> shown, o, h;
      for (int r = 0; r < R; ++r) {
        shown.row[r] = Vec<S>::load(part_of(g, w, r, kState) + unit);
        if (g.norms[kNormCell]) shown.row[r] = fma(gain, norms[r].apply(shown.row[r]), bias);
        o.row[r] = Vec<S>::load(part_of(g, w, r, kOutputGate) + unit);
      }
      Cell::forward_output(params, o, shown, h);
      CellStep at = step;
      at.unit = unit;
      const int lanes = int(min64(kLanes, g.hidden_size - unit));
      for (int r = 0; r < R; ++r) {
        const Vec<S> before[1] = {Vec<S>::load(w.c_row(g, job, i + r) + unit)};
        const Vec<S> computed[1] = {Vec<S>::load(part_of(g, w, r, kState) + unit)};
        Tiles::template store_states<kChanged>(p, w, job, at, i + r, lanes, before, computed, h.row[r]);
      }
    }
  }
};
