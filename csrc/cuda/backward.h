// One layer backward on a GPU. Steps run against the forward order. A step first gathers the gradient of h_t: that of
// the output, plus W_hh transposed times the gradients of the next step's gates, which the blocks exchange. Then the
// cell's derivative gives the gradients of this step's gates. What needs no order (the gradients of input and weights)
// is left to matrix products afterwards.
//
// With projection the gradient of h_t passes W_hr transposed first: two products and two exchanges a step.
#pragma once

#include "block.h"
#include "scalar.h"
#include "unit_parameters.h"
#include "zoneout.h"

namespace customlstm {
namespace cuda {

template <class M>
struct BackwardKernelParams {
  using T = typename M::T;
  using S = typename M::S;
  RecurrenceParams r;
  CellParams<S> cell;
  const T* c_0;
  const S* c_all;
  const S* gates;
  UnitParameters<T> unit_parameters;
  const T* grad_output;
  const T* grad_h_n;
  const T* grad_c_n;
  const S* grad_c_all;
  T* grad_gates;
  S* grad_unit_parameters;
  T* grad_state;
  T* grad_h_0;
  T* grad_c_0;
  S* dc;          // [D, B, C, H]: gradient of the cell states
  S* carried;     // [D, B, P]: gradient of h that zoneout hands to the step before
};

template <class M, class CellT, int kColumnTiles, Variant kVariant>
struct BackwardKernel {
  using T = typename M::T;
  using S = typename M::S;
  using Params = BackwardKernelParams<M>;
  using BlockT = Block<M, kColumnTiles, kVariant>;
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm backward";
  static constexpr int kGates = CellT::kGates, kStates = CellT::kStates;

  // What one thread needs of one unit of one sequence, apart from the product; loaded before the wait for it.
  struct Item {
    bool active, cut, last;
    int64_t b, unit, row;
    S saved[CellT::kSaved], c[kStates], c_prev[kStates], dh, dc[kStates], factor;   // factor: without projection
    Scalar<S> parameters[CellT::kParameters + 1];
  };

  const Params& p;
  BlockT block;

  CUSTOMLSTM_DEVICE explicit BackwardKernel(const Params& params) : p(params), block(params.r) {
    block.first_gates = kGates;
  }

  CUSTOMLSTM_DEVICE static void run(const Params& params) { BackwardKernel(params).run_steps(); }

  // Steps are numbered in forward order, as in forward.h; step -1 only completes the gradient of h_0.
  CUSTOMLSTM_DEVICE void run_steps() {
    const RecurrenceParams& r = p.r;
    const int64_t longest = block.longest();
    block.load();
    Item next = {};
    bool loaded = false;
    for (int64_t s = r.last_step - 1; s >= r.first_step; --s) {
      const int64_t t = block.time(s);
      if (!is_relevant(s, longest)) continue;
      const bool cells = s >= 0 && t < longest;
      if (r.size.projection) {
        if (r.phase != 1) state_phase(s, t);
        if constexpr (BlockT::kResident) block.exchange_second(r.tiling.state_rows);
        if (cells && r.phase != 0) cell_phase(s, t, load_item(t, 0, device::thread_index()));
      } else {
        if (!loaded) next = load_item(t, 0, device::thread_index());
        cell_phase(s, t, next);
      }
      if constexpr (BlockT::kResident) {
        if (s == r.first_step || !is_relevant(s - 1, longest)) continue;   // nobody reads this step's gradients
        loaded = !r.size.projection;
        if (loaded) next = load_item(block.time(s - 1), 0, device::thread_index());
        block.exchange_first(s & 1, r.tiling.units);
      }
    }
  }

  // Steps in which some sequence of the slice runs, or has just been left.
  CUSTOMLSTM_DEVICE bool is_relevant(int64_t s, int64_t longest) const {
    return longest > 0 && (block.direction == 0 ? block.time(s) < longest : block.time(s) <= longest);
  }
  // Whether sequence b took its first step right after t: then the product at t is the gradient of its h_0.
  CUSTOMLSTM_DEVICE bool is_before_first(int64_t t, int64_t b) const {
    const int64_t n = block.length(b);
    return n > 0 && (block.direction == 0 ? t == -1 : t == n);
  }
  CUSTOMLSTM_DEVICE device::Global<S> grad_cells() const {
    const Sizes& g = p.r.size;
    return array(p.dc, g.directions * g.batch * kStates * g.hidden_size, "dc");
  }

