// The functions of csrc/cuda/kernels.h on the host executor, for ctypes: plain arrays in, an error text out.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

#include "../../../csrc/cuda/device/host_executor.h"
#include "../../../csrc/cuda/dispatch.h"
#include "stream.h"

using namespace customlstm;
using namespace customlstm::cuda;

namespace {

// A cell from the op's own encoding: for each activation kind, alpha, beta, knots, then x and y of the knots; then the
// four options and the places of layer norm as powers of two, which here are never left out.
template <class S>
struct TestCell {
  CellParams<S> params = {};
  std::vector<S> tables;
  bool norms[kNormPlaces];

  explicit TestCell(const double* args) {
    Activation<S>* const activations[3] = {&params.gate, &params.cell, &params.output};
    const auto clip_to = [](double limit) -> Activation<S> {
      return {limit > 0 ? ActivationKind::kHardTanh : ActivationKind::kIdentity, 0, S(-limit), S(limit), nullptr,
              nullptr, nullptr};
    };
    std::vector<double> values;
    for (Activation<S>* f : activations) {
      const int n = int(args[3]);
      const double *x = args + 4, *y = x + n;
      const auto kind = static_cast<ActivationKind>(int(args[0]));
      *f = {kind, n > 0 ? n - 1 : 0, S(args[1]), S(args[2]), nullptr, nullptr, nullptr};
      for (int j = 0; j + 1 < n; ++j) values.push_back(x[j]);
      for (int j = 0; j + 1 < n; ++j) values.push_back(y[j]);
      for (int j = 0; j + 1 < n; ++j) values.push_back((y[j + 1] - y[j]) / (x[j + 1] - x[j]));
      args = y + n;
    }
    params.peephole = args[0] != 0;
    params.coupled_gates = args[1] != 0;
    params.gate_clip = clip_to(args[2]);
    params.cell_clip = clip_to(args[3]);
    for (int place = 0; place < kNormPlaces; ++place) norms[place] = int(args[4]) >> place & 1;
    tables.assign(values.begin(), values.end());
    const S* at = tables.data();
    for (Activation<S>* f : activations) {
      if (f->segments == 0) continue;
      f->x = at;
      f->y = f->x + f->segments;
      f->slope = f->y + f->segments;
      at = f->slope + f->segments;
    }
  }
};

Sizes read_sizes(const int64_t* s) { return {s[0], s[1], s[2], s[3], s[4], s[5], 4, 1, s[6] != 0, s[7] != 0}; }

Tiling read_tiling(const int64_t* t) {
  return {static_cast<Variant>(t[0]), int32_t(t[1]), int32_t(t[2]), int32_t(t[3]), int32_t(t[4]),
          int32_t(t[5]),              int32_t(t[6]), int32_t(t[7]), int32_t(t[8]), 4};
}

constexpr int kSequencePointers = 7;

Sequences read_sequences(void* const* p) {
  const double* const numbers = static_cast<const double*>(p[4]);
  return {static_cast<const int64_t*>(p[0]), static_cast<const int64_t*>(p[1]), static_cast<const uint8_t*>(p[2]),
          static_cast<const uint8_t*>(p[3]), numbers[0], {static_cast<const uint8_t*>(p[5]), numbers[1]},
          {static_cast<const uint8_t*>(p[6]), numbers[2]}};
}

// What forward and backward begin with; returns where their own arrays begin.
template <class Params>
void* const* read_layer(Params& p, const int64_t* sizes, void* const* pointers) {
  p.size = read_sizes(sizes);
  p.sequences = read_sequences(pointers);
  void* const* at = pointers + kSequencePointers;
  for (auto& w : p.weights) {
    w = {at[0], at[1], at[2], at[3], {at[4], at[5], at[6]}, {{at[7], at[8]}, {at[9], at[10]}, {at[11], at[12]}}};
    at += 13;
  }
  return at;
}

template <class F>
int guarded(char* error, int64_t size, const F& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(error, size_t(size), "%s", e.what());
    return 1;
  }
}

