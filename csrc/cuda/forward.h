// One layer forward on a GPU: every step is a product of the recurrent weights with the hidden states, then the cell.
//
// A launch covers steps [first_step, last_step). kStep runs one phase of one step a launch, the end of the launch being
// the barrier between blocks; kGrid and kCluster run all steps in one launch.
#pragma once

#include "block.h"
#include "scalar.h"
#include "unit_parameters.h"
#include "zoneout.h"

namespace customlstm {
namespace cuda {

template <class M>
struct ForwardKernelParams {
  using T = typename M::T;
  using S = typename M::S;
  RecurrenceParams r;
  CellParams<S> cell;
  const S* bias;        // [D, G, H]: the sum of both
  const S* gates_x;     // [rows, D, G, H], may be the array `gates` where that has G values a unit
  UnitParameters<T> unit_parameters;
  T* output;            // [rows, D, P]
  T* h_n;
  T* c_n;
  S* c_all;             // or null
  S* gates;             // or null
  S* hidden;            // or null
  S* c;                 // [D, B, C, H]: cell states
  S* held;              // [D, B, P]: h_{t-1}, where zoneout mixes it with h_t
};

template <class M, class CellT, int kColumnTiles, Variant kVariant>
struct ForwardKernel {
  using T = typename M::T;
  using S = typename M::S;
  using Params = ForwardKernelParams<M>;
  using BlockT = Block<M, kColumnTiles, kVariant>;
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm forward";
  static constexpr int kGates = CellT::kGates, kStates = CellT::kStates;

  // What one thread needs of one unit of one sequence, apart from the product; loaded before the wait for it.
  struct Item {
    bool active, cut;
    int64_t b, unit, row;
    S gates[kGates], c[kStates], factor;   // factor: without projection
    Scalar<S> parameters[CellT::kParameters + 1];
  };

  const Params& p;
  BlockT block;

  CUSTOMLSTM_DEVICE explicit ForwardKernel(const Params& params) : p(params), block(params.r) {}

  CUSTOMLSTM_DEVICE static void run(const Params& params) { ForwardKernel(params).run_steps(); }

  CUSTOMLSTM_DEVICE void run_steps() {
    const RecurrenceParams& r = p.r;
    const int64_t longest = block.longest();
    block.load();
    Item next = {};
    bool loaded = false;
    for (int64_t s = r.first_step; s < r.last_step; ++s) {
      const int64_t t = block.time(s);
      if (t >= longest) continue;
      if (r.phase != 1) {
        if (!loaded) next = load_item(t, 0, device::thread_index());
        cell_phase(s, t, next);
      }
      if (r.size.projection) {
        if constexpr (BlockT::kResident) block.exchange_second(r.tiling.units);
        if (r.phase != 0) projection_phase(s, t);
      }
      if constexpr (BlockT::kResident) {
        const int64_t after = block.time(s + 1);
        loaded = s + 1 < r.last_step && after < longest;
        if (!loaded) continue;   // nobody reads the last step's states
        next = load_item(after, 0, device::thread_index());
        block.exchange_first((s + 1) & 1, r.size.projection ? r.tiling.state_rows : r.tiling.units);
      }
    }
  }

  CUSTOMLSTM_DEVICE device::Global<S> cells() const {
    const Sizes& g = p.r.size;
    return array(p.c, g.directions * g.batch * kStates * g.hidden_size, "c");
  }

  CUSTOMLSTM_DEVICE Item load_item(int64_t t, int chunk, int index) const {
    const Sizes& g = p.r.size;
    Item item = {};
    item.unit = int64_t(block.x) * p.r.tiling.units + index % p.r.tiling.units;
    item.b = block.first_column + chunk * BlockT::kChunk + index / p.r.tiling.units;
    item.active = index < p.r.tiling.units * BlockT::kChunk && item.unit < g.hidden_size && item.b < g.batch &&
                  t < block.length(item.b);
    if (!item.active) return item;
    item.row = step_row(p.r, t) + item.b;
    if (!g.projection) item.factor = block.recurrent_factor(item.b, item.unit);
    item.cut = block.is_cut_before(t, item.b);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const int64_t state = block.in_states(item.b, kStates * g.hidden_size, k * g.hidden_size + item.unit);
      item.c[k] = item.cut ? S(0) : cells().read(state);
    }
    load_unit_parameters<M, CellT>(p.unit_parameters, block.direction, g.hidden_size, item.unit, item.parameters);
    const auto x = array(p.gates_x, g.rows * g.directions * kGates * g.hidden_size, "gates_x");
    const auto bias = array(p.bias, g.directions * kGates * g.hidden_size, "bias");
#pragma unroll
    for (int k = 0; k < kGates; ++k) {
      item.gates[k] = x.read(block.in_rows(item.row, kGates * g.hidden_size, k * g.hidden_size + item.unit)) +
                      bias.read((block.direction * kGates + k) * g.hidden_size + item.unit);
    }
    return item;
  }

  CUSTOMLSTM_DEVICE void cell_phase(int64_t s, int64_t t, const Item& first) const {
    const int count = p.r.tiling.units * BlockT::kChunk;
    for (int chunk = 0; chunk < block.chunks(); ++chunk) {
      if (chunk > 0) device::sync_block();   // the sums of the chunk before are still being read
      block.multiply_first(s & 1, chunk);
      for (int index = device::thread_index(); index < count; index += device::block_threads()) {
        const bool prefetched = chunk == 0 && index == device::thread_index();
        apply(s, t, index, prefetched ? first : load_item(t, chunk, index), chunk);
      }
    }
  }

