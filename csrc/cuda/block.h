// What the forward and the backward recurrence have in common: where a block stands, the operand that the blocks of
// a group exchange, the product with the block's weights, and the exchange itself.
#pragma once

#include "device/device.h"
#include "math.h"
#include "tiling.h"

namespace customlstm {
namespace cuda {

// What every recurrence kernel gets, apart from the arrays of its cell.
struct RecurrenceParams {
  Sizes size;
  Sequences sequences;
  Tiling tiling;
  SharedLayout shared;
  ProductShape first, second;   // second: with projection only
  const void* weights;          // operand A of the first product: [D][unit_blocks][row_tiles][depth_tiles] tiles
  const void* projection;       // of the second
  void* exchange;               // operand B of the first: [2][D][column_blocks][depth_tiles][columns / 8] tiles
  void* projection_exchange;    // of the second: [D][column_blocks][depth_tiles][columns / 8] tiles
  uint32_t* flags;              // [D][column_blocks][unit_blocks], zero before the launch (kGrid)
  int64_t first_step, last_step;
  int32_t phase;                // kStep: which phase of the step this launch runs; else kAllPhases
};
constexpr int32_t kAllPhases = -1;

CUSTOMLSTM_DEVICE int64_t step_row(const RecurrenceParams& p, int64_t t) {
  return p.sequences.step_row
             ? device::Global<const int64_t>(p.sequences.step_row, p.size.steps, "step_row").read(t)
             : t * p.size.batch;
}
CUSTOMLSTM_DEVICE int64_t length_of(const Sizes& size, const Sequences& sequences, int64_t b) {
  if (!sequences.lengths) return size.steps;
  const int64_t n = device::Global<const int64_t>(sequences.lengths, size.batch, "lengths").read(b);
  return n < 0 ? 0 : n > size.steps ? size.steps : n;
}
// Whether a reset cuts the edge over which a direction enters step t of sequence b. resets[t] cuts that between t - 1
// and t for both directions; beyond a sequence's end there is none, since the state before its last step is hx.
CUSTOMLSTM_DEVICE bool is_cut(const Sizes& size, const Sequences& sequences, int64_t direction, int64_t t, int64_t b) {
  const int64_t edge = direction == 0 ? t : t + 1;
  if (!sequences.resets || edge < 0 || edge >= size.steps) return false;
  if (direction != 0 && edge >= length_of(size, sequences, b)) return false;
  return device::Global<const uint8_t>(sequences.resets, size.steps * size.batch, "resets")
             .read(edge * size.batch + b) != 0;
}
// What the hidden state of unit `unit` of sequence b is multiplied by before W_hh.
template <class S>
CUSTOMLSTM_DEVICE S recurrent_factor(const Sizes& size, const Sequences& sequences, int64_t direction, int64_t b,
                                     int64_t unit) {
  if (!sequences.recurrent_mask) return S(1);
  const device::Global<const uint8_t> mask(sequences.recurrent_mask, size.directions * size.batch * size.state_size,
                                           "recurrent_mask");
  return mask.read((direction * size.batch + b) * size.state_size + unit) ? S(sequences.recurrent_scale) : S(0);
}
// x * factor, and 0 where that is 0, whatever x is.
template <class S>
CUSTOMLSTM_DEVICE S masked(S x, S factor) {
  return factor > S(0) ? x * factor : S(0);
}
// An array that may be absent.
template <class X>
CUSTOMLSTM_DEVICE device::Global<X> array(X* data, int64_t count, const char* name) {
  return {data, data ? count : 0, name};
}

// Operand B in device memory, behind the L2: written by all blocks of a group, read by all.
template <class M>
struct GlobalOperand {
  device::Global<typename M::Word> words;
  device::Global<typename M::Element> elements;
  int64_t first_tile;   // of this group
  int column_tiles;

  CUSTOMLSTM_DEVICE GlobalOperand(void* data, int64_t tiles, int64_t first, int columns)
      : words(static_cast<typename M::Word*>(data), tiles * TileSize<M>::kBWords, "exchange"),
        elements(static_cast<typename M::Element*>(data), tiles * TileSize<M>::kBElements, "exchange"),
        first_tile(first),
        column_tiles(columns) {}

