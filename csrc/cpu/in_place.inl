// Products with a matrix that is read where it lies, for weights that are used once: the same sums in the same order as
// over packed panels, without the time and memory of packing. dot.inl has the ones in another order.

// out[r] = init + rows[r] . W^T, or out[r] += rows[r] . W^T, for units `unit ..` of a gate matrix [4H, depth] that is
// read where it lies, a vector of each gate: the same sums in the same order as over a packed panel. Turning a square
// of the matrix in registers costs about as much as packing it, so this is for weights that are used once or twice.
template <class Operand, class S, int R, class T>
CUSTOMLSTM_NOINLINE void multiply_gates(const S* const (&rows)[R], const T* w, int64_t hidden, int64_t depth,
                                        int64_t unit, const S* init, bool accumulate, S* out) {
  constexpr int kLanes = Vec<S>::kLanes;
  for (int v = 0; v < kPanelVectors; ++v) {
    const T* gate = w + (v * hidden + unit) * depth;
    Vec<S> sum[R];
    for (int r = 0; r < R; ++r) sum[r] = init ? Vec<S>::load(init + v * kLanes) : Vec<S>::broadcast(S(0));
    for (int64_t k = 0; k < depth;) {
      const int64_t end = min64(depth, k + kSumBlock);
      Vec<S> part[R];
      for (int r = 0; r < R; ++r) part[r] = Vec<S>::broadcast(S(0));
      for (; k + kLanes <= end; k += kLanes) {
        Vec<S> columns[kLanes];
        load_columns(gate + k, depth, hidden - unit, kLanes, columns);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) {
          for (int r = 0; r < R; ++r) {
            part[r] = Operand::multiply_add(Vec<S>::broadcast(rows[r][k + j]), columns[j], part[r]);
          }
        }
      }
      if (k < end) {
        Vec<S> columns[kLanes];
        load_columns(gate + k, depth, hidden - unit, end - k, columns);
        for (int j = 0; k < end; ++k, ++j) {
          for (int r = 0; r < R; ++r) {
            part[r] = Operand::multiply_add(Vec<S>::broadcast(rows[r][k]), columns[j], part[r]);
          }
        }
      }
      for (int r = 0; r < R; ++r) sum[r] = sum[r] + part[r];
    }
    for (int r = 0; r < R; ++r) {
      S* to = out + r * panel_width<S>() + v * kLanes;
      if (accumulate) sum[r] = sum[r] + Vec<S>::load(to);
      sum[r].store(to);
    }
  }
}

// out[r] (+)= rows[r] . m over V vectors of columns of a matrix [depth, ...] whose rows lie `stride` apart; of a single
// vector only `lanes` columns need be there.
template <class S, int R, int V, class T>
CUSTOMLSTM_NOINLINE void multiply_columns(const S* const* rows, int64_t depth, const T* m, int64_t stride, int lanes,
                                          S* out, int64_t out_stride, bool accumulate) {
  constexpr int kLanes = Vec<S>::kLanes;
  int64_t k = 0;
  do {
    const bool begin = k == 0;
    const int64_t end = min64(depth, k + kSumBlock);
    Vec<S> sum[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = Vec<S>::broadcast(S(0));
    for (; k < end; ++k) {
      Vec<S> factors[R];
      for (int r = 0; r < R; ++r) factors[r] = Vec<S>::broadcast(rows[r][k]);
      for (int v = 0; v < V; ++v) {
        const Vec<S> b = load_as<S>(m + k * stride + v * kLanes, V > 1 ? kLanes : lanes);
        for (int r = 0; r < R; ++r) sum[r][v] = fma(factors[r], b, sum[r][v]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) {
        S* to = out + r * out_stride + v * kLanes;
        if (accumulate || !begin) sum[r][v] = sum[r][v] + Vec<S>::load(to);
        sum[r][v].store(to);
      }
    }
  } while (k < depth);
}

// out[i] (+)= rows[i] . m for i < count and columns begin .. end - 1 of m [depth, n]; up to a whole vector of `out` is
// written beyond the end.
template <class S, class T>
CUSTOMLSTM_INLINE void multiply_few_rows(const S* const* rows, int64_t count, const T* m, int64_t depth, int64_t n,
                                         Range columns, S* out, int64_t out_stride, bool accumulate) {
  constexpr int kLanes = Vec<S>::kLanes;
  // A row of a wide matrix begins in a page of its own, where the processor's prefetching starts anew: one row of
  // factors leaves the registers to take more of it at a time.
  constexpr int kWide = kTileRows * kPanelVectors / 2;
  for (int64_t i = 0; i < count; i += kTileRows) {
    const int64_t tile_rows = min64(kTileRows, count - i);
    S* to = out + i * out_stride;
    int64_t at = columns.begin;
#define CUSTOMLSTM_COLUMNS(R, V, LANES) \
  multiply_columns<S, R, V>(rows + i, depth, m + at, n, LANES, to + at, out_stride, accumulate)
#define CUSTOMLSTM_CALL(R)                                                                               \
  {                                                                                                      \
    for (; at + kPanelVectors * kLanes <= columns.end; at += kPanelVectors * kLanes) {                   \
      CUSTOMLSTM_COLUMNS(R, kPanelVectors, kLanes);                                                      \
    }                                                                                                    \
    for (; at < columns.end; at += kLanes) CUSTOMLSTM_COLUMNS(R, 1, int(min64(kLanes, n - at)));         \
  }
    for (; tile_rows == 1 && at + kWide * kLanes <= columns.end; at += kWide * kLanes) {
      CUSTOMLSTM_COLUMNS(1, kWide, kLanes);
    }
    CUSTOMLSTM_WITH_ROWS(tile_rows, CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
#undef CUSTOMLSTM_COLUMNS
  }
}
