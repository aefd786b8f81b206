// The derivative of the cell with layer norm. A step gathers the gradient of h in memory, then each row goes through
// the cell as a whole: gradients of what was normalised need sums over the row, that of the cell state between the
// cell's halves, those of the products after them. With a projection backward.h's first phase comes before.
#pragma once

#include "backward.h"
#include "norm_rows.h"

namespace customlstm {
namespace cuda {

template <class M>
struct NormBackwardParams {
  using T = typename M::T;
  using S = typename M::S;
  BackwardKernelParams<M> k;      // gates by `layout`; grad_gates: of W_hh h, as it was before it was normalised
  NormLayout layout;
  NormParameters<S> parameters;
  T* grad_input_products;         // [rows, D, 4, H] or null
  S* sums;                        // [B, D, kNormSlots, H] or null
  S* rows;                        // [D, B, 5, H]: the gradients of a row's gates, and of h, later of what is shown of c
};
constexpr int kRowShown = 4, kRowValues = 5;

template <class M>
CUSTOMLSTM_DEVICE device::Global<typename M::S> norm_rows(const NormBackwardParams<M>& p) {
  const Sizes& g = p.k.r.size;
  return array(p.rows, g.directions * g.batch * kRowValues * g.hidden_size, "rows");
}
template <class M, class BlockT>
CUSTOMLSTM_DEVICE int64_t in_norm_rows(const BlockT& block, const Sizes& g, int64_t b, int value, int64_t unit) {
  return block.in_states(b, kRowValues * g.hidden_size, value * g.hidden_size + unit);
}

// The gradient of h_t before the projection: the product with W_hh transposed and what is added to it, or with a
// projection the product with W_hr transposed.
template <class M, int kColumnTiles>
struct NormBackwardProduct {
  using S = typename M::S;
  using Params = NormBackwardParams<M>;
  using Recurrence = BackwardKernel<M, ConfigurableCell, kColumnTiles, Variant::kStep>;
  using BlockT = typename Recurrence::BlockT;
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm layer norm product backward";

  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    const RecurrenceParams& r = p.k.r;
    const Recurrence recurrence(p.k);
    const BlockT& block = recurrence.block;
    const int64_t s = r.first_step, t = block.time(s);
    if (!recurrence.is_relevant(s, block.longest())) return;
    const int units = r.tiling.units, count = units * BlockT::kChunk;
    for (int chunk = 0; chunk < block.chunks(); ++chunk) {
      if (chunk > 0) device::sync_block();   // the sums of the chunk before are still being read
      if (r.size.projection) block.multiply_second(chunk);
      else block.multiply_first((s + 1) & 1, chunk);
      for (int index = device::thread_index(); index < count; index += device::block_threads()) {
        const int64_t unit = int64_t(block.x) * units + index % units;
        const int64_t b = block.first_column + chunk * BlockT::kChunk + index / units;
        if (unit >= r.size.hidden_size || b >= r.size.batch) continue;
        if (block.is_running(t, b)) {
          const S dh = r.size.projection ? block.sum(r.second, index % units, index / units)
                                         : gradient_of_h(recurrence, t, b, unit, index);
          norm_rows(p).write(in_norm_rows<M>(block, r.size, b, kRowShown, unit), dh);
        } else if (!r.size.projection) {
          recurrence.finish_h_0(t, b, unit, index);
        }
      }
    }
  }

