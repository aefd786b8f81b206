// Who works on which rows and units, and where the scratch memory of a call lies.

// Hands out 64-byte aligned pieces of the workspace; with a null base it only counts.
struct Arena {
  char* base;
  size_t used;
  template <class S>
  CUSTOMLSTM_INLINE S* take(int64_t n) {
    S* p = base ? reinterpret_cast<S*>(base + used) : nullptr;
    used += (size_t(n) * sizeof(S) + 63) / 64 * 64;
    return p;
  }
};

struct Range {
  int64_t begin, end;
};

// The part of [0, n) of thread `rank`, as even as can be.
CUSTOMLSTM_INLINE Range share(int64_t n, int rank, int size) {
  const int64_t each = n / size, rest = n % size;
  const int64_t begin = rank * each + min64(rank, rest);
  return {begin, begin + each + (rank < rest ? 1 : 0)};
}

// One recurrence: the sequences of one group in one direction. Either one thread runs it, or the whole team.
struct Job {
  int64_t direction;
  const int64_t* columns;   // [rows], longest first
  int64_t rows;
  int64_t first_row;        // of the group, in the state arrays
  int64_t steps;            // of the longest
  Team* team;               // null: one thread alone
  int rank, size;           // within the job

  CUSTOMLSTM_INLINE void barrier() const {
    if (team) team->barrier();
  }
  CUSTOMLSTM_INLINE int64_t time(int64_t step) const { return direction == 0 ? step : steps - 1 - step; }
};

CUSTOMLSTM_INLINE Job make_job(const Geometry& g, int64_t direction, int64_t group, Team* team, int rank, int size) {
  const int64_t begin = g.group_begin[group], end = g.group_begin[group + 1];
  Job job = {direction, g.columns + begin, end - begin, begin, 0, team, rank, size};
  if (job.rows > 0) job.steps = g.lengths[job.columns[0]];
  return job;
}

// Sequences still running at time t: a prefix, the longest coming first. `active` is the count at a neighbouring time.
CUSTOMLSTM_INLINE int64_t active_rows(const Geometry& g, const Job& job, int64_t t, int64_t active) {
  while (active > 0 && g.lengths[job.columns[active - 1]] <= t) --active;
  while (active < job.rows && g.lengths[job.columns[active]] > t) ++active;
  return active;
}

// The state that enters step t of a column comes from time t - 1, in reverse from t + 1. A reset at time t cuts the
// edge between t - 1 and t in both directions.
CUSTOMLSTM_INLINE bool is_cut(const Geometry& g, int64_t direction, int64_t t, int64_t column) {
  if (!g.resets) return false;
  if (direction == 0) return g.resets[t * g.batch + column];
  return t + 1 < g.lengths[column] && g.resets[(t + 1) * g.batch + column];
}
CUSTOMLSTM_INLINE bool is_first(const Geometry& g, int64_t direction, int64_t t, int64_t column) {
  return direction == 0 ? t == 0 : t + 1 == g.lengths[column];
}

// What the hidden state of a column is multiplied by before W_hh: [P], 1 where there is no mask.
template <class S>
CUSTOMLSTM_INLINE S recurrent_factor(const Geometry& g, int64_t direction, int64_t column, int64_t k) {
  if (!g.recurrent_mask) return S(1);
  return g.recurrent_mask[(direction * g.batch + column) * g.output_size + k] ? S(g.recurrent_scale) : S(0);
}
// x * factor, and 0 where that is 0, whatever x is.
template <class S>
CUSTOMLSTM_INLINE S masked(S x, S factor) {
  return factor > S(0) ? x * factor : S(0);
}
template <class S>
CUSTOMLSTM_INLINE Vec<S> masked(const Vec<S>& x, const Vec<S>& factor) {
  const Vec<S> zero = Vec<S>::broadcast(S(0));
  return select_gt(factor, zero, x * factor, zero);
}

// The cell's per-unit parameters of one direction in the accumulation type: [unit_parameters][stride], zero beyond H.
template <class T, class S>
CUSTOMLSTM_INLINE void widen_unit_parameters(const Geometry& g, const DirectionWeights& from, int64_t stride, S* to) {
  for (int64_t k = 0; k < g.unit_parameters; ++k) {
    widen(static_cast<const T*>(from.unit_parameters[k]), 1, to + k * stride, g.hidden_size);
    for (int64_t unit = g.hidden_size; unit < stride; ++unit) to[k * stride + unit] = S(0);
  }
}

// The parameters of the units from `unit` on, the same for R rows; those that the call does not have are zero.
template <class Cell, class S, int R>
CUSTOMLSTM_INLINE void load_unit_parameters(const Geometry& g, const S* from, int64_t stride, int64_t unit,
                                            Pack<S, R>* to) {
  for (int k = 0; k < Cell::kParameters; ++k) {
    const Vec<S> w = k < g.unit_parameters ? Vec<S>::load(from + k * stride + unit) : Vec<S>::broadcast(S(0));
    for (int r = 0; r < R; ++r) to[k].row[r] = w;
  }
}

// Calls `work` for this thread's jobs, or for its part of the team's.
template <class Params, class Workspace>
CUSTOMLSTM_INLINE void each_job(const Params& p, const Workspace& w, Team& team, int rank,
                                void (*work)(const Params&, const Workspace&, const Job&)) {
  const Geometry& g = p.g;
  if (p.plan.share_units) {
    for (int64_t d = 0; d < g.directions; ++d) work(p, w, make_job(g, d, 0, &team, rank, team.size()));
    return;
  }
  const int64_t jobs = g.directions * p.plan.groups;
  for (int64_t j = rank; j < jobs; j += team.size()) {
    work(p, w, make_job(g, j % g.directions, j / g.directions, nullptr, 0, 1));
  }
}
