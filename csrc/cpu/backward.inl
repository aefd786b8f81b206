// One layer backward. Steps run against the forward order: the cell's derivative gives the gradient of the gates of
// one step, one product with W_hh that of the state before it. What needs no order (the gradients of input and
// weights) is done after each block of steps, over its rows at once, in gradients.inl.

template <class S>
struct BackwardWorkspace {
  S *w_ih[2], *w_hh[2], *w_hr[2];   // packed by columns
  S *dh, *dprojecting;              // [D, B, padded P or H] gradients of the state after the step at hand
  S* dc;                            // [D, B, cell states, padded H]
  S* carried;                       // [D, B, padded P] gradient of h that zoneout hands to the step before
  S* factors;                       // [D, B, padded P] what h is multiplied by before W_hh, where there is a mask
  S* c_0;                           // [D, B, cell states, padded H] initial cell state, widened
  S* unit_parameters[2];            // [parameters, padded H]
  const S** rows;                   // [B] rows for the products, of this thread
  RowList list;                     // all valid rows, in order of time
  StepBlocks<S> blocks;
  GradientScratch<S> scratch;       // of this thread
  NormParameters<S> norms[2];       // these two only where there is layer norm
  S* norm_rows;                     // of this thread: rows that go through the cell
  int64_t h_stride, c_stride, c_row_stride;

  CUSTOMLSTM_INLINE S* row(S* base, int64_t stride, const Geometry& g, const Job& job, int64_t i) const {
    return base + (job.direction * g.batch + job.first_row + i) * stride;
  }
};

// The cell's derivative on some rows. It knows the accumulation type only, like the tiles of the forward pass.
template <class S, class Cell, class Operand>
struct BackwardCells {
  static constexpr int kLanes = Vec<S>::kLanes, kStates = Cell::kStates;
  using Workspace = BackwardWorkspace<S>;

  static CUSTOMLSTM_INLINE S* gate_row(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                       int64_t column) {
    return w.blocks.grad_gates + w.blocks.at(p.g, job.direction, t, column) * gradient_row<Cell, Operand>(p.g);
  }
  // The cell state that entered step t of a column, or null for zero; further states of the cell follow at `stride`.
  static CUSTOMLSTM_INLINE const S* previous_c(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                               int64_t column, int64_t& stride) {
    const Geometry& g = p.g;
    stride = g.hidden_size;
    if (is_cut(g, job.direction, t, column)) return nullptr;
    if (is_first(g, job.direction, t, column)) {
      stride = w.c_stride;
      return p.c_0 ? w.c_0 + (job.direction * g.batch + column) * w.c_row_stride : nullptr;
    }
    const int64_t from = job.direction == 0 ? t - 1 : t + 1;
    return static_cast<const S*>(p.c_all) +
           ((g.step_row[from] + column) * g.directions + job.direction) * kStates * g.hidden_size;
  }

