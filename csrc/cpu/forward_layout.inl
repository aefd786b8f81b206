// The memory of one layer forward: what a call's workspace holds, and the weights in it, packed as the tiles read them.

template <class T, class Cell>
struct ForwardLayout {
  using S = typename AccumulationOf<T>::Type;
  static constexpr int kLanes = Vec<S>::kLanes;
  static constexpr int kGates = Cell::kGates;
  static constexpr int64_t kGateWidth = kGates * kLanes, kWidth = kPanelVectors * kLanes;
  // Rows of one chunk of the input projection: enough to use each panel of W_ih often, few enough to stay in cache.
  // Short steps are taken several at a time, until there are kChunkRows; a long one in blocks of kBlockRows.
  // A matrix that is read along its rows has no panels to use often; each of its rows serves all rows of the chunk.
  static constexpr int64_t kChunkRows = 48, kChunkRowsAlong = 128;
  using Operand = typename OperandOf<T>::Type;
  using Stored = typename Operand::Stored;
  using Workspace = ForwardWorkspace<S>;
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
};