  // The part of the gradient of h_t that does not come through the next step: of the output, and at the end of h_n.
  CUSTOMLSTM_DEVICE S outer_grad(int64_t row, int64_t b, int64_t unit, bool last) const {
    const Sizes& g = p.r.size;
    S dh = S(0);
    if (p.grad_output) {
      dh = M::widen(array(p.grad_output, g.rows * g.directions * g.state_size, "grad_output")
                        .read(block.in_rows(row, g.state_size, unit)));
    }
    if (last && p.grad_h_n) {
      dh += M::widen(array(p.grad_h_n, g.directions * g.batch * g.state_size, "grad_h_n")
                         .read(block.in_states(b, g.state_size, unit)));
    }
    return dh;
  }

  CUSTOMLSTM_DEVICE Item load_item(int64_t t, int chunk, int index) const {
    const Sizes& g = p.r.size;
    const int64_t wide = g.rows * g.directions * g.hidden_size;
    Item item = {};
    item.unit = int64_t(block.x) * p.r.tiling.units + index % p.r.tiling.units;
    item.b = block.first_column + chunk * BlockT::kChunk + index / p.r.tiling.units;
    item.active = index < p.r.tiling.units * BlockT::kChunk && item.unit < g.hidden_size && item.b < g.batch &&
                  block.is_running(t, item.b);
    if (!item.active) return item;
    item.row = step_row(p.r, t) + item.b;
    if (!g.projection) item.factor = block.recurrent_factor(item.b, item.unit);
    item.last = block.is_last(t, item.b);
    const bool mixes_cells = is_on(p.r.sequences.zoneout_c);
    const int64_t values = CellT::kSaved + (mixes_cells ? kStates : 0);
    const auto gates = array(p.gates, wide * values, "gates");
#pragma unroll
    for (int k = 0; k < CellT::kSaved; ++k) {
      item.saved[k] = gates.read(block.in_rows(item.row, values * g.hidden_size, k * g.hidden_size + item.unit));
    }
    load_unit_parameters<M, CellT>(p.unit_parameters, block.direction, g.hidden_size, item.unit, item.parameters);
    if (!g.projection) item.dh = outer_grad(item.row, item.b, item.unit, item.last);
    item.cut = !item.last && block.is_cut_after(t, item.b);
    const int64_t width = kStates * g.hidden_size, states = g.directions * g.batch * width;
    const auto c_all = array(p.c_all, wide * kStates, "c_all");
    const bool cut_before = block.is_cut_before(t, item.b), first = block.is_first(t, item.b);
    const int64_t row_before =
        cut_before || first ? 0 : step_row(p.r, block.direction == 0 ? t - 1 : t + 1) + item.b;
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const int64_t own = k * g.hidden_size + item.unit, state = block.in_states(item.b, width, own);
      // The cell's, not mixed with the one before.
      item.c[k] = mixes_cells
                      ? gates.read(block.in_rows(item.row, values * g.hidden_size, CellT::kSaved * g.hidden_size + own))
                      : c_all.read(block.in_rows(item.row, width, own));
      if (cut_before) {
        item.c_prev[k] = S(0);
      } else if (first) {
        item.c_prev[k] = p.c_0 ? M::widen(array(p.c_0, states, "c_0").read(state)) : S(0);
      } else {
        item.c_prev[k] = c_all.read(block.in_rows(row_before, width, own));
      }
      if (item.last) {
        item.dc[k] = p.grad_c_n ? M::widen(array(p.grad_c_n, states, "grad_c_n").read(state)) : S(0);
      } else {
        item.dc[k] = item.cut ? S(0) : grad_cells().read(state);
      }
      if (p.grad_c_all) {
        item.dc[k] += array(p.grad_c_all, wide * kStates, "grad_c_all").read(block.in_rows(item.row, width, own));
      }
    }
    return item;
  }

