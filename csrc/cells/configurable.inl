// The LSTM whose activations are chosen at run time (customlstm.Cell). The kind is the same for every element of a
// call, so its branch is always predicted. See cells/README.md for the contract. No includes and no guard.

struct ConfigurableCell {
  static constexpr int kGates = 4;
  static constexpr int kSaved = 4;   // the pre-activations: a derivative cannot always be had from the result

  template <class V, class S>
  static CUSTOMLSTM_INLINE void forward(const CellParams<S>& p, const V (&a)[kGates], V& c, V& h, V (&saved)[kSaved]) {
    for (int k = 0; k < kGates; ++k) saved[k] = a[k];
    V i = a[0], f = a[1], g = a[2], o = a[3], s;
    activate(p.gate, i);
    activate(p.gate, f);
    activate(p.cell, g);
    activate(p.gate, o);
    c = fma(f, c, i * g);
    s = c;
    activate(p.output, s);
    h = o * s;
  }

  template <class V, class S>
  static CUSTOMLSTM_INLINE void backward(const CellParams<S>& p, const V (&saved)[kSaved], const V& c_prev, const V& c,
                                         const V& dh, V& dc, V (&da)[kGates]) {
    V i = saved[0], f = saved[1], g = saved[2], o = saved[3], s = c;
    V di, df, dg, d_o, ds;
    activate(p.gate, i, di);   // replaces the argument by the value, the last argument by the derivative
    activate(p.gate, f, df);
    activate(p.cell, g, dg);
    activate(p.gate, o, d_o);
    activate(p.output, s, ds);
    const V dc_total = fma(dh * o, ds, dc);
    da[0] = dc_total * g * di;
    da[1] = dc_total * c_prev * df;
    da[2] = dc_total * i * dg;
    da[3] = dh * s * d_o;
    dc = dc_total * f;
  }
};
