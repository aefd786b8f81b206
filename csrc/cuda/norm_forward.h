// The cell with layer norm, forward. The sums over a row come between the product and the cell, and between the halves
// of the cell, so a step is two launches: the products of all units into memory, then each row as a whole through the
// cell. With a projection a third one follows, that of forward.h.
#pragma once

#include "forward.h"
#include "norm_rows.h"

namespace customlstm {
namespace cuda {

template <class M>
struct NormForwardParams {
  using S = typename M::S;
  ForwardKernelParams<M> k;       // gates_x and gates by `layout`
  NormLayout layout;
  NormParameters<S> parameters;
  S* products;                    // [D, B, 4, H]: W_hh h_{t-1}; later the new cell state and the output gate
};

template <class M>
CUSTOMLSTM_DEVICE device::Global<typename M::S> norm_products(const NormForwardParams<M>& p) {
  const Sizes& g = p.k.r.size;
  return array(p.products, g.directions * g.batch * 4 * g.hidden_size, "products");
}

// The first launch of a step: W_hh h_{t-1}.
template <class M, int kColumnTiles>
struct NormForwardProduct {
  using Params = NormForwardParams<M>;
  using BlockT = Block<M, kColumnTiles, Variant::kStep>;
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm layer norm product forward";

  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    const RecurrenceParams& r = p.k.r;
    const Sizes& g = r.size;
    const BlockT block(r);
    if (block.time(r.first_step) >= block.longest()) return;
    const auto products = norm_products(p);
    const int units = r.tiling.units, rows = 4 * units, count = rows * BlockT::kChunk;
    for (int chunk = 0; chunk < block.chunks(); ++chunk) {
      if (chunk > 0) device::sync_block();   // the sums of the chunk before are still being read
      block.multiply_first(r.first_step & 1, chunk);
      for (int index = device::thread_index(); index < count; index += device::block_threads()) {
        const int row = index % rows, column = index / rows;
        const int64_t unit = int64_t(block.x) * units + row % units;
        const int64_t b = block.first_column + chunk * BlockT::kChunk + column;
        if (unit >= g.hidden_size || b >= g.batch) continue;
        products.write(block.in_states(b, 4 * g.hidden_size, row / units * g.hidden_size + unit),
                       block.sum(r.first, row, column));
      }
    }
  }
};

// The second: a block takes its row through the cell.
template <class M>
struct NormForwardRows : NormRow<NormForwardParams<M>, ForwardKernel<M, ConfigurableCell, 1, Variant::kStep>> {
  using Row = NormRow<NormForwardParams<M>, ForwardKernel<M, ConfigurableCell, 1, Variant::kStep>>;
  using S = typename M::S;
  using V = Scalar<S>;
  using Cell = ConfigurableCell;
  using typename Row::Params;
  using Row::b, Row::column, Row::cut, Row::direction, Row::g, Row::p, Row::recurrence, Row::row, Row::s, Row::t;
  static constexpr const char* kName = "customlstm layer norm forward";
  static constexpr int kState = 0, kOutputGate = 1;   // in the places of the row's products

  CUSTOMLSTM_DEVICE explicit NormForwardRows(const Params& params) : Row(params) {}

  static CUSTOMLSTM_DEVICE void run(const Params& params) { NormForwardRows(params).take_row(); }

  CUSTOMLSTM_DEVICE void take_row() {
    if (b >= g.batch || t >= recurrence.block.length(b)) return;
    this->locate();
    RowSums<S> sums;
    Norm<S> input, recurrent;
    norms_of_products(sums, input, recurrent);
    S total[1] = {first_half(input, recurrent)};
    Norm<S> state = Norm<S>::none();
    if (p.layout.norms[kNormCell]) {
      sums.add_up(total);
      state.mean = total[0] / S(g.hidden_size);
      S squares[1] = {S(0)};
      for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
        const S d = norm_products(p).read(in_products(kState, unit)) - state.mean;
        squares[0] += d * d;
      }
      sums.add_up(squares);
      state.set_variance(squares[0] / S(g.hidden_size));
    }
    second_half(state);
  }

  CUSTOMLSTM_DEVICE int64_t in_products(int k, int64_t unit) const {
    return recurrence.block.in_states(b, 4 * g.hidden_size, k * g.hidden_size + unit);
  }
  // A reset makes the state zero, and with it the product.
  CUSTOMLSTM_DEVICE S recurrent_product(int k, int64_t unit) const {
    return cut ? S(0) : norm_products(p).read(in_products(k, unit));
  }
  CUSTOMLSTM_DEVICE bool is_in_place() const { return p.k.gates != nullptr && p.k.gates == p.k.gates_x; }
  CUSTOMLSTM_DEVICE int64_t kept_values() const {
    return p.layout.values() + (is_on(p.k.r.sequences.zoneout_c) ? 1 : 0);
  }
  CUSTOMLSTM_DEVICE int64_t in_kept(int value, int64_t unit) const {
    return recurrence.block.in_rows(row, kept_values() * g.hidden_size, value * g.hidden_size + unit);
  }
  CUSTOMLSTM_DEVICE device::Global<S> kept() const {
    return array(p.k.gates, g.rows * g.directions * kept_values() * g.hidden_size, "gates");
  }
  CUSTOMLSTM_DEVICE S input_product(int k, int64_t unit) const {
    if (is_in_place()) return kept().read(in_kept(p.layout.input_product() + k, unit));
    return array(p.k.gates_x, g.rows * g.directions * 4 * g.hidden_size, "gates_x")
        .read(recurrence.block.in_rows(row, 4 * g.hidden_size, k * g.hidden_size + unit));
  }