  CUSTOMLSTM_DEVICE TileB<M> load(int64_t k, int column_tile, int lane) const {
    TileB<M> b;
    const int64_t at = (first_tile + k * column_tiles + column_tile) * TileSize<M>::kBWords;
#pragma unroll
    for (int v = 0; v < M::kBVectors; ++v) b.v[v] = words.template read_fresh<M::kBWidth>(at + M::b_index(lane, v));
    return b;
  }
  CUSTOMLSTM_DEVICE void write(int64_t depth, int column, typename M::Element x) const {
    const int64_t tile = first_tile + depth / M::kDepth * column_tiles + column / kTileColumns;
    elements.write(tile * TileSize<M>::kBElements + M::b_offset(int(depth % M::kDepth), column % kTileColumns), x);
  }
};

// Operand B in this block's shared memory; the blocks of a cluster send their part to each other.
template <class M>
struct SharedOperand {
  device::Shared<typename M::Word> words;
  device::Shared<typename M::Element> elements;
  int column_tiles;

  CUSTOMLSTM_DEVICE SharedOperand(int64_t offset, int64_t tiles, int columns)
      : words(device::shared<typename M::Word>(offset, tiles * TileSize<M>::kBWords, "exchange")),
        elements(device::shared<typename M::Element>(offset, tiles * TileSize<M>::kBElements, "exchange")),
        column_tiles(columns) {}

  CUSTOMLSTM_DEVICE TileB<M> load(int64_t k, int column_tile, int lane) const {
    TileB<M> b;
    const int at = int(k * column_tiles + column_tile) * TileSize<M>::kBWords;
#pragma unroll
    for (int v = 0; v < M::kBVectors; ++v) b.v[v] = words.template read_vector<M::kBWidth>(at + M::b_index(lane, v));
    return b;
  }
  CUSTOMLSTM_DEVICE void write(int64_t depth, int column, typename M::Element x) const {
    const int tile = int(depth / M::kDepth) * column_tiles + column / kTileColumns;
    elements.write(tile * TileSize<M>::kBElements + M::b_offset(int(depth % M::kDepth), column % kTileColumns), x);
  }
};

// Operand A, where it stays for the variant: device memory or shared memory. Row tile r, depth tile k of this block.
template <class M, class Words>
struct Weights {
  Words words;
  int64_t first_tile, depth_tiles;

  CUSTOMLSTM_DEVICE TileA<M> load(int row_tile, int64_t k, int lane) const {
    TileA<M> a;
    const int64_t at = (first_tile + row_tile * depth_tiles + k) * TileSize<M>::kAWords;
#pragma unroll
    for (int v = 0; v < M::kAVectors; ++v) {
      a.v[v] = words.template read_vector<M::kAWidth>(at + M::a_index(lane, v));
    }
    return a;
  }
};

template <class M, int kColumnTiles, Variant kVariant>
struct Block {
  using S = typename M::S;
  using Word = typename M::Word;
  static constexpr bool kResident = kVariant != Variant::kStep, kInCluster = kVariant == Variant::kCluster;
  static constexpr int kChunk = kTileColumns * kColumnTiles;   // columns whose sums exist at one time

  const RecurrenceParams& p;
  const int direction, slice, x;
  const int64_t first_column;   // of the slice
  uint32_t exchanges = 0;

  CUSTOMLSTM_DEVICE explicit Block(const RecurrenceParams& params)
      : p(params),
        direction(device::block_z()),
        slice(device::block_y()),
        x(device::block_x()),
        first_column(int64_t(slice) * params.tiling.columns) {}

  CUSTOMLSTM_DEVICE int64_t group() const { return int64_t(direction) * p.tiling.column_blocks + slice; }
  CUSTOMLSTM_DEVICE int slice_tiles() const { return p.tiling.columns / kTileColumns; }
  CUSTOMLSTM_DEVICE int chunks() const { return p.tiling.columns / kChunk; }
  CUSTOMLSTM_DEVICE int64_t groups() const { return p.size.directions * p.tiling.column_blocks; }

  // --- where this block's direction stands: s counts the steps as they are taken, t is their place in the input

