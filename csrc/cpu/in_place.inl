// Products with a matrix that is read where it lies, for weights that are used once, or by one sequence: the same sums
// in the same order as over packed panels, without the time and memory of packing. dot.inl has the ones in another
// order.

// out[r] = init + rows[r] . W^T, or out[r] += rows[r] . W^T, for units `unit ..` of a gate matrix [G * H, depth] that
// is read where it lies, a vector of each gate: the same sums in the same order as over a packed panel. Turning a
// square of the matrix in registers costs about as much as packing it, so this is for weights that are used once or
// twice.
template <class Operand, int G, class S, int R, class T>
CUSTOMLSTM_NOINLINE void multiply_gates(const S* const (&rows)[R], const T* w, int64_t hidden, int64_t depth,
                                        int64_t unit, const S* init, bool accumulate, S* out) {
  constexpr int kLanes = Vec<S>::kLanes;
  for (int v = 0; v < G; ++v) {
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
      S* to = out + r * G * kLanes + v * kLanes;
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

constexpr int64_t kOneRowColumns = 1024;   // columns of the result that one row of factors computes at a time

// part += factors[0 .. N-1] . N rows of m, with the sums in the same order as above.
template <class S, int N, class T>
CUSTOMLSTM_INLINE void add_rows(const S* factors, const T* m, int64_t stride, int64_t columns, S* part) {
  constexpr int kLanes = Vec<S>::kLanes;
  Vec<S> f[N];
  for (int j = 0; j < N; ++j) f[j] = Vec<S>::broadcast(factors[j]);
  int64_t at = 0;
  for (; at + kLanes <= columns; at += kLanes) {
    Vec<S> sum = Vec<S>::load(part + at);
    for (int j = 0; j < N; ++j) sum = fma(f[j], load_as<S>(m + j * stride + at, kLanes), sum);
    sum.store(part + at);
  }
  if (at == columns) return;
  Vec<S> sum = Vec<S>::load(part + at);
  for (int j = 0; j < N; ++j) sum = fma(f[j], load_as<S>(m + j * stride + at, int(columns - at)), sum);
  sum.store(part + at);
}

// out (+)= row . m over `columns` of a matrix [depth, ...] whose rows lie `stride` apart. Of a single row of factors
// the sums may as well wait in the nearest cache: the matrix is read row by row as it lies in memory, a few rows at a
// time, where tiles of columns would begin anew in the page of every row.
template <class S, class T>
CUSTOMLSTM_NOINLINE void multiply_one_row(const S* row, int64_t depth, const T* m, int64_t stride, int64_t columns,
                                          S* out, bool accumulate) {
  constexpr int kLanes = Vec<S>::kLanes, kRowsAtOnce = 8;
  alignas(64) S part[kOneRowColumns];
  int64_t k = 0;
  do {
    const bool begin = k == 0;
    const int64_t end = min64(depth, k + kSumBlock);
    for (int64_t at = 0; at < columns; at += kLanes) Vec<S>::broadcast(S(0)).store(part + at);
    for (; k + kRowsAtOnce <= end; k += kRowsAtOnce) {
      add_rows<S, kRowsAtOnce>(row + k, m + k * stride, stride, columns, part);
    }
    for (; k < end; ++k) add_rows<S, 1>(row + k, m + k * stride, stride, columns, part);
    for (int64_t at = 0; at < columns; at += kLanes) {
      Vec<S> sum = Vec<S>::load(part + at);
      if (accumulate || !begin) sum = sum + Vec<S>::load(out + at);
      sum.store(out + at);
    }
  } while (k < depth);
}

// out[i] (+)= rows[i] . m for i < count and columns begin .. end - 1 of m [depth, n]; up to a whole vector of `out` is
// written beyond the end.
template <class S, class T>
CUSTOMLSTM_INLINE void multiply_few_rows(const S* const* rows, int64_t count, const T* m, int64_t depth, int64_t n,
                                         Range columns, S* out, int64_t out_stride, bool accumulate) {
  constexpr int kLanes = Vec<S>::kLanes;
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
    for (; tile_rows == 1 && at < columns.end; at += kOneRowColumns) {
      multiply_one_row(rows[i], depth, m + at, n, min64(kOneRowColumns, columns.end - at), to + at, accumulate);
    }
    CUSTOMLSTM_WITH_ROWS(tile_rows, CUSTOMLSTM_CALL)
#undef CUSTOMLSTM_CALL
#undef CUSTOMLSTM_COLUMNS
  }
}