  static CUSTOMLSTM_DEVICE S gradient_of_h(const Recurrence& recurrence, int64_t t, int64_t b, int64_t unit,
                                           int index) {
    const RecurrenceParams& r = recurrence.p.r;
    const BlockT& block = recurrence.block;
    const int64_t row = step_row(r, t) + b, state = block.in_states(b, r.size.hidden_size, unit);
    const bool last = block.is_last(t, b);
    S dh = recurrence.outer_grad(row, b, unit, last);
    if (!last && !block.is_cut_after(t, b)) {
      const S product = block.sum(r.first, index % r.tiling.units, index / r.tiling.units);
      dh += masked(product, block.recurrent_factor(b, unit)) + recurrence.carried_before(state);
    }
    return recurrence.carry(row, state, unit, dh);
  }
};

// Then a block takes its row through the cell.
template <class M>
struct NormBackwardRows : NormRow<NormBackwardParams<M>, BackwardKernel<M, ConfigurableCell, 1, Variant::kStep>> {
  using Row = NormRow<NormBackwardParams<M>, BackwardKernel<M, ConfigurableCell, 1, Variant::kStep>>;
  using S = typename M::S;
  using V = Scalar<S>;
  using Cell = ConfigurableCell;
  using typename Row::Params;
  using Row::b, Row::column, Row::cut, Row::direction, Row::g, Row::p, Row::recurrence, Row::row, Row::s, Row::t;
  static constexpr const char* kName = "customlstm layer norm backward";

  // What the passes over a row want of one unit.
  struct Unit {
    V saved[Cell::kSaved], w[Cell::kParameters + 1], before[1], after[1];
  };

  int64_t previous_row = 0;   // of the step whose state entered this one, where there is such a step
  bool first = false;
  Norm<S> norms[kNormPlaces];

  CUSTOMLSTM_DEVICE explicit NormBackwardRows(const Params& params) : Row(params) {}

  static CUSTOMLSTM_DEVICE void run(const Params& params) { NormBackwardRows(params).take_row(); }

  CUSTOMLSTM_DEVICE void take_row() {
    if (b >= g.batch || !recurrence.block.is_running(t, b)) return;
    this->locate();
    first = recurrence.block.is_first(t, b);
    if (!cut && !first) previous_row = step_row(p.k.r, direction == 0 ? t - 1 : t + 1) + b;
    RowSums<S> sums;
    find_norms(sums);
    S of_state[2] = {S(0), S(0)};
    output_half(of_state);
    if (p.layout.norms[kNormCell]) sums.add_up(of_state);
    S of_products[4] = {S(0), S(0), S(0), S(0)};
    state_half(of_state[0] / S(g.hidden_size), of_state[1] / S(g.hidden_size), of_products);
    if (p.layout.norms[kNormInput] || p.layout.norms[kNormRecurrent]) sums.add_up(of_products);
    through_norms(of_products);
  }

  // --- where values are

  CUSTOMLSTM_DEVICE bool mixes_cells() const { return is_on(p.k.r.sequences.zoneout_c); }
  CUSTOMLSTM_DEVICE S kept(int value, int64_t unit) const {
    const int64_t width = (p.layout.values() + (mixes_cells() ? 1 : 0)) * g.hidden_size;
    return array(p.k.gates, g.rows * g.directions * width, "gates")
        .read(recurrence.block.in_rows(row, width, value * g.hidden_size + unit));
  }
  CUSTOMLSTM_DEVICE S product(NormPlace place, int k, int64_t unit) const {
    return kept(p.layout.product(place) + k, unit);
  }
  CUSTOMLSTM_DEVICE S normalised(NormPlace place, int k, int64_t unit) const {
    return norms[place].apply(product(place, k, unit));
  }
  CUSTOMLSTM_DEVICE S c_all(int64_t of_row, int64_t unit) const {
    return array(p.k.c_all, g.rows * g.directions * g.hidden_size, "c_all")
        .read(recurrence.block.in_rows(of_row, g.hidden_size, unit));
  }
  // The cell's own new state, not mixed with the one before.
  CUSTOMLSTM_DEVICE S state(int64_t unit) const {
    return mixes_cells() ? kept(p.layout.values(), unit) : c_all(row, unit);
  }
  CUSTOMLSTM_DEVICE S state_before(int64_t unit) const {
    if (cut) return S(0);
    if (!first) return c_all(previous_row, unit);
    if (!p.k.c_0) return S(0);
    return M::widen(array(p.k.c_0, g.directions * g.batch * g.hidden_size, "c_0")
                        .read(recurrence.block.in_states(b, g.hidden_size, unit)));
  }
  CUSTOMLSTM_DEVICE int64_t in_row(int value, int64_t unit) const {
    return in_norm_rows<M>(recurrence.block, g, b, value, unit);
  }
  CUSTOMLSTM_DEVICE void add_to_sum(int slot, int64_t unit, S x) const {
    if (!p.sums) return;
    const auto sums = array(p.sums, g.batch * g.directions * kNormSlots * g.hidden_size, "norm sums");
    const int64_t at = ((b * g.directions + direction) * kNormSlots + slot) * g.hidden_size + unit;
    sums.write(at, sums.read(at) + x);
  }