  CUSTOMLSTM_DEVICE void cell_phase(int64_t s, int64_t t, const Item& first) const {
    const int count = p.r.tiling.units * BlockT::kChunk;
    for (int chunk = 0; chunk < block.chunks(); ++chunk) {
      if (chunk > 0) device::sync_block();   // the sums of the chunk before are still being read
      if (p.r.size.projection) block.multiply_second(chunk);
      else block.multiply_first((s + 1) & 1, chunk);
      for (int index = device::thread_index(); index < count; index += device::block_threads()) {
        const bool prefetched = chunk == 0 && index == device::thread_index();
        apply(s, t, index, prefetched ? first : load_item(t, chunk, index), chunk);
      }
    }
  }

  CUSTOMLSTM_DEVICE void apply(int64_t s, int64_t t, int index, const Item& item, int chunk) const {
    const Sizes& g = p.r.size;
    const int units = p.r.tiling.units, column = chunk * BlockT::kChunk + index / units;
    if (!item.active) {
      if (!g.projection) finish_h_0(t, block.first_column + column, int64_t(block.x) * units + index % units, index);
      return;
    }
    const S product = block.sum(g.projection ? p.r.second : p.r.first, index % units, index / units);
    Scalar<S> saved[CellT::kSaved], da[kGates], dh, d_parameters[CellT::kParameters + 1];
    Scalar<S> before[kStates], after[kStates], dc[kStates];
#pragma unroll
    for (int k = 0; k < CellT::kSaved; ++k) saved[k].x = item.saved[k];
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      before[k].x = item.c_prev[k];
      after[k].x = item.c[k];
      dc[k].x = item.dc[k];
    }
    const int64_t state = block.in_states(item.b, g.hidden_size, item.unit);
    if (g.projection) {
      dh.x = product;
    } else {
      S through = item.last || item.cut ? S(0) : masked(product, item.factor);
      if (!item.last && !item.cut) through += carried_before(state);
      dh.x = carry(item.row, state, item.unit, item.dh + through);
    }
    const Zoneout& zoneout = p.r.sequences.zoneout_c;
    S dc_before[kStates] = {};
    if (is_on(zoneout)) {
      const int64_t at = block.in_rows(item.row, g.hidden_size, item.unit);
      const Kept<S> kept(zoneout, g.rows * g.directions * g.hidden_size, at);
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        dc_before[k] = kept.to_before(dc[k].x);
        dc[k].x = kept.to_computed(dc[k].x);
      }
    }
    CellT::backward(p.cell, saved, item.parameters, before, after, dh, dc, da, d_parameters);

    const int64_t width = kStates * g.hidden_size;
    const bool first = block.is_first(t, item.b), cut_before = p.grad_c_0 && first && block.is_cut_before(t, item.b);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const int64_t own = block.in_states(item.b, width, k * g.hidden_size + item.unit);
      if (is_on(zoneout)) dc[k].x = dc[k].x + dc_before[k];
      grad_cells().write(own, dc[k].x);
      if (p.grad_c_0 && first) {
        array(p.grad_c_0, g.directions * g.batch * width, "grad_c_0")
            .write(own, M::narrow(cut_before ? S(0) : dc[k].x));
      }
    }
    const auto to = array(p.grad_gates, g.rows * g.directions * kGates * g.hidden_size, "grad_gates");
    const auto operand = block.operand(s & 1);
    const int64_t gate_depth = padded_depth(g.hidden_size, M::kKind);