  CUSTOMLSTM_DEVICE int64_t time(int64_t s) const { return direction == 0 ? s : p.size.steps - 1 - s; }
  CUSTOMLSTM_DEVICE int64_t length(int64_t b) const { return length_of(p.size, p.sequences, b); }
  CUSTOMLSTM_DEVICE bool is_running(int64_t t, int64_t b) const { return t >= 0 && t < length(b); }
  // The first and the last step that the direction takes of a sequence.
  CUSTOMLSTM_DEVICE bool is_first(int64_t t, int64_t b) const { return direction == 0 ? t == 0 : t + 1 == length(b); }
  CUSTOMLSTM_DEVICE bool is_last(int64_t t, int64_t b) const { return direction == 0 ? t + 1 == length(b) : t == 0; }
  // Whether the edge over which the direction enters step t, or leaves it, is cut.
  CUSTOMLSTM_DEVICE bool is_cut_before(int64_t t, int64_t b) const {
    return is_cut(p.size, p.sequences, direction, t, b);
  }
  CUSTOMLSTM_DEVICE bool is_cut_after(int64_t t, int64_t b) const {
    return is_cut_before(direction == 0 ? t + 1 : t - 1, b);
  }
  CUSTOMLSTM_DEVICE S recurrent_factor(int64_t b, int64_t unit) const {
    return cuda::recurrent_factor<S>(p.size, p.sequences, direction, b, unit);
  }
  // Index of (row, direction, unit) in [rows, D, size], and of (direction, sequence, unit) in [D, B, size].
  CUSTOMLSTM_DEVICE int64_t in_rows(int64_t row, int64_t size, int64_t unit) const {
    return (row * p.size.directions + direction) * size + unit;
  }
  CUSTOMLSTM_DEVICE int64_t in_states(int64_t b, int64_t size, int64_t unit) const {
    return (direction * p.size.batch + b) * size + unit;
  }

  // Steps of the longest sequence of the slice. The blocks of a group agree on it, so all leave out the same steps.
  CUSTOMLSTM_DEVICE int64_t longest() const {
    if (!p.sequences.lengths) return p.size.steps;
    int64_t longest = 0;
    for (int64_t b = first_column; b < first_column + p.tiling.columns && b < p.size.batch; ++b) {
      const int64_t n = length_of(p.size, p.sequences, b);
      longest = n > longest ? n : longest;
    }
    return longest;
  }

  // --- weights

  CUSTOMLSTM_DEVICE device::Global<const Word> packed(const void* data, const ProductShape& shape) const {
    return {static_cast<const Word*>(data), p.size.directions * shape.weight_tiles() * TileSize<M>::kAWords,
            "packed weights"};
  }
  CUSTOMLSTM_DEVICE int64_t first_weight_tile(const ProductShape& shape) const {
    return (direction * shape.blocks + x) * shape.row_tiles * shape.depth_tiles;
  }
  CUSTOMLSTM_DEVICE device::Shared<Word> resident(int64_t offset, const ProductShape& shape) const {
    return device::shared<Word>(offset, int(shape.row_tiles * shape.depth_tiles) * TileSize<M>::kAWords,
                                "resident weights");
  }
  CUSTOMLSTM_DEVICE void load_resident(const void* data, const ProductShape& shape, int64_t offset) const {
    const device::Global<const Word> from = packed(data, shape);
    const device::Shared<Word> to = resident(offset, shape);
    constexpr int kWords = 16 / sizeof(Word);
    const int64_t first = first_weight_tile(shape) * TileSize<M>::kAWords;
    const int count = int(shape.row_tiles * shape.depth_tiles) * TileSize<M>::kAWords;
    for (int i = device::thread_index() * kWords; i < count; i += device::block_threads() * kWords) {
      device::copy_async<16>(to, i, from, first + i);
    }
  }
  // Weights into shared memory, and with clusters the first operand too: prepare.h has put it into device memory.
  CUSTOMLSTM_DEVICE void load() const {
    if constexpr (kResident) {
      load_resident(p.weights, p.first, p.shared.weights);
      if (p.size.projection) load_resident(p.projection, p.second, p.shared.projection_weights);
      device::copy_commit();
      if constexpr (kInCluster) {
        const int64_t words = p.first.depth_tiles * slice_tiles() * TileSize<M>::kBWords;
        const device::Global<const Word> from(static_cast<const Word*>(p.exchange), groups() * words, "exchange");
        const device::Shared<Word> to = device::shared<Word>(p.shared.exchange, int(2 * words), "exchange");
        for (int64_t i = device::thread_index(); i < words; i += device::block_threads()) {
          const Word w = from.read(group() * words + i);
          to.write(int(i), w);
          to.write(int(words + i), w);
        }
        const int64_t second = p.size.projection ? p.second.depth_tiles * slice_tiles() * TileSize<M>::kBWords : 0;
        const device::Shared<Word> zero =
            device::shared<Word>(p.shared.projection_exchange, int(second), "projection exchange");
        for (int64_t i = device::thread_index(); i < second; i += device::block_threads()) zero.write(int(i), Word(0));
      }
      device::copy_wait<0>();
      device::sync_block();
      if constexpr (kInCluster) device::sync_cluster();   // before anyone sends into another's operand
    }
  }