  template <int R, bool kChanged>
  static CUSTOMLSTM_NOINLINE void cell_rows(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                            int64_t i, int64_t unit, int lanes, const S* grad_output) {
    const Geometry& g = p.g;
    Pack<S, R> saved[Cell::kSaved], c_prev[kStates], c[kStates], dh, dc[kStates], da[Cell::kGates];
    Pack<S, R> parameters[Cell::kParameters + 1], d_parameters[Cell::kParameters + 1];
    Pack<S, R> dc_before[kStates];   // what zoneout hands to the step before
    for (int s = 0; s < kStates; ++s) dc_before[s] = Pack<S, R>::broadcast(S(0));
    // What the next step reads lies in as many places as it has rows and gates, too many for the processor to foresee.
    const int64_t next_t = job.direction == 0 ? (t > 0 ? t - 1 : t) : (t + 1 < job.steps ? t + 1 : t);
    const int64_t ahead = (g.step_row[next_t] - g.step_row[t]) * g.directions * g.hidden_size;
    const bool mixes_cells = kChanged && is_on(g.zoneout_c);
    const int64_t values = Cell::kSaved + (mixes_cells ? kStates : 0);
    for (int r = 0; r < R; ++r) {
      const int64_t column = job.columns[i + r];
      const int64_t at = (g.step_row[t] + column) * g.directions + job.direction;
      const S* gates = static_cast<const S*>(p.gates) + at * values * g.hidden_size + unit;
      for (int k = 0; k < Cell::kSaved; ++k) __builtin_prefetch(gates + ahead * values + k * g.hidden_size, 0, 2);
      const S* states = static_cast<const S*>(p.c_all) + at * kStates * g.hidden_size + unit;
      for (int s = 0; s < kStates; ++s) __builtin_prefetch(states + 2 * kStates * ahead + s * g.hidden_size, 0, 2);
      for (int k = 0; k < Cell::kSaved; ++k) saved[k].row[r] = load_as<S>(gates + k * g.hidden_size, lanes);
      int64_t stride;
      const S* previous = previous_c(p, w, job, t, column, stride);
      for (int s = 0; s < kStates; ++s) {
        c[s].row[r] = load_as<S>(states + s * g.hidden_size, lanes);
        c_prev[s].row[r] = previous ? load_as<S>(previous + s * stride + unit, lanes) : Vec<S>::broadcast(S(0));
      }
      if (g.projection) {
        dh.row[r] = Vec<S>::load(w.row(w.dprojecting, w.c_stride, g, job, i + r) + unit);
      } else {
        dh.row[r] = Vec<S>::load(w.row(w.dh, w.h_stride, g, job, i + r) + unit);
        if (grad_output) dh.row[r] = dh.row[r] + load_as<S>(grad_output + at * g.output_size + unit, lanes);
      }
      for (int s = 0; s < kStates; ++s) {
        Vec<S>& d = dc[s].row[r];
        d = Vec<S>::load(w.row(w.dc, w.c_row_stride, g, job, i + r) + s * w.c_stride + unit);
        if (p.grad_c_all) {
          const int64_t state = (at * kStates + s) * g.hidden_size + unit;
          d = d + load_as<S>(static_cast<const S*>(p.grad_c_all) + state, lanes);
        }
        if (mixes_cells) {
          c[s].row[r] = load_as<S>(gates + (Cell::kSaved + s) * g.hidden_size, lanes);   // the cell's own
          split(g.zoneout_c, d, at * g.hidden_size + unit, lanes, dc_before[s].row[r], d);
        }
      }
      if (kChanged && is_on(g.zoneout_h) && !g.projection) {
        Vec<S> before;
        split(g.zoneout_h, dh.row[r], at * g.hidden_size + unit, lanes, before, dh.row[r]);
        before.store(w.row(w.carried, w.h_stride, g, job, i + r) + unit);
      }
    }
    load_unit_parameters<Cell>(g, w.unit_parameters[job.direction], w.c_stride, unit, parameters);
    for (int k = 0; k < Cell::kParameters; ++k)
      for (int r = 0; r < R; ++r) d_parameters[k].row[r] = Vec<S>::broadcast(S(0));
    Cell::backward(*static_cast<const CellParams<S>*>(p.cell_params), saved, parameters, c_prev, c, dh, dc, da,
                   d_parameters);
    for (int r = 0; r < R; ++r) {
      for (int s = 0; s < kStates; ++s) {
        if (mixes_cells) dc[s].row[r] = dc[s].row[r] + dc_before[s].row[r];
        dc[s].row[r].store(w.row(w.dc, w.c_row_stride, g, job, i + r) + s * w.c_stride + unit);
      }
      S* to = gate_row(p, w, job, t, job.columns[i + r]);
      for (int k = 0; k < Cell::kGates; ++k) Operand::store_part(da[k].row[r], to, k * g.hidden_size + unit, lanes);
      for (int k = 0; k < Cell::kParameters && k < g.unit_parameters; ++k) {
        const int64_t at = (Cell::kGates + k) * g.hidden_size + unit;
        Operand::store_part(d_parameters[k].row[r], to, at, lanes);
      }
    }
  }
};

#include "backward_norm.inl"

