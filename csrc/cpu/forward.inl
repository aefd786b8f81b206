// One layer forward: input projection in chunks of steps that stay in cache, then for every step one product with
// the recurrent weights, whose accumulators go through the cell while they are still in registers.

template <class T, class Cell>
struct Forward {
  using S = typename AccumulationOf<T>::Type;
  static constexpr int kLanes = Vec<S>::kLanes;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kGateRows = gate_tile_rows<kGates>();   // of a tile over a panel of a gate matrix
  static constexpr int64_t kGateWidth = kGates * kLanes, kWidth = kPanelVectors * kLanes;
  // Rows of one chunk of the input projection: enough to use each panel of W_ih often, few enough to stay in cache.
  // Short steps are taken several at a time, until there are kChunkRows; a long one in blocks of kBlockRows.
  // A matrix that is read along its rows has no panels to use often; each of its rows serves all rows of the chunk.
  static constexpr int64_t kChunkRows = 48, kChunkRowsAlong = 128;
  // Rows of a recurrent matrix that is read where it lies, from which on the matrix is far too large for a core's own
  // cache, so that how fast memory is read counts for more than how often lanes are summed.
  static constexpr int64_t kLongestInTiles = 768;

  using Operand = typename OperandOf<T>::Type;
  using Stored = typename Operand::Stored;
  using Workspace = ForwardWorkspace<S>;
  using Tiles = ForwardTiles<S, Cell, Operand>;
  using Normalised = NormalisedForward<S, Cell, Operand>;

  static CUSTOMLSTM_INLINE int64_t unit_blocks(const Geometry& g) { return ceil_div(g.hidden_size, kLanes); }
  static CUSTOMLSTM_INLINE int64_t output_panels(const Geometry& g) { return ceil_div(g.output_size, kWidth); }
  static CUSTOMLSTM_INLINE int64_t least_rows(const ForwardParams& p) {
    if (packs_in_turn(p.plan.w_ih)) return kBlockRows;   // one chunk, or every panel would be packed more than once
    return p.plan.w_ih == WeightAccess::kAlongRows ? kChunkRowsAlong : kChunkRows;
  }
  // Rows there must be room for: the last step of a chunk may begin just below the least.
  static CUSTOMLSTM_INLINE int64_t chunk_rows(const ForwardParams& p) {
    return least_rows(p) + min64(kBlockRows, p.g.batch);
  }

  // Of the products with W_hh, where the cell wants those of all units at once.
  static CUSTOMLSTM_INLINE int64_t product_rows(const Geometry& g) { return min64(kBlockRows, g.batch); }

  // Depth of the two products, in elements of the operand.
  static CUSTOMLSTM_INLINE int64_t input_depth(const Geometry& g) { return Operand::elements(g.input_size); }
  static CUSTOMLSTM_INLINE int64_t state_depth(const Geometry& g) { return Operand::elements(g.output_size); }

  static CUSTOMLSTM_INLINE bool packs(WeightAccess access) { return access == WeightAccess::kPacked; }
  static CUSTOMLSTM_INLINE bool packs_in_turn(WeightAccess access) { return access == WeightAccess::kPackedInTurn; }
  static CUSTOMLSTM_INLINE bool in_place(WeightAccess access) { return !packs(access) && !packs_in_turn(access); }

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

  // The input where the tiles can read it themselves. Along rows, its own would often lie a power of two apart.
  static CUSTOMLSTM_INLINE const T* direct_input(const ForwardParams& p) {
    const bool direct = sizeof(T) == sizeof(Stored) && Operand::whole_elements(p.g.input_size) &&
                        p.g.input_feature_stride == 1 && p.plan.w_ih != WeightAccess::kAlongRows;
    return direct ? static_cast<const T*>(p.input) : nullptr;
  }
  static CUSTOMLSTM_INLINE int64_t x_stride(const Geometry& g) {
    return padded<S>(Operand::elements(g.input_size)) + kLanes;
  }

  static CUSTOMLSTM_INLINE int64_t factor_stride(const Geometry& g) { return padded<S>(g.output_size); }