  // --- operands: the first product's has two copies, and the steps take turns, so that a block which is a step ahead
  // does not overwrite what others still read. The second product's is written and read on two sides of an exchange.

  CUSTOMLSTM_DEVICE auto operand(int64_t copy) const {
    const int64_t tiles = p.first.depth_tiles * slice_tiles();
    if constexpr (kInCluster) {
      return SharedOperand<M>(p.shared.exchange + copy * tiles * TileSize<M>::kBWords * int64_t(sizeof(Word)), tiles,
                              slice_tiles());
    } else {
      return GlobalOperand<M>(p.exchange, 2 * groups() * tiles, (copy * groups() + group()) * tiles, slice_tiles());
    }
  }
  CUSTOMLSTM_DEVICE auto projection_operand() const {
    const int64_t tiles = p.second.depth_tiles * slice_tiles();
    if constexpr (kInCluster) {
      return SharedOperand<M>(p.shared.projection_exchange, tiles, slice_tiles());
    } else {
      return GlobalOperand<M>(p.projection_exchange, groups() * tiles, group() * tiles, slice_tiles());
    }
  }

  // --- product: the warps share the depth, and leave their sums in shared memory

  CUSTOMLSTM_DEVICE device::Shared<S> partial(const ProductShape& shape) const {
    return device::shared<S>(0, p.tiling.warps * shape.row_tiles * kTileRows * (kChunk + 1), "partial sums");
  }

  static_assert(sizeof(TileA<M>) == 4 * tile_a_registers(M::kKind), "tiling.h counts these registers");
  static_assert(sizeof(TileB<M>) == 4 * tile_b_registers(M::kKind), "tiling.h counts these registers");

