// The launches of one layer, for any launcher: on a stream of a GPU, or on the host executor under test. Lays out the
// workspace, packs the weights, prepares the states, and runs the recurrence of the tiling.
#pragma once

#include <stdexcept>
#include <string>

#include "backward.h"
#include "forward.h"
#include "launcher.h"
#include "norm_driver.h"
#include "prepare.h"
#include "written_kernels.h"

namespace customlstm {
namespace cuda {

// Hands out parts of the workspace. With base null it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class X>
  X* take(int64_t count) {
    X* at = base ? reinterpret_cast<X*>(base + used) : nullptr;
    used = round_up(used + count * int64_t(sizeof(X)), 256);
    return at;
  }
};

inline int32_t grid_for(int64_t count, int threads) {
  const int64_t blocks = ceil_div(count, threads);
  return int32_t(blocks < 1 ? 1 : blocks > 1024 ? 1024 : blocks);
}

template <class Launcher>
void zero(Launcher& launcher, void* data, int64_t bytes) {
  if (bytes == 0) return;
  const int32_t grid = grid_for(bytes / 4, ZeroWords::kThreads);
  launcher.template launch<ZeroWords>({grid, 1, 1, ZeroWords::kThreads, 0, 1, false},
                                      {static_cast<uint32_t*>(data), bytes / 4, grid});
}

// `bytes` a multiple of 4.
template <class Launcher>
void upload(Launcher& launcher, const void* host, int64_t bytes, void* device) {
  for (int64_t at = 0; at < bytes; at += Upload::kBytes) {
    Upload::Params p;
    const int64_t count = bytes - at < Upload::kBytes ? bytes - at : Upload::kBytes;
    __builtin_memcpy(p.words, static_cast<const char*>(host) + at, size_t(count));
    p.to = reinterpret_cast<uint32_t*>(static_cast<char*>(device) + at);
    p.count = int32_t(count / 4);
    launcher.template launch<Upload>({1, 1, 1, Upload::kThreads, 0, 1, false}, p);
  }
}

inline bool is_normalised(const HostCell& cell) { return cell.kind == CellKind::kNormalised; }

template <class M, class Launcher>
class Driver {
 public:
  using T = typename M::T;
  using S = typename M::S;
  using Element = typename M::Element;

  static int64_t forward_workspace(const ForwardParams& p, const Tiling& tiling) {
    Arena arena = {nullptr};
    return Workspace(arena, p, tiling, false).bytes;
  }
  static int64_t backward_workspace(const BackwardParams& p, const Tiling& tiling) {
    Arena arena = {nullptr};
    return Workspace(arena, p, tiling, true).bytes;
  }

