#include "layer.h"

#include <algorithm>

#include "../cpu/plan.h"
#include "cell_args.h"
#include "sequences.h"

namespace customlstm {

namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

constexpr int64_t kGates = 4;
constexpr int64_t kSaved = 4;
constexpr int64_t kAlignment = 64;

// A checked call: sizes, contiguous weights and states, cell, plan.
class Call {
 public:
  explicit Call(const LayerArguments& a)
      : arguments(a),
        type(storage_type(a.input)),
        cell(a.cell, a.cell_args),
        sequences(a.input, batch_of(a), a.batch_sizes, a.lengths, a.resets) {
    check(a.input.is_cpu(), "input is not on the CPU; this kernel runs there only");
    g = {};
    g.directions = a.bidirectional ? 2 : 1;
    g.bias = a.bias;
    g.projection = a.projection;
    per_direction = 2 + (a.bias ? 2 : 0) + (a.projection ? 1 : 0);
    check(static_cast<int64_t>(a.weights.size()) == g.directions * per_direction, "weights has ", a.weights.size(),
          " tensors, expected ", g.directions * per_direction, " for this bias, projection and bidirectional");
    g.steps = sequences.steps();
    g.batch = batch_of(a);
    g.input_size = a.input.size(a.input.dim() - 1);
    const Tensor& w_hh = a.weights[1];
    check(w_hh.dim() == 2 && w_hh.size(0) % kGates == 0, "weight_hh has shape ", shape_of(w_hh),
          ", expected [4 * hidden_size, size of the hidden state]");
    g.hidden_size = w_hh.size(0) / kGates;
    g.output_size = w_hh.size(1);
    check(g.hidden_size > 0 && g.output_size > 0, "weight_hh has shape ", shape_of(w_hh), ", expected no empty side");
    check(a.projection || g.output_size == g.hidden_size, "weight_hh has shape ", shape_of(w_hh),
          ", expected [4 * hidden_size, hidden_size] without projection");
    for (int64_t d = 0; d < g.directions; ++d) read_weights(d);
    check(a.h_0.has_value() == a.c_0.has_value(), "h_0 and c_0 must be given both or neither");
    if (a.h_0) {
      check_like("h_0", *a.h_0, a.input);
      check_like("c_0", *a.c_0, a.input);
      check_shape("h_0", *a.h_0, {g.directions, g.batch, g.output_size});
      check_shape("c_0", *a.c_0, {g.directions, g.batch, g.hidden_size});
      h_0 = Contiguous(*a.h_0);
      c_0 = Contiguous(*a.c_0);
    }
    plan = plan_threads(g, static_cast<int>(torch::stable::get_num_threads()));
    sequences.fill(g, plan);
  }

  template <class Params>
  void fill(Params& p) const {
    p.g = g;
    p.plan = plan;
    for (int64_t d = 0; d < g.directions; ++d) {
      const Contiguous* w = &weights[d * per_direction];
      p.weights[d] = {w[0].data(), w[1].data(), g.bias ? w[2].data() : nullptr, g.bias ? w[3].data() : nullptr,
                      g.projection ? w[per_direction - 1].data() : nullptr};
    }
    p.cell_params = cell.params(type);
    p.input = arguments.input.const_data_ptr();
    p.h_0 = h_0.data();
    p.c_0 = c_0.data();
  }

  ScalarType saved_type() const { return accumulation_type(type); }

  // A tensor of the rows of the call, each of sizes `last`; zero beyond a length, otherwise the kernel's to fill.
  Tensor rows_tensor(std::initializer_list<int64_t> last, ScalarType dtype) const {
    std::vector<int64_t> shape = sequences.leading();
    size_t row = 1;
    for (const int64_t size : last) row *= static_cast<size_t>(size);
    shape.insert(shape.end(), last);
    Tensor tensor = new_empty(arguments.input, shape, dtype);
    sequences.zero_padding(tensor.mutable_data_ptr(), row * tensor.element_size());
    return tensor;
  }

  Tensor workspace(size_t bytes) const {
    return new_empty(arguments.input, {static_cast<int64_t>(bytes) + kAlignment}, ScalarType::Byte);
  }

  const LayerArguments& arguments;
  const StorageType type;
  const CellArgs cell;
  Sequences sequences;
  Geometry g;
  Plan plan;
  int64_t per_direction;

 private:
  static int64_t batch_of(const LayerArguments& a) {
    if (!a.batch_sizes) {
      check(a.input.dim() == 3, "input has shape ", shape_of(a.input), ", expected [steps, batch, features]");
      return a.input.size(1);
    }
    check(a.h_0.has_value() && a.h_0->dim() == 3, "with batch_sizes, h_0 and c_0 must be given: they say the batch");
    return a.h_0->size(1);
  }