template <class T, class Cell>
struct Backward {
  using S = typename AccumulationOf<T>::Type;
  static constexpr int kLanes = Vec<S>::kLanes;
  static constexpr int64_t kWidth = kPanelVectors * kLanes;
  static constexpr int kCellRows = 2;   // rows through the cell at a time: more would spill

  using Operand = typename OperandOf<T>::Type;
  using Workspace = BackwardWorkspace<S>;
  using Cells = BackwardCells<S, Cell, Operand>;
  using Normalised = NormalisedBackward<S, Cell, Operand>;

  static CUSTOMLSTM_INLINE int64_t hidden_panels(const Geometry& g) { return ceil_div(g.hidden_size, kWidth); }
  static CUSTOMLSTM_INLINE int64_t output_panels(const Geometry& g) { return ceil_div(g.output_size, kWidth); }
  static CUSTOMLSTM_INLINE int64_t gate_rows(const Geometry& g) { return Cell::kGates * g.hidden_size; }
  // Depth of the products, in elements of the operand.
  static CUSTOMLSTM_INLINE int64_t gate_depth(const Geometry& g) { return Operand::elements(gate_rows(g)); }
  static CUSTOMLSTM_INLINE int64_t state_depth(const Geometry& g) { return Operand::elements(g.output_size); }

  // How W_ih and W_hh are read.
  static CUSTOMLSTM_INLINE WeightAccess access_ih(const BackwardParams& p) { return Gradients<T, Cell>::access_ih(p); }
  static CUSTOMLSTM_INLINE WeightAccess access_hh(const BackwardParams& p) { return Gradients<T, Cell>::access_hh(p); }
  static CUSTOMLSTM_INLINE bool packs(WeightAccess access) { return access == WeightAccess::kPacked; }

  // Steps of one block: enough rows for the weight gradients, whose sums are read and written once a block, and not
  // more gradients of the pre-activations than stay in cache. No matter of the threads: they may not change a bit.
  static int64_t block_steps(const BackwardParams& p) {
    const Geometry& g = p.g;
    // Both directions' gradients of the input are rounded once, as one sum.
    if (g.directions > 1 && p.grad_input && sizeof(T) < sizeof(S)) return g.steps > 0 ? g.steps : 1;
    constexpr int64_t kBytes = int64_t{2} << 20;
    const int64_t values = kIsNormalised<Cell> ? gradient_row<Cell, Operand>(g) : gate_rows(g);
    int64_t rows = kBytes / (int64_t(sizeof(S)) * values * g.directions);
    if (rows < kWeightDepth) rows = kWeightDepth;
    const int64_t steps = ceil_div(rows, g.batch > 0 ? g.batch : 1);
    return steps < g.steps ? steps : g.steps > 0 ? g.steps : 1;
  }

