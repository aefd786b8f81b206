// The time model of the launch plan: what one time step costs on a machine of a given generation. It ranks tilings and
// variants; its absolute figures are predictions to be tested (docs/gpu-next.md), not measurements.
//
// A step is, for each of its products, what the multiprocessor that has most to do needs for
//
//   the greatest of     multiply-adds; reads from shared memory (weights of grid and cluster, operand B of cluster);
//                       reads through the L2 (weights of step, operand B of step and grid), bounded by the port of the
//                       multiprocessor and by its share of the whole L2; weights from device memory where they exceed
//                       the L2; the latency of one warp's loads and matrix instructions, one after the other
//   then                the partial sums of the warps, written to shared memory and read back
//   then                the cell, applied to units x columns pairs
//   and the exchange    a launch, a barrier of flags or a cluster barrier, and for cluster the remote writes
//
// With layer norm the cell is a launch of its own, in which each row is one block's.
#pragma once

#include <algorithm>
#include <cmath>

#include "norm_layout.h"
#include "plan.h"

namespace customlstm {
namespace cuda {

// Rates of one multiprocessor. Datasheet figures, or other people's microbenchmarks where these are known to differ:
// leads, every one, until gpu-check has measured them here.
struct Machine {
  int32_t capability;
  double cycles_per_us;
  double fma32, fma64, tensor16, tensor32;  // multiply-adds a cycle; the tensor cores through mma.sync
  double shared;                            // bytes a cycle: from shared memory,
  double l2_port, l2_share;                 // from the L2 where one reads and where all do,
  double memory;                            // from device memory, where all read,
  double remote;                            // to the shared memory of other blocks of a cluster
  double launch_us, flags_us, cluster_us;   // the least time of one exchange
  int32_t most_loads_ahead;                 // kMostLoadsAhead of device/cuda.h: what ptxas allows without spills
};

constexpr Machine kMachines[] = {
    // A100: 108 multiprocessors at 1.41 GHz, 312 TFLOP/s in bf16, 156 in TF32, 19.5 in float32, 9.7 in float64, 5120
    // bytes a cycle from the L2, of which some 85 % are reached, 1555 to 2039 GB/s (A100 whitepaper). No clusters.
    {80, 1410, 64, 32, 1024, 512, 128, 64, 40, 12, 0, 2.5, 1.5, 0, 8},
    // H100 and H200: 132 at 1.755 GHz or more, 990 TFLOP/s in bf16, 67 in float32 (datasheet). mma.sync reaches about
    // 62 % of wgmma's rate, distributed shared memory 2.7 to 3.3 TB/s in all (arXiv:2402.13499, arXiv:2501.12084), the
    // L2 about 5.5 TB/s (Chips and Cheese on the PCIe part). 4.3 TB/s of device memory seen on an H200; an H100 has 0.7
    // of that.
    {90, 1755, 128, 64, 1270, 635, 128, 64, 24, 18.5, 12, 2.5, 1.5, 0.35, 8},
    // B200: 148 at 1.85 GHz, 8 TB/s (datasheet). mma.sync, not tcgen05, which it lags far behind: a guess. L2 and
    // distributed shared memory: taken to be Hopper's.
    {100, 1850, 128, 64, 1024, 512, 128, 64, 24, 26, 12, 2.5, 1.5, 0.35, 1},
};

// Latencies in cycles; of the same order on all generations.
constexpr double kSyncCycles = 40;         // __syncthreads
constexpr double kSharedCycles = 33, kL2Cycles = 280, kMemoryCycles = 700;
constexpr double kInstructionCycles = 34;  // of one matrix instruction; the next of the same sums waits for it
constexpr double kCellCycles = 450;        // of one cell: five activations one after the other
constexpr double kCellInstructions = 160;
constexpr double kRowSumCycles = 250;      // of a sum over a row: five shuffles, shared memory, a barrier
constexpr double kRowSums = 4;             // one after the other: of products and state, means and then deviations
// How block.h multiplies: the sums of four row tiles at a time, so operand B is read once for each four.
constexpr int64_t kRowTilesAtOnce = 4;
// Plain multiply-adds read an operand every other instruction, with 4 tiles of columns less often.
constexpr double kFmaEfficiency = 0.4, kFmaEfficiencyWide = 0.6;
constexpr double kSchedulers = 4;          // of a multiprocessor, each with its matrix unit
constexpr double kResidentStart = 8;       // us: a cooperative or cluster launch, weights on their way

// The machine of a capability: the newest that is not newer.
constexpr const Machine& machine_of(int32_t capability) {
  const Machine* found = &kMachines[0];
  for (const Machine& m : kMachines) {
    if (m.capability <= capability) found = &m;
  }
  return *found;
}

constexpr double macs_per_cycle(const Machine& m, MathKind math, int32_t column_tiles) {
  const double efficiency = column_tiles > 1 ? kFmaEfficiencyWide : kFmaEfficiency;
  return math == MathKind::kFma32   ? m.fma32 * efficiency
         : math == MathKind::kFma64 ? m.fma64 * efficiency
         : math == MathKind::kTf32  ? m.tensor32
                                    : m.tensor16;
}

class TimeModel {
 public:
  TimeModel(const Request& request, const DeviceLimits& limits)
      : request_(request), limits_(limits), machine_(machine_of(limits.capability)) {}

