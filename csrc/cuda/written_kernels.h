// The kernels of a cell that a user wrote: compiled at run time for one kind of arithmetic and one compute capability,
// and launched in the place of those that are compiled in.
#pragma once

#include "tiling.h"

namespace customlstm {
namespace cuda {

constexpr int32_t kColumnTileCounts = 2;

// A handle is what the launcher knows a kernel by: a cudaKernel_t on a GPU. Null: not compiled.
struct WrittenKernels {
  const void* forward[kVariants][kColumnTileCounts];
  const void* backward[kVariants][kColumnTileCounts];
};

// Where the kernel of a tiling stands in its row: 0 for one tile of columns, 1 for four.
CUSTOMLSTM_HOST_DEVICE int32_t column_tile_index(int32_t column_tiles) { return column_tiles == 1 ? 0 : 1; }

}  // namespace cuda
}  // namespace customlstm
