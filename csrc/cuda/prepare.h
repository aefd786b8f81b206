// Small kernels around the recurrences: packing weights into tiles, initial states, uploads, previous hidden states.
// Each is a loop over all elements, strided by the whole grid.
#pragma once

#include "block.h"

namespace customlstm {
namespace cuda {

CUSTOMLSTM_DEVICE int64_t first_index(int grid_x) {
  (void)grid_x;
  return int64_t(device::block_x()) * device::block_threads() + device::thread_index();
}

// Which matrix of the step an operand A is, and from what it is read.
enum class Packing : int32_t {
  kGates,                  // rows: gate by gate the units of a block; depth: hidden state; from w_hh [GH, P]
  kProjection,             // rows: hidden state; depth: unit; from w_hr [P, H]
  kGatesTransposed,        // rows: hidden state; depth: gate by gate all units, each gate padded; from w_hh
  kProjectionTransposed,   // rows: unit; depth: hidden state; from w_hr
};

template <class M>
struct PackWeights {
  struct Params {
    const typename M::T* from[2];
    typename M::Element* to;
    Packing packing;
    ProductShape shape;
    int64_t hidden_size, state_size, directions, gates;
    int32_t units;   // rows of a block: units or state rows
    int32_t grid;
  };
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm pack weights";

  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    const int64_t depth = p.shape.depth_tiles * M::kDepth, rows = int64_t(p.shape.row_tiles) * kTileRows;
    const int64_t all_rows = p.directions * p.shape.blocks * rows;
    const int64_t count = all_rows * depth;
    const device::Global<typename M::Element> to(p.to, count, "packed weights");
    const bool transposed = p.packing == Packing::kGatesTransposed || p.packing == Packing::kProjectionTransposed;
    const int64_t stride = int64_t(p.grid) * device::block_threads();
    for (int64_t i = first_index(p.grid); i < count; i += stride) {
      // Neighbouring threads read neighbours of the source: along its rows, whichever side of the product they are.
      const int64_t row_of_all = transposed ? i % all_rows : i / depth, k = transposed ? i / all_rows : i % depth;
      const int64_t direction = row_of_all / (p.shape.blocks * rows);
      const int64_t block = row_of_all / rows % p.shape.blocks;
      const int row = int(row_of_all % rows);
      const int64_t tile = (row_of_all / kTileRows) * p.shape.depth_tiles + k / M::kDepth;
      const int64_t at = tile * TileSize<M>::kAElements + M::a_offset(row % kTileRows, int(k % M::kDepth));
      to.write(at, M::to_element(source(p, direction, block, row, k)));
    }
  }

  static CUSTOMLSTM_DEVICE typename M::S source(const Params& p, int64_t direction, int64_t block, int row, int64_t k) {
    const int64_t h = p.hidden_size, s = p.state_size;
    int64_t i, j, columns;   // of the source
    if (p.packing == Packing::kGates) {
      const int64_t unit = block * p.units + row % p.units;
      i = unit < h ? row / p.units * h + unit : -1;
      j = k < s ? k : -1;
      columns = s;
    } else if (p.packing == Packing::kProjection) {
      i = block * p.units + row;
      if (i >= s) i = -1;
      j = k < h ? k : -1;
      columns = h;
    } else if (p.packing == Packing::kGatesTransposed) {
      const int64_t gate_depth = padded_depth(h, M::kKind), unit = k % gate_depth;
      i = unit < h ? k / gate_depth * h + unit : -1;
      j = block * p.units + row;
      if (j >= s) j = -1;
      columns = s;
    } else {
      i = k < s ? k : -1;
      j = block * p.units + row;
      if (j >= h) j = -1;
      columns = h;
    }
    if (i < 0 || j < 0) return typename M::S(0);
    const bool gates = p.packing == Packing::kGates || p.packing == Packing::kGatesTransposed;
    const device::Global<const typename M::T> from(p.from[direction], (gates ? p.gates * h : s) * columns,
                                                   gates ? "weight_hh" : "weight_hr");
    return M::widen(from.read(i * columns + j));
  }
};

// Zeroes `count` 32-bit words.
struct ZeroWords {
  struct Params {
    uint32_t* words;
    int64_t count;
    int32_t grid;
  };
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm zero";

  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    const device::Global<uint32_t> words(p.words, p.count, "zeroed words");
    const int64_t stride = int64_t(p.grid) * device::block_threads();
    for (int64_t i = first_index(p.grid); i < p.count; i += stride) words.write(i, 0);
  }
};