#pragma unroll
    for (int k = 0; k < kGates; ++k) {
      to.write(block.in_rows(item.row, kGates * g.hidden_size, k * g.hidden_size + item.unit), M::narrow(da[k].x));
      operand.write(k * gate_depth + item.unit, column, M::to_element(da[k].x));
    }
    if constexpr (CellT::kParameters > 0) {
      if (p.grad_unit_parameters) write_unit_parameters(item, d_parameters);
    }
  }

  CUSTOMLSTM_DEVICE void write_unit_parameters(const Item& item, const Scalar<S>* gradients) const {
    const Sizes& g = p.r.size;
    const int64_t width = p.unit_parameters.count * g.hidden_size;
    const auto to = array(p.grad_unit_parameters, g.rows * g.directions * width, "grad_unit_parameters");
#pragma unroll
    for (int k = 0; k < CellT::kParameters; ++k) {
      const int64_t at = block.in_rows(item.row, width, k * g.hidden_size + item.unit);
      if (k < p.unit_parameters.count) to.write(at, gradients[k].x);
    }
  }

  CUSTOMLSTM_DEVICE device::Global<S> carried() const {
    const Sizes& g = p.r.size;
    return array(p.carried, g.directions * g.batch * g.state_size, "carried");
  }
  // What zoneout handed from the step after to this one.
  CUSTOMLSTM_DEVICE S carried_before(int64_t state) const {
    return is_on(p.r.sequences.zoneout_h) ? carried().read(state) : S(0);
  }
  // Of the gradient of h_t, the part of the one that was computed; the rest is carried to the step before.
  CUSTOMLSTM_DEVICE S carry(int64_t row, int64_t state, int64_t unit, S dh) const {
    const Sizes& g = p.r.size;
    const Zoneout& zoneout = p.r.sequences.zoneout_h;
    if (!is_on(zoneout)) return dh;
    const int64_t count = g.rows * g.directions * g.state_size;
    const Kept<S> kept(zoneout, count, block.in_rows(row, g.state_size, unit));
    carried().write(state, kept.to_before(dh));
    return kept.to_computed(dh);
  }

  // The gradient of h_0 of a sequence that the recurrence has just left.
  CUSTOMLSTM_DEVICE void finish_h_0(int64_t t, int64_t b, int64_t unit, int index) const {
    const Sizes& g = p.r.size;
    const int rows = g.projection ? p.r.tiling.state_rows : p.r.tiling.units;
    if (!p.grad_h_0 || unit >= g.state_size || b >= g.batch || !is_before_first(t, b)) return;
    const int64_t first = block.direction == 0 ? 0 : block.length(b) - 1;
    const S product = block.sum(p.r.first, index % rows, index / rows);
    const int64_t state = block.in_states(b, g.state_size, unit);
    S dh = S(0);
    if (!block.is_cut_before(first, b)) dh = masked(product, block.recurrent_factor(b, unit)) + carried_before(state);
    array(p.grad_h_0, g.directions * g.batch * g.state_size, "grad_h_0").write(state, M::narrow(dh));
  }

  // With projection: the gradient of h_t, for this block's rows of it.
  CUSTOMLSTM_DEVICE void state_phase(int64_t s, int64_t t) const {
    const Sizes& g = p.r.size;
    const int rows = p.r.tiling.state_rows, count = rows * BlockT::kChunk;
    for (int chunk = 0; chunk < block.chunks(); ++chunk) {
      if (chunk > 0) device::sync_block();
      block.multiply_first((s + 1) & 1, chunk);
      for (int index = device::thread_index(); index < count; index += device::block_threads()) {
        const int64_t unit = int64_t(block.x) * rows + index % rows;
        const int column = chunk * BlockT::kChunk + index / rows;
        const int64_t b = block.first_column + column;
        if (unit >= g.state_size || b >= g.batch) continue;
        if (!block.is_running(t, b)) {
          finish_h_0(t, b, unit, index);
          continue;
        }
        const int64_t row = step_row(p.r, t) + b;
        const bool last = block.is_last(t, b);
        S dh = outer_grad(row, b, unit, last);
        if (!last && !block.is_cut_after(t, b)) {
          dh += masked(block.sum(p.r.first, index % rows, index / rows), block.recurrent_factor(b, unit));
          dh += carried_before(block.in_states(b, g.state_size, unit));
        }
        dh = carry(row, block.in_states(b, g.state_size, unit), unit, dh);
        array(p.grad_state, g.rows * g.directions * g.state_size, "grad_state")
            .write(block.in_rows(row, g.state_size, unit), M::narrow(dh));
        block.projection_operand().write(unit, column, M::to_element(dh));
      }
    }
  }
};

}  // namespace cuda
}  // namespace customlstm
