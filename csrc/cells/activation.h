// What an activation is at run time. Plain data: read by the CPU kernels of every instruction set and by CUDA.
#pragma once

#include "../types.h"

namespace customlstm {

// The ids are those of customlstm/activations.py and travel inside `cell_args`; append only.
enum class ActivationKind : int32_t {
  kSigmoid = 0,
  kTanh = 1,
  kRelu = 2,
  kAffine = 3,
  kLeakyRelu = 4,
  kThresholdedRelu = 5,
  kScaledTanh = 6,
  kHardSigmoid = 7,
  kElu = 8,
  kSoftsign = 9,
  kSoftplus = 10,
  kHardTanh = 11,
  kIdentity = 12,
  kPiecewiseLinear = 13,
};
constexpr int32_t kActivationKinds = 14;

// S is the accumulation type (float or double). Segment j of a piecewise-linear function starts at knot (x[j], y[j]):
// value y[j] + slope[j] * (t - x[j]), where j counts the starts x[1], x[2], ... that are <= t. Not as slope and
// intercept, whose sum cancels for knots far from zero.
template <class S>
struct Activation {
  ActivationKind kind;
  int32_t segments;   // piecewise linear only: length of the arrays
  S alpha, beta;
  const S* x;
  const S* y;
  const S* slope;
};

// What customlstm.Cell says. A clip that is not there is the identity, else hard_tanh.
template <class S>
struct CellParams {
  Activation<S> gate, cell, output;
  Activation<S> gate_clip, cell_clip;
  bool peephole, coupled_gates;
  // Backward is given the values of the gates, since their activations' derivatives follow from these: sigmoid and tanh
  // without a clip. Else it is given the pre-activations, and computes the activations once more.
  bool saves_values;
};

}  // namespace customlstm
