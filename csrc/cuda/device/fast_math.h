// Sigmoid and tanh from the two approximations that a GPU computes in one instruction each: 2^x and 1/x. They are an
// argument, so that a host compiler can sweep these very formulas with the machine's errors put in on purpose
// (tests/cuda/test_fast_math.py); there is no branch, and the limits at infinity and NaN come out of the arithmetic.
//
//   struct Machine {
//     static float exp2(float x);         // at most 2 ulp off; 0 below and infinity above the range
//     static float reciprocal(float x);   // at most 1 ulp off; 0 of infinity
//   };
//
// Worst errors over every 61st float up to 89, both approximations off by all that they may be: sigmoid 1.9e-7
// absolute, tanh 2.0e-7 absolute and 3.3 ulp.
#pragma once

#if !defined(__CUDACC_RTC__)   // which has these functions without a header
#include <cmath>
#endif

namespace customlstm {
namespace device {

template <class Machine>
CUSTOMLSTM_DEVICE float fast_sigmoid(float x) {
  return Machine::reciprocal(1.0f + Machine::exp2(-1.44269504f * x));
}

// Near zero 1 - 2 / (1 + e^2x) would cancel. The polynomial's own error is 4.4e-9, relative.
template <class Machine>
CUSTOMLSTM_DEVICE float fast_tanh(float x) {
  const float size = fabsf(x), square = x * x;
  float p = -5.70498507e-3f;
  p = fmaf(p, square, 2.06390843e-2f);
  p = fmaf(p, square, -5.37397154e-2f);
  p = fmaf(p, square, 1.33314416e-1f);
  p = fmaf(p, square, -3.33332807e-1f);
  const float near = fmaf(p * square, x, x);
  const float far = fmaf(-2.0f, Machine::reciprocal(1.0f + Machine::exp2(2.88539008f * size)), 1.0f);
  return size < 0.625f ? near : copysignf(far, x);
}

}  // namespace device
}  // namespace customlstm