  // Time of all steps with tiling `t`, whose blocks need `shared_bytes` each.
  double predicted_us(const Tiling& t, int64_t shared_bytes) const {
    const bool backward = request_.backward, projection = request_.projection;
    const int64_t hidden = request_.hidden_size, state = request_.state_size;
    const ProductShape first = backward ? gate_gradient_product(t, hidden, projection, request_.math)
                                        : gate_product(t, state, request_.math);
    double cycles = product_cycles(t, first, shared_bytes);
    cycles += request_.normalised ? row_cycles() : cell_cycles(t, shared_bytes);
    double exchanged = exchange_bytes(t, first);
    if (projection) {
      const ProductShape second = backward ? projection_gradient_product(t, state, request_.math)
                                           : projection_product(t, hidden, request_.math);
      cycles += product_cycles(t, second, shared_bytes);
      exchanged += exchange_bytes(t, second);
    }
    cycles = std::max(cycles, traffic_bytes() / (machine_.memory * limits_.multiprocessors));

    double exchange_us = 0, start_us = kResidentStart, waves = 1;
    const double exchanges = (projection ? 2 : 1) + (request_.normalised ? 1 : 0);
    if (t.variant == Variant::kStep) {
      exchange_us = exchanges * machine_.launch_us;
      start_us = 0;
    } else if (t.variant == Variant::kGrid) {
      exchange_us = exchanges * machine_.flags_us;
    } else {
      exchange_us = exchanges * machine_.cluster_us + exchanged / machine_.remote / machine_.cycles_per_us;
      waves = double(ceil_div(int64_t(t.column_blocks) * request_.directions, resident_clusters(limits_, t.cluster)));
    }
    // Backward computes the gradient of h_0 as well: one product more.
    const double steps = double(std::max<int64_t>(request_.steps, 1)) + (request_.backward ? 1 : 0);
    return start_us + waves * steps * (exchange_us + cycles / machine_.cycles_per_us);
  }

  // Clusters of that size that are resident at once: as many as of the largest, and more where they are smaller.
  static int64_t resident_clusters(const DeviceLimits& limits, int32_t blocks) {
    return int64_t(limits.clusters) * std::max(limits.cluster_blocks / std::max(blocks, 1), 1);
  }

 private:
  int64_t blocks(const Tiling& t) const { return int64_t(t.unit_blocks) * t.column_blocks * request_.directions; }
  // Blocks of the multiprocessor that has most. Those of grid and cluster have one each; waves of clusters are counted
  // as a whole.
  double queued(const Tiling& t) const {
    return t.variant == Variant::kStep ? double(ceil_div(blocks(t), limits_.multiprocessors)) : 1;
  }
  // How many of those run at once: by shared memory, and by registers, of which 8 warps may take all.
  double resident(const Tiling& t, int64_t shared_bytes) const {
    if (t.variant != Variant::kStep) return 1;
    const double fit = std::max<double>(1, double(limits_.shared_bytes) / double(shared_bytes + 1024));
    return std::floor(std::min({queued(t), fit, 8.0 / t.warps}));
  }
  // Chunks of columns that hold a sequence.
  double chunks(const Tiling& t) const {
    const int64_t used = std::min<int64_t>(t.columns, std::max<int64_t>(request_.batch, 1));
    return double(ceil_div(used, kTileColumns * t.column_tiles));
  }

