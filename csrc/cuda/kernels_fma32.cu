#include "cuda_launcher.cuh"
#include "driver.h"
#include "drivers.h"

namespace customlstm {
namespace cuda {

CUSTOMLSTM_DEFINE_DRIVER(kFma32, CudaLauncher)

}  // namespace cuda
}  // namespace customlstm
