// The derivative of a cell with layer normalisation. Gradients of what was normalised need sums over the row: those of
// the cell state between the cell's two halves, those of the products after them. So a row goes through as a whole, in
// one thread, and leaves the gradient of the gates in up to three forms: as it is, for the biases, and through either
// norm, for W_ih and W_hh (GradientRow).

template <class S, class Cell, class Operand>
struct NormalisedBackward {
  static constexpr int kLanes = Vec<S>::kLanes, kGates = Cell::kGates;
  static constexpr int kCellRows = 2;   // rows through the cell at a time
  using Workspace = BackwardWorkspace<S>;
  using Cells = BackwardCells<S, Cell, Operand>;
  using Row = GradientRow<Cell, Operand>;

  // What a thread needs of a row while it is at it: the gradient of the gates, and that of the normalised state times
  // its gain.
  static constexpr int kRowParts = kGates + 1, kShown = kGates;
  static CUSTOMLSTM_INLINE int64_t scratch_size(const Geometry& g) { return kCellRows * kRowParts * norm_stride<S>(g); }

  // This thread's share of the sequences 0 .. active - 1 of a step.
  static void run(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t, int64_t active,
                  const S* grad_output) {
    const bool changed = changes_states(p.g);
    const Range rows = share(active, job.rank, job.size);
    for (int64_t i = rows.begin; i < rows.end; i += kCellRows) {
#define CUSTOMLSTM_CALL(R, CHANGED) cell_rows<R, CHANGED>(p, w, job, t, i, grad_output)
      if (rows.end - i >= kCellRows) {
        changed ? CUSTOMLSTM_CALL(kCellRows, true) : CUSTOMLSTM_CALL(kCellRows, false);
      } else {
        changed ? CUSTOMLSTM_CALL(1, true) : CUSTOMLSTM_CALL(1, false);
      }
#undef CUSTOMLSTM_CALL
    }
  }

 private:
  template <int R, bool kChanged>
  static CUSTOMLSTM_NOINLINE void cell_rows(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                            int64_t i, const S* grad_output) {
    const Geometry& g = p.g;
    Place rows[R] = {};
    Norm<S> products[2][R] = {};
    for (int r = 0; r < R; ++r) {
      rows[r] = place_of(p, w, job, t, i + r, r);
      rows[r].norm = g.norms[kNormCell] ? norm_of<1>(rows[r].c, 0, g.hidden_size) : Norm<S>{S(0), S(1)};
      for (int place = 0; place < 2; ++place) {
        if (g.norms[place]) products[place][r] = norm_of<kGates>(rows[r].product[place], g.hidden_size, g.hidden_size);
      }
    }
    Means cell[R] = {}, gates[2][R] = {};
    output_half<R, kChanged>(p, w, job, i, rows, products, grad_output, cell);
    state_half<R, kChanged>(p, w, job, i, rows, products, cell, gates);
    for (int place = 0; place < 2; ++place) {
      if (!g.norms[place]) continue;
      for (int r = 0; r < R; ++r) through_norm(p, w, job, rows[r], place, products[place][r], gates[place][r]);
    }
  }

  // Where the values of one row are.
  struct Place {
    int64_t at;                 // among all rows and directions
    const S* kept;              // [values][H]
    const S* product[2];        // of those, as it was before it was normalised
    const S* c;                 // the cell's own new state
    const S* previous;          // the state that entered the step, or null for zero
    S* gradients;               // GradientRow
    S* scratch;
    Norm<S> norm;               // of the cell state
  };
  static CUSTOMLSTM_INLINE Place place_of(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                          int64_t i, int r) {
    const Geometry& g = p.g;
    const int64_t column = job.columns[i], values = kept_values<Cell>(g) + (is_on(g.zoneout_c) ? 1 : 0);
    Place row = {};
    row.at = (g.step_row[t] + column) * g.directions + job.direction;
    row.kept = static_cast<const S*>(p.gates) + row.at * values * g.hidden_size;
    for (int place = 0; place < 2; ++place) {
      row.product[place] = row.kept + kept_product<Cell>(g, place) * g.hidden_size;
    }
    row.c = is_on(g.zoneout_c) ? row.kept + kept_values<Cell>(g) * g.hidden_size
                               : static_cast<const S*>(p.c_all) + row.at * g.hidden_size;
    int64_t stride;
    row.previous = Cells::previous_c(p, w, job, t, column, stride);
    row.gradients = Cells::gate_row(p, w, job, t, column);
    row.scratch = w.norm_rows + r * kRowParts * norm_stride<S>(g);
    return row;
  }