template <class S, class Params>
void run(MathKind math, Params& p, const Tiling& tiling, int64_t kind, const double* cell, uint64_t seed,
         int64_t (*workspace)(MathKind, const Params&, const Tiling&),
         void (*kernel)(MathKind, const Params&, const Tiling&, void*)) {
  const TestCell<S> test_cell(cell);
  const int32_t peepholes = !test_cell.params.peephole ? 0 : test_cell.params.coupled_gates ? 2 : 3;
  p.cell = {static_cast<CellKind>(kind), &test_cell.params, test_cell.tables.data(), int64_t(test_cell.tables.size()),
            peepholes, {}};
  std::copy(test_cell.norms, test_cell.norms + kNormPlaces, p.cell.norms);
  // Of any content, as an allocator returns it.
  std::vector<char> memory(size_t(workspace(math, p, tiling)) + 256, char(0xa5));
  p.workspace = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256);
  kernel(math, p, tiling, reinterpret_cast<void*>(uintptr_t(seed)));
}

}  // namespace

// pointers: step_row, lengths, resets, recurrent mask, three numbers (its scale and the rates of zoneout), the masks of
// zoneout of h and of c; w_hh, b_ih, b_hh, w_hr, three peephole weights, and gain and bias of the three layer norms of
// each of two directions; then the arrays of the struct. kind: a CellKind.
extern "C" int customlstm_forward(int64_t math, const int64_t* sizes, const int64_t* tiling, void* const* pointers,
                                  int64_t kind, const double* cell, uint64_t seed, char* error, int64_t size) {
  return guarded(error, size, [&] {
    ForwardParams p = {};
    void* const* at = read_layer(p, sizes, pointers);
    p.gates_x = at[0];
    p.h_0 = at[1];
    p.c_0 = at[2];
    p.output = at[3];
    p.h_n = at[4];
    p.c_n = at[5];
    p.c_all = at[6];
    p.gates = at[7];
    p.hidden = at[8];
    const MathKind arithmetic = static_cast<MathKind>(math);
    const auto runner = arithmetic == MathKind::kFma64 ? run<double, ForwardParams> : run<float, ForwardParams>;
    runner(arithmetic, p, read_tiling(tiling), kind, cell, seed, forward_workspace, forward);
  });
}

extern "C" int customlstm_backward(int64_t math, const int64_t* sizes, const int64_t* tiling, void* const* pointers,
                                   int64_t kind, const double* cell, uint64_t seed, char* error, int64_t size) {
  return guarded(error, size, [&] {
    BackwardParams p = {};
    void* const* at = read_layer(p, sizes, pointers);
    p.c_0 = at[0];
    p.c_all = at[1];
    p.gates = at[2];
    p.grad_output = at[3];
    p.grad_h_n = at[4];
    p.grad_c_n = at[5];
    p.grad_c_all = at[6];
    p.grad_gates = at[7];
    p.grad_state = at[8];
    p.grad_h_0 = at[9];
    p.grad_c_0 = at[10];
    p.grad_unit_parameters = at[11];
    p.grad_input_products = at[12];
    p.norm_sums = at[13];
    const MathKind arithmetic = static_cast<MathKind>(math);
    const auto runner = arithmetic == MathKind::kFma64 ? run<double, BackwardParams> : run<float, BackwardParams>;
    runner(arithmetic, p, read_tiling(tiling), kind, cell, seed, backward_workspace, backward);
  });
}

extern "C" int customlstm_zero_padding(const int64_t* sizes, void* const* pointers, int64_t row_bytes, uint64_t seed,
                                       char* error, int64_t size) {
  return guarded(error, size, [&] {
    HostLauncher launcher{seed};
    zero_padding(read_sizes(sizes), read_sequences(pointers), row_bytes, pointers[kSequencePointers], launcher);
  });
}

extern "C" int customlstm_previous_hidden(int64_t type, const int64_t* sizes, void* const* pointers, uint64_t seed,
                                          char* error, int64_t size) {
  return guarded(error, size, [&] {
    void* const* at = pointers + kSequencePointers;
    PreviousHiddenParams p = {read_sizes(sizes), read_sequences(pointers), at[0], at[1], at[2]};
    HostLauncher launcher{seed};
    switch (static_cast<StorageType>(type)) {
      case StorageType::kFloat32: return previous_hidden<float>(p, launcher);
      case StorageType::kFloat64: return previous_hidden<double>(p, launcher);
      case StorageType::kBFloat16: return previous_hidden<BFloat16>(p, launcher);
      case StorageType::kFloat16: return previous_hidden<Half>(p, launcher);
    }
  });
}
