#include "plan.h"

#include <algorithm>

namespace customlstm {

namespace {

// The model counts cycles of one core with AVX-512 and float32. Other instruction sets and types have other rates, but
// about the same proportions, and it is those that decide.
constexpr int64_t kTileRows = 6;         // rows of a register tile
constexpr int64_t kBlockUnits = 16;      // hidden units of a panel in forward: a vector of each gate
constexpr int64_t kPanelColumns = 64;    // columns of a panel in backward
constexpr double kRowCycles = 4;         // one row of a tile times one row of a panel: four multiply-adds
constexpr double kPanelCycles = 8;       // to load a row of a panel from the core's own cache; hidden by two tile rows
constexpr double kSharedCycles = 3;      // more where the weights come from the shared cache, not hidden
constexpr double kMemoryCycles = 8;      // more where they do not fit that one either; it holds other things as well
constexpr double kOwnCacheBytes = 768.0 * 1024, kSharedCacheBytes = 16.0 * 1024 * 1024;
constexpr double kPackCycles = 25;       // to pack a row of a panel just before its use, by each thread that uses it
constexpr double kWakeCycles = 25000;    // to start a team and to end it
constexpr double kBarrierCycles = 2000;  // of all threads, at every step
constexpr double kExchange = 7;          // bytes a cycle that a core reads from another one's cache
// Threads that meet at every step wait for the slowest of each; backward, with two meetings' worth of work, longer.
constexpr double kWaiting = 1.02, kWaitingBackward = 1.05;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether a single register tile goes over the weights.
bool used_once(const Geometry& g) { return g.steps == 1 && g.batch <= kTileRows; }

// One panel with `depth` rows times `rows` rows, of weights that take `bytes` in all.
double pass_cycles(int64_t rows, int64_t depth, double bytes) {
  const int64_t rest = rows % kTileRows;
  const double last = rest > 0 ? std::max(double(rest) * kRowCycles, kPanelCycles) : 0;
  const double tiles = double(rows - rest) * kRowCycles + last;
  const double far = bytes <= kOwnCacheBytes ? 0 : bytes < kSharedCacheBytes ? kSharedCycles : kMemoryCycles;
  return double(depth) * (tiles + far);
}

// One step of `rows` sequences on one of `sharing` threads that share the units.
double step_cycles(const Geometry& g, const Plan& plan, int64_t rows, int64_t sharing, bool backward) {
  const double bytes = 4.0 * double(g.gates) * double(g.hidden_size) * double(g.output_size);
  // What does not fit the shared cache is not helped by having only a share of it.
  const double held = bytes >= kSharedCacheBytes ? bytes : bytes / double(sharing);
  if (backward) {
    const int64_t panels = ceil_div(ceil_div(g.output_size, kPanelColumns), sharing);
    const int64_t depth = g.gates * g.hidden_size;
    const double packing = plan.backward_w_hh == WeightAccess::kPackedInTurn ? kPackCycles * double(depth) : 0;
    return double(panels) * (pass_cycles(rows, depth, held) + packing);
  }
  const int64_t blocks = ceil_div(ceil_div(g.hidden_size, kBlockUnits), sharing);
  const double input = double(g.input_size) * double(rows) * kRowCycles;
  double packing = plan.w_hh == WeightAccess::kPackedInTurn ? kPackCycles * double(g.output_size) : 0;
  if (plan.w_ih == WeightAccess::kPackedInTurn) {   // once for all steps
    packing += kPackCycles * double(g.input_size) / double(std::max<int64_t>(g.steps, 1));
  }
  const double vectors = double(g.gates) / 4;   // of a panel, to the four for which the rates hold
  return double(blocks) * vectors * (pass_cycles(rows, g.output_size, held) + input + packing);
}

// How backward reads a matrix for `rows` rows of gradients of gates. One sequence reads W_hh where it lies at every
// step, which takes no longer than panels and none of their memory; a large matrix, packed, is more than the scratch
// memory that stays from call to call. (Kernels that multiply pairs of rows pack it all the same.)
WeightAccess backward_access(bool where_it_lies, int64_t rows) {
  if (where_it_lies) return WeightAccess::kTurned;
  return rows <= kBlockRows ? WeightAccess::kPackedInTurn : WeightAccess::kPacked;
}

// Backward's products over all rows, which any number of threads share.
double gradient_cycles(const Geometry& g) {
  const double rows = double(g.steps) * double(g.batch) * double(g.directions);
  return rows * double(g.gates * g.hidden_size) * double(2 * g.input_size + g.output_size) * kRowCycles / kPanelColumns;
}

// Rows per sequence and step that a thread takes from the others.
double exchange_cycles(const Geometry& g, int threads, bool backward) {
  const double values = backward ? double(g.gates * g.hidden_size) : double(g.output_size);
  return double(g.batch) * values * 4 * (threads - 1) / threads / kExchange;
}

}  // namespace

WeightAccess plan_access(const Geometry& g, int64_t depth, int64_t rows) {
  // With one sequence packing costs more than it brings, unless rows are so short that the sums of lanes at their end
  // count. With more it brings more: the panels are read in one go, and a tile of rows stays in the cache. Two 16-bit
  // values may be one element of a product, and rows of an odd length would end in the middle of one.
  constexpr int64_t kLongRows = 256;
  if (depth % 2 == 0 && g.batch == 1 && depth >= kLongRows) return WeightAccess::kAlongRows;
  if (depth % 2 == 0 && used_once(g)) return WeightAccess::kTurned;
  return rows <= kBlockRows ? WeightAccess::kPackedInTurn : WeightAccess::kPacked;
}

double planned_cycles(const Geometry& g, const Plan& plan, bool backward) {
  const int threads = plan.threads;
  double cycles = threads > 1 ? kWakeCycles : 0;
  if (backward) cycles += gradient_cycles(g) / threads;
  if (plan.share_units) {
    const double step = step_cycles(g, plan, g.batch, threads, backward) * (backward ? kWaitingBackward : kWaiting) +
                        kBarrierCycles * (g.output_size != g.hidden_size ? 2 : 1) +
                        exchange_cycles(g, threads, backward);
    return cycles + double(g.steps) * double(g.directions) * step;
  }
  const int64_t in_turn = ceil_div(g.directions * plan.groups, threads), rows = ceil_div(g.batch, plan.groups);
  return cycles + double(g.steps) * double(in_turn) * step_cycles(g, plan, rows, 1, backward);
}

Plan plan_threads(const Geometry& g, int available, bool backward) {
  Plan best = {1, 1, false, plan_access(g, g.input_size, g.batch * g.steps),
               plan_access(g, g.output_size, g.steps == 1 ? g.batch : kBlockRows + 1),
               backward_access(used_once(g), g.batch * g.steps),
               backward_access(g.batch == 1 || used_once(g), g.steps == 1 ? g.batch : kBlockRows + 1)};
  if (g.batch == 0 || g.steps == 0) return best;
  double least = planned_cycles(g, best, backward);
  const auto consider = [&](int threads, int64_t groups, bool share_units) {
    Plan plan = best;
    plan.threads = threads;
    plan.groups = static_cast<int32_t>(groups);
    plan.share_units = share_units;
    const double cycles = planned_cycles(g, plan, backward);
    if (cycles < least) {
      least = cycles;
      best = plan;
    }
  };
  if (least <= kWakeCycles) return best;   // no team can be faster
  // Which numbers are tried does not depend on how many threads there are: one more must never make a call slower.
  // All up to 16, then eight to each power of two.
  int stride = 1;
  for (int threads = 2; threads <= available; threads += stride) {
    const int64_t groups = std::min(ceil_div(threads, g.directions), g.batch);
    if (g.directions * groups >= threads) consider(threads, groups, false);
    consider(threads, 1, true);
    if (threads == 16 * stride) stride *= 2;
  }
  return best;
}

}  // namespace customlstm