  void read_weights(int64_t d) {
    static const char* const kNames[2][5] = {
        {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"},
        {"weight_ih_reverse", "weight_hh_reverse", "bias_ih_reverse", "bias_hh_reverse", "weight_hr_reverse"}};
    const Tensor* w = &arguments.weights[d * per_direction];
    const int64_t gate_rows = kGates * g.hidden_size;
    check_shape(kNames[d][0], w[0], {gate_rows, g.input_size});
    check_shape(kNames[d][1], w[1], {gate_rows, g.output_size});
    if (g.bias) {
      check_shape(kNames[d][2], w[2], {gate_rows});
      check_shape(kNames[d][3], w[3], {gate_rows});
    }
    if (g.projection) check_shape(kNames[d][4], w[per_direction - 1], {g.output_size, g.hidden_size});
    for (int64_t k = 0; k < per_direction; ++k) {
      const int64_t name = k == per_direction - 1 && g.projection ? 4 : k;
      check_like(kNames[d][name], w[k], arguments.input);
      weights.emplace_back(w[k]);
    }
  }

  std::vector<Contiguous> weights;
  Contiguous h_0, c_0;
};

void* align(const Tensor& workspace) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr());
  return reinterpret_cast<void*>((at + kAlignment - 1) / kAlignment * kAlignment);
}

template <class Params>
struct Launch {
  void (*kernel)(const Params&, Team&, int);
  const Params* params;
  static void body(void* context, Team& team, int rank) {
    const Launch& launch = *static_cast<const Launch*>(context);
    launch.kernel(*launch.params, team, rank);
  }
};

template <class Params>
void run(void (*kernel)(const Params&, Team&, int), const Params& params) {
  Launch<Params> launch = {kernel, &params};
  run_team(params.plan.threads, &Launch<Params>::body, &launch);
}

}  // namespace

LayerResult layer_forward(const LayerArguments& a, int64_t save) {
  check(save >= 0 && save <= 2, "save is ", save, ", expected 0 (nothing), 1 (cell states) or 2 (all for backward)");
  Call call(a);
  const Geometry& g = call.g;
  const auto allocate_rows = [&](bool want, std::initializer_list<int64_t> last, ScalarType type) {
    if (!want) return new_empty(a.input, {0}, type);
    return call.rows_tensor(last, type);
  };
  const ScalarType input_type = a.input.scalar_type();
  const bool keep_hidden = save == 2 && g.projection;
  Tensor output = allocate_rows(true, {g.directions * g.output_size}, input_type);
  Tensor h_n = new_empty(a.input, {g.directions, g.batch, g.output_size}, input_type);
  Tensor c_n = new_empty(a.input, {g.directions, g.batch, g.hidden_size}, input_type);
  Tensor c_all = allocate_rows(save >= 1, {g.directions * g.hidden_size}, call.saved_type());
  Tensor gates = allocate_rows(save == 2, {g.directions, kSaved, g.hidden_size}, call.saved_type());
  Tensor hidden = allocate_rows(keep_hidden, {g.directions * g.hidden_size}, call.saved_type());

  ForwardParams p = {};
  call.fill(p);
  p.output = output.mutable_data_ptr();
  p.h_n = h_n.mutable_data_ptr();
  p.c_n = c_n.mutable_data_ptr();
  p.c_all = save >= 1 ? c_all.mutable_data_ptr() : nullptr;
  p.gates = save == 2 ? gates.mutable_data_ptr() : nullptr;
  p.hidden = keep_hidden ? hidden.mutable_data_ptr() : nullptr;
  const int type = static_cast<int>(call.type), cell = static_cast<int>(call.cell.kind());
  const Tensor workspace = call.workspace(kernels().forward_workspace[type][cell](p));
  p.workspace = align(workspace);
  run(kernels().forward[type][cell], p);
  return {output, h_n, c_n, c_all, gates, hidden};
}