  // Of the gradient g of a normalised row, which the gain is in already: g and g times the normalised value, over n.
  struct Means {
    S gradient, product;
  };
  struct Sums {
    Vec<S> gradient, product;
    CUSTOMLSTM_INLINE void clear() { gradient = product = Vec<S>::broadcast(S(0)); }
    CUSTOMLSTM_INLINE void add(const Vec<S>& d, const Vec<S>& x) {
      gradient = gradient + d;
      product = fma(d, x, product);
    }
    CUSTOMLSTM_INLINE Means mean(int64_t n) const {
      return {sum_of_lanes(gradient) / S(n), sum_of_lanes(product) / S(n)};
    }
  };
  // The gradient of a value from that of its normalised form `x`.
  static CUSTOMLSTM_INLINE Vec<S> before_norm(const Norm<S>& norm, const Means& means, const Vec<S>& d,
                                              const Vec<S>& x) {
    const Vec<S> rest = d - Vec<S>::broadcast(means.gradient) - x * Vec<S>::broadcast(means.product);
    return rest * Vec<S>::broadcast(norm.scale);
  }

  // From the gradient of h to those of the output gate and of what the state is shown as.
  template <int R, bool kChanged>
  static CUSTOMLSTM_INLINE void output_half(const BackwardParams& p, const Workspace& w, const Job& job, int64_t i,
                                            const Place (&rows)[R], const Norm<S> (&products)[2][R],
                                            const S* grad_output, Means (&means)[R]) {
    const Geometry& g = p.g;
    const int64_t stride = norm_stride<S>(g);
    const NormParameters<S>& own = w.norms[job.direction];
    const CellParams<S>& params = *static_cast<const CellParams<S>*>(p.cell_params);
    const auto& wanted = p.grad_weights[job.direction].norms[kNormCell];
    Sums sums[R];
    for (int r = 0; r < R; ++r) sums[r].clear();
    for (int64_t unit = 0; unit < g.hidden_size; unit += kLanes) {
      const int lanes = int(min64(kLanes, g.hidden_size - unit));
      const Vec<S> gain = Vec<S>::load(own.gain[kNormCell] + unit), bias = Vec<S>::load(own.cell_bias + unit);
      Pack<S, R> saved[Cell::kSaved], c_prev[1], c[1], normal, shown, dh, da, outer, inner;
      load_states(rows, unit, lanes, c_prev, c);
      load_saved(p, w, job, rows, products, unit, lanes, c_prev, c, saved);
      for (int r = 0; r < R; ++r) {
        normal.row[r] = rows[r].norm.apply(c[0].row[r]);
        shown.row[r] = g.norms[kNormCell] ? fma(gain, normal.row[r], bias) : c[0].row[r];
        dh.row[r] = gradient_of_h<kChanged>(p, w, job, i + r, rows[r].at, unit, lanes, grad_output);
      }
      Cell::backward_output(params, saved, shown, dh, da, outer, inner);
      for (int r = 0; r < R; ++r) {
        const Vec<S> d = keep_first(outer.row[r] * inner.row[r], lanes), scaled = gain * d;
        sums[r].add(scaled, normal.row[r]);
        da.row[r].store(rows[r].scratch + 3 * stride + unit);
        scaled.store(rows[r].scratch + kShown * stride + unit);
        if (wanted.gain) {
          Operand::store_part(d * normal.row[r], rows[r].gradients + Row::gain(g, kNormCell), unit, lanes);
        }
        if (wanted.bias) Operand::store_part(d, rows[r].gradients + Row::cell_bias(g), unit, lanes);
      }
    }
    for (int r = 0; r < R; ++r) means[r] = sums[r].mean(g.hidden_size);
  }

