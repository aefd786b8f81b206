// How one layer call is divided among threads: a pure function of sizes.
#pragma once

#include "kernels.h"

namespace customlstm {

// Weights that are used once are not worth packing: a step of as many sequences as a register tile has rows.
inline bool plan_in_place(const Geometry& g) {
  constexpr int64_t kTile = 6;
  return g.steps == 1 && g.batch <= kTile;
}

inline Plan plan_threads(const Geometry& g, int available) {
  const bool in_place = plan_in_place(g);
  // Below this much arithmetic in the whole call, waking a second thread costs more than it brings.
  constexpr double kWorthTeam = 2e6;
  // Arithmetic of one step, below which a barrier a step costs more than a second thread brings.
  constexpr double kWorthBarrier = 1.5e5;
  // Packed weights above this no longer stay in a core's own cache; then each thread had better hold its share.
  constexpr double kCacheBytes = 512.0 * 1024;

  const double unit_flops = 8.0 * double(g.hidden_size) * double(g.input_size + g.output_size);
  const double step_flops = unit_flops * double(g.batch);
  const double total = step_flops * double(g.steps) * double(g.directions);
  if (available <= 1 || total < kWorthTeam || g.batch == 0) return {1, 1, false, in_place};

  const double weight_bytes = 16.0 * double(g.hidden_size) * double(g.input_size + g.output_size);
  const int64_t parts = g.batch * g.directions;
  const bool rows_fill = g.batch >= 6 * int64_t(available);   // full register tiles for every thread
  const bool can_share = g.hidden_size >= 32 * int64_t(available) && step_flops >= kWorthBarrier;
  if (can_share && (weight_bytes > kCacheBytes || !rows_fill) && !(g.directions == available && !rows_fill)) {
    return {available, 1, true, in_place};
  }
  if (parts >= available) {
    // One direction each where there are as many as threads, otherwise sequences are dealt out, too.
    const int groups = g.directions >= available ? 1 : int(g.batch < available ? g.batch : available);
    return {available, groups, false, in_place};
  }
  return {int(parts), int(g.batch), false, in_place};
}

}  // namespace customlstm
