// How a recurrence is cut into blocks, and what of it lies where. The plan chooses a Tiling; the driver and the
// kernels derive every size from it here, so that none can disagree with another.
//
// A block owns `units` hidden units (a row for each of their gates) and `columns` sequences of one direction. Blocks of
// one direction and one slice of columns form a group: only they exchange hidden states.
#pragma once

#include "params.h"

#if defined(__CUDACC__)
#define CUSTOMLSTM_HOST_DEVICE __host__ __device__ constexpr
#else
#define CUSTOMLSTM_HOST_DEVICE constexpr
#endif

namespace customlstm {
namespace cuda {

enum class Variant : int32_t { kStep = 0, kGrid = 1, kCluster = 2 };
constexpr int32_t kVariants = 3;

CUSTOMLSTM_HOST_DEVICE const char* name_of(Variant variant) {
  return variant == Variant::kStep ? "step" : variant == Variant::kGrid ? "grid" : "cluster";
}

struct Tiling {
  Variant variant;
  int32_t units;         // hidden units a block: a multiple of 8, of 16 backward and for an odd number of gates
  int32_t state_rows;    // with projection: rows of the hidden state a block computes, a multiple of 16; else 0
  int32_t columns;       // sequences a block, a multiple of 8 * column_tiles
  int32_t column_tiles;  // tiles of 8 columns whose accumulators a warp holds at once: 1 or 4, float64 1
  int32_t warps;         // they share the depth of a product; at most 8
  int32_t unit_blocks;   // gridDim.x
  int32_t column_blocks; // gridDim.y; gridDim.z are the directions
  int32_t cluster;       // blocks of a cluster: unit_blocks for kCluster, else 1
  int32_t gates;         // of the cell: rows of W_hh a unit
};

// A product's operands are stored as tiles in the order in which a warp reads them (math.h): A (weights) in tiles
// of 16 rows x depth, B (hidden states or gradients) in tiles of depth x 8 columns.
constexpr int32_t kTileRows = 16, kTileColumns = 8;

CUSTOMLSTM_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CUSTOMLSTM_HOST_DEVICE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Depth of one tile: k of the matrix instruction, 4 for plain multiply-adds.
CUSTOMLSTM_HOST_DEVICE int32_t tile_depth(MathKind math) {
  return math == MathKind::kBFloat16 || math == MathKind::kFloat16 ? 16 : math == MathKind::kTf32 ? 8 : 4;
}
CUSTOMLSTM_HOST_DEVICE int32_t operand_bytes(MathKind math) {
  return math == MathKind::kBFloat16 || math == MathKind::kFloat16 ? 2 : math == MathKind::kFma64 ? 8 : 4;
}
CUSTOMLSTM_HOST_DEVICE int32_t accumulation_bytes(MathKind math) { return math == MathKind::kFma64 ? 8 : 4; }

// Registers that one lane's part of a stored tile takes.
CUSTOMLSTM_HOST_DEVICE int32_t tile_a_registers(MathKind math) {
  return math == MathKind::kFma32 ? 8 : math == MathKind::kFma64 ? 16 : 4;
}
CUSTOMLSTM_HOST_DEVICE int32_t tile_b_registers(MathKind math) {
  return math == MathKind::kFma32 ? 8 : math == MathKind::kFma64 ? 16 : 2;
}
// Depths whose operands a warp loads before it multiplies the first of them, for `rows` tiles at once: as many as
// registers hold, and at most `most`. Weights in shared memory are near enough to be loaded when their turn comes.
CUSTOMLSTM_HOST_DEVICE int32_t depths_in_flight(MathKind math, Variant variant, int32_t rows, int32_t column_tiles,
                                                int32_t most) {
  const bool resident = variant != Variant::kStep;
  // With more the cell would spill.
  const bool many_sums = math == MathKind::kFma64 || (!resident && rows * column_tiles > 8);
  const int32_t registers = column_tiles * tile_b_registers(math) + (resident ? 0 : rows * tile_a_registers(math));
  const int32_t fit = many_sums || registers > 32 ? 1 : registers > 12 ? 2 : registers > 4 ? 4 : 8;
  return fit < most ? fit : most;
}

// One of the two products of a step. Forward: gates (rows gates * units a block, depth P) and projection (state_rows,
// depth H). Backward: that with W_hh transposed (rows: units, or state_rows with projection; depth gates * H) and that
// with W_hr transposed (rows: units, depth P).
struct ProductShape {
  int32_t row_tiles;     // of 16, a block
  int64_t blocks;        // blocks along the rows
  int64_t depth_tiles;   // the whole depth, padded
  CUSTOMLSTM_HOST_DEVICE int64_t weight_tiles() const { return blocks * row_tiles * depth_tiles; }
};

// Forward keeps the depth in order. Backward's depth is gate by gate, each gate padded to whole tiles.
CUSTOMLSTM_HOST_DEVICE int64_t padded_depth(int64_t size, MathKind math) { return round_up(size, tile_depth(math)); }

CUSTOMLSTM_HOST_DEVICE ProductShape gate_product(const Tiling& t, int64_t state_size, MathKind math) {
  return {int32_t(int64_t(t.gates) * t.units / kTileRows), t.unit_blocks,
          padded_depth(state_size, math) / tile_depth(math)};
}
CUSTOMLSTM_HOST_DEVICE ProductShape projection_product(const Tiling& t, int64_t hidden_size, MathKind math) {
  return {t.state_rows / kTileRows, t.unit_blocks, padded_depth(hidden_size, math) / tile_depth(math)};
}
CUSTOMLSTM_HOST_DEVICE ProductShape gate_gradient_product(const Tiling& t, int64_t hidden_size, bool projection,
                                                          MathKind math) {
  return {(projection ? t.state_rows : t.units) / kTileRows, t.unit_blocks,
          t.gates * padded_depth(hidden_size, math) / tile_depth(math)};
}
CUSTOMLSTM_HOST_DEVICE ProductShape projection_gradient_product(const Tiling& t, int64_t state_size, MathKind math) {
  return {t.units / kTileRows, t.unit_blocks, padded_depth(state_size, math) / tile_depth(math)};
}

// Dynamic shared memory of a block, in this order: partial sums of the warps; with resident weights those of the
// block; with clusters two copies of the operand B of the first product and one of the second's.
struct SharedLayout {
  int64_t partial, weights, projection_weights, exchange, projection_exchange, total;
};

CUSTOMLSTM_HOST_DEVICE SharedLayout shared_layout(const Tiling& t, const ProductShape& first,
                                                  const ProductShape& second, bool projection, MathKind math) {
  const int64_t tile_a = int64_t(kTileRows) * tile_depth(math) * operand_bytes(math);
  const int64_t tile_b = int64_t(kTileColumns) * tile_depth(math) * operand_bytes(math);
  const int64_t rows = int64_t(kTileRows) *
                       (projection && second.row_tiles > first.row_tiles ? second.row_tiles : first.row_tiles);
  const int64_t partial = int64_t(t.warps) * rows * (kTileColumns * t.column_tiles + 1) * accumulation_bytes(math);
  const bool resident = t.variant != Variant::kStep, cluster = t.variant == Variant::kCluster;
  SharedLayout at = {};
  at.weights = round_up(partial, 128);
  at.projection_weights = at.weights + (resident ? first.row_tiles * first.depth_tiles * tile_a : 0);
  at.exchange = at.projection_weights +
                (resident && projection ? second.row_tiles * second.depth_tiles * tile_a : 0);
  const int64_t column_tiles = t.columns / kTileColumns;
  at.projection_exchange = at.exchange + (cluster ? 2 * first.depth_tiles * column_tiles * tile_b : 0);
  at.total = at.projection_exchange + (cluster && projection ? second.depth_tiles * column_tiles * tile_b : 0);
  return at;
}

CUSTOMLSTM_HOST_DEVICE SharedLayout forward_shared(const Tiling& t, int64_t hidden_size, int64_t state_size,
                                                   bool projection, MathKind math) {
  return shared_layout(t, gate_product(t, state_size, math), projection_product(t, hidden_size, math), projection,
                       math);
}
CUSTOMLSTM_HOST_DEVICE SharedLayout backward_shared(const Tiling& t, int64_t hidden_size, int64_t state_size,
                                                    bool projection, MathKind math) {
  return shared_layout(t, gate_gradient_product(t, hidden_size, projection, math),
                       projection_gradient_product(t, state_size, math), projection, math);
}

}  // namespace cuda
}  // namespace customlstm