  template <int R>
  static CUSTOMLSTM_INLINE void load_states(const Place (&rows)[R], int64_t unit, int lanes, Pack<S, R> (&c_prev)[1],
                                            Pack<S, R> (&c)[1]) {
    for (int r = 0; r < R; ++r) {
      const S* previous = rows[r].previous;
      c_prev[0].row[r] = previous ? load_as<S>(previous + unit, lanes) : Vec<S>::broadcast(S(0));
      c[0].row[r] = load_as<S>(rows[r].c + unit, lanes);
    }
  }

  // What the cell saved in forward: kept, or found again by the same operations.
  template <int R>
  static CUSTOMLSTM_INLINE void load_saved(const BackwardParams& p, const Workspace& w, const Job& job,
                                           const Place (&rows)[R], const Norm<S> (&products)[2][R], int64_t unit,
                                           int lanes, const Pack<S, R> (&c_prev)[1], const Pack<S, R> (&c)[1],
                                           Pack<S, R> (&saved)[Cell::kSaved]) {
    const Geometry& g = p.g;
    if (keeps_gates(g)) {
      for (int k = 0; k < Cell::kSaved; ++k)
        for (int r = 0; r < R; ++r) saved[k].row[r] = load_as<S>(rows[r].kept + k * g.hidden_size + unit, lanes);
      return;
    }
    const NormParameters<S>& own = w.norms[job.direction];
    Pack<S, R> a[kGates], parameters[Cell::kParameters + 1];
    for (int k = 0; k < kGates; ++k) {
      const int64_t at = k * norm_stride<S>(g) + unit;
      const Vec<S> gain_x = Vec<S>::load(own.gain[kNormInput] + at), bias = Vec<S>::load(own.bias + at);
      const Vec<S> gain_h = Vec<S>::load(own.gain[kNormRecurrent] + at);
      for (int r = 0; r < R; ++r) {
        const int64_t value = k * g.hidden_size + unit;
        const Vec<S> x = products[0][r].apply(load_as<S>(rows[r].product[0] + value, lanes));
        const Vec<S> h = products[1][r].apply(load_as<S>(rows[r].product[1] + value, lanes));
        a[k].row[r] = fma(gain_h, h, fma(gain_x, x, bias));
      }
    }
    load_unit_parameters<Cell>(g, w.unit_parameters[job.direction], w.c_stride, unit, parameters);
    Cell::save(*static_cast<const CellParams<S>*>(p.cell_params), a, parameters, c_prev, c, saved);
  }

  template <bool kChanged>
  static CUSTOMLSTM_INLINE Vec<S> gradient_of_h(const BackwardParams& p, const Workspace& w, const Job& job, int64_t i,
                                                int64_t at, int64_t unit, int lanes, const S* grad_output) {
    const Geometry& g = p.g;
    if (g.projection) return Vec<S>::load(w.row(w.dprojecting, w.c_stride, g, job, i) + unit);
    Vec<S> dh = Vec<S>::load(w.row(w.dh, w.h_stride, g, job, i) + unit);
    if (grad_output) dh = dh + load_as<S>(grad_output + at * g.output_size + unit, lanes);
    if (kChanged && is_on(g.zoneout_h)) {
      Vec<S> before;
      split(g.zoneout_h, dh, at * g.hidden_size + unit, lanes, before, dh);
      before.store(w.row(w.carried, w.h_stride, g, job, i) + unit);
    }
    return dh;
  }