LayerGradients layer_backward(const LayerArguments& a, const SavedTensors& saved, const GradOutputs& grads,
                              const std::vector<int64_t>& needs) {
  Call call(a);
  const Geometry& g = call.g;
  const int64_t weight_count = static_cast<int64_t>(a.weights.size());
  check(static_cast<int64_t>(needs.size()) == 3 + weight_count, "needs has ", needs.size(), " values, expected ",
        3 + weight_count, ": input, h_0, c_0 and each weight");
  const ScalarType input_type = a.input.scalar_type(), saved_type = call.saved_type();

  // What forward saved must be what forward would save for these very arguments.
  const int64_t rows = call.sequences.rows();
  const auto check_saved = [&](const char* name, const Tensor& tensor, int64_t size, ScalarType type) {
    check(tensor.is_cpu() && tensor.scalar_type() == type && tensor.is_contiguous() && tensor.numel() == rows * size,
          name, " has shape ", shape_of(tensor), ", which is not what forward saved for this input; call forward with save=2");
  };
  const int64_t output_width = g.directions * g.output_size, hidden_width = g.directions * g.hidden_size;
  const Tensor output = saved.output.is_contiguous() ? saved.output : torch::stable::contiguous(saved.output);
  const Tensor c_all = saved.c_all.is_contiguous() ? saved.c_all : torch::stable::contiguous(saved.c_all);
  check_saved("output", output, output_width, input_type);
  check_saved("c_all", c_all, hidden_width, saved_type);
  check_saved("gates", saved.gates, kSaved * hidden_width, saved_type);
  if (g.projection) check_saved("hidden", saved.hidden, hidden_width, saved_type);

  const Contiguous grad_output(grads.output), grad_h_n(grads.h_n), grad_c_n(grads.c_n), grad_c_all(grads.c_all);
  const auto check_grad = [&](const char* name, const std::optional<Tensor>& grad, int64_t size, ScalarType type) {
    if (!grad) return;
    check(grad->is_cpu() && grad->scalar_type() == type && grad->numel() == size, name, " has shape ",
          shape_of(*grad), ", expected ", size, " values of ", name_of(type));
  };
  check_grad("grad_output", grads.output, rows * output_width, input_type);
  check_grad("grad_h_n", grads.h_n, g.batch * output_width, input_type);
  check_grad("grad_c_n", grads.c_n, g.batch * hidden_width, input_type);
  check_grad("grad_c_all", grads.c_all, rows * hidden_width, saved_type);

  const auto wanted = [&](bool want, const std::vector<int64_t>& shape, ScalarType type, bool zeros) {
    const std::vector<int64_t> size = want ? shape : std::vector<int64_t>{0};
    return zeros ? new_zeros(a.input, size, type) : new_empty(a.input, size, type);
  };
  Tensor grad_input = needs[0] ? call.rows_tensor({g.input_size}, input_type) : new_empty(a.input, {0}, input_type);
  Tensor grad_h_0 = wanted(needs[1], {g.directions, g.batch, g.output_size}, input_type, false);
  Tensor grad_c_0 = wanted(needs[2], {g.directions, g.batch, g.hidden_size}, input_type, false);

  BackwardParams p = {};
  call.fill(p);
  p.output = output.const_data_ptr();
  p.c_all = c_all.const_data_ptr();
  p.gates = saved.gates.const_data_ptr();
  p.hidden = g.projection ? saved.hidden.const_data_ptr() : nullptr;
  p.grad_output = grad_output.data();
  p.grad_h_n = grad_h_n.data();
  p.grad_c_n = grad_c_n.data();
  p.grad_c_all = grad_c_all.data();
  p.grad_input = needs[0] ? grad_input.mutable_data_ptr() : nullptr;
  p.grad_h_0 = needs[1] ? grad_h_0.mutable_data_ptr() : nullptr;
  p.grad_c_0 = needs[2] ? grad_c_0.mutable_data_ptr() : nullptr;
  const Tensor grad_gates = new_empty(a.input, {rows, kGates * hidden_width}, saved_type);
  p.grad_gates = grad_gates.mutable_data_ptr();
  const Tensor grad_hidden_state = new_empty(a.input, {g.projection ? rows * output_width : 0}, saved_type);
  p.grad_hidden_state = grad_hidden_state.mutable_data_ptr();

  // Weight gradients are summed in the accumulation type; both biases have the same one.
  const bool nothing_summed = g.valid_rows == 0;
  std::vector<Tensor> grad_weights;
  for (int64_t k = 0; k < weight_count; ++k) {
    const Tensor& weight = a.weights[k];
    std::vector<int64_t> shape(weight.dim());
    for (int64_t n = 0; n < weight.dim(); ++n) shape[n] = weight.size(n);
    grad_weights.push_back(wanted(needs[3 + k], shape, saved_type, nothing_summed));
  }
  for (int64_t d = 0; d < g.directions; ++d) {
    const int64_t first = d * call.per_direction;
    const auto pointer = [&](int64_t k) -> void* {
      return needs[3 + first + k] ? grad_weights[first + k].mutable_data_ptr() : nullptr;
    };
    auto& to = p.grad_weights[d];
    to.w_ih = pointer(0);
    to.w_hh = pointer(1);
    to.bias = !g.bias ? nullptr : pointer(2) ? pointer(2) : pointer(3);
    to.w_hr = g.projection ? pointer(call.per_direction - 1) : nullptr;
  }

  const int type = static_cast<int>(call.type), cell = static_cast<int>(call.cell.kind());
  const Tensor workspace = call.workspace(kernels().backward_workspace[type][cell](p));
  p.workspace = align(workspace);
  run(kernels().backward[type][cell], p);

  for (int64_t d = 0; g.bias && d < g.directions; ++d) {
    const int64_t ih = d * call.per_direction + 2, hh = ih + 1;
    if (needs[3 + ih] && needs[3 + hh]) torch::stable::copy_(grad_weights[hh], grad_weights[ih]);
  }
  if (saved_type != input_type) {
    for (Tensor& grad : grad_weights) grad = torch::stable::to(grad, input_type);
  }
  return {grad_input, grad_h_0, grad_c_0, grad_weights};
}

}  // namespace customlstm