  // Packed weights and biases; for weights that are kept also copies of the matrices that are not packed.
  static void layout_weights(const ForwardParams& p, Arena& arena, bool keep, Workspace& w) {
    const Geometry& g = p.g;
    const int64_t gate_rows = kGates * g.hidden_size;
    for (int64_t d = 0; d < g.directions; ++d) {
      w.w_ih[d] = arena.take<S>(packs(p.plan.w_ih) ? unit_blocks(g) * input_depth(g) * kGateWidth : 0);
      w.w_hh[d] = arena.take<S>(packs(p.plan.w_hh) ? unit_blocks(g) * state_depth(g) * kGateWidth : 0);
      w.bias[d] = arena.take<S>(unit_blocks(g) * kGateWidth);
      w.unit_parameters[d] = arena.take<S>(g.unit_parameters * padded<S>(g.hidden_size));
      w.w_hr[d] = arena.take<S>(g.projection ? output_panels(g) * Operand::elements(g.hidden_size) * kWidth : 0);
      w.matrix_ih[d] = p.weights[d].w_ih;
      w.matrix_hh[d] = p.weights[d].w_hh;
      if (keep && !packs(p.plan.w_ih)) w.matrix_ih[d] = arena.take<T>(gate_rows * g.input_size);
      if (keep && !packs(p.plan.w_hh)) w.matrix_hh[d] = arena.take<T>(gate_rows * g.output_size);
    }
  }

  // Of weights that are kept from call to call.
  static size_t packed_bytes(const ForwardParams& p) {
    Workspace w = {};
    Arena arena = {nullptr, 0};
    layout_weights(p, arena, true, w);
    return arena.used;
  }
  static void pack_to_keep(const ForwardParams& p, void* packed) {
    const Geometry& g = p.g;
    Workspace w = {};
    Arena arena = {static_cast<char*>(packed), 0};
    layout_weights(p, arena, true, w);
    pack(p, w, 0, 1);
    const size_t row_bytes = size_t(kGates * g.hidden_size) * sizeof(T);
    for (int64_t d = 0; d < g.directions; ++d) {
      if (!packs(p.plan.w_ih)) {
        __builtin_memcpy(const_cast<void*>(w.matrix_ih[d]), p.weights[d].w_ih, row_bytes * size_t(g.input_size));
      }
      if (!packs(p.plan.w_hh)) {
        __builtin_memcpy(const_cast<void*>(w.matrix_hh[d]), p.weights[d].w_hh, row_bytes * size_t(g.output_size));
      }
    }
  }

  static size_t layout(const ForwardParams& p, int rank, char* base, Workspace& w) {
    const Geometry& g = p.g;
    Arena arena = {base, 0};
    // One cache line more, because rows a power of two apart would all lie in the same few sets of the cache.
    w.h_stride = padded<S>(state_depth(g)) + kLanes;
    w.c_stride = padded<S>(g.hidden_size);
    w.c_row_stride = Cell::kStates * w.c_stride;
    if (p.packed) {
      Arena kept = {static_cast<char*>(const_cast<void*>(p.packed)), 0};
      layout_weights(p, kept, true, w);
    } else {
      layout_weights(p, arena, false, w);
    }
    const int64_t rows = g.directions * g.batch;
    w.h[0] = arena.take<S>(rows * w.h_stride);
    w.h[1] = arena.take<S>(rows * w.h_stride);
    for (int copy = 0; copy < 2; ++copy) {
      w.unmasked[copy] = g.recurrent_mask ? arena.take<S>(rows * w.h_stride) : w.h[copy];
    }
    w.held = arena.take<S>(is_on(g.zoneout_h) ? rows * factor_stride(g) : 0);
    w.factors = arena.take<S>(g.recurrent_mask ? rows * factor_stride(g) : 0);
    w.c = arena.take<S>(rows * w.c_row_stride);
    w.projecting = arena.take<S>(g.projection ? rows * w.c_stride : 0);
    if constexpr (kIsNormalised<Cell>) {
      for (int64_t d = 0; d < g.directions; ++d) w.norms[d].layout(g, arena);
    }
    S *gates_x = nullptr, *products = nullptr;
    for (int thread = 0; thread < p.plan.threads; ++thread) {
      S* x = arena.take<S>(direct_input(p) ? 0 : chunk_rows(p) * x_stride(g));
      const S** x_rows = arena.take<const S*>(chunk_rows(p));
      const int64_t panel_ih = packs_in_turn(p.plan.w_ih) ? input_depth(g) : 0;
      const int64_t panel_hh = packs_in_turn(p.plan.w_hh) ? state_depth(g) : 0;
      S* panel = arena.take<S>((panel_ih > panel_hh ? panel_ih : panel_hh) * kGateWidth);
      // Those who share the units share the chunk. Each has the place of its units, whatever rows the others are at and
      // however many threads the system grants.
      if (thread == 0 || !p.plan.share_units) {
        gates_x = arena.take<S>(chunk_rows(p) * unit_blocks(g) * kGateWidth);
        if constexpr (kIsNormalised<Cell>) products = arena.take<S>(product_rows(g) * unit_blocks(g) * kGateWidth);
      }
      if constexpr (kIsNormalised<Cell>) {
        S* rows = arena.take<S>(Normalised::scratch_size(g));
        if (thread == rank) w.norm_rows = rows;
      }
      if (thread == rank) {
        w.x = x;
        w.x_rows = x_rows;
        w.panel = panel;
        w.gates_x = gates_x;
        w.products = products;
      }
    }
    return arena.used;
  }