  // From there to the gradients of the other gates and of the state before.
  template <int R, bool kChanged>
  static CUSTOMLSTM_INLINE void state_half(const BackwardParams& p, const Workspace& w, const Job& job, int64_t i,
                                           const Place (&rows)[R], const Norm<S> (&products)[2][R],
                                           const Means (&cell)[R], Means (&gates)[2][R]) {
    const Geometry& g = p.g;
    const int64_t stride = norm_stride<S>(g);
    const bool mixes_cells = kChanged && is_on(g.zoneout_c);
    const NormParameters<S>& own = w.norms[job.direction];
    const CellParams<S>& params = *static_cast<const CellParams<S>*>(p.cell_params);
    Sums sums[2][R];
    for (int place = 0; place < 2; ++place)
      for (int r = 0; r < R; ++r) sums[place][r].clear();
    for (int64_t unit = 0; unit < g.hidden_size; unit += kLanes) {
      const int lanes = int(min64(kLanes, g.hidden_size - unit));
      Pack<S, R> saved[Cell::kSaved], c_prev[1], c[1], dc[1], da[kGates];
      Pack<S, R> parameters[Cell::kParameters + 1], d_parameters[Cell::kParameters + 1];
      Vec<S> dc_before[R];   // what zoneout hands to the step before
      load_states(rows, unit, lanes, c_prev, c);
      load_saved(p, w, job, rows, products, unit, lanes, c_prev, c, saved);
      for (int r = 0; r < R; ++r) {
        const Place& row = rows[r];
        Vec<S> d = Vec<S>::load(w.row(w.dc, w.c_row_stride, g, job, i + r) + unit);
        if (p.grad_c_all) {
          d = d + load_as<S>(static_cast<const S*>(p.grad_c_all) + row.at * g.hidden_size + unit, lanes);
        }
        if (mixes_cells) split(g.zoneout_c, d, row.at * g.hidden_size + unit, lanes, dc_before[r], d);
        const Vec<S> shown = Vec<S>::load(row.scratch + kShown * stride + unit);
        d = d + (g.norms[kNormCell] ? before_norm(row.norm, cell[r], shown, row.norm.apply(c[0].row[r])) : shown);
        dc[0].row[r] = d;
        da[3].row[r] = Vec<S>::load(row.scratch + 3 * stride + unit);
      }
      load_unit_parameters<Cell>(g, w.unit_parameters[job.direction], w.c_stride, unit, parameters);
      for (int k = 0; k < Cell::kParameters; ++k) d_parameters[k] = Pack<S, R>::broadcast(S(0));
      Cell::backward_state(params, saved, parameters, c_prev, c, dc, da, d_parameters);
      for (int r = 0; r < R; ++r) {
        const Place& row = rows[r];
        if (mixes_cells) dc[0].row[r] = dc[0].row[r] + dc_before[r];
        dc[0].row[r].store(w.row(w.dc, w.c_row_stride, g, job, i + r) + unit);
        for (int k = 0; k < kGates; ++k) {
          const Vec<S> d = keep_first(da[k].row[r], lanes);
          d.store(row.scratch + k * stride + unit);
          Operand::store_part(d, row.gradients, k * g.hidden_size + unit, lanes);
          for (int place = 0; place < 2; ++place) {
            if (!g.norms[place]) continue;
            const Vec<S> x = load_as<S>(row.product[place] + k * g.hidden_size + unit, lanes);
            const Vec<S> gain = Vec<S>::load(own.gain[place] + k * stride + unit);
            sums[place][r].add(gain * d, products[place][r].apply(x));
          }
        }
        for (int k = 0; k < Cell::kParameters && k < g.unit_parameters; ++k) {
          Operand::store_part(d_parameters[k].row[r], row.gradients, (kGates + k) * g.hidden_size + unit, lanes);
        }
      }
    }
    for (int place = 0; place < 2; ++place)
      for (int r = 0; r < R; ++r) gates[place][r] = sums[place][r].mean(kGates * g.hidden_size);
  }

  // From the gradient of the gates to that of the product, and the part of this row in that of the gain.
  static CUSTOMLSTM_INLINE void through_norm(const BackwardParams& p, const Workspace& w, const Job& job,
                                             const Place& row, int place, const Norm<S>& norm, const Means& means) {
    const Geometry& g = p.g;
    const int64_t stride = norm_stride<S>(g);
    const S* gains = w.norms[job.direction].gain[place];
    const bool wanted = p.grad_weights[job.direction].norms[place].gain != nullptr;
    S* to = row.gradients + Row::product(g, place);
    S* to_gain = row.gradients + Row::gain(g, place);
    for (int k = 0; k < kGates; ++k) {
      for (int64_t unit = 0; unit < g.hidden_size; unit += kLanes) {
        const int lanes = int(min64(kLanes, g.hidden_size - unit));
        const int64_t at = k * g.hidden_size + unit;
        const Vec<S> x = norm.apply(load_as<S>(row.product[place] + at, lanes));
        const Vec<S> d = Vec<S>::load(row.scratch + k * stride + unit);
        const Vec<S> scaled = Vec<S>::load(gains + k * stride + unit) * d;
        Operand::store_part(before_norm(norm, means, scaled, x), to, at, lanes);
        if (wanted) Operand::store_part(d * x, to_gain, at, lanes);
      }
    }
  }
};