// Bytes that travel as the kernel's argument: a copy from host memory would either wait or, in a CUDA graph, read
// memory that is gone when the graph is replayed.
struct Upload {
  static constexpr int kBytes = 3840;
  struct Params {
    uint32_t words[kBytes / 4];
    uint32_t* to;
    int32_t count;
  };
  static constexpr int kThreads = 128;
  static constexpr const char* kName = "customlstm upload";

  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    const device::Global<uint32_t> to(p.to, p.count, "uploaded words");
    for (int i = device::thread_index(); i < p.count; i += device::block_threads()) to.write(i, p.words[i]);
  }
};

// Before the forward recurrence: sums of the biases, the first operand and the cell state from the initial states, and
// the final states of the sequences that have no step. The operand is zero already; both copies get h_0, since a
// reverse sequence may join at any step.
template <class M>
struct PrepareForward {
  struct Params {
    Sizes size;
    Sequences sequences;
    Tiling tiling;
    int64_t depth_tiles;
    const typename M::T *b_ih[2], *b_hh[2], *h_0, *c_0;
    typename M::T *h_n, *c_n;
    typename M::S *bias, *c, *held;   // held: or null
    void* exchange;
    int32_t grid;
  };
  using T = typename M::T;
  using S = typename M::S;
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm prepare forward";

  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    const Sizes& g = p.size;
    const int64_t stride = int64_t(p.grid) * device::block_threads(), gate_rows = g.gates * g.hidden_size;
    const device::Global<S> bias(p.bias, g.directions * gate_rows, "bias");
    for (int64_t i = first_index(p.grid); i < g.directions * gate_rows; i += stride) {
      S sum = S(0);
      if (g.bias) {
        const device::Global<const T> b_ih(p.b_ih[i / gate_rows], gate_rows, "bias_ih");
        const device::Global<const T> b_hh(p.b_hh[i / gate_rows], gate_rows, "bias_hh");
        sum = M::widen(b_ih.read(i % gate_rows)) + M::widen(b_hh.read(i % gate_rows));
      }
      bias.write(i, sum);
    }
    const int64_t width = g.cell_states * g.hidden_size, cells = g.directions * g.batch * width;
    const int64_t states = g.directions * g.batch * g.state_size;
    const device::Global<const T> c_0(p.c_0, p.c_0 ? cells : 0, "c_0"), h_0(p.h_0, p.h_0 ? states : 0, "h_0");
    const device::Global<T> c_n(p.c_n, cells, "c_n"), h_n(p.h_n, states, "h_n");
    const device::Global<S> c(p.c, cells, "c");
    for (int64_t i = first_index(p.grid); i < cells; i += stride) {
      const S x = p.c_0 ? M::widen(c_0.read(i)) : S(0);
      c.write(i, x);
      if (length_of(g, p.sequences, i / width % g.batch) == 0) c_n.write(i, M::narrow(x));
    }
    const int64_t groups = g.directions * p.tiling.column_blocks;
    const int columns = p.tiling.columns, column_tiles = columns / kTileColumns;
    const int64_t tiles = p.depth_tiles * column_tiles;
    for (int64_t i = first_index(p.grid); i < states; i += stride) {
      const int64_t direction = i / g.state_size / g.batch, b = i / g.state_size % g.batch, unit = i % g.state_size;
      const S x = p.h_0 ? M::widen(h_0.read(i)) : S(0);
      if (length_of(g, p.sequences, b) == 0) h_n.write(i, M::narrow(x));
      if (p.held) device::Global<S>(p.held, states, "held").write(i, x);
      const S factor = recurrent_factor<S>(g, p.sequences, direction, b, unit);
      const int64_t group = direction * p.tiling.column_blocks + b / columns;
      for (int64_t copy = 0; copy < 2; ++copy) {
        const GlobalOperand<M> operand(p.exchange, 2 * groups * tiles, (copy * groups + group) * tiles, column_tiles);
        operand.write(unit, int(b % columns), M::to_element(masked(x, factor)));
      }
    }
  }
};