  static void forward(const ForwardParams& p, const Tiling& tiling, Launcher& launcher) {
    Arena arena = {static_cast<char*>(p.workspace)};
    const Workspace w(arena, p, tiling, false);
    if (p.size.batch == 0) return;
    pack(launcher, w, p.size, tiling, p.weights, Packing::kGates, Packing::kProjection);
    zero(launcher, w.cleared, w.cleared_bytes);

    typename PrepareForward<M>::Params prepare = {};
    prepare.size = p.size;
    prepare.sequences = p.sequences;
    prepare.tiling = tiling;
    prepare.depth_tiles = w.first.depth_tiles;
    for (int d = 0; d < p.size.directions; ++d) {
      prepare.b_ih[d] = static_cast<const T*>(p.weights[d].b_ih);
      prepare.b_hh[d] = static_cast<const T*>(p.weights[d].b_hh);
    }
    prepare.h_0 = static_cast<const T*>(p.h_0);
    prepare.c_0 = static_cast<const T*>(p.c_0);
    prepare.h_n = static_cast<T*>(p.h_n);
    prepare.c_n = static_cast<T*>(p.c_n);
    prepare.bias = w.bias;
    prepare.c = w.c;
    prepare.held = w.zoneout_state;
    prepare.exchange = w.exchange;
    const int64_t values = p.size.batch * p.size.cell_states + p.size.gates;   // a unit
    prepare.grid = grid_for(p.size.directions * values * p.size.hidden_size, PrepareForward<M>::kThreads);
    launcher.template launch<PrepareForward<M>>({prepare.grid, 1, 1, PrepareForward<M>::kThreads, 0, 1, false},
                                                prepare);

    ForwardKernelParams<M> k = {};
    k.r = recurrence(w, p.size, p.sequences, tiling, false);
    k.cell = device_cell(launcher, w, p.cell);
    k.bias = w.bias;
    k.unit_parameters = unit_parameters(p);
    k.gates_x = static_cast<const S*>(p.gates_x);
    k.output = static_cast<T*>(p.output);
    k.h_n = static_cast<T*>(p.h_n);
    k.c_n = static_cast<T*>(p.c_n);
    k.c_all = static_cast<S*>(p.c_all);
    k.gates = static_cast<S*>(p.gates);
    k.hidden = static_cast<S*>(p.hidden);
    k.c = w.c;
    k.held = w.zoneout_state;
    if (is_normalised(p.cell)) return NormDriver<M, Launcher>::forward(p, k, w.norm, launcher);
    run<ForwardKernel>(launcher, k, p.cell, 0, p.size.steps, false);
  }

  static void backward(const BackwardParams& p, const Tiling& tiling, Launcher& launcher) {
    Arena arena = {static_cast<char*>(p.workspace)};
    const Workspace w(arena, p, tiling, true);
    if (p.size.batch == 0) return;
    pack(launcher, w, p.size, tiling, p.weights, Packing::kGatesTransposed, Packing::kProjectionTransposed);
    zero(launcher, w.cleared, w.cleared_bytes);

    typename PrepareBackward<M>::Params prepare = {};
    prepare.size = p.size;
    prepare.sequences = p.sequences;
    prepare.grad_h_n = static_cast<const T*>(p.grad_h_n);
    prepare.grad_c_n = static_cast<const T*>(p.grad_c_n);
    prepare.grad_h_0 = static_cast<T*>(p.grad_h_0);
    prepare.grad_c_0 = static_cast<T*>(p.grad_c_0);
    const int64_t states = p.size.directions * p.size.batch * p.size.cell_states * p.size.hidden_size;
    prepare.grid = grid_for(states, PrepareBackward<M>::kThreads);
    const bool may_be_empty = p.sequences.lengths || p.size.steps == 0;
    if (may_be_empty && (p.grad_h_0 || p.grad_c_0)) {
      launcher.template launch<PrepareBackward<M>>({prepare.grid, 1, 1, PrepareBackward<M>::kThreads, 0, 1, false},
                                                   prepare);
    }

    BackwardKernelParams<M> k = {};
    k.r = recurrence(w, p.size, p.sequences, tiling, true);
    k.cell = device_cell(launcher, w, p.cell);
    k.c_0 = static_cast<const T*>(p.c_0);
    k.c_all = static_cast<const S*>(p.c_all);
    k.gates = static_cast<const S*>(p.gates);
    k.unit_parameters = unit_parameters(p);
    k.grad_output = static_cast<const T*>(p.grad_output);
    k.grad_h_n = static_cast<const T*>(p.grad_h_n);
    k.grad_c_n = static_cast<const T*>(p.grad_c_n);
    k.grad_c_all = static_cast<const S*>(p.grad_c_all);
    k.grad_gates = static_cast<T*>(p.grad_gates);
    k.grad_unit_parameters = static_cast<S*>(p.grad_unit_parameters);
    k.grad_state = static_cast<T*>(p.grad_state);
    k.grad_h_0 = static_cast<T*>(p.grad_h_0);
    k.grad_c_0 = static_cast<T*>(p.grad_c_0);
    k.dc = w.c;
    k.carried = w.zoneout_state;
    if (is_normalised(p.cell)) return NormDriver<M, Launcher>::backward(p, k, w.norm, launcher);
    if (p.size.steps > 0) run<BackwardKernel>(launcher, k, p.cell, p.grad_h_0 ? -1 : 0, p.size.steps, true);
  }

