// The cells that users wrote, by the names that the op knows them by. customlstm/jit compiles them, each into a library
// of its own, and registers them; nothing is ever taken out again, since a call may be running.
#pragma once

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/kernels.h"
#include "../cuda/written_kernels.h"

namespace customlstm {

struct RegisteredCell {
  RegisteredCell(const CellSizes& sizes, std::vector<std::string> unit_parameters)
      : sizes(sizes), unit_parameters(std::move(unit_parameters)) {}

  const CellSizes sizes;
  const std::vector<std::string> unit_parameters;
  // Null: not compiled for this type. Set once, by whichever thread, while others compute.
  std::atomic<const CellKernels*> cpu[kStorageTypes] = {};
};

// Its kernels on GPUs of that compute capability (90 for 9.0), or null: not compiled for them.
const cuda::WrittenKernels* find_cuda_kernels(const RegisteredCell& cell, cuda::MathKind math, int capability);

// The cell of that name, or null; lives for ever.
const RegisteredCell* find_cell(const std::string& name);

// Throws std::runtime_error where the name is taken by a cell of other sizes, or they are no cell's.
void register_cell(const std::string& name, const CellSizes& sizes, const std::vector<std::string>& unit_parameters);
void register_cpu_kernels(const std::string& name, StorageType type, const CellKernels& kernels);
void register_cuda_kernels(const std::string& name, cuda::MathKind math, int capability,
                           const cuda::WrittenKernels& kernels);

}  // namespace customlstm
