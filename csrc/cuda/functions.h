// What a cell that customlstm.jit has written may use beyond what scalar.h has, on the value type of a GPU, Scalar. The
// same names and limits as cpu/functions.inl; accuracy is that of the CUDA mathematical functions.
#pragma once

#include "scalar.h"

namespace customlstm {
namespace cuda {

// clang-format off
template <class S> CUSTOMLSTM_DEVICE Scalar<S> operator-(Scalar<S> a) { return {-a.x}; }
template <class S> CUSTOMLSTM_DEVICE Scalar<S> operator/(Scalar<S> a, Scalar<S> b) { return {a.x / b.x}; }
// select_*(a, b, x, y): x where the comparison of a with b holds, else y (so: y where a or b is NaN).
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> select_gt(Scalar<S> a, Scalar<S> b, Scalar<S> x, Scalar<S> y) {
  return {a.x > b.x ? x.x : y.x};
}
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> select_ge(Scalar<S> a, Scalar<S> b, Scalar<S> x, Scalar<S> y) {
  return {a.x >= b.x ? x.x : y.x};
}
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> select_eq(Scalar<S> a, Scalar<S> b, Scalar<S> x, Scalar<S> y) {
  return {a.x == b.x ? x.x : y.x};
}
// NaN where either is, as torch.maximum has it.
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> maximum(Scalar<S> a, Scalar<S> b) {
  return {a.x == a.x ? (a.x > b.x ? a.x : b.x) : a.x};
}
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> minimum(Scalar<S> a, Scalar<S> b) {
  return {a.x == a.x ? (b.x > a.x ? a.x : b.x) : a.x};
}
template <class S> CUSTOMLSTM_DEVICE Scalar<S> reciprocal(Scalar<S> x) { return {S(1) / x.x}; }
// clang-format on

#define CUSTOMLSTM_SCALAR_UNARY(NAME, FLOAT, DOUBLE)                                     \
  CUSTOMLSTM_DEVICE Scalar<float> NAME(Scalar<float> x) { return {::FLOAT(x.x)}; }       \
  CUSTOMLSTM_DEVICE Scalar<double> NAME(Scalar<double> x) { return {::DOUBLE(x.x)}; }
#define CUSTOMLSTM_SCALAR_BINARY(NAME, FLOAT, DOUBLE)                                                            \
  CUSTOMLSTM_DEVICE Scalar<float> NAME(Scalar<float> x, Scalar<float> y) { return {::FLOAT(x.x, y.x)}; }         \
  CUSTOMLSTM_DEVICE Scalar<double> NAME(Scalar<double> x, Scalar<double> y) { return {::DOUBLE(x.x, y.x)}; }

CUSTOMLSTM_SCALAR_UNARY(abs, fabsf, fabs)
CUSTOMLSTM_SCALAR_UNARY(floor, floorf, floor)
CUSTOMLSTM_SCALAR_UNARY(ceil, ceilf, ceil)
CUSTOMLSTM_SCALAR_UNARY(trunc, truncf, trunc)
CUSTOMLSTM_SCALAR_UNARY(round, nearbyintf, nearbyint)   // half to even, as torch.round
CUSTOMLSTM_SCALAR_UNARY(sqrt, sqrtf, sqrt)
CUSTOMLSTM_SCALAR_UNARY(exp, expf, exp)
CUSTOMLSTM_SCALAR_UNARY(expm1, expm1f, expm1)
CUSTOMLSTM_SCALAR_UNARY(log, logf, log)
CUSTOMLSTM_SCALAR_UNARY(log1p, log1pf, log1p)
CUSTOMLSTM_SCALAR_UNARY(exp2, exp2f, exp2)
CUSTOMLSTM_SCALAR_UNARY(log2, log2f, log2)
CUSTOMLSTM_SCALAR_UNARY(log10, log10f, log10)
CUSTOMLSTM_SCALAR_UNARY(sin, sinf, sin)
CUSTOMLSTM_SCALAR_UNARY(cos, cosf, cos)
CUSTOMLSTM_SCALAR_UNARY(tan, tanf, tan)
CUSTOMLSTM_SCALAR_UNARY(asin, asinf, asin)
CUSTOMLSTM_SCALAR_UNARY(acos, acosf, acos)
CUSTOMLSTM_SCALAR_UNARY(atan, atanf, atan)
CUSTOMLSTM_SCALAR_UNARY(sinh, sinhf, sinh)
CUSTOMLSTM_SCALAR_UNARY(cosh, coshf, cosh)
CUSTOMLSTM_SCALAR_UNARY(asinh, asinhf, asinh)
CUSTOMLSTM_SCALAR_UNARY(acosh, acoshf, acosh)
CUSTOMLSTM_SCALAR_UNARY(atanh, atanhf, atanh)
CUSTOMLSTM_SCALAR_UNARY(erf, erff, erf)
CUSTOMLSTM_SCALAR_UNARY(erfc, erfcf, erfc)
CUSTOMLSTM_SCALAR_BINARY(pow, powf, pow)
CUSTOMLSTM_SCALAR_BINARY(atan2, atan2f, atan2)
CUSTOMLSTM_SCALAR_BINARY(fmod, fmodf, fmod)

// Not ::rsqrt, which a host compiler does not have.
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> rsqrt(Scalar<S> x) { return reciprocal(sqrt(x)); }

#undef CUSTOMLSTM_SCALAR_UNARY
#undef CUSTOMLSTM_SCALAR_BINARY

}  // namespace cuda
}  // namespace customlstm
