// How one layer call is divided among threads: a pure function of sizes.
#pragma once

#include "kernels.h"

namespace customlstm {

// How forward reads a gate matrix with rows of `depth` values. The order of sums must not depend on the number of steps,
// or feeding a sequence in pieces would change bits: kAlongRows is chosen by the sizes of the layer and its batch only.
inline WeightAccess plan_access(const Geometry& g, int64_t depth) {
  // With one sequence packing costs more than it brings, unless rows are so short that the sums of lanes at their end
  // count. With more it brings more: the panels are read in one go, and a tile of rows stays in the cache.
  constexpr int64_t kLongRows = 256;
  // Two 16-bit values may be one element of a product, and rows of an odd length would end in the middle of one.
  if (depth % 2 != 0) return WeightAccess::kPacked;
  if (g.batch == 1 && depth >= kLongRows) return WeightAccess::kAlongRows;
  // Weights that are used once: a step of as many sequences as a register tile has rows.
  constexpr int64_t kTile = 6;
  return g.steps == 1 && g.batch <= kTile ? WeightAccess::kTurned : WeightAccess::kPacked;
}

inline Plan plan_threads(const Geometry& g, int available) {
  const WeightAccess w_ih = plan_access(g, g.input_size), w_hh = plan_access(g, g.output_size);
  // Below this much arithmetic in the whole call, waking a second thread costs more than it brings.
  constexpr double kWorthTeam = 2e6;
  // Arithmetic of one step, below which a barrier a step costs more than a second thread brings.
  constexpr double kWorthBarrier = 1.5e5;
  // Packed weights above this no longer stay in a core's own cache; then each thread had better hold its share.
  constexpr double kCacheBytes = 512.0 * 1024;

  const double unit_flops = 8.0 * double(g.hidden_size) * double(g.input_size + g.output_size);
  const double step_flops = unit_flops * double(g.batch);
  const double total = step_flops * double(g.steps) * double(g.directions);
  if (available <= 1 || total < kWorthTeam || g.batch == 0) return {1, 1, false, w_ih, w_hh};

  const double weight_bytes = 16.0 * double(g.hidden_size) * double(g.input_size + g.output_size);
  const int64_t parts = g.batch * g.directions;
  const bool rows_fill = g.batch >= 6 * int64_t(available);   // full register tiles for every thread
  const bool can_share = g.hidden_size >= 32 * int64_t(available) && step_flops >= kWorthBarrier;
  if (can_share && (weight_bytes > kCacheBytes || !rows_fill) && !(g.directions == available && !rows_fill)) {
    return {available, 1, true, w_ih, w_hh};
  }
  if (parts >= available) {
    // One direction each where there are as many as threads, otherwise sequences are dealt out, too.
    const int groups = g.directions >= available ? 1 : int(g.batch < available ? g.batch : available);
    return {available, groups, false, w_ih, w_hh};
  }
  return {int(parts), int(g.batch), false, w_ih, w_hh};
}

}  // namespace customlstm
