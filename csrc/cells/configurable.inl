// The LSTM whose activations and options are chosen at run time (customlstm.Cell). They are the same for every element
// of a call, so their branches are always predicted. See cells/README.md for the contract. No includes and no guard.

struct ConfigurableCell {
  static constexpr int kGates = 4;
  static constexpr int kStates = 1;
  static constexpr int kSaved = 4;        // the gates' values or pre-activations: see CellParams::saves_values
  static constexpr int kParameters = 3;   // peephole weights of i, f and o; of i and o where the gates are coupled

  template <class V, class S>
  static CUSTOMLSTM_INLINE void forward(const CellParams<S>& p, const V (&a)[kGates], const V* w,
                                        V (&state)[kStates], V& h, V (&saved)[kSaved]) {
    V o;
    forward_state(p, a, w, state, o, saved);
    forward_output(p, o, state[0], h);
  }

  // The two halves of it. Between them the state may be normalised; `o` is the gate through which it goes out.
  template <class V, class S>
  static CUSTOMLSTM_INLINE void forward_state(const CellParams<S>& p, const V (&a)[kGates], const V* w,
                                              V (&state)[kStates], V& o, V (&saved)[kSaved]) {
    V& c = state[0];
    V i = a[0], f = a[1], g = a[2];
    o = a[3];
    if (p.peephole) {
      i = fma(w[0], c, i);
      if (!p.coupled_gates) f = fma(w[1], c, f);
    }
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    apply(p.gate_clip, p.gate, i);   // replaces the argument by the value
    if (p.coupled_gates) {
      f = V::broadcast(S(1)) - i;
    } else {
      apply(p.gate_clip, p.gate, f);
    }
    apply(p.gate_clip, p.cell, g);
    if (p.saves_values) {
      saved[0] = i;
      saved[1] = f;
      saved[2] = g;
    }
    c = fma(f, c, i * g);
    if (is_on(p.cell_clip)) activate(p.cell_clip, c);
    if (p.peephole) o = fma(output_weight(p, w), c, o);
    saved[3] = o;
    apply(p.gate_clip, p.gate, o);
    if (p.saves_values) saved[3] = o;
  }
  // What forward_state saves of pre-activations, from the same pre-activations and the states before and after.
  template <class V, class S>
  static CUSTOMLSTM_INLINE void save(const CellParams<S>& p, const V (&a)[kGates], const V* w,
                                     const V (&before)[kStates], const V (&state)[kStates], V (&saved)[kSaved]) {
    for (int k = 0; k < kGates; ++k) saved[k] = a[k];
    if (!p.peephole) return;
    saved[0] = fma(w[0], before[0], a[0]);
    if (!p.coupled_gates) saved[1] = fma(w[1], before[0], a[1]);
    saved[3] = fma(output_weight(p, w), state[0], a[3]);
  }
  template <class V, class S>
  static CUSTOMLSTM_INLINE void forward_output(const CellParams<S>& p, const V& o, const V& shown, V& h) {
    V s = shown;
    activate(p.output, s);
    h = o * s;
  }

  template <class V, class S>
  static CUSTOMLSTM_INLINE void backward(const CellParams<S>& p, const V (&saved)[kSaved], const V* w,
                                         const V (&before)[kStates], const V (&state)[kStates], const V& dh,
                                         V (&dstate)[kStates], V (&da)[kGates], V* dw) {
    V outer, inner;
    backward_output(p, saved, state[0], dh, da[3], outer, inner);
    dstate[0] = fma(outer, inner, dstate[0]);
    backward_state(p, saved, w, before, state, dstate, da, dw);
  }

  // Its two halves. This one gives da[3], and the gradient of `shown` as the factors `outer` and `inner`.
  template <class V, class S>
  static CUSTOMLSTM_INLINE void backward_output(const CellParams<S>& p, const V (&saved)[kSaved], const V& shown,
                                                const V& dh, V& da_o, V& outer, V& inner) {
    V o = saved[3], s = shown, d_o;
    recall(p, p.gate, o, d_o);
    activate(p.output, s, inner);
    da_o = within(p.gate_clip, saved[3], dh * s * d_o);
    outer = dh * o;
  }
  // And this one, from da[3] and all of the gradient of the state but for the peephole's, the rest.
  template <class V, class S>
  static CUSTOMLSTM_INLINE void backward_state(const CellParams<S>& p, const V (&saved)[kSaved], const V* w,
                                               const V (&before)[kStates], const V (&state)[kStates],
                                               V (&dstate)[kStates], V (&da)[kGates], V* dw) {
    const V &c_prev = before[0], &c = state[0];
    V& dc = dstate[0];
    V i = saved[0], f = saved[1], g = saved[2];
    V di, df, dg;
    recall(p, p.gate, i, di);   // replaces what was saved by the value, the last argument by the derivative
    if (p.coupled_gates) {
      f = V::broadcast(S(1)) - i;
    } else {
      recall(p, p.gate, f, df);
    }
    recall(p, p.cell, g, dg);
    V dc_total = dc;
    if (p.peephole) dc_total = fma(da[3], output_weight(p, w), dc_total);
    dc_total = within(p.cell_clip, fma(f, c_prev, i * g), dc_total);
    if (p.coupled_gates) {
      da[0] = within(p.gate_clip, saved[0], dc_total * (g - c_prev) * di);
      da[1] = V::broadcast(S(0));
    } else {
      da[0] = within(p.gate_clip, saved[0], dc_total * g * di);
      da[1] = within(p.gate_clip, saved[1], dc_total * c_prev * df);
    }
    da[2] = within(p.gate_clip, saved[2], dc_total * i * dg);
    dc = dc_total * f;
    if (!p.peephole) return;
    dc = fma(da[0], w[0], dc);
    dw[0] = da[0] * c_prev;
    if (p.coupled_gates) {
      dw[1] = da[3] * c;
    } else {
      dc = fma(da[1], w[1], dc);
      dw[1] = da[1] * c_prev;
      dw[2] = da[3] * c;
    }
  }

 private:
  template <class S>
  static CUSTOMLSTM_INLINE bool is_on(const Activation<S>& clip) {
    return clip.kind != ActivationKind::kIdentity;
  }
  template <class V, class S>
  static CUSTOMLSTM_INLINE V output_weight(const CellParams<S>& p, const V* w) {
    if (p.coupled_gates) return w[1];   // a reference to either would keep both out of registers on a GPU
    return w[2];
  }
  // f(clip(x)), and the derivative of f there.
  template <class V, class S>
  static CUSTOMLSTM_INLINE void apply(const Activation<S>& clip, const Activation<S>& f, V& x) {
    if (is_on(clip)) activate(clip, x);
    activate(f, x);
  }
  // From what was saved of a gate to its value, and the derivative of f there.
  template <class V, class S>
  static CUSTOMLSTM_INLINE void recall(const CellParams<S>& p, const Activation<S>& f, V& x, V& derivative) {
    if (!p.saves_values) {
      if (is_on(p.gate_clip)) activate(p.gate_clip, x);
      activate(f, x, derivative);
    } else if (f.kind == ActivationKind::kTanh) {
      derivative = V::broadcast(S(1)) - x * x;
    } else {
      derivative = x * (V::broadcast(S(1)) - x);
    }
  }
  // The gradient of x from that of clip(x): zero, even where it is NaN, where the clip holds or x is NaN.
  template <class V, class S>
  static CUSTOMLSTM_INLINE V within(const Activation<S>& clip, V x, const V& gradient) {
    if (!is_on(clip)) return gradient;
    V inside;
    activate(clip, x, inside);
    return where_positive(inside, gradient);
  }
};