  static size_t layout(const BackwardParams& p, int rank, char* base, Workspace& w) {
    const Geometry& g = p.g;
    Arena arena = {base, 0};
    w.h_stride = padded<S>(g.output_size);
    w.c_stride = padded<S>(g.hidden_size);
    w.c_row_stride = Cell::kStates * w.c_stride;
    for (int64_t d = 0; d < g.directions; ++d) {
      const int64_t panel = gate_depth(g) * kWidth, input_panels = p.grad_input ? ceil_div(g.input_size, kWidth) : 0;
      w.w_hh[d] = arena.take<S>(packs(access_hh(p)) ? output_panels(g) * panel : 0);
      w.w_ih[d] = arena.take<S>(packs(access_ih(p)) ? input_panels * panel : 0);
      w.w_hr[d] = arena.take<S>(g.projection ? hidden_panels(g) * state_depth(g) * kWidth : 0);
    }
    const int64_t rows = g.directions * g.batch;
    w.dh = arena.take<S>(rows * w.h_stride);
    w.dc = arena.take<S>(rows * w.c_row_stride);
    w.factors = arena.take<S>(g.recurrent_mask ? rows * w.h_stride : 0);
    w.carried = arena.take<S>(is_on(g.zoneout_h) ? rows * w.h_stride : 0);
    w.dprojecting = arena.take<S>(g.projection ? rows * w.c_stride : 0);
    w.c_0 = arena.take<S>(p.c_0 ? rows * w.c_row_stride : 0);
    for (int64_t d = 0; d < g.directions; ++d) w.unit_parameters[d] = arena.take<S>(g.unit_parameters * w.c_stride);
    w.list.time = arena.take<int64_t>(g.valid_rows);
    w.list.column = arena.take<int64_t>(g.valid_rows);
    w.list.begin = arena.take<int64_t>(g.steps + 1);
    w.blocks.steps = block_steps(p);
    w.blocks.index = 0;
    const int64_t block_rows = w.blocks.steps * g.batch * g.directions;
    w.blocks.grad_gates = arena.take<S>(block_rows * gradient_row<Cell, Operand>(g));
    w.blocks.grad_hidden_state = arena.take<S>(g.projection ? block_rows * state_depth(g) : 0);
    bool weights = false;
    for (const auto& to : p.grad_weights) {
      weights = weights || to.w_ih || to.w_hh || to.bias || to.w_hr;
      for (const void* parameter : to.unit_parameters) weights = weights || parameter;
      for (const auto& norm : to.norms) weights = weights || norm.gain || norm.bias;
    }
    if constexpr (kIsNormalised<Cell>) {
      for (int64_t d = 0; d < g.directions; ++d) w.norms[d].layout(g, arena);
    }
    GradientScratch<S> scratch;
    scratch.layout_team(arena, g, gate_rows(g), weights);
    for (int thread = 0; thread < p.plan.threads; ++thread) {
      const S** pointers = arena.take<const S*>(g.batch);
      scratch.layout_thread(arena, g, gate_rows(g), weights, p.grad_input ? Gradients<T, Cell>::input_rows(p) : 0);
      const bool in_turn = access_hh(p) == WeightAccess::kPackedInTurn ||
                           (p.grad_input && access_ih(p) == WeightAccess::kPackedInTurn);
      scratch.weights = arena.take<S>(in_turn ? gate_depth(g) * kWidth : 0);
      if constexpr (kIsNormalised<Cell>) {
        S* rows = arena.take<S>(Normalised::scratch_size(g));
        if (thread == rank) w.norm_rows = rows;
      }
      if (thread == rank) {
        w.rows = pointers;
        w.scratch = scratch;
      }
    }
    return arena.used;
  }

  static size_t workspace(const BackwardParams& p) {
    Workspace w;
    return layout(p, 0, nullptr, w);
  }

  static void run(const BackwardParams& p, Team& team, int rank) {
    const Geometry& g = p.g;
    Workspace w;
    layout(p, rank, static_cast<char*>(p.workspace), w);
    pack(p, w, rank, team.size());
    if (rank == 0) w.list.fill(g);
    team.barrier();
    each_job(p, w, team, rank, &load_state);
    team.barrier();
    const Gradients<T, Cell> gradients = {p, w.list, w.scratch, w.blocks, rank, team.size()};
    const bool both_at_once = w.blocks.count(g) == 1;
    for (; w.blocks.index < w.blocks.count(g); ++w.blocks.index) {
      each_job(p, w, team, rank, &run_block);
      team.barrier();
      if (p.grad_input && both_at_once) gradients.input(w.w_ih, 0, g.directions);
      for (int64_t d = 0; d < g.directions; ++d) {
        if (p.grad_input && !both_at_once) {
          gradients.input(w.w_ih, d, d + 1);
          if (g.directions > 1) team.barrier();   // where the directions meet, the other adds to the same rows
        }
        gradients.weights(d);
      }
      team.barrier();
    }
    each_job(p, w, team, rank, &store_state);
  }

