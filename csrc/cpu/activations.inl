// Run-time activations on a pack of rows: value, and value with derivative. One function body for both, so that a
// formula and its derivative are read together. Conventions at kinks are those of customlstm/reference.py: the
// derivative of relu, leaky_relu, elu and thresholded_relu at the kink is the left one, clamps pass the gradient on
// their closed interval, a piecewise-linear function has the right slope at a knot.

template <class S>
CUSTOMLSTM_INLINE Vec<S> clamp(const Vec<S>& x, const Vec<S>& low, const Vec<S>& high) {   // NaN goes through
  const Vec<S> y = select_gt(x, high, high, x);
  return select_gt(low, y, low, y);
}

// BODY computes y, and dy where `WithDerivative`, from x. A macro instead of a lambda, which would lose the #pragma
// target. Not unrolled: the rows overlap anyway, and all kinds for all R unrolled were half of the compile time.
#define CUSTOMLSTM_EACH_ROW(BODY)                    \
  _Pragma("GCC unroll 1")                            \
  for (int r = 0; r < R; ++r) {                      \
    const V x = value.row[r];                        \
    V y, dy = zero;                                  \
    BODY;                                            \
    value.row[r] = y;                                \
    if (WithDerivative) derivative->row[r] = dy;     \
  }                                                  \
  break

template <bool WithDerivative, class S, int R>
CUSTOMLSTM_NOINLINE void evaluate(const Activation<S>& f, Pack<S, R>& value, Pack<S, R>* derivative) {
  using V = Vec<S>;
  const V zero = V::broadcast(S(0)), one = V::broadcast(S(1));
  const V alpha = V::broadcast(f.alpha), beta = V::broadcast(f.beta);
  switch (f.kind) {
    case ActivationKind::kSigmoid:
      CUSTOMLSTM_EACH_ROW(y = sigmoid(x); if (WithDerivative) dy = y * (one - y));
    case ActivationKind::kTanh:
      CUSTOMLSTM_EACH_ROW(y = tanh(x); if (WithDerivative) dy = one - y * y);
    case ActivationKind::kRelu:
      // x * 0 in the other branch would turn an infinity into NaN; the comparison this way round lets NaN through.
      CUSTOMLSTM_EACH_ROW(y = select_gt(zero, x, zero, x); if (WithDerivative) dy = select_gt(x, zero, one, zero));
    case ActivationKind::kAffine:
      CUSTOMLSTM_EACH_ROW(y = fma(alpha, x, beta); dy = alpha);
    case ActivationKind::kLeakyRelu:
      CUSTOMLSTM_EACH_ROW(y = select_gt(x, zero, x, alpha * x);
                          if (WithDerivative) dy = select_gt(x, zero, one, alpha));
    case ActivationKind::kThresholdedRelu:
      CUSTOMLSTM_EACH_ROW(y = select_ge(alpha, x, zero, x); if (WithDerivative) dy = select_gt(x, alpha, one, zero));
    case ActivationKind::kScaledTanh:
      CUSTOMLSTM_EACH_ROW(const V t = tanh(beta * x); y = alpha * t;
                          if (WithDerivative) dy = alpha * beta * (one - t * t));
    case ActivationKind::kHardSigmoid:
      CUSTOMLSTM_EACH_ROW(const V t = fma(alpha, x, beta); y = clamp(t, zero, one);
                          if (WithDerivative) dy = select_ge(t, zero, select_ge(one, t, alpha, zero), zero));
    case ActivationKind::kElu:
      CUSTOMLSTM_EACH_ROW(const V e = alpha * expm1(select_gt(x, zero, zero, x)); y = select_gt(x, zero, x, e);
                          if (WithDerivative) dy = select_gt(x, zero, one, e + alpha));
    case ActivationKind::kSoftsign:
      // 1 - |x| / (1 + |x|) would cancel; the limit at infinity is taken by hand, inf / inf being NaN.
      CUSTOMLSTM_EACH_ROW(const V d = one / (one + abs(x));
                          y = select_ge(zero, d, copysign(one, x), x * d);
                          if (WithDerivative) dy = d * d);
    case ActivationKind::kSoftplus:
      CUSTOMLSTM_EACH_ROW(const V e = exp(-abs(x)); y = select_gt(zero, x, zero, x) + log1p_unit(e);
                          if (WithDerivative) dy = sigmoid(x));
    case ActivationKind::kHardTanh:
      CUSTOMLSTM_EACH_ROW(y = clamp(x, alpha, beta);
                          if (WithDerivative) dy = select_ge(x, alpha, select_ge(beta, x, one, zero), zero));
    case ActivationKind::kIdentity:
      CUSTOMLSTM_EACH_ROW(y = x; dy = one);
    case ActivationKind::kPiecewiseLinear: {
      const V largest = V::broadcast(MathConstants<S>::kLargest);
      V x_start[R], y_start[R], slope[R];
      find_segments(f, value, x_start, y_start, slope);
      // A flat end times an infinity would be NaN, so the argument is kept finite.
      CUSTOMLSTM_EACH_ROW(y = fma(slope[r], clamp(x, -largest, largest) - x_start[r], y_start[r]); dy = slope[r]);
    }
  }
}

#undef CUSTOMLSTM_EACH_ROW

template <class S, int R>
CUSTOMLSTM_INLINE void activate(const Activation<S>& f, Pack<S, R>& value) {
  evaluate<false>(f, value, static_cast<Pack<S, R>*>(nullptr));
}
template <class S, int R>
CUSTOMLSTM_INLINE void activate(const Activation<S>& f, Pack<S, R>& value, Pack<S, R>& derivative) {
  evaluate<true>(f, value, &derivative);
}
