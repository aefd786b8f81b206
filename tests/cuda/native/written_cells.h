// Kernels of cells that users write, on the host executor: what a build for a GPU does with NVRTC.
#pragma once

#include <string>
#include <vector>

#include "csrc/cuda/backward.h"
#include "csrc/cuda/device/host_executor.h"
#include "csrc/cuda/forward.h"
#include "csrc/cuda/functions.h"
#include "csrc/ops/cell_registry.h"

namespace customlstm {
namespace cuda {

constexpr int kCapability = 90;   // of the device that torch_side.cpp makes believe

template <class M, class CellT, int kColumnTiles, Variant kVariant>
void add_kernels(WrittenKernels& to) {
  static const device::host::KernelInfo forward =
      device::host::info_of<ForwardKernel<M, CellT, kColumnTiles, kVariant>>();
  static const device::host::KernelInfo backward =
      device::host::info_of<BackwardKernel<M, CellT, kColumnTiles, kVariant>>();
  to.forward[int(kVariant)][column_tile_index(kColumnTiles)] = &forward;
  to.backward[int(kVariant)][column_tile_index(kColumnTiles)] = &backward;
}

// Of step with one tile of columns alone, or of all tilings that a plan chooses for calls as small as those of tests.
template <MathKind kMath, class CellT, bool kEveryTiling>
void register_kernels(const std::string& name, const std::vector<std::string>& parameters) {
  using M = Math<kMath>;
  WrittenKernels kernels = {};
  add_kernels<M, CellT, 1, Variant::kStep>(kernels);
  if constexpr (kEveryTiling) {
    add_kernels<M, CellT, 1, Variant::kGrid>(kernels);
    add_kernels<M, CellT, 1, Variant::kCluster>(kernels);
    add_kernels<M, CellT, 4, Variant::kStep>(kernels);
    add_kernels<M, CellT, 4, Variant::kGrid>(kernels);
  }
  register_cell(name, {CellT::kGates, CellT::kStates, CellT::kSaved, CellT::kParameters}, parameters);
  register_cuda_kernels(name, kMath, kCapability, kernels);
}

}  // namespace cuda
}  // namespace customlstm
