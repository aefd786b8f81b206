// The cell of torch.nn.LSTM: sigmoid gates, tanh elsewhere (Gers et al. 2000, without peepholes).
// See cells/README.md for the contract. No includes and no guard: this text is compiled once per instruction set.

struct StandardCell {
  static constexpr int kGates = 4;   // pre-activations, in nn.LSTM's order i, f, g, o
  static constexpr int kStates = 1;  // besides h: the cell state
  static constexpr int kSaved = 4;   // values kept for backward
  static constexpr int kParameters = 0;

  // a: pre-activations; w: the unit's parameters, of which there are none; state: replaced by the new one;
  // h: hidden state out; saved: out.
  template <class V, class S>
  static CUSTOMLSTM_INLINE void forward(const CellParams<S>&, const V (&a)[kGates], const V*, V (&state)[kStates],
                                        V& h, V (&saved)[kSaved]) {
    V& c = state[0];
    const V i = sigmoid(a[0]);
    const V f = sigmoid(a[1]);
    const V g = tanh(a[2]);
    const V o = sigmoid(a[3]);
    c = fma(f, c, i * g);
    h = o * tanh(c);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }

  // dh: gradient of h; dstate: gradient of the new cell state in, of the previous one out; da: gradients of a.
  template <class V, class S>
  static CUSTOMLSTM_INLINE void backward(const CellParams<S>&, const V (&saved)[kSaved], const V*,
                                         const V (&before)[kStates], const V (&state)[kStates], const V& dh,
                                         V (&dstate)[kStates], V (&da)[kGates], V*) {
    const V &c_prev = before[0], &c = state[0];
    V& dc = dstate[0];
    const V one = V::broadcast(S(1));
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = tanh(c);
    const V dc_total = fma(dh * o, one - tanh_c * tanh_c, dc);
    da[0] = dc_total * g * i * (one - i);
    da[1] = dc_total * c_prev * f * (one - f);
    da[2] = dc_total * i * (one - g * g);
    da[3] = dh * tanh_c * o * (one - o);
    dc = dc_total * f;
  }
};
