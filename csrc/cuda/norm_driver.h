// The launches of one layer with layer norm: those of driver.h around the recurrence, and here two for each step, with
// a projection three.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "launcher.h"
#include "norm_backward.h"
#include "norm_forward.h"

namespace customlstm {
namespace cuda {

// What it needs of the workspace beyond the other cells.
template <class S>
struct NormWorkspace {
  S *parameters, *rows;

  template <class ArenaT>
  NormWorkspace(ArenaT& arena, const Sizes& g, bool backward, bool normalised)
      : parameters(arena.template take<S>(normalised ? g.directions * kNormSlots * g.hidden_size : 0)),
        rows(arena.template take<S>(
            normalised ? g.directions * g.batch * (backward ? kRowValues : 4) * g.hidden_size : 0)) {}
};

template <class M, class Launcher>
class NormDriver {
 public:
  using T = typename M::T;
  using S = typename M::S;

  static void forward(const ForwardParams& p, const ForwardKernelParams<M>& k, const NormWorkspace<S>& w,
                      Launcher& launcher) {
    NormForwardParams<M> own = {k, layout(p), prepare(p, w, launcher), w.rows};
    const int tiles = column_tiles(k.r.tiling);
    for (int64_t s = 0; s < p.size.steps; ++s) {
      set_step(own.k.r, s, 0);
      if (tiles == 1) launch<NormForwardProduct<M, 1>>(launcher, own);
      if constexpr (kMayHoldFour) {
        if (tiles == 4) launch<NormForwardProduct<M, 4>>(launcher, own);
      }
      launch_rows<NormForwardRows<M>>(launcher, own);
      if (p.size.projection) launch_phase<ForwardKernel>(launcher, own.k, s, 1);
    }
  }

  // Down to step -1 where the gradient of h_0 is wanted: it only completes that.
  static void backward(const BackwardParams& p, const BackwardKernelParams<M>& k, const NormWorkspace<S>& w,
                       Launcher& launcher) {
    if (p.size.steps == 0) return;
    NormBackwardParams<M> own = {k, layout(p), prepare(p, w, launcher), static_cast<T*>(p.grad_input_products),
                                 static_cast<S*>(p.norm_sums), w.rows};
    const int tiles = column_tiles(k.r.tiling);
    for (int64_t s = p.size.steps - 1; s >= (p.grad_h_0 ? -1 : 0); --s) {
      if (p.size.projection) launch_phase<BackwardKernel>(launcher, own.k, s, 0);
      if (p.size.projection && s < 0) break;
      set_step(own.k.r, s, 0);
      if (tiles == 1) launch<NormBackwardProduct<M, 1>>(launcher, own);
      if constexpr (kMayHoldFour) {
        if (tiles == 4) launch<NormBackwardProduct<M, 4>>(launcher, own);
      }
      if (s >= 0) launch_rows<NormBackwardRows<M>>(launcher, own);
    }
  }

 private:
  static constexpr bool kMayHoldFour = M::kKind != MathKind::kFma64;   // four tiles of doubles leave no registers

  static int column_tiles(const Tiling& t) {
    if (t.variant != Variant::kStep) throw std::runtime_error("customlstm: layer norm runs with the step variant only");
    if (t.column_tiles == 1 || (kMayHoldFour && t.column_tiles == 4)) return t.column_tiles;
    throw std::runtime_error("customlstm: no kernel of this arithmetic holds " + std::to_string(t.column_tiles) +
                             " column tiles");
  }

  template <class Params>
  static NormLayout layout(const Params& p) {
    NormLayout layout = {};
    std::copy(p.cell.norms, p.cell.norms + kNormPlaces, layout.norms);
    return layout;
  }

  template <class Params>
  static NormParameters<S> prepare(const Params& p, const NormWorkspace<S>& w, Launcher& launcher) {
    typename PrepareNorm<M>::Params prepare = {};
    for (int d = 0; d < p.size.directions; ++d) {
      const DirectionWeights& from = p.weights[d];
      prepare.of[d].b_ih = static_cast<const T*>(from.b_ih);
      prepare.of[d].b_hh = static_cast<const T*>(from.b_hh);
      for (int place = 0; place < kNormPlaces; ++place) {
        prepare.of[d].gain[place] = static_cast<const T*>(from.norms[place].gain);
        prepare.of[d].bias[place] = static_cast<const T*>(from.norms[place].bias);
      }
    }
    prepare.hidden_size = p.size.hidden_size;
    prepare.directions = p.size.directions;
    prepare.to = w.parameters;
    const int64_t blocks = ceil_div(p.size.directions * kNormSlots * p.size.hidden_size, PrepareNorm<M>::kThreads);
    prepare.grid = int32_t(std::min<int64_t>(blocks, 1024));
    launcher.template launch<PrepareNorm<M>>({prepare.grid, 1, 1, PrepareNorm<M>::kThreads, 0, 1, false}, prepare);
    return {w.parameters, p.size.directions, p.size.hidden_size};
  }

  static void set_step(RecurrenceParams& r, int64_t s, int32_t phase) {
    r.first_step = s;
    r.last_step = s + 1;
    r.phase = phase;
  }

  template <class Kernel, class Params>
  static void launch(Launcher& launcher, const Params& p) {
    launcher.template launch<Kernel>(launch_of(p.k.r), p);
  }
  static Launch launch_of(const RecurrenceParams& r) {
    const Tiling& t = r.tiling;
    return {t.unit_blocks, t.column_blocks, int32_t(r.size.directions), t.warps * 32, r.shared.total, 1, false};
  }
  template <class Kernel, class Params>
  static void launch_rows(Launcher& launcher, const Params& p) {
    const Tiling& t = p.k.r.tiling;
    const int32_t columns = int32_t(std::min<int64_t>(t.columns, p.k.r.size.batch));
    launcher.template launch<Kernel>({columns, t.column_blocks, int32_t(p.k.r.size.directions),
                                      row_threads(p.k.r.size.hidden_size), RowSums<S>::kSharedBytes, 1, false},
                                     p);
  }

  // A phase of the other recurrence in which there is no cell.
  template <template <class, class, int, Variant> class Kernel, class Params>
  static void launch_phase(Launcher& launcher, Params& p, int64_t s, int32_t phase) {
    set_step(p.r, s, phase);
    if (p.r.tiling.column_tiles == 1) {
      launcher.template launch<Kernel<M, ConfigurableCell, 1, Variant::kStep>>(launch_of(p.r), p);
    }
    if constexpr (kMayHoldFour) {
      if (p.r.tiling.column_tiles == 4) {
        launcher.template launch<Kernel<M, ConfigurableCell, 4, Variant::kStep>>(launch_of(p.r), p);
      }
    }
  }
};

}  // namespace cuda
}  // namespace customlstm