 private:
  struct Workspace {
    ProductShape first, second;
    Element *weights, *projection;
    S *bias, *c;
    S* zoneout_state;   // h_{t-1}, in backward the gradient carried past a step, where zoneout is on
    S* tables;
    NormWorkspace<S> norm;
    void* cleared;   // from here on zero before the recurrence: operands and flags
    int64_t cleared_bytes;
    void *exchange, *projection_exchange;
    uint32_t* flags;
    int64_t bytes;

    template <class Params>
    Workspace(Arena& arena, const Params& p, const Tiling& t, bool backward)
        : norm(arena, p.size, backward, is_normalised(p.cell)) {
      const Sizes& g = p.size;
      constexpr MathKind kKind = M::kKind;
      first = backward ? gate_gradient_product(t, g.hidden_size, g.projection, kKind)
                       : gate_product(t, g.state_size, kKind);
      second = {0, 0, 0};
      if (g.projection) {
        second = backward ? projection_gradient_product(t, g.state_size, kKind)
                          : projection_product(t, g.hidden_size, kKind);
      }
      weights = arena.take<Element>(g.directions * first.weight_tiles() * TileSize<M>::kAElements);
      projection = arena.take<Element>(g.directions * second.weight_tiles() * TileSize<M>::kAElements);
      bias = arena.take<S>(backward ? 0 : g.directions * g.gates * g.hidden_size);
      c = arena.take<S>(g.directions * g.batch * g.cell_states * g.hidden_size);
      zoneout_state = nullptr;
      if (is_on(p.sequences.zoneout_h)) zoneout_state = arena.take<S>(g.directions * g.batch * g.state_size);
      tables = arena.take<S>(p.cell.table_count);
      const int64_t begin = arena.used;
      cleared = arena.take<char>(0);
      const int64_t groups = g.directions * t.column_blocks, tile_columns = t.columns / kTileColumns;
      exchange = arena.take<Element>(2 * groups * first.depth_tiles * tile_columns * TileSize<M>::kBElements);
      projection_exchange = arena.take<Element>(groups * second.depth_tiles * tile_columns * TileSize<M>::kBElements);
      flags = arena.take<uint32_t>(groups * t.unit_blocks);
      cleared_bytes = arena.used - begin;
      bytes = arena.used;
    }
  };

  static void pack(Launcher& launcher, const Workspace& w, const Sizes& g, const Tiling& tiling,
                   const DirectionWeights (&weights)[2], Packing gates, Packing projection) {
    typename PackWeights<M>::Params p = {};
    p.hidden_size = g.hidden_size;
    p.state_size = g.state_size;
    p.directions = g.directions;
    p.gates = g.gates;
    for (int k = 0; k < (g.projection ? 2 : 1); ++k) {
      p.packing = k == 0 ? gates : projection;
      p.shape = k == 0 ? w.first : w.second;
      p.to = k == 0 ? w.weights : w.projection;
      const bool by_state =
          p.packing == Packing::kProjection || (g.projection && p.packing == Packing::kGatesTransposed);
      p.units = by_state ? tiling.state_rows : tiling.units;
      for (int d = 0; d < g.directions; ++d) {
        p.from[d] = static_cast<const T*>(k == 0 ? weights[d].w_hh : weights[d].w_hr);
      }
      const int64_t count = g.directions * p.shape.weight_tiles() * TileSize<M>::kAElements;
      p.grid = grid_for(count, PackWeights<M>::kThreads);
      launcher.template launch<PackWeights<M>>({p.grid, 1, 1, PackWeights<M>::kThreads, 0, 1, false}, p);
    }
  }