  // In two passes: a mean that is large beside the deviation would leave nothing of a difference of sums of squares.
  CUSTOMLSTM_DEVICE void norms_of_products(RowSums<S>& sums, Norm<S>& input, Norm<S>& recurrent) const {
    const bool of_input = p.layout.norms[kNormInput], of_recurrent = p.layout.norms[kNormRecurrent];
    input = recurrent = Norm<S>::none();
    if (!of_input && !of_recurrent) return;
    const S count = S(4) * S(g.hidden_size);
    S parts[2] = {S(0), S(0)};
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (of_input) parts[0] += input_product(k, unit);
        if (of_recurrent) parts[1] += recurrent_product(k, unit);
      }
    }
    sums.add_up(parts);
    if (of_input) input.mean = parts[0] / count;
    if (of_recurrent) recurrent.mean = parts[1] / count;
    parts[0] = parts[1] = S(0);
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const S x = of_input ? input_product(k, unit) - input.mean : S(0);
        const S h = of_recurrent ? recurrent_product(k, unit) - recurrent.mean : S(0);
        parts[0] += x * x;
        parts[1] += h * h;
      }
    }
    sums.add_up(parts);
    if (of_input) input.set_variance(parts[0] / count);
    if (of_recurrent) recurrent.set_variance(parts[1] / count);
  }

  CUSTOMLSTM_DEVICE S state_before(int64_t unit) const {
    return cut ? S(0) : recurrence.cells().read(recurrence.block.in_states(b, g.hidden_size, unit));
  }

  // From the products to the new cell state and the output gate. Returns the sum of this thread's states.
  CUSTOMLSTM_DEVICE S first_half(const Norm<S>& input, const Norm<S>& recurrent) const {
    S total = S(0);
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
      V a[Cell::kGates], w[Cell::kParameters + 1], state[1] = {{state_before(unit)}}, o, saved[Cell::kSaved];
      load_unit_parameters<M, Cell>(p.k.unit_parameters, direction, g.hidden_size, unit, w);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const S x = input_product(k, unit), h = recurrent_product(k, unit);
        const V gain_x = {p.parameters.read(direction, kSlotInputGain + k, unit)};
        const V gain_h = {p.parameters.read(direction, kSlotRecurrentGain + k, unit)};
        const V bias = {p.parameters.read(direction, kSlotBias + k, unit)};
        a[k] = fma(gain_h, V{recurrent.apply(h)}, fma(gain_x, V{input.apply(x)}, bias));
        if (p.k.gates) keep_products(k, unit, x, h);
      }
      Cell::forward_state(p.k.cell, a, w, state, o, saved);
      norm_products(p).write(in_products(kState, unit), state[0].x);
      norm_products(p).write(in_products(kOutputGate, unit), o.x);
      total += state[0].x;
      if (!p.k.gates) continue;
      if (p.layout.keeps_gates()) {
#pragma unroll
        for (int k = 0; k < Cell::kSaved; ++k) kept().write(in_kept(k, unit), saved[k].x);
      }
      if (is_on(p.k.r.sequences.zoneout_c)) kept().write(in_kept(p.layout.values(), unit), state[0].x);
    }
    return total;
  }

  CUSTOMLSTM_DEVICE void keep_products(int k, int64_t unit, S x, S h) const {
    if (p.layout.norms[kNormInput] && !is_in_place()) kept().write(in_kept(p.layout.product(kNormInput) + k, unit), x);
    if (p.layout.norms[kNormRecurrent]) kept().write(in_kept(p.layout.product(kNormRecurrent) + k, unit), h);
  }

  // From there to h, and both states to where the next step and the results want them.
  CUSTOMLSTM_DEVICE void second_half(const Norm<S>& norm) const {
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
      const S computed = norm_products(p).read(in_products(kState, unit));
      const V o = {norm_products(p).read(in_products(kOutputGate, unit))};
      V shown = {computed}, h;
      if (p.layout.norms[kNormCell]) {
        const V gain = {p.parameters.read(direction, kSlotCellGain, unit)};
        shown = fma(gain, V{norm.apply(computed)}, V{p.parameters.read(direction, kSlotCellBias, unit)});
      }
      Cell::forward_output(p.k.cell, o, shown, h);
      // Read only where they are used: one is a load from memory, the other has no value for each unit.
      const S before[1] = {is_on(p.k.r.sequences.zoneout_c) ? state_before(unit) : S(0)}, states[1] = {computed};
      const S factor = g.projection ? S(1) : recurrence.block.recurrent_factor(b, unit);
      recurrence.write_unit(s, t, b, unit, row, column, before, states, h.x, factor);
    }
  }
};

}  // namespace cuda
}  // namespace customlstm