// Before the backward recurrence: sequences that have no step hand the gradients of their final states through.
template <class M>
struct PrepareBackward {
  struct Params {
    Sizes size;
    Sequences sequences;
    const typename M::T *grad_h_n, *grad_c_n;
    typename M::T *grad_h_0, *grad_c_0;
    int32_t grid;
  };
  using T = typename M::T;
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm prepare backward";

  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    pass(p, p.grad_h_n, p.grad_h_0, p.size.state_size);
    pass(p, p.grad_c_n, p.grad_c_0, p.size.cell_states * p.size.hidden_size);
  }
  static CUSTOMLSTM_DEVICE void pass(const Params& p, const T* from, T* to, int64_t width) {
    if (!to) return;
    const int64_t count = p.size.directions * p.size.batch * width;
    const device::Global<const T> grad(from, from ? count : 0, "gradients of final states");
    const device::Global<T> result(to, count, "gradients of initial states");
    const int64_t stride = int64_t(p.grid) * device::block_threads();
    for (int64_t i = first_index(p.grid); i < count; i += stride) {
      if (length_of(p.size, p.sequences, i / width % p.size.batch) > 0) continue;
      result.write(i, from ? grad.read(i) : T{});
    }
  }
};

// Zeroes the rows beyond a length of padded data.
struct ZeroPadding {
  struct Params {
    Sizes size;
    Sequences sequences;
    uint16_t* rows;
    int64_t width;   // of a row, in 16-bit words
    int32_t grid;
  };
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm zero padding";

  // A block takes whole rows, so that it reads a length once.
  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    const int64_t rows = p.size.steps * p.size.batch;
    const device::Global<uint16_t> to(p.rows, rows * p.width, "padded rows");
    for (int64_t row = device::block_x(); row < rows; row += p.grid) {
      if (row / p.size.batch < length_of(p.size, p.sequences, row % p.size.batch)) continue;
      for (int64_t i = device::thread_index(); i < p.width; i += device::block_threads()) {
        to.write(row * p.width + i, 0);
      }
    }
  }
};

CUSTOMLSTM_DEVICE float scaled(float x, double scale) { return x * float(scale); }
CUSTOMLSTM_DEVICE double scaled(double x, double scale) { return x * scale; }
CUSTOMLSTM_DEVICE BFloat16 scaled(BFloat16 x, double scale) {
  return device::to_bf16(device::to_float(x) * float(scale));
}
CUSTOMLSTM_DEVICE Half scaled(Half x, double scale) { return device::to_half(device::to_float(x) * float(scale)); }

template <class T>
struct PreviousHidden {
  struct Params {
    PreviousHiddenParams p;
    int32_t grid;
  };
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm previous hidden";

  static CUSTOMLSTM_DEVICE void run(const Params& params) {
    const PreviousHiddenParams& p = params.p;
    const Sizes& g = p.size;
    const int64_t states = g.directions * g.batch * g.state_size, all = g.directions * g.rows * g.state_size;
    const device::Global<const T> h_0(static_cast<const T*>(p.h_0), p.h_0 ? states : 0, "h_0");
    const device::Global<const T> output(static_cast<const T*>(p.output), all, "output");
    const device::Global<T> previous(static_cast<T*>(p.previous), all, "previous");
    const RecurrenceParams rows = {g,       p.sequences, {},      {},      {}, {}, nullptr,
                                   nullptr, nullptr,     nullptr, nullptr, 0,  0,  0};
    const int64_t stride = int64_t(params.grid) * device::block_threads();
    const int64_t count = g.steps * g.batch * g.directions * g.state_size;
    for (int64_t i = first_index(params.grid); i < count; i += stride) {
      const int64_t unit = i % g.state_size, direction = i / g.state_size % g.directions;
      const int64_t b = i / g.state_size / g.directions % g.batch, t = i / g.state_size / g.directions / g.batch;
      const int64_t length = length_of(g, p.sequences, b);
      if (t >= length && p.sequences.step_row) continue;   // packed data has no such row
      const bool cut = t >= length || is_cut(g, p.sequences, direction, t, b);
      const int64_t from = direction == 0 ? t - 1 : t + 1;
      T x = {};
      if (!cut && from >= 0 && from < length) {
        x = output.read(((step_row(rows, from) + b) * g.directions + direction) * g.state_size + unit);
      } else if (!cut && p.h_0) {
        x = h_0.read((direction * g.batch + b) * g.state_size + unit);
      }
      if (p.sequences.recurrent_mask) {
        const double factor = recurrent_factor<double>(g, p.sequences, direction, b, unit);
        x = factor > 0 ? scaled(x, factor) : T{};
      }
      previous.write((direction * g.rows + step_row(rows, t) + b) * g.state_size + unit, x);
    }
  }
};

}  // namespace cuda
}  // namespace customlstm