  static void pack(const BackwardParams& p, const Workspace& w, int rank, int size) {
    const Geometry& g = p.g;
    for (int64_t d = 0; d < g.directions; ++d) {
      if (packs(access_hh(p))) {
        pack_matrix(static_cast<const T*>(p.weights[d].w_hh), gate_rows(g), g.output_size, w.w_hh[d], rank, size);
      }
      if (packs(access_ih(p)) && p.grad_input) {
        pack_matrix(static_cast<const T*>(p.weights[d].w_ih), gate_rows(g), g.input_size, w.w_ih[d], rank, size);
      }
      if (g.projection) {
        pack_matrix(static_cast<const T*>(p.weights[d].w_hr), g.output_size, g.hidden_size, w.w_hr[d], rank, size);
      }
      if (rank == 0) widen_unit_parameters<T>(g, p.weights[d], w.c_stride, w.unit_parameters[d]);
      if constexpr (kIsNormalised<Cell>) {
        if (rank == 0) w.norms[d].template fill<T>(g, p.weights[d]);
      }
      if (p.c_0) {
        const Range rows = share(g.batch, rank, size);
        for (int64_t b = rows.begin; b < rows.end; ++b) {
          const int64_t at = d * g.batch + b;
          for (int64_t s = 0; s < Cell::kStates; ++s) {
            const T* from = static_cast<const T*>(p.c_0) + (at * Cell::kStates + s) * g.hidden_size;
            widen(from, 1, w.c_0 + at * w.c_row_stride + s * w.c_stride, g.hidden_size);
          }
        }
      }
    }
  }

  static void pack_matrix(const T* m, int64_t depth, int64_t n, S* to, int rank, int size) {
    const Range panels = share(ceil_div(n, kWidth), rank, size);
    for (int64_t j = panels.begin; j < panels.end; ++j) {
      pack_columns<Operand>(m, depth, n, j * kWidth, to + j * Operand::elements(depth) * kWidth);
    }
  }