  template <class Params>
  static UnitParameters<T> unit_parameters(const Params& p) {
    UnitParameters<T> parameters = {{}, p.cell.unit_parameters};
    for (int d = 0; d < p.size.directions; ++d) {
      for (int k = 0; k < p.cell.unit_parameters; ++k) {
        parameters.of[d][k] = static_cast<const T*>(p.weights[d].unit_parameters[k]);
      }
    }
    return parameters;
  }

  // The cell's parameters with its tables in device memory.
  static CellParams<S> device_cell(Launcher& launcher, const Workspace& w, const HostCell& cell) {
    CellParams<S> params = *static_cast<const CellParams<S>*>(cell.params);
    if (cell.table_count == 0) return params;
    upload(launcher, cell.tables, cell.table_count * int64_t(sizeof(S)), w.tables);
    const S* host = static_cast<const S*>(cell.tables);
    for (Activation<S>* f : {&params.gate, &params.cell, &params.output}) {
      if (f->segments == 0) continue;
      f->x = w.tables + (f->x - host);
      f->y = w.tables + (f->y - host);
      f->slope = w.tables + (f->slope - host);
    }
    return params;
  }

  static RecurrenceParams recurrence(const Workspace& w, const Sizes& g, const Sequences& sequences,
                                     const Tiling& tiling, bool backward) {
    RecurrenceParams r = {};
    r.size = g;
    r.sequences = sequences;
    r.tiling = tiling;
    r.shared = backward ? backward_shared(tiling, g.hidden_size, g.state_size, g.projection, M::kKind)
                        : forward_shared(tiling, g.hidden_size, g.state_size, g.projection, M::kKind);
    r.first = w.first;
    r.second = w.second;
    r.weights = w.weights;
    r.projection = w.projection;
    r.exchange = w.exchange;
    r.projection_exchange = w.projection_exchange;
    r.flags = w.flags;
    r.phase = kAllPhases;
    return r;
  }

  // Chooses the instance of a recurrence kernel, then launches it: once, or for every step and phase.
  template <template <class, class, int, Variant> class Kernel, class Params>
  static void run(Launcher& launcher, const Params& p, const HostCell& cell, int64_t first, int64_t last,
                  bool reverse) {
    if (cell.written) run_written<Kernel>(launcher, p, cell, first, last, reverse);
    else if (cell.kind == CellKind::kStandard) run_cell<Kernel, StandardCell>(launcher, p, first, last, reverse);
    else run_cell<Kernel, ConfigurableCell>(launcher, p, first, last, reverse);
  }
  template <template <class, class, int, Variant> class Kernel, class CellT, class Params>
  static void run_cell(Launcher& launcher, const Params& p, int64_t first, int64_t last, bool reverse) {
    if (p.r.size.gates != CellT::kGates || p.r.size.cell_states != CellT::kStates) {
      throw std::runtime_error("customlstm: the kernels of a cell of " + std::to_string(CellT::kGates) + " gates and " +
                               std::to_string(CellT::kStates) + " states got sizes with " +
                               std::to_string(p.r.size.gates) + " and " + std::to_string(p.r.size.cell_states));
    }
    const int tiles = p.r.tiling.column_tiles;
    if (tiles == 1) return run_tiles<Kernel, CellT, 1>(launcher, p, first, last, reverse);
    // Four tiles of doubles do not fit into registers.
    if constexpr (M::kKind != MathKind::kFma64) {
      if (tiles == 4) return run_tiles<Kernel, CellT, 4>(launcher, p, first, last, reverse);
    }
    throw std::runtime_error("customlstm: no kernel of this arithmetic holds " + std::to_string(tiles) +
                             " column tiles");
  }
  template <template <class, class, int, Variant> class Kernel, class CellT, int kColumnTiles, class Params>
  static void run_tiles(Launcher& launcher, const Params& p, int64_t first, int64_t last, bool reverse) {
    const Variant variant = p.r.tiling.variant;
    if (variant == Variant::kStep) {
      return run_instance<Kernel<M, CellT, kColumnTiles, Variant::kStep>>(launcher, p, first, last, reverse);
    }
    if constexpr (M::kKind != MathKind::kFma64) {
      if (variant == Variant::kGrid) {
        return run_instance<Kernel<M, CellT, kColumnTiles, Variant::kGrid>>(launcher, p, first, last, reverse);
      }
      return run_instance<Kernel<M, CellT, kColumnTiles, Variant::kCluster>>(launcher, p, first, last, reverse);
    } else {
      throw std::runtime_error("customlstm: float64 runs with the step variant only");
    }
  }
  template <class Kernel, class Params>
  static void run_instance(Launcher& launcher, const Params& p, int64_t first, int64_t last, bool reverse) {
    launch_all(p, first, last, reverse,
               [&](const Launch& launch, const Params& own) { launcher.template launch<Kernel>(launch, own); });
  }
  template <template <class, class, int, Variant> class Kernel, class Params>
  static void run_written(Launcher& launcher, const Params& p, const HostCell& cell, int64_t first, int64_t last,
                          bool reverse) {
    using AnyInstance = Kernel<M, StandardCell, 1, Variant::kStep>;   // all have one name and one limit
    const Tiling& t = p.r.tiling;
    const auto& kernels = reverse ? cell.written->backward : cell.written->forward;
    const void* const handle = kernels[int(t.variant)][column_tile_index(t.column_tiles)];
    const std::string name = std::string(AnyInstance::kName) + " of the cell " + cell.name;
    if (!handle) {
      throw std::runtime_error(name + ": not compiled for " + name_of(t.variant) + " with column tiles by " +
                               std::to_string(t.column_tiles) + "; CUSTOMLSTM_CUDA_VARIANT chooses another variant");
    }
    launch_all(p, first, last, reverse, [&](const Launch& launch, const Params& own) {
      launcher.launch_loaded(handle, name.c_str(), AnyInstance::kThreads, launch, own);
    });
  }

