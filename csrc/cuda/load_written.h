// Takes the kernels of a user's cell from what customlstm/jit/cuda.py has compiled at run time.
#pragma once

#include "written_kernels.h"

namespace customlstm {
namespace cuda {

// Loads `count` images, cubins in host memory for GPUs of the compute capability of `device`, and takes their kernels,
// which are called customlstm_<forward|backward>_<step|grid|cluster>_<column tiles>. The images are copied, and stay
// loaded for ever, since a call may be running. Throws std::runtime_error where the driver refuses one, where it has no
// kernel, or where the runtime that torch has brought is older than 12.8.
WrittenKernels load_written(int device, const void* const* images, int64_t count);

}  // namespace cuda
}  // namespace customlstm
