// The functions of kernels.h from the drivers, for either launcher; included by one file of each build.
#pragma once

#include "driver.h"
#include "drivers.h"

namespace customlstm {
namespace cuda {

// Not inline: its table would then be one for all libraries of a process that have such a function.
static const DriverTable& driver_of(MathKind math) {
  static const DriverTable* const kDrivers[kMathKinds] = {&kFma32Driver, &kFma64Driver, &kBFloat16Driver,
                                                          &kFloat16Driver, &kTf32Driver};
  return *kDrivers[static_cast<int>(math)];
}

int64_t forward_workspace(MathKind math, const ForwardParams& params, const Tiling& tiling) {
  return driver_of(math).forward_workspace(params, tiling);
}
int64_t backward_workspace(MathKind math, const BackwardParams& params, const Tiling& tiling) {
  return driver_of(math).backward_workspace(params, tiling);
}
void forward(MathKind math, const ForwardParams& params, const Tiling& tiling, void* stream) {
  driver_of(math).forward(params, tiling, stream);
}
void backward(MathKind math, const BackwardParams& params, const Tiling& tiling, void* stream) {
  driver_of(math).backward(params, tiling, stream);
}

}  // namespace cuda
}  // namespace customlstm