  // --- the passes

  // In two passes, as in forward.
  CUSTOMLSTM_DEVICE void find_norms(RowSums<S>& sums) {
    const S count[kNormPlaces] = {S(4) * S(g.hidden_size), S(4) * S(g.hidden_size), S(g.hidden_size)};
#pragma unroll
    for (int place = 0; place < kNormPlaces; ++place) norms[place] = Norm<S>::none();
    S parts[kNormPlaces] = {S(0), S(0), S(0)};
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (p.layout.norms[kNormInput]) parts[kNormInput] += product(kNormInput, k, unit);
        if (p.layout.norms[kNormRecurrent]) parts[kNormRecurrent] += product(kNormRecurrent, k, unit);
      }
      if (p.layout.norms[kNormCell]) parts[kNormCell] += state(unit);
    }
    sums.add_up(parts);
#pragma unroll
    for (int place = 0; place < kNormPlaces; ++place) {
      if (p.layout.norms[place]) norms[place].mean = parts[place] / count[place];
      parts[place] = S(0);
    }
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const S x = p.layout.norms[kNormInput] ? normalised(kNormInput, k, unit) : S(0);
        const S h = p.layout.norms[kNormRecurrent] ? normalised(kNormRecurrent, k, unit) : S(0);
        parts[kNormInput] += x * x;
        parts[kNormRecurrent] += h * h;
      }
      const S c = p.layout.norms[kNormCell] ? norms[kNormCell].apply(state(unit)) : S(0);
      parts[kNormCell] += c * c;
    }
    sums.add_up(parts);