  static void load_state(const BackwardParams& p, const Workspace& w, const Job& job) {
    const Geometry& g = p.g;
    const Range rows = share(job.rows, job.rank, job.size);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t at = job.direction * g.batch + job.columns[i];
      S* dh = w.row(w.dh, w.h_stride, g, job, i);
      S* dc = w.row(w.dc, w.c_row_stride, g, job, i);
      for (int64_t k = 0; k < w.h_stride; ++k) dh[k] = S(0);
      for (int64_t k = 0; k < w.c_row_stride; ++k) dc[k] = S(0);
      if (p.grad_h_n) widen(static_cast<const T*>(p.grad_h_n) + at * g.output_size, 1, dh, g.output_size);
      for (int64_t s = 0; p.grad_c_n && s < Cell::kStates; ++s) {
        const T* from = static_cast<const T*>(p.grad_c_n) + (at * Cell::kStates + s) * g.hidden_size;
        widen(from, 1, dc + s * w.c_stride, g.hidden_size);
      }
      if (!g.recurrent_mask) continue;
      S* factors = w.row(w.factors, w.h_stride, g, job, i);
      for (int64_t k = 0; k < w.h_stride; ++k) {
        factors[k] = k < g.output_size ? recurrent_factor<S>(g, job.direction, job.columns[i], k) : S(0);
      }
    }
  }

  static void store_state(const BackwardParams& p, const Workspace& w, const Job& job) {
    const Geometry& g = p.g;
    const Range rows = share(job.rows, job.rank, job.size);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t at = job.direction * g.batch + job.columns[i];
      if (p.grad_h_0) {
        narrow(w.row(w.dh, w.h_stride, g, job, i), static_cast<T*>(p.grad_h_0) + at * g.output_size,
               g.output_size);
      }
      for (int64_t s = 0; p.grad_c_0 && s < Cell::kStates; ++s) {
        T* to = static_cast<T*>(p.grad_c_0) + (at * Cell::kStates + s) * g.hidden_size;
        narrow(w.row(w.dc, w.c_row_stride, g, job, i) + s * w.c_stride, to, g.hidden_size);
      }
    }
  }

  static void run_block(const BackwardParams& p, const Workspace& w, const Job& job) {
    const Geometry& g = p.g;
    // Threads own whole panels of columns, of the state as of the units: without projection the same columns, so that
    // a thread reads only gradients of the state that it wrote itself, and one barrier a step is enough.
    const Range units = share(hidden_panels(g), job.rank, job.size);
    const Range outputs = share(output_panels(g), job.rank, job.size);
    const Range times = w.blocks.times(g, job.direction);
    const int64_t end = min64(times.end, job.steps);
    const T* matrix = static_cast<const T*>(p.weights[job.direction].w_hh);
    const typename Gradients<T, Cell>::Matrix w_hh = {access_hh(p), matrix, w.w_hh[job.direction], g.output_size};
    int64_t active = 0;
    for (int64_t i = times.begin; i < end; ++i) {
      const int64_t t = job.direction == 0 ? end - 1 - (i - times.begin) : i;
      active = active_rows(g, job, t, active);
      add_grad_output(p, w, job, t, active, outputs);
      if (g.projection) {
        job.barrier();
        unproject(p, w, job, t, active, units);
      }
      if constexpr (kIsNormalised<Cell>) {
        job.barrier();   // rows are dealt, and what others wrote of this thread's must be there
        Normalised::run(p, w, job, t, active, direct_grad_output(p));
      } else {
        run_cells(p, w, job, t, active, units);
      }
      job.barrier();
      const int64_t section = GradientRow<Cell, Operand>::product(g, kNormRecurrent);
      for (int64_t k = 0; k < active; ++k) w.rows[k] = Cells::gate_row(p, w, job, t, job.columns[k]) + section;
      Gradients<T, Cell>::multiply(g, w_hh, outputs, w.rows, active, w.scratch.weights,
                                   w.row(w.dh, w.h_stride, g, job, 0), w.h_stride, false);
      if (g.recurrent_mask || is_on(g.zoneout_h)) finish_state(p, w, job, active, outputs);
      if (g.resets) cut_state(p, w, job, t, active, units, outputs);
    }
  }

  static CUSTOMLSTM_INLINE S* hidden_state_row(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t,
                                               int64_t column) {
    return w.blocks.grad_hidden_state + w.blocks.at(p.g, job.direction, t, column) * state_depth(p.g);
  }

  // The gradient of the output where the cells can read it themselves.
  static CUSTOMLSTM_INLINE const S* direct_grad_output(const BackwardParams& p) {
    return sizeof(T) == sizeof(S) ? static_cast<const S*>(p.grad_output) : nullptr;
  }

  // Gradient of h_t = that through the next step + that of the output. Without projection and conversion the cells
  // add the two; with projection the sum is kept, for the gradient of W_hr.
  static void add_grad_output(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t, int64_t active,
                              Range outputs) {
    const Geometry& g = p.g;
    if (!g.projection && (direct_grad_output(p) || !p.grad_output)) return;
    const int64_t begin = outputs.begin * kWidth, end = min64(outputs.end * kWidth, g.output_size);
    for (int64_t i = 0; i < active; ++i) {
      const int64_t row = g.step_row[t] + job.columns[i];
      S* dh = w.row(w.dh, w.h_stride, g, job, i);
      const T* dy = p.grad_output ? static_cast<const T*>(p.grad_output) +
                                        (row * g.directions + job.direction) * g.output_size
                                  : nullptr;
      if (!g.projection) {
        for (int64_t k = begin; k < end; ++k) dh[k] = dh[k] + S(to_float(dy[k]));
        continue;
      }
      S* to = hidden_state_row(p, w, job, t, job.columns[i]);
      if (is_on(g.zoneout_h)) {
        split_state(p, w, job, i, row, begin, end, dy, to);
      } else {
        for (int64_t k = begin; k < end; ++k) Operand::set(to, k, dy ? dh[k] + S(to_float(dy[k])) : dh[k]);
      }
      if (end == g.output_size && !Operand::whole_elements(end)) Operand::set(to, end, S(0));
    }
  }

  // The gradient of a projected h_t, in the part of the one that was computed and the part of the step before.
  static void split_state(const BackwardParams& p, const Workspace& w, const Job& job, int64_t i, int64_t row,
                          int64_t begin, int64_t end, const T* dy, S* to) {
    const Geometry& g = p.g;
    const S* dh = w.row(w.dh, w.h_stride, g, job, i);
    const int64_t at = (row * g.directions + job.direction) * g.output_size;
    for (int64_t k = begin; k < end; k += kLanes) {
      const int lanes = int(min64(kLanes, end - k));
      Vec<S> d = Vec<S>::load(dh + k), before, computed;
      if (dy) d = d + load_as<S>(dy + k, lanes);
      split(g.zoneout_h, d, at + k, lanes, before, computed);
      before.store(w.row(w.carried, w.h_stride, g, job, i) + k);
      Operand::store_part(computed, to, k, lanes);
    }
  }

  static void unproject(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t, int64_t active,
                        Range units) {
    const Geometry& g = p.g;
    for (int64_t i = 0; i < active; ++i) w.rows[i] = hidden_state_row(p, w, job, t, job.columns[i]);
    for (int64_t n = units.begin; n < units.end; ++n) {
      multiply_rows<Operand>(w.rows, active, w.w_hr[job.direction] + n * state_depth(g) * kWidth,
                             min64(kWidth, g.hidden_size - n * kWidth), state_depth(g),
                             w.row(w.dprojecting, w.c_stride, g, job, 0) + n * kWidth, w.c_stride, false);
    }
  }

  static void run_cells(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t, int64_t active,
                        Range units) {
    const int64_t end = min64(units.end * kWidth, p.g.hidden_size);
    for (int64_t i = 0; i < active; i += kCellRows) {
      for (int64_t unit = units.begin * kWidth; unit < end; unit += kLanes) {
        const int lanes = int(min64(kLanes, end - unit));
#define CUSTOMLSTM_CALL(R, CHANGED) \
  Cells::template cell_rows<R, CHANGED>(p, w, job, t, i, unit, lanes, direct_grad_output(p))
        const bool changed = changes_states(p.g);
        if (active - i >= kCellRows) {
          changed ? CUSTOMLSTM_CALL(kCellRows, true) : CUSTOMLSTM_CALL(kCellRows, false);
        } else {
          changed ? CUSTOMLSTM_CALL(1, true) : CUSTOMLSTM_CALL(1, false);
        }
#undef CUSTOMLSTM_CALL
      }
    }
  }

  // From the gradient of what W_hh was multiplied by to that of h, with what zoneout handed on.
  static void finish_state(const BackwardParams& p, const Workspace& w, const Job& job, int64_t active, Range outputs) {
    const Geometry& g = p.g;
    const int64_t begin = outputs.begin * kWidth, end = min64(outputs.end * kWidth, g.output_size);
    for (int64_t i = 0; i < active; ++i) {
      S* dh = w.row(w.dh, w.h_stride, g, job, i);
      for (int64_t k = begin; k < end; k += kLanes) {
        Vec<S> d = Vec<S>::load(dh + k);
        if (g.recurrent_mask) d = masked(d, Vec<S>::load(w.row(w.factors, w.h_stride, g, job, i) + k));
        if (is_on(g.zoneout_h)) d = d + Vec<S>::load(w.row(w.carried, w.h_stride, g, job, i) + k);
        d.store(dh + k);
      }
    }
  }

  // No gradient crosses a cut edge.
  static void cut_state(const BackwardParams& p, const Workspace& w, const Job& job, int64_t t, int64_t active,
                        Range units, Range outputs) {
    const Geometry& g = p.g;
    for (int64_t i = 0; i < active; ++i) {
      if (!is_cut(g, job.direction, t, job.columns[i])) continue;
      S* dh = w.row(w.dh, w.h_stride, g, job, i);
      for (int64_t k = outputs.begin * kWidth; k < outputs.end * kWidth; ++k) dh[k] = S(0);
      for (int64_t s = 0; s < Cell::kStates; ++s) {
        S* dc = w.row(w.dc, w.c_row_stride, g, job, i) + s * w.c_stride;
        for (int64_t k = units.begin * kWidth; k < units.end * kWidth; ++k) dc[k] = S(0);
      }
    }
  }
};
