// Products with a gate matrix that is read where it lies, along its rows. Each lane sums every kLanes-th product, and
// the lanes are added at the end; so the order of a sum differs from that over a packed panel, and the choice between
// the two may depend on the sizes of a layer and its batch only, never on the number of steps: see plan.h.

// Lane i of the result is the sum over the lanes of m[i].
template <class S>
CUSTOMLSTM_INLINE Vec<S> sums_of_lanes(Vec<S> (&m)[Vec<S>::kLanes]) {
  constexpr int n = Vec<S>::kLanes;
#pragma GCC unroll 4
  for (int half = n / 2; half >= 1; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) m[i] = interleave_low(m[i], m[i + half]) + interleave_high(m[i], m[i + half]);
  }
  return m[0];
}

constexpr int64_t kDotProducts = 128;   // of one lane in one chain

// Rows of the matrix at a time: with R rows of the other factor, as many accumulators as a register tile.
template <class S>
constexpr int dot_rows() {
  return Vec<S>::kLanes < kPanelVectors ? Vec<S>::kLanes : kPanelVectors;
}

// sums[r][first + j] = the lanes' sums of products of R rows with rows of the matrix, over values
// begin .. end - 1; `next` are the rows of the matrix that come after these.
template <class Operand, class S, int R, class T>
CUSTOMLSTM_INLINE void dot_tile(const S* const (&rows)[R], const T* const (&matrix)[dot_rows<S>()],
                                const T* const (&next)[dot_rows<S>()], int64_t begin, int64_t end, int first,
                                Vec<S> (&sums)[R][Vec<S>::kLanes]) {
  constexpr int kLanes = Vec<S>::kLanes, N = dot_rows<S>();
  Vec<S> acc[R][N], b[N];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) acc[r][j] = Vec<S>::broadcast(S(0));
  int64_t k = begin;
  // The rows that come next begin in other pages, where the processor's own prefetching starts anew.
  constexpr int kLines = 2;
  for (int j = 0; j < N; ++j)
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(next[j] + line * int(64 / sizeof(T)));
  for (; k + kLanes <= end; k += kLanes) {
    for (int j = 0; j < N; ++j) b[j] = load_as<S>(matrix[j] + k, kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec<S> a = Vec<S>::load(rows[r] + k);
      for (int j = 0; j < N; ++j) acc[r][j] = Operand::multiply_add(a, b[j], acc[r][j]);
    }
  }
  if (k < end) {
    const int count = int(end - k);
    for (int j = 0; j < N; ++j) b[j] = load_as<S>(matrix[j] + k, count);
    for (int r = 0; r < R; ++r) {
      const Vec<S> a = load_first(rows[r] + k, count);
      for (int j = 0; j < N; ++j) acc[r][j] = Operand::multiply_add(a, b[j], acc[r][j]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) sums[r][first + j] = acc[r][j];
}

// As multiply_gates in in_place.inl: out[r] = init + rows[r] . W^T, or out[r] += rows[r] . W^T, for units `unit ..`.
template <class Operand, int G, class S, int R, class T>
CUSTOMLSTM_NOINLINE void dot_gates(const S* const (&rows)[R], const T* w, int64_t hidden, int64_t depth, int64_t unit,
                                   const S* init, bool accumulate, S* out) {
  constexpr int kLanes = Vec<S>::kLanes, N = dot_rows<S>();
  for (int v = 0; v < G; ++v) {
    for (int64_t begin = 0; begin < depth; begin += kDotProducts * kLanes) {
      const int64_t end = min64(depth, begin + kDotProducts * kLanes);
      Vec<S> sums[R][kLanes];
      for (int first = 0; first < kLanes; first += N) {
        const T *matrix[N], *next[N];   // units beyond the end repeat the last one; nobody reads their sums
        for (int j = 0; j < N; ++j) {
          matrix[j] = w + (v * hidden + min64(unit + first + j, hidden - 1)) * depth;
          next[j] = w + (v * hidden + min64(unit + first + N + j, hidden - 1)) * depth;
        }
        dot_tile<Operand, S, R>(rows, matrix, next, begin, end, first, sums);
      }
      for (int r = 0; r < R; ++r) {
        S* to = out + r * G * kLanes + v * kLanes;
        Vec<S> sum = sums_of_lanes(sums[r]);
        if (begin > 0 || accumulate) {
          sum = sum + Vec<S>::load(to);
        } else if (init) {
          sum = sum + Vec<S>::load(init + v * kLanes);
        }
        sum.store(to);
      }
    }
  }
}

// out += row . W^T for one row, units `unit ..`: one row of the matrix after the other, so that memory is read in one
// go, which is what bounds a step of one sequence. Four chains of sums hide the latency that dot_rows() rows hide
// above; the order of sums is another one again, so this is for the recurrent product only, which has one row always.
template <class Operand, int G, class S, class T>
CUSTOMLSTM_NOINLINE void dot_gates_of_one(const S* row, const T* w, int64_t hidden, int64_t depth, int64_t unit,
                                          S* out) {
  constexpr int kLanes = Vec<S>::kLanes, kChains = 4;
  const Vec<S> zero = Vec<S>::broadcast(S(0));
  for (int v = 0; v < G; ++v) {
    Vec<S> sums[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const T* matrix = w + (v * hidden + min64(unit + j, hidden - 1)) * depth;
      Vec<S> total = zero;
      for (int64_t k = 0; k < depth;) {
        const int64_t end = min64(depth, k + kDotProducts * kChains * kLanes);
        Vec<S> acc[kChains] = {zero, zero, zero, zero};
        for (; k + kChains * kLanes <= end; k += kChains * kLanes) {
          for (int c = 0; c < kChains; ++c) {
            const int64_t at = k + c * kLanes;
            acc[c] = Operand::multiply_add(Vec<S>::load(row + at), load_as<S>(matrix + at, kLanes), acc[c]);
          }
        }
        for (; k + kLanes <= end; k += kLanes) {
          acc[0] = Operand::multiply_add(Vec<S>::load(row + k), load_as<S>(matrix + k, kLanes), acc[0]);
        }
        if (k < end) {
          const int count = int(end - k);
          acc[1] = Operand::multiply_add(load_first(row + k, count), load_as<S>(matrix + k, count), acc[1]);
          k = end;
        }
        total = total + ((acc[0] + acc[1]) + (acc[2] + acc[3]));
      }
      sums[j] = total;
    }
    S* to = out + v * kLanes;
    (sums_of_lanes(sums) + Vec<S>::load(to)).store(to);
  }
}
