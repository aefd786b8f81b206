// The value type of the cells on a GPU: one number, with the operations that cells/README.md promises.
#pragma once

#include "../cells/activation.h"
#include "device/device.h"

namespace customlstm {
namespace cuda {

template <class S>
struct Scalar {
  S x;
  static CUSTOMLSTM_DEVICE Scalar broadcast(S x) { return {x}; }
};

template <class S>
CUSTOMLSTM_DEVICE Scalar<S> operator+(Scalar<S> a, Scalar<S> b) { return {a.x + b.x}; }
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> operator-(Scalar<S> a, Scalar<S> b) { return {a.x - b.x}; }
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> operator*(Scalar<S> a, Scalar<S> b) { return {a.x * b.x}; }
CUSTOMLSTM_DEVICE Scalar<float> fma(Scalar<float> a, Scalar<float> b, Scalar<float> c) {
  return {::fmaf(a.x, b.x, c.x)};
}
CUSTOMLSTM_DEVICE Scalar<double> fma(Scalar<double> a, Scalar<double> b, Scalar<double> c) {
  return {::fma(a.x, b.x, c.x)};
}

// x where m > 0, else 0.
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> where_positive(Scalar<S> m, Scalar<S> x) { return {m.x > S(0) ? x.x : S(0)}; }

CUSTOMLSTM_DEVICE float sigmoid(float x) { return device::fast_sigmoid(x); }
CUSTOMLSTM_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
CUSTOMLSTM_DEVICE float tanh(float x) { return device::fast_tanh(x); }
CUSTOMLSTM_DEVICE double tanh(double x) { return ::tanh(x); }
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> sigmoid(Scalar<S> x) { return {sigmoid(x.x)}; }
template <class S>
CUSTOMLSTM_DEVICE Scalar<S> tanh(Scalar<S> x) { return {tanh(x.x)}; }

CUSTOMLSTM_DEVICE float exp_of(float x) { return ::expf(x); }
CUSTOMLSTM_DEVICE double exp_of(double x) { return ::exp(x); }
CUSTOMLSTM_DEVICE float expm1_of(float x) { return ::expm1f(x); }
CUSTOMLSTM_DEVICE double expm1_of(double x) { return ::expm1(x); }
CUSTOMLSTM_DEVICE float log1p_of(float x) { return ::log1pf(x); }
CUSTOMLSTM_DEVICE double log1p_of(double x) { return ::log1p(x); }
CUSTOMLSTM_DEVICE float largest_of(float) { return 3.402823466e38f; }
CUSTOMLSTM_DEVICE double largest_of(double) { return 1.7976931348623157e308; }

template <class S>
CUSTOMLSTM_DEVICE S clamp(S x, S low, S high) {  // NaN goes through
  const S y = x > high ? high : x;
  return low > y ? low : y;
}

// Run-time activations: value, and value with derivative, in one body so that they are read together. Conventions at
// kinks are those of customlstm/reference.py and of cpu/activations.inl: the derivative of relu, leaky_relu, elu and
// thresholded_relu at the kink is the left one, clamps pass the gradient on their closed interval, a piecewise-linear
// function has the right slope at a knot.
template <bool WithDerivative, class S>
CUSTOMLSTM_DEVICE S evaluate(const Activation<S>& f, S x, S& derivative) {
  const S zero = S(0), one = S(1);
  S y = x, dy = one;
  switch (f.kind) {
    case ActivationKind::kSigmoid:
      y = sigmoid(x);
      dy = y * (one - y);
      break;
    case ActivationKind::kTanh:
      y = tanh(x);
      dy = one - y * y;
      break;
    case ActivationKind::kRelu:
      y = zero > x ? zero : x;
      dy = x > zero ? one : zero;
      break;
    case ActivationKind::kAffine:
      y = f.alpha * x + f.beta;
      dy = f.alpha;
      break;
    case ActivationKind::kLeakyRelu:
      y = x > zero ? x : f.alpha * x;
      dy = x > zero ? one : f.alpha;
      break;
    case ActivationKind::kThresholdedRelu:
      y = f.alpha >= x ? zero : x;
      dy = x > f.alpha ? one : zero;
      break;
    case ActivationKind::kScaledTanh: {
      const S t = tanh(f.beta * x);
      y = f.alpha * t;
      dy = f.alpha * f.beta * (one - t * t);
      break;
    }
    case ActivationKind::kHardSigmoid: {
      const S t = f.alpha * x + f.beta;
      y = clamp(t, zero, one);
      dy = t >= zero && one >= t ? f.alpha : zero;
      break;
    }
    case ActivationKind::kElu: {
      const S e = f.alpha * expm1_of(x > zero ? zero : x);
      y = x > zero ? x : e;
      dy = x > zero ? one : e + f.alpha;
      break;
    }
    case ActivationKind::kSoftsign: {
      // The limit at infinity is taken by hand, inf / inf being NaN.
      const S d = one / (one + (x < zero ? -x : x));
      y = zero >= d ? (x < zero ? -one : one) : x * d;
      dy = d * d;
      break;
    }
    case ActivationKind::kSoftplus:
      y = (zero > x ? zero : x) + log1p_of(exp_of(x < zero ? x : -x));
      if (WithDerivative) dy = sigmoid(x);
      break;
    case ActivationKind::kHardTanh:
      y = clamp(x, f.alpha, f.beta);
      dy = x >= f.alpha && f.beta >= x ? one : zero;
      break;
    case ActivationKind::kIdentity:
      break;
    case ActivationKind::kPiecewiseLinear: {
      // The last start that is <= x, by bisection: of segments - 1 inner starts, those are counted.
      const device::Global<const S> starts(f.x, f.segments, "x of the knots");
      int32_t low = 0, high = f.segments;   // the segment is in [low, high)
      while (high - low > 1) {
        const int32_t middle = (low + high) / 2;
        if (x >= starts.read(middle)) low = middle;
        else high = middle;
      }
      const S slope = device::Global<const S>(f.slope, f.segments, "slopes").read(low);
      const S y_start = device::Global<const S>(f.y, f.segments, "y of the knots").read(low);
      // A flat end times an infinity would be NaN, so the argument is kept finite.
      y = slope * (clamp(x, -largest_of(x), largest_of(x)) - starts.read(low)) + y_start;
      dy = slope;
      break;
    }
  }
  if (WithDerivative) derivative = dy;
  return y;
}

template <class S>
CUSTOMLSTM_DEVICE void activate(const Activation<S>& f, Scalar<S>& value) {
  S unused;
  value.x = evaluate<false>(f, value.x, unused);
}
template <class S>
CUSTOMLSTM_DEVICE void activate(const Activation<S>& f, Scalar<S>& value, Scalar<S>& derivative) {
  value.x = evaluate<true>(f, value.x, derivative.x);
}

#define CUSTOMLSTM_INLINE CUSTOMLSTM_DEVICE
#include "../cells/configurable.inl"
#include "../cells/standard.inl"
#undef CUSTOMLSTM_INLINE

}  // namespace cuda
}  // namespace customlstm
