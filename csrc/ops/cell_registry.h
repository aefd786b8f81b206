// The cells that users wrote, by the names that the op knows them by. customlstm/jit compiles them, each into a library
// of its own, and registers them; nothing is ever taken out again, since a call may be running.
#pragma once

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/kernels.h"

namespace customlstm {

struct RegisteredCell {
  RegisteredCell(int64_t gates, int64_t states, int64_t saved, std::vector<std::string> unit_parameters)
      : gates(gates), states(states), saved(saved), unit_parameters(std::move(unit_parameters)) {}

  const int64_t gates, states, saved;   // kGates, kStates and kSaved of its struct
  const std::vector<std::string> unit_parameters;
  // Null: not compiled for this type. Set once, by whichever thread, while others compute.
  std::atomic<const CellKernels*> cpu[kStorageTypes] = {};
};

// The cell of that name, or null; lives for ever.
const RegisteredCell* find_cell(const std::string& name);

// Throws std::runtime_error where the name is taken by a cell of other sizes.
void register_cell(const std::string& name, int64_t gates, int64_t states, int64_t saved,
                   const std::vector<std::string>& unit_parameters);
void register_cpu_kernels(const std::string& name, StorageType type, const CellKernels& kernels);

}  // namespace customlstm
