// One driver for each kind of arithmetic, each in a file of its own so that they compile side by side.
#pragma once

#include "kernels.h"

namespace customlstm {
namespace cuda {

struct DriverTable {
  int64_t (*forward_workspace)(const ForwardParams&, const Tiling&);
  int64_t (*backward_workspace)(const BackwardParams&, const Tiling&);
  void (*forward)(const ForwardParams&, const Tiling&, void* stream);
  void (*backward)(const BackwardParams&, const Tiling&, void* stream);
};

extern const DriverTable kFma32Driver, kFma64Driver, kBFloat16Driver, kFloat16Driver, kTf32Driver;

// In a file that includes driver.h and a launcher: the table of one kind, and what it points to.
#define CUSTOMLSTM_DEFINE_DRIVER(KIND, LAUNCHER)                                                 \
  namespace {                                                                                    \
  using TheDriver = Driver<Math<MathKind::KIND>, LAUNCHER>;                                      \
  void run_forward(const ForwardParams& params, const Tiling& tiling, void* stream) {            \
    LAUNCHER launcher{make_stream(stream)};                                                      \
    TheDriver::forward(params, tiling, launcher);                                                \
  }                                                                                              \
  void run_backward(const BackwardParams& params, const Tiling& tiling, void* stream) {          \
    LAUNCHER launcher{make_stream(stream)};                                                      \
    TheDriver::backward(params, tiling, launcher);                                               \
  }                                                                                              \
  }                                                                                              \
  const DriverTable KIND##Driver = {TheDriver::forward_workspace, TheDriver::backward_workspace, \
                                    run_forward, run_backward};

}  // namespace cuda
}  // namespace customlstm
