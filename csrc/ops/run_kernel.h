// Finds a CPU kernel, and runs it on the team that its plan asks for.
#pragma once

#include "../cpu/kernels.h"
#include "cell_args.h"
#include "checks.h"

namespace customlstm {

// The kernels of a cell on this CPU. Throws std::runtime_error where a user's cell was not compiled for this type.
inline const CellKernels& cpu_kernels(const CellArgs& cell, StorageType type) {
  const int index = static_cast<int>(type);
  if (cell.registered() == nullptr) return kernels().cells[index][static_cast<int>(cell.kind())];
  const CellKernels* const own = cell.registered()->cpu[index];
  check(own != nullptr, "this cell was not compiled for ", name_of(type),
        " in this process; call customlstm.jit.register(cell, dtype)");
  return *own;
}

template <class Params>
void run_kernel(void (*kernel)(const Params&, Team&, int), const Params& params) {
  struct Launch {
    void (*kernel)(const Params&, Team&, int);
    const Params* params;
    static void body(void* context, Team& team, int rank) {
      const Launch& launch = *static_cast<const Launch*>(context);
      launch.kernel(*launch.params, team, rank);
    }
  };
  Launch launch = {kernel, &params};
  run_team(params.plan.threads, &Launch::body, &launch);
}

}  // namespace customlstm