#pragma unroll
    for (int place = 0; place < kNormPlaces; ++place) {
      if (p.layout.norms[place]) norms[place].set_variance(parts[place] / count[place]);
    }
  }

  // What the cell saved in forward: kept, or found again by the same operations.
  CUSTOMLSTM_DEVICE Unit load(int64_t unit) const {
    Unit u;
    u.before[0].x = state_before(unit);
    u.after[0].x = state(unit);
    load_unit_parameters<M, Cell>(p.k.unit_parameters, direction, g.hidden_size, unit, u.w);
    if (p.layout.keeps_gates()) {
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) u.saved[k].x = kept(k, unit);
      return u;
    }
    V a[Cell::kGates];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const V gain_x = {p.parameters.read(direction, kSlotInputGain + k, unit)};
      const V gain_h = {p.parameters.read(direction, kSlotRecurrentGain + k, unit)};
      const V bias = {p.parameters.read(direction, kSlotBias + k, unit)};
      const V x = {normalised(kNormInput, k, unit)}, h = {normalised(kNormRecurrent, k, unit)};
      a[k] = fma(gain_h, h, fma(gain_x, x, bias));
    }
    Cell::save(p.k.cell, a, u.w, u.before, u.after, u.saved);
    return u;
  }

  // From the gradient of h to those of the output gate and of what is shown of the state. Sums of the latter times its
  // gain, and of that times the normalised state.
  CUSTOMLSTM_DEVICE void output_half(S (&sums)[2]) const {
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
      const Unit u = load(unit);
      const V dh = {norm_rows(p).read(in_row(kRowShown, unit))};
      const S x = norms[kNormCell].apply(u.after[0].x), gain = p.parameters.read(direction, kSlotCellGain, unit);
      V shown = u.after[0], da, outer, inner;
      if (p.layout.norms[kNormCell]) {
        shown = fma(V{gain}, V{x}, V{p.parameters.read(direction, kSlotCellBias, unit)});
      }
      Cell::backward_output(p.k.cell, u.saved, shown, dh, da, outer, inner);
      const S d = outer.x * inner.x, scaled = gain * d;
      sums[0] += scaled;
      sums[1] += scaled * x;
      norm_rows(p).write(in_row(3, unit), da.x);
      norm_rows(p).write(in_row(kRowShown, unit), scaled);
      if (!p.layout.norms[kNormCell]) continue;
      add_to_sum(kSlotCellGain, unit, d * x);
      add_to_sum(kSlotCellBias, unit, d);
    }
  }

  // The gradient of the state, but for what comes through this step's h.
  CUSTOMLSTM_DEVICE S outer_gradient_of_state(int64_t unit) const {
    const Block<M, 1, Variant::kStep>& block = recurrence.block;
    const int64_t at = block.in_states(b, g.hidden_size, unit);
    S dc = S(0);
    if (block.is_last(t, b)) {
      if (p.k.grad_c_n) {
        dc = M::widen(array(p.k.grad_c_n, g.directions * g.batch * g.hidden_size, "grad_c_n").read(at));
      }
    } else if (!block.is_cut_after(t, b)) {
      dc = recurrence.grad_cells().read(at);
    }
    if (p.k.grad_c_all) {
      dc += array(p.k.grad_c_all, g.rows * g.directions * g.hidden_size, "grad_c_all")
                .read(block.in_rows(row, g.hidden_size, unit));
    }
    return dc;
  }

  // From there to the gradients of the other gates and of the state before. Of the products, place by place, sums as
  // in output_half.
  CUSTOMLSTM_DEVICE void state_half(S mean_d, S mean_dx, S (&sums)[4]) const {
    const Zoneout& zoneout = p.k.r.sequences.zoneout_c;
    const int64_t all = g.rows * g.directions * g.hidden_size;
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
      const Unit u = load(unit);
      S dc = outer_gradient_of_state(unit), dc_before = S(0);
      if (is_on(zoneout)) {
        const Kept<S> kept(zoneout, all, recurrence.block.in_rows(row, g.hidden_size, unit));
        dc_before = kept.to_before(dc);
        dc = kept.to_computed(dc);
      }
      const S shown = norm_rows(p).read(in_row(kRowShown, unit));
      dc += p.layout.norms[kNormCell]
                ? norms[kNormCell].backward(shown, norms[kNormCell].apply(u.after[0].x), mean_d, mean_dx)
                : shown;
      V dstate[1] = {{dc}}, da[Cell::kGates], dw[Cell::kParameters + 1];
      da[3].x = norm_rows(p).read(in_row(3, unit));
      Cell::backward_state(p.k.cell, u.saved, u.w, u.before, u.after, dstate, da, dw);
      store_state(unit, dstate[0].x + dc_before);
      if (p.k.grad_unit_parameters) store_unit_parameters(unit, dw);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        norm_rows(p).write(in_row(k, unit), da[k].x);
        add_to_sum(kSlotBias + k, unit, da[k].x);
        if (p.layout.norms[kNormInput]) add_product(kNormInput, kSlotInputGain + k, k, unit, da[k].x, sums[0], sums[1]);
        if (p.layout.norms[kNormRecurrent]) {
          add_product(kNormRecurrent, kSlotRecurrentGain + k, k, unit, da[k].x, sums[2], sums[3]);
        }
      }
    }
  }

  CUSTOMLSTM_DEVICE void add_product(NormPlace place, int slot, int k, int64_t unit, S da, S& sum, S& sum_x) const {
    const S x = normalised(place, k, unit), scaled = p.parameters.read(direction, slot, unit) * da;
    sum += scaled;
    sum_x += scaled * x;
    add_to_sum(slot, unit, da * x);
  }

  CUSTOMLSTM_DEVICE void store_state(int64_t unit, S dc) const {
    const int64_t at = recurrence.block.in_states(b, g.hidden_size, unit);
    recurrence.grad_cells().write(at, dc);
    if (p.k.grad_c_0 && first) {
      array(p.k.grad_c_0, g.directions * g.batch * g.hidden_size, "grad_c_0").write(at, M::narrow(cut ? S(0) : dc));
    }
  }

  CUSTOMLSTM_DEVICE void store_unit_parameters(int64_t unit, const V* gradients) const {
    const int64_t count = p.k.unit_parameters.count, width = count * g.hidden_size;
    const auto to = array(p.k.grad_unit_parameters, g.rows * g.directions * width, "grad_unit_parameters");
#pragma unroll
    for (int k = 0; k < Cell::kParameters; ++k) {
      if (k < count) to.write(recurrence.block.in_rows(row, width, k * g.hidden_size + unit), gradients[k].x);
    }
  }

  // The gradient of a product, as the gradients of the weights use it. Of a row without variance it is hundreds of
  // times that of the gates, and what was multiplied most often zeros: beyond the range of half an infinity would meet
  // them.
  static CUSTOMLSTM_DEVICE S kept_finite(const Norm<S>& norm, S d) {
    if constexpr (M::kKind == MathKind::kFloat16) {
      const bool infinite = d > largest_of(d) || d < -largest_of(d);
      if (!norm.has_variance() && !infinite) return clamp(d, S(-65504), S(65504));
    }
    return d;
  }

  // From the gradients of the gates to those of the products. Where a zero state entered, that of W_hh h meets zeros
  // only; it is left out, because for a product without variance it is hundreds of times that of the gates, which
  // 16 bits may not hold, and an infinity times zero would be NaN in the gradient of W_hh.
  CUSTOMLSTM_DEVICE void through_norms(const S (&sums)[4]) const {
    const S count = S(4) * S(g.hidden_size);
    const bool of_zero = cut || (first && !p.k.c_0 && !p.k.grad_h_0);
    const int64_t width = 4 * g.hidden_size, gate_depth = padded_depth(g.hidden_size, M::kKind);
    const auto operand = recurrence.block.operand(s & 1);
    for (int64_t unit = device::thread_index(); unit < g.hidden_size; unit += device::block_threads()) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const S da = norm_rows(p).read(in_row(k, unit));
        const int64_t at = recurrence.block.in_rows(row, width, k * g.hidden_size + unit);
        S dx = da, dh = da;
        if (p.layout.norms[kNormInput] && p.grad_input_products) {
          const S scaled = p.parameters.read(direction, kSlotInputGain + k, unit) * da;
          dx = norms[kNormInput].backward(scaled, normalised(kNormInput, k, unit), sums[0] / count, sums[1] / count);
        }
        if (p.layout.norms[kNormRecurrent]) {
          const S scaled = p.parameters.read(direction, kSlotRecurrentGain + k, unit) * da;
          dh = norms[kNormRecurrent].backward(scaled, normalised(kNormRecurrent, k, unit), sums[2] / count,
                                              sums[3] / count);
          if (of_zero) dh = S(0);
        }
        if (p.grad_input_products) {
          array(p.grad_input_products, g.rows * g.directions * width, "grad_input_products")
              .write(at, M::narrow(kept_finite(norms[kNormInput], dx)));
        }
        array(p.k.grad_gates, g.rows * g.directions * width, "grad_gates")
            .write(at, M::narrow(kept_finite(norms[kNormRecurrent], dh)));
        operand.write(k * gate_depth + unit, column, M::to_element(dh));
      }
    }
  }
};

}  // namespace cuda
}  // namespace customlstm