  double product_cycles(const Tiling& t, const ProductShape& p, int64_t shared_bytes) const {
    const MathKind math = request_.math;
    const double n = queued(t), at_once = resident(t, shared_bytes), pieces = chunks(t);
    const double depth_tiles = double(p.depth_tiles), row_tiles = double(p.row_tiles);
    const double passes = double(ceil_div(p.row_tiles, kRowTilesAtOnce));
    const double tile_values = double(tile_depth(math)) * operand_bytes(math);
    const double a_bytes = row_tiles * depth_tiles * kTileRows * tile_values * pieces;
    const double b_bytes = passes * depth_tiles * kTileColumns * t.column_tiles * tile_values * pieces;
    const double sums = row_tiles * kTileRows * kTileColumns * t.column_tiles * pieces;
    const double macs = sums * depth_tiles * tile_depth(math);

    const double used = std::min(1.0, t.warps * at_once / kSchedulers);
    const double shared_rate = machine_.shared * used, rate = macs_per_cycle(machine_, math, t.column_tiles) * used;
    const bool step = t.variant == Variant::kStep, cluster = t.variant == Variant::kCluster;
    const double from_shared = (step ? 0 : a_bytes) + (cluster ? b_bytes : 0);
    const double from_l2 = (step ? a_bytes : 0) + (cluster ? 0 : b_bytes);

    double cycles = std::max({n * macs / rate, n * from_shared / shared_rate, n * from_l2 / machine_.l2_port});
    cycles = std::max(cycles, double(blocks(t)) * from_l2 / (machine_.l2_share * limits_.multiprocessors));
    if (step) {
      const double weights = double(p.weight_tiles()) * kTileRows * tile_values * double(request_.directions);
      // A quarter of the L2 is left to everything else.
      if (weights > 0.75 * double(limits_.l2_bytes)) {
        cycles = std::max(cycles, weights / (machine_.memory * limits_.multiprocessors));
      }
    }
    const double turns = std::ceil(n / at_once);
    const int32_t rows = int32_t(std::min<int64_t>(p.row_tiles, kRowTilesAtOnce));
    const double in_flight = depths_in_flight(math, t.variant, rows, t.column_tiles, machine_.most_loads_ahead);
    const double loads = std::ceil(std::ceil(depth_tiles / t.warps) / in_flight);
    const double chain = loads * passes * ((cluster ? kSharedCycles : kL2Cycles) + kInstructionCycles);
    const double reduction = 2 * sums * t.warps * accumulation_bytes(math) / shared_rate;
    return std::max(cycles, turns * pieces * chain) + turns * pieces * 2 * kSyncCycles + n * reduction;
  }

  // What the cell reads is on its way while the first product is computed; for all further pairs of a thread it is not.
  double cell_cycles(const Tiling& t, int64_t shared_bytes) const {
    const int64_t columns = std::min<int64_t>(kTileColumns * t.column_tiles, std::max<int64_t>(request_.batch, 1));
    const double n = queued(t), pairs = double(t.units) * double(columns);
    const double rounds = chunks(t) * std::ceil(pairs / (32.0 * t.warps));
    const double latency = rounds * kCellCycles + (rounds - 1) * kMemoryCycles;
    const double turns = std::ceil(n / resident(t, shared_bytes));
    return std::max(turns * latency, n * chunks(t) * pairs * kCellInstructions / 128);
  }

  // With layer norm: rows through the cell, each in a block of its own. The first pass reads from the L2, and so does
  // the cell where it reads what the sums did not want.
  double row_cycles() const {
    const double hidden = double(request_.hidden_size), passes = request_.backward ? 2 : 1;
    const double rows = std::ceil(std::max(1.0, double(request_.batch) * double(request_.directions)) /
                                  double(limits_.multiprocessors));
    const double threads = row_threads(request_.hidden_size), at_once = std::floor(kRowThreads / threads);
    const double latency =
        kRowSums * kRowSumCycles + (1 + passes) * kL2Cycles + passes * std::ceil(hidden / threads) * kCellCycles;
    return std::max(std::ceil(rows / at_once) * latency, rows * hidden * (1 + passes) * kCellInstructions / 128);
  }

  // What a block of a cluster sends to the others for the next product of this shape.
  double exchange_bytes(const Tiling& t, const ProductShape& p) const {
    if (t.variant != Variant::kCluster || t.cluster == 1) return 0;
    const double depth = double(p.depth_tiles) * tile_depth(request_.math);
    return depth * chunks(t) * kTileColumns * t.column_tiles * operand_bytes(request_.math) * (t.cluster - 1) /
           t.cluster;
  }

  // Gates in and states out, to and from device memory: gates + 2 values a pair forward, twice that backward; with
  // layer norm 4 and 8 more.
  double traffic_bytes() const {
    const double pairs = double(request_.batch) * double(request_.hidden_size) * double(request_.directions);
    const double values = request_.gates + 2 + (request_.normalised ? 4 : 0);
    return pairs * values * (request_.backward ? 2 : 1) * accumulation_bytes(request_.math);
  }

  const Request& request_;
  const DeviceLimits& limits_;
  const Machine& machine_;
};

}  // namespace cuda
}  // namespace customlstm