  template <int kRows, class W, class B>
  CUSTOMLSTM_DEVICE void multiply_rows(const ProductShape& shape, const Weights<M, W>& weights, const B& operand,
                                       int row_tile, int column_tile) const {
    constexpr int kInFlight =
        depths_in_flight(M::kKind, kVariant, kRows, kColumnTiles, device::kMostLoadsAhead);
    const int lane = device::lane(), warp = device::warp();
    S sums[kRows][kColumnTiles][4];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[r][n][j] = S(0);
    // Grouped by hand: the compiler moves no load across a matrix instruction, so in an unrolled loop each depth would
    // wait for its own.
    const int64_t warps = p.tiling.warps, depths = shape.depth_tiles;
    for (int64_t first = warp; first < depths; first += kInFlight * warps) {
      TileB<M> b[kInFlight][kColumnTiles];
      TileA<M> a[kResident ? 1 : kInFlight][kRows];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const int64_t k = first + u * warps;
        if (k >= depths) continue;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) b[u][n] = operand.load(k, column_tile + n, lane);
        if constexpr (!kResident) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) a[u][r] = weights.load(row_tile + r, k, lane);
        }
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const int64_t k = first + u * warps;
        if (k >= depths) continue;
        TileA<M>(&own)[kRows] = a[kResident ? 0 : u];
        if constexpr (kResident) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) own[r] = weights.load(row_tile + r, k, lane);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int n = 0; n < kColumnTiles; ++n) M::multiply(sums[r][n], own[r], b[u][n]);
      }
    }
    const device::Shared<S> to = partial(shape);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = (warp * shape.row_tiles + row_tile + r) * kTileRows + lane / 4 + 8 * (j / 2);
          to.write(row * (kChunk + 1) + n * kTileColumns + 2 * (lane % 4) + j % 2, sums[r][n][j]);
        }
  }

  template <class W, class B>
  CUSTOMLSTM_DEVICE void multiply(const ProductShape& shape, const Weights<M, W>& weights, const B& operand,
                                  int chunk) const {
    const int column_tile = chunk * kColumnTiles;
    // As many rows at once as registers allow: operand B is read again for each group of rows.
    int r = 0;
    for (; r + 4 <= shape.row_tiles; r += 4) multiply_rows<4>(shape, weights, operand, r, column_tile);
    if (r + 2 <= shape.row_tiles) {
      multiply_rows<2>(shape, weights, operand, r, column_tile);
      r += 2;
    }
    if (r < shape.row_tiles) multiply_rows<1>(shape, weights, operand, r, column_tile);
    device::sync_block();
  }
  // The two products; afterwards sum() gives their results until the next sync_block after it.
  CUSTOMLSTM_DEVICE void multiply_first(int64_t copy, int chunk) const {
    if constexpr (kResident) {
      multiply(p.first, Weights<M, device::Shared<Word>>{resident(p.shared.weights, p.first), 0, p.first.depth_tiles},
               operand(copy), chunk);
    } else {
      multiply(p.first,
               Weights<M, device::Global<const Word>>{packed(p.weights, p.first), first_weight_tile(p.first),
                                                      p.first.depth_tiles},
               operand(copy), chunk);
    }
  }
  CUSTOMLSTM_DEVICE void multiply_second(int chunk) const {
    if constexpr (kResident) {
      multiply(p.second,
               Weights<M, device::Shared<Word>>{resident(p.shared.projection_weights, p.second), 0,
                                                p.second.depth_tiles},
               projection_operand(), chunk);
    } else {
      multiply(p.second,
               Weights<M, device::Global<const Word>>{packed(p.projection, p.second), first_weight_tile(p.second),
                                                      p.second.depth_tiles},
               projection_operand(), chunk);
    }
  }
  // Row and column within the block's rows and the chunk; always in the order of the warps.
  CUSTOMLSTM_DEVICE S sum(const ProductShape& shape, int row, int column) const {
    const device::Shared<S> from = partial(shape);
    const int warps = p.tiling.warps, rows = shape.row_tiles * kTileRows;
    S total = from.read(row * (kChunk + 1) + column);
    for (int w = 1; w < warps; ++w) total += from.read((w * rows + row) * (kChunk + 1) + column);
    return total;
  }

  // --- exchange: what the blocks of the group wrote into an operand is there for all of them afterwards

  CUSTOMLSTM_DEVICE void exchange_first(int64_t copy, int own_rows) { exchange(operand(copy), p.first, own_rows); }
  CUSTOMLSTM_DEVICE void exchange_second(int own_rows) { exchange(projection_operand(), p.second, own_rows); }

  template <class B>
  CUSTOMLSTM_DEVICE void exchange(const B& operand, const ProductShape& shape, int own_rows) {
    ++exchanges;
    device::sync_block();
    if constexpr (kVariant == Variant::kGrid) {
      const device::Global<uint32_t> flags(p.flags, groups() * p.tiling.unit_blocks, "flags");
      const int64_t first = group() * p.tiling.unit_blocks;
      if (device::thread_index() == 0) device::release(flags, first + x, exchanges);
      for (int i = device::thread_index(); i < p.tiling.unit_blocks; i += device::block_threads()) {
        while (device::acquire(flags, first + i) < exchanges) device::pause();
      }
      device::sync_block();
    } else if constexpr (kInCluster) {
      send(operand, shape, own_rows);
      device::sync_cluster();
    }
  }
  // This block's tiles to every other block of the cluster. `own_rows` depths a gate belong to a block; the first
  // product's depth has several gates in backward.
  CUSTOMLSTM_DEVICE void send(const SharedOperand<M>& operand, const ProductShape& shape, int own_rows) const {
    constexpr int kWords = 16 / sizeof(Word);
    const int gates = &shape == &p.first ? first_gates : 1;
    const int64_t gate_tiles = shape.depth_tiles / gates;
    const int64_t begin = int64_t(x) * own_rows / M::kDepth, tiles = own_rows / M::kDepth;
    const int64_t end = begin + tiles < gate_tiles ? begin + tiles : gate_tiles;
    const int tile_row = slice_tiles() * TileSize<M>::kBWords;
    for (int rank = 0; rank < device::cluster_size(); ++rank) {
      if (rank == device::cluster_rank()) continue;
      for (int gate = 0; gate < gates; ++gate) {
        const int first = int(gate * gate_tiles + begin) * tile_row, count = int(end - begin) * tile_row;
        for (int i = device::thread_index() * kWords; i < count; i += device::block_threads() * kWords) {
          device::write_remote<kWords>(operand.words, rank, first + i,
                                       operand.words.template read_vector<kWords>(first + i));
        }
      }
    }
  }

  int first_gates = 1;   // in the depth of the first product: backward those of the cell
};

}  // namespace cuda
}  // namespace customlstm