  // Step by step, with a launch for each of its phases, or all steps in one launch.
  template <class Params, class Start>
  static void launch_all(Params p, int64_t first, int64_t last, bool reverse, const Start& start) {
    const Tiling& t = p.r.tiling;
    const Launch launch = {t.unit_blocks, t.column_blocks,  int32_t(p.r.size.directions), t.warps * 32,
                           p.r.shared.total, t.cluster, t.variant == Variant::kGrid};
    if (t.variant != Variant::kStep) {
      p.r.first_step = first;
      p.r.last_step = last;
      if (first < last) start(launch, p);
      return;
    }
    for (int64_t n = first; n < last; ++n) {
      p.r.first_step = reverse ? last - 1 - (n - first) : n;
      p.r.last_step = p.r.first_step + 1;
      for (p.r.phase = 0; p.r.phase < (p.r.size.projection ? 2 : 1); ++p.r.phase) start(launch, p);
    }
  }
};

template <class Launcher>
void zero_padding(const Sizes& size, const Sequences& sequences, int64_t row_bytes, void* rows, Launcher& launcher) {
  if (!sequences.lengths || sequences.step_row || size.steps * size.batch == 0) return;
  const int32_t grid = grid_for(size.steps * size.batch, 1);
  launcher.template launch<ZeroPadding>({grid, 1, 1, ZeroPadding::kThreads, 0, 1, false},
                                        {size, sequences, static_cast<uint16_t*>(rows), row_bytes / 2, grid});
}

template <class T, class Launcher>
void previous_hidden(const PreviousHiddenParams& p, Launcher& launcher) {
  const int64_t count = p.size.steps * p.size.batch * p.size.directions * p.size.state_size;
  if (count == 0) return;
  const int32_t grid = grid_for(count, PreviousHidden<T>::kThreads);
  launcher.template launch<PreviousHidden<T>>({grid, 1, 1, PreviousHidden<T>::kThreads, 0, 1, false}, {p, grid});
}

}  // namespace cuda
}  // namespace customlstm