  CUSTOMLSTM_DEVICE void apply(int64_t s, int64_t t, int index, const Item& item, int chunk) const {
    if (!item.active) return;
    const Sizes& g = p.r.size;
    const int units = p.r.tiling.units;
    Scalar<S> a[kGates], c[kStates], h, saved[CellT::kSaved];
    S computed[kStates];
#pragma unroll
    for (int k = 0; k < kStates; ++k) c[k].x = item.c[k];
#pragma unroll
    for (int k = 0; k < kGates; ++k) {
      const S product = block.sum(p.r.first, k * units + index % units, index / units);
      a[k].x = item.cut ? item.gates[k] : item.gates[k] + product;
    }
    CellT::forward(p.cell, a, item.parameters, c, h, saved);

#pragma unroll
    for (int k = 0; k < kStates; ++k) computed[k] = c[k].x;
    if (p.gates) {
      const bool mixes_cells = is_on(p.r.sequences.zoneout_c);
      const int64_t values = (CellT::kSaved + (mixes_cells ? kStates : 0)) * g.hidden_size;
      const auto gates = array(p.gates, g.rows * g.directions * values, "gates");
#pragma unroll
      for (int k = 0; k < CellT::kSaved; ++k) {
        gates.write(block.in_rows(item.row, values, k * g.hidden_size + item.unit), saved[k].x);
      }
      if (mixes_cells) {
#pragma unroll
        for (int k = 0; k < kStates; ++k) {
          const int64_t own = (CellT::kSaved + k) * g.hidden_size + item.unit;
          gates.write(block.in_rows(item.row, values, own), computed[k]);
        }
      }
    }
    write_unit(s, t, item.b, item.unit, item.row, chunk * BlockT::kChunk + index / units, item.c, computed, h.x,
               item.factor);
  }

  // A unit's new states to where the next step and the results want them. before, computed: of the cell, which zoneout
  // mixes. factor: of write_state; not used with a projection.
  CUSTOMLSTM_DEVICE void write_unit(int64_t s, int64_t t, int64_t b, int64_t unit, int64_t row, int column,
                                    const S (&before)[kStates], const S (&computed)[kStates], S h, S factor) const {
    const Sizes& g = p.r.size;
    const Zoneout& zoneout = p.r.sequences.zoneout_c;
    const int64_t at = block.in_rows(row, g.hidden_size, unit), all = g.rows * g.directions * g.hidden_size;
    S c[kStates];
#pragma unroll
    for (int k = 0; k < kStates; ++k) c[k] = computed[k];
    if (is_on(zoneout)) {
      const Kept<S> kept(zoneout, all, at);
#pragma unroll
      for (int k = 0; k < kStates; ++k) c[k] = kept.mix(before[k], computed[k]);
    }
    const int64_t width = kStates * g.hidden_size, states = g.directions * g.batch * width;
    const bool last = block.is_last(t, b);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const int64_t own = k * g.hidden_size + unit, state = block.in_states(b, width, own);
      cells().write(state, c[k]);
      if (last) array(p.c_n, states, "c_n").write(state, M::narrow(c[k]));
      if (p.c_all) array(p.c_all, kStates * all, "c_all").write(block.in_rows(row, width, own), c[k]);
    }
    if (g.projection) {
      if (p.hidden) array(p.hidden, all, "hidden").write(at, h);
      block.projection_operand().write(unit, column, M::to_element(h));
    } else {
      write_state(s, t, b, unit, row, column, h, factor);
    }
  }

  // factor: what h is multiplied by before W_hh.
  CUSTOMLSTM_DEVICE void write_state(int64_t s, int64_t t, int64_t b, int64_t unit, int64_t row, int column, S h,
                                     S factor) const {
    const Sizes& g = p.r.size;
    const Zoneout& zoneout = p.r.sequences.zoneout_h;
    if (is_on(zoneout)) {
      const int64_t state = block.in_states(b, g.state_size, unit);
      const auto held = array(p.held, g.directions * g.batch * g.state_size, "held");
      const S before = block.is_cut_before(t, b) ? S(0) : held.read(state);
      const int64_t count = g.rows * g.directions * g.state_size;
      h = Kept<S>(zoneout, count, block.in_rows(row, g.state_size, unit)).mix(before, h);
      held.write(state, h);
    }
    const T narrow = M::narrow(h);
    array(p.output, g.rows * g.directions * g.state_size, "output")
        .write(block.in_rows(row, g.state_size, unit), narrow);
    if (block.is_last(t, b)) {
      array(p.h_n, g.directions * g.batch * g.state_size, "h_n").write(block.in_states(b, g.state_size, unit), narrow);
    }
    block.operand((s + 1) & 1).write(unit, column, M::to_element(masked(h, factor)));
  }

  // h_t = W_hr h.
  CUSTOMLSTM_DEVICE void projection_phase(int64_t s, int64_t t) const {
    const Sizes& g = p.r.size;
    const int rows = p.r.tiling.state_rows, count = rows * BlockT::kChunk;
    for (int chunk = 0; chunk < block.chunks(); ++chunk) {
      if (chunk > 0) device::sync_block();
      block.multiply_second(chunk);
      for (int index = device::thread_index(); index < count; index += device::block_threads()) {
        const int64_t unit = int64_t(block.x) * rows + index % rows;
        const int column = chunk * BlockT::kChunk + index / rows;
        const int64_t b = block.first_column + column;
        if (unit >= g.state_size || b >= g.batch || t >= block.length(b)) continue;
        write_state(s, t, b, unit, step_row(p.r, t) + b, column,
                    block.sum(p.r.second, index % rows, index / rows), block.recurrent_factor(b, unit));
      }
    }
  }
};

}  // namespace cuda
}  // namespace customlstm
