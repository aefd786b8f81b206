// One layer forward: input projection in chunks of steps that stay in cache, then for every step one product with
// the recurrent weights, whose accumulators go through the cell while they are still in registers.

template <class T, class Cell>
struct Forward : ForwardLayout<T, Cell> {
  using Layout = ForwardLayout<T, Cell>;
  using typename Layout::Normalised, typename Layout::Operand, typename Layout::S, typename Layout::Stored,
      typename Layout::Workspace;
  using Layout::kLanes, Layout::kGates, Layout::kGateWidth, Layout::kWidth,
      Layout::unit_blocks, Layout::output_panels, Layout::least_rows, Layout::chunk_rows,
      Layout::product_rows, Layout::input_depth, Layout::state_depth, Layout::packs, Layout::in_place,
      Layout::direct_input, Layout::x_stride, Layout::factor_stride, Layout::layout, Layout::pack;
  using Tiles = ForwardTiles<S, Cell, Operand>;
  static constexpr int kGateRows = gate_tile_rows<kGates>();   // of a tile over a panel of a gate matrix
  // Rows of a recurrent matrix that is read where it lies, from which on the matrix is far too large for a core's own
  // cache, so that how fast memory is read counts for more than how often lanes are summed.
  static constexpr int64_t kLongestInTiles = 768;

  static void run(const ForwardParams& p, Team& team, int rank) {
    Workspace w = {};
    layout(p, rank, static_cast<char*>(p.workspace), w);
    if (!p.packed) {
      pack(p, w, rank, team.size());
      team.barrier();
    }
    each_job(p, w, team, rank, &run_job);
  }

  // The panel of unit block u of a gate matrix, which is all packed, or packed now.
  static CUSTOMLSTM_INLINE const S* panel_of(const Geometry& g, WeightAccess access, const S* packed,
                                             const void* matrix, int64_t size, int64_t u, S* panel) {
    if (packs(access)) return packed + u * Operand::elements(size) * kGateWidth;
    pack_gates<Operand, kGates>(static_cast<const T*>(matrix), g.hidden_size, size, u * kLanes, panel);
    return panel;
  }

  // A block of units of a gate matrix that is read where it lies.
  struct InPlace {
    WeightAccess access;
    const T* matrix;
    int64_t hidden, depth, unit;   // depth in elements of the operand
  };
  template <int R>
  static CUSTOMLSTM_INLINE void multiply_in_place(const InPlace& w, const S* const* rows, const S* init,
                                                  bool accumulate, S* out) {
    const S* factors[R];
    for (int r = 0; r < R; ++r) factors[r] = rows[r];
    const auto* matrix = Operand::matrix(w.matrix);
    if (w.access == WeightAccess::kAlongRows) {
      dot_gates<Operand, kGates>(factors, matrix, w.hidden, w.depth, w.unit, init, accumulate, out);
    } else {
      multiply_gates<Operand, kGates>(factors, matrix, w.hidden, w.depth, w.unit, init, accumulate, out);
    }
  }

  // The output where the tiles can write it themselves.
  static CUSTOMLSTM_INLINE Stored* direct_output(const ForwardParams& p) {
    return sizeof(T) == sizeof(Stored) ? static_cast<Stored*>(p.output) : nullptr;
  }

