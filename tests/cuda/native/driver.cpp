// The driver of one kind of arithmetic on the host executor; compiled once for each, with CUSTOMLSTM_MATH set to it.
#include "../../../csrc/cuda/device/host_executor.h"
#include "../../../csrc/cuda/driver.h"
#include "../../../csrc/cuda/drivers.h"
#include "stream.h"

namespace customlstm {
namespace cuda {

#define DEFINE(KIND) CUSTOMLSTM_DEFINE_DRIVER(KIND, HostLauncher)   // one macro deep, so that the name is expanded
DEFINE(CUSTOMLSTM_MATH)

}  // namespace cuda
}  // namespace customlstm