  static size_t workspace(const ForwardParams& p) {
    Workspace w = {};
    return layout(p, 0, nullptr, w);
  }

  static void run(const ForwardParams& p, Team& team, int rank) {
    Workspace w = {};
    layout(p, rank, static_cast<char*>(p.workspace), w);
    if (!p.packed) {
      pack(p, w, rank, team.size());
      team.barrier();
    }
    each_job(p, w, team, rank, &run_job);
  }

  static void pack(const ForwardParams& p, const Workspace& w, int rank, int size) {
    const Geometry& g = p.g;
    for (int64_t d = 0; d < g.directions; ++d) {
      const DirectionWeights& from = p.weights[d];
      const Range units = share(unit_blocks(g), rank, size);
      for (int64_t u = units.begin; u < units.end; ++u) {
        if (packs(p.plan.w_ih)) {
          pack_gates<Operand, kGates>(static_cast<const T*>(from.w_ih), g.hidden_size, g.input_size, u * kLanes,
                                      w.w_ih[d] + u * input_depth(g) * kGateWidth);
        }
        if (packs(p.plan.w_hh)) {
          pack_gates<Operand, kGates>(static_cast<const T*>(from.w_hh), g.hidden_size, g.output_size, u * kLanes,
                                      w.w_hh[d] + u * state_depth(g) * kGateWidth);
        }
        S* bias = w.bias[d] + u * kGateWidth;
        for (int64_t j = 0; j < kGateWidth; ++j) {
          const int64_t gate = j / kLanes, unit = u * kLanes + j % kLanes;
          bias[j] = S(0);
          if (g.bias && unit < g.hidden_size) {
            const int64_t at = gate * g.hidden_size + unit;
            bias[j] = S(to_float(static_cast<const T*>(from.b_ih)[at])) +
                      S(to_float(static_cast<const T*>(from.b_hh)[at]));
          }
        }
      }
      if (rank == 0) widen_unit_parameters<T>(g, from, padded<S>(g.hidden_size), w.unit_parameters[d]);
      if constexpr (kIsNormalised<Cell>) {
        if (rank == 0) w.norms[d].template fill<T>(g, from);
      }
      if (g.projection) {
        const Range panels = share(output_panels(g), rank, size);
        for (int64_t n = panels.begin; n < panels.end; ++n) {
          pack_transposed<Operand>(static_cast<const T*>(from.w_hr), g.output_size, g.hidden_size, n * kWidth,
                                   w.w_hr[d] + n * Operand::elements(g.hidden_size) * kWidth);
        }
      }
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
        if (!g.recurrent_mask) Operand::fill_row(static_cast<const T*>(p.h_0) + at * g.output_size, 1, h, g.output_size);
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
      Operand::read_row(w.unmasked_row(g, job, last & 1, i), static_cast<T*>(p.h_n) + at * g.output_size, g.output_size);
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
    const Range rows = share(count, job.rank, job.size);
    const typename Tiles::CellStep at = {job.time(step), parity, 0, direct_output(p)};
    for (int64_t i = rows.begin; i < rows.end; i += Normalised::kCellRows) {
      const typename Normalised::Products input = {gates_x + i * kGateWidth, chunk_rows(p) * kGateWidth};
      const typename Normalised::Products recurrent = {w.products + i * kGateWidth, stride};
#define CUSTOMLSTM_CALL(R, CHANGED) Normalised::template cell_rows<R, CHANGED>(p, w, job, at, i0 + i, input, recurrent)
      if (rows.end - i >= Normalised::kCellRows) {
        changes_states(g) ? CUSTOMLSTM_CALL(Normalised::kCellRows, true) : CUSTOMLSTM_CALL(Normalised::kCellRows, false);
      } else {
        changes_states(g) ? CUSTOMLSTM_CALL(1, true) : CUSTOMLSTM_CALL(1, false);
      }
#undef CUSTOMLSTM_CALL
    }
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