  static void load_state(const ForwardParams& p, const Workspace& w, const Job& job) {
    const Geometry& g = p.g;
    const Range rows = share(job.rows, job.rank, job.size);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t at = job.direction * g.batch + job.columns[i];
      S* h = w.h_row(g, job, 0, i);
      S* c = w.c_row(g, job, i);
      for (int64_t k = 0; k < w.h_stride; ++k) h[k] = S(0);
      for (int64_t k = 0; k < w.c_row_stride; ++k) c[k] = S(0);
      if (g.recurrent_mask) mask_state(p, w, job, i);
      if (is_on(g.zoneout_h)) hold_state(p, w, job, i);
      if (p.h_0) {
        const T* h_0 = static_cast<const T*>(p.h_0) + at * g.output_size;
        if (!g.recurrent_mask) Operand::fill_row(h_0, 1, h, g.output_size);
        for (int64_t s = 0; s < Cell::kStates; ++s) {
          const T* from = static_cast<const T*>(p.c_0) + (at * Cell::kStates + s) * g.hidden_size;
          widen(from, 1, c + s * w.c_stride, g.hidden_size);
        }
      }
      // A reverse sequence joins late and a finished one is left alone, so both copies hold the state from the start.
      __builtin_memcpy(w.h_row(g, job, 1, i), h, size_t(w.h_stride) * sizeof(S));
    }
  }

  static void hold_state(const ForwardParams& p, const Workspace& w, const Job& job, int64_t i) {
    const Geometry& g = p.g;
    S* held = w.held_row(g, job, i);
    for (int64_t k = 0; k < factor_stride(g); ++k) held[k] = S(0);
    const int64_t at = job.direction * g.batch + job.columns[i];
    if (p.h_0) widen(static_cast<const T*>(p.h_0) + at * g.output_size, 1, held, g.output_size);
  }

  // The factors of a row, the initial state, and what of it W_hh is multiplied by.
  static void mask_state(const ForwardParams& p, const Workspace& w, const Job& job, int64_t i) {
    const Geometry& g = p.g;
    const int64_t column = job.columns[i];
    const T* from = p.h_0 ? static_cast<const T*>(p.h_0) + (job.direction * g.batch + column) * g.output_size : nullptr;
    S *h = w.h_row(g, job, 0, i), *unmasked = w.unmasked_row(g, job, 0, i), *factors = w.factor_row(g, job, i);
    for (int64_t k = 0; k < w.h_stride; ++k) unmasked[k] = S(0);
    for (int64_t k = 0; k < factor_stride(g); ++k) factors[k] = S(0);
    for (int64_t k = 0; k < g.output_size; ++k) {
      factors[k] = recurrent_factor<S>(g, job.direction, column, k);
      const S x = from ? S(to_float(from[k])) : S(0);
      Operand::set(unmasked, k, x);
      Operand::set(h, k, masked(x, factors[k]));
    }
    __builtin_memcpy(w.unmasked_row(g, job, 1, i), unmasked, size_t(w.h_stride) * sizeof(S));
  }

  static void store_state(const ForwardParams& p, const Workspace& w, const Job& job) {
    const Geometry& g = p.g;
    const Range rows = share(job.rows, job.rank, job.size);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t column = job.columns[i], at = job.direction * g.batch + column;
      // A forward sequence stopped after its own last step; a reverse one joined late and ran to the last.
      const int64_t last = job.direction == 0 ? g.lengths[column] : job.steps;
      T* h_n = static_cast<T*>(p.h_n) + at * g.output_size;
      Operand::read_row(w.unmasked_row(g, job, last & 1, i), h_n, g.output_size);
      for (int64_t s = 0; s < Cell::kStates; ++s) {
        T* to = static_cast<T*>(p.c_n) + (at * Cell::kStates + s) * g.hidden_size;
        narrow(w.c_row(g, job, i) + s * w.c_stride, to, g.hidden_size);
      }
    }
  }

  static void run_job(const ForwardParams& p, const Workspace& w, const Job& job) {
    const Geometry& g = p.g;
    const Range units = share(unit_blocks(g), job.rank, job.size);
    load_state(p, w, job);
    job.barrier();
    int64_t active = 0;
    for (int64_t step = 0; step < job.steps;) {
      int64_t rows = active_rows(g, job, job.time(step), active), next = step + 1;
      if (rows > kBlockRows) {
        active = rows;
        cut_state(p, w, job, step, active);
        for (int64_t i = 0; i < active; i += kBlockRows) {
          rows = min64(kBlockRows, active - i);
          project_input(p, w, job, units, step, next, i, rows);
          run_cells(p, w, job, units, step, i, rows, w.gates_x);
          // A row goes through this cell in one thread, and the next block's products take the place of its own.
          if constexpr (kIsNormalised<Cell>) job.barrier();
        }
        finish_step(p, w, job, step, active);
        step = next;
        continue;
      }
      for (int64_t running = rows; next < job.steps && rows < least_rows(p); ++next) {
        running = active_rows(g, job, job.time(next), running);
        if (running > kBlockRows) break;   // reverse: sequences joining
        rows += running;
      }
      project_input(p, w, job, units, step, next, 0, rows);
      for (int64_t row = 0; step < next; ++step) {
        active = active_rows(g, job, job.time(step), active);
        cut_state(p, w, job, step, active);
        run_cells(p, w, job, units, step, 0, active, w.gates_x + row * kGateWidth);
        finish_step(p, w, job, step, active);
        row += active;
      }
    }
    store_state(p, w, job);
    // The state arrays are the next direction's own, but its chunk buffers are shared with this one's last step.
    job.barrier();
  }

  // gates_x[unit block][row of the chunk][gate][lane] = bias + W_ih x for `rows` rows: sequences i0 .. of one step,
  // or all running sequences of the steps first .. next - 1. A cell that normalises the product adds the bias itself.
  static void project_input(const ForwardParams& p, const Workspace& w, const Job& job, Range units, int64_t first,
                            int64_t next, int64_t i0, int64_t rows) {
    const Geometry& g = p.g;
    int64_t row = 0, active = 0;
    for (int64_t step = first; step < next; ++step) {
      const int64_t t = job.time(step);
      active = active_rows(g, job, t, active);
      for (int64_t i = i0; i < active && row < rows; ++i, ++row) {
        const int64_t at = g.step_input[t] + job.columns[i] * g.input_column_stride;
        if (direct_input(p)) {
          w.x_rows[row] = reinterpret_cast<const S*>(direct_input(p) + at);
        } else {
          S* x = w.x + row * x_stride(g);
          Operand::fill_row(static_cast<const T*>(p.input) + at, g.input_feature_stride, x, g.input_size);
          w.x_rows[row] = x;
        }
      }
    }
    for (int64_t u = units.begin; u < units.end; ++u) {
      const S* bias = kIsNormalised<Cell> ? nullptr : w.bias[job.direction] + u * kGateWidth;
      S* out = w.gates_x + u * chunk_rows(p) * kGateWidth;
      if (in_place(p.plan.w_ih)) {
        const T* matrix = static_cast<const T*>(w.matrix_ih[job.direction]);
        const InPlace in_place = {p.plan.w_ih, matrix, g.hidden_size, input_depth(g), u * kLanes};
        for (int64_t i = 0; i < rows; i += kGateRows) {
#define CUSTOMLSTM_CALL(R) \
  if constexpr (R <= kGateRows) multiply_in_place<R>(in_place, w.x_rows + i, bias, false, out + i * kGateWidth)
          CUSTOMLSTM_WITH_ROWS(min64(kGateRows, rows - i), CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
        }
        continue;
      }
      const S* panel = panel_of(g, p.plan.w_ih, w.w_ih[job.direction], w.matrix_ih[job.direction], g.input_size, u,
                                w.panel);
      for (int64_t i = 0; i < rows; i += kGateRows) {
#define CUSTOMLSTM_CALL(R)      \
  if constexpr (R <= kGateRows) \
  Tiles::template project_tile<R>(w.x_rows + i, input_depth(g), panel, bias, out + i * kGateWidth)
        CUSTOMLSTM_WITH_ROWS(min64(kGateRows, rows - i), CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
      }
    }
  }

  // Sequences whose edge into this step is cut start it from zero.
  static void cut_state(const ForwardParams& p, const Workspace& w, const Job& job, int64_t step, int64_t active) {
    const Geometry& g = p.g;
    if (!g.resets) return;
    const Range rows = share(active, job.rank, job.size);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      if (!is_cut(g, job.direction, job.time(step), job.columns[i])) continue;
      S* h = w.h_row(g, job, step & 1, i);
      S* c = w.c_row(g, job, i);
      for (int64_t k = 0; k < state_depth(g); ++k) h[k] = S(0);
      for (int64_t k = 0; k < w.c_row_stride; ++k) c[k] = S(0);
      if (!is_on(g.zoneout_h)) continue;
      S* held = w.held_row(g, job, i);
      for (int64_t k = 0; k < g.output_size; ++k) held[k] = S(0);
    }
    job.barrier();
  }

  // from[i] += the recurrent product of sequence i0 + i, i < count, with a block of a matrix that is not packed.
  static void multiply_state_in_place(const ForwardParams& p, const Workspace& w, const Job& job,
                                      const InPlace& in_place, int64_t parity, int64_t i0, int64_t count, S* from) {
    const Geometry& g = p.g;
    if (p.plan.w_hh == WeightAccess::kAlongRows && state_depth(g) >= kLongestInTiles) {
      dot_gates_of_one<Operand, kGates>(w.h_row(g, job, parity, i0), Operand::matrix(in_place.matrix), g.hidden_size,
                                        state_depth(g), in_place.unit, from);
      return;
    }
    for (int64_t i = 0; i < count; i += kGateRows) {
      const S* h[kGateRows];
      const int64_t rows = min64(kGateRows, count - i);
      for (int64_t r = 0; r < rows; ++r) h[r] = w.h_row(g, job, parity, i0 + i + r);
#define CUSTOMLSTM_CALL(R)      \
  if constexpr (R <= kGateRows) \
  multiply_in_place<R>(in_place, h, static_cast<const S*>(nullptr), true, from + i * kGateWidth)
      CUSTOMLSTM_WITH_ROWS(rows, CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
    }
  }

  // The same with layer norm: first the products of all units, then the rows, dealt to the threads.
  static void run_normalised_cells(const ForwardParams& p, const Workspace& w, const Job& job, Range units,
                                   int64_t step, int64_t i0, int64_t count, const S* gates_x) {
    const Geometry& g = p.g;
    const int64_t parity = step & 1, stride = product_rows(g) * kGateWidth;
    for (int64_t n = 0; n < units.end - units.begin; ++n) {
      const int64_t u = step % 2 == 0 ? units.begin + n : units.end - 1 - n;   // to and fro, as below
      multiply_state(p, w, job, u, parity, i0, count, w.products + u * stride);
    }
    job.barrier();
    Normalised::run(p, w, job, {job.time(step), parity, 0, direct_output(p)}, i0, count,
                    {gates_x, chunk_rows(p) * kGateWidth}, {w.products, stride});
  }

  // out[row][gate][lane] = W_hh h of unit block u, for the sequences i0 .. i0 + count - 1.
  static void multiply_state(const ForwardParams& p, const Workspace& w, const Job& job, int64_t u, int64_t parity,
                             int64_t i0, int64_t count, S* out) {
    const Geometry& g = p.g;
    if (in_place(p.plan.w_hh)) {
      const T* matrix = static_cast<const T*>(w.matrix_hh[job.direction]);
      const InPlace in_place = {p.plan.w_hh, matrix, g.hidden_size, state_depth(g), u * kLanes};
      for (int64_t k = 0; k < count * kGateWidth; ++k) out[k] = S(0);   // what these products are added to
      multiply_state_in_place(p, w, job, in_place, parity, i0, count, out);
      return;
    }
    const S* panel =
        panel_of(g, p.plan.w_hh, w.w_hh[job.direction], w.matrix_hh[job.direction], g.output_size, u, w.panel);
    for (int64_t i = 0; i < count; i += kGateRows) {
      const S* h[kGateRows];
      const int64_t rows = min64(kGateRows, count - i);
      for (int64_t r = 0; r < rows; ++r) h[r] = w.h_row(g, job, parity, i0 + i + r);
#define CUSTOMLSTM_CALL(R)      \
  if constexpr (R <= kGateRows) \
  Tiles::template project_tile<R>(h, state_depth(g), panel, static_cast<const S*>(nullptr), out + i * kGateWidth)
      CUSTOMLSTM_WITH_ROWS(rows, CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
    }
  }

  // Sequences i0 .. i0 + count - 1 of one step, whose rows begin at gates_x.
  static void run_cells(const ForwardParams& p, const Workspace& w, const Job& job, Range units, int64_t step,
                        int64_t i0, int64_t count, S* gates_x) {
    if constexpr (kIsNormalised<Cell>) {
      run_normalised_cells(p, w, job, units, step, i0, count, gates_x);
    } else {
      run_plain_cells(p, w, job, units, step, i0, count, gates_x);
    }
  }
  static void run_plain_cells(const ForwardParams& p, const Workspace& w, const Job& job, Range units, int64_t step,
                              int64_t i0, int64_t count, S* gates_x) {
    const Geometry& g = p.g;
    const int64_t t = job.time(step), parity = step & 1;
    const int64_t depth = in_place(p.plan.w_hh) ? 0 : state_depth(g);
    for (int64_t n = 0; n < units.end - units.begin; ++n) {
      // To and fro: what the last step read last is still in the core's own cache.
      const int64_t u = step % 2 == 0 ? units.begin + n : units.end - 1 - n;
      const S* panel = nullptr;
      S* from = gates_x + u * chunk_rows(p) * kGateWidth;
      if (!in_place(p.plan.w_hh)) {
        panel = panel_of(g, p.plan.w_hh, w.w_hh[job.direction], w.matrix_hh[job.direction], g.output_size, u, w.panel);
      } else {
        const T* matrix = static_cast<const T*>(w.matrix_hh[job.direction]);
        const InPlace in_place = {p.plan.w_hh, matrix, g.hidden_size, state_depth(g), u * kLanes};
        multiply_state_in_place(p, w, job, in_place, parity, i0, count, from);
      }
      for (int64_t i = 0; i < count; i += kGateRows) {
#define CUSTOMLSTM_CALL(R)                                                                                    \
  if constexpr (R <= kGateRows)                                                                               \
  Tiles::template cell_tile<R>(p, w, job, t, parity, u * kLanes, i0 + i, panel, depth, from + i * kGateWidth, \
                               direct_output(p))
        CUSTOMLSTM_WITH_ROWS(min64(kGateRows, count - i), CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
      }
    }
  }

  static void finish_step(const ForwardParams& p, const Workspace& w, const Job& job, int64_t step, int64_t active) {
    const Geometry& g = p.g;
    const int64_t t = job.time(step), parity = step & 1;
    if (g.projection) {
      job.barrier();
      const Range panels = share(output_panels(g), job.rank, job.size);
      for (int64_t n = panels.begin; n < panels.end; ++n) {
        for (int64_t i = 0; i < active; i += kTileRows) {
#define CUSTOMLSTM_CALL(R) \
  Tiles::template projection_tile<R>(p, w, job, t, parity, n * kWidth, i, direct_output(p))
          CUSTOMLSTM_WITH_ROWS(min64(kTileRows, active - i), CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
        }
      }
    }
    job.barrier();
    if (direct_output(p)) return;
    // Between this barrier and the next, the cells write the other copy of the state, so this one can be read.
    const Range rows = share(active, job.rank, job.size);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t row = g.step_row[t] + job.columns[i];
      Operand::read_row(w.unmasked_row(g, job, 1 - parity, i),
                        static_cast<T*>(p.output) + (row * g.directions + job.direction) * g.output_size,
                        g.output_size);
    }
    if (g.resets) job.barrier();   // the next step's cut_state does write it
  }
};
