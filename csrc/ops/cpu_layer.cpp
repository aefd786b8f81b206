#include "cpu_layer.h"

#include <algorithm>
#include <iterator>

#include "dealt_sequences.h"
#include "run_kernel.h"
#include "scratch.h"
#include "threads.h"

namespace customlstm {

namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

Geometry geometry(const LayerCall& call) {
  Geometry g = {};
  g.steps = call.size.steps;
  g.batch = call.size.batch;
  g.input_size = call.size.input_size;
  g.hidden_size = call.size.hidden_size;
  g.output_size = call.size.state_size;
  g.directions = call.size.directions;
  g.gates = call.cell.gates();
  g.unit_parameters = call.unit_parameters();
  g.bias = call.arguments.bias;
  g.projection = call.arguments.projection;
  for (int place = 0; place < kNormPlaces; ++place) g.norms[place] = call.cell.norm(place);
  g.recurrent_mask = call.recurrent_mask();
  g.recurrent_scale = call.arguments.recurrent_scale;
  g.zoneout_h = {call.zoneout_h(), call.arguments.zoneout_h_rate};
  g.zoneout_c = {call.zoneout_c(), call.arguments.zoneout_c_rate};
  return g;
}

// A checked call with its plan for the threads.
class Call : public LayerCall {
 public:
  Call(const LayerArguments& a, bool backward)
      : LayerCall(checked(a)),
        g(geometry(*this)),
        plan(plan_call(g, backward)),
        dealt(sequences, a.input, plan) {
    dealt.fill(g);
  }

  template <class Params>
  void fill(Params& p) const {
    p.g = g;
    p.plan = plan;
    for (int64_t d = 0; d < g.directions; ++d) {
      const WeightPointers w = weights(d);
      p.weights[d] = {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr, {}, {}};
      std::copy(std::begin(w.unit_parameters), std::end(w.unit_parameters), p.weights[d].unit_parameters);
      for (int place = 0; place < kNormPlaces; ++place) {
        p.weights[d].norms[place] = {w.norms[place].gain, w.norms[place].bias};
      }
    }
    p.cell_params = cell.params(type);
    p.input = arguments.input.const_data_ptr();
    p.h_0 = h_0.data();
    p.c_0 = c_0.data();
  }

  // A tensor of the rows of the call, each of sizes `last`; zero beyond a length, otherwise the kernel's to fill.
  Tensor rows_tensor(std::initializer_list<int64_t> last, ScalarType dtype) const {
    size_t row = 1;
    for (const int64_t size : last) row *= static_cast<size_t>(size);
    Tensor tensor = new_empty(arguments.input, rows_shape(last), dtype);
    advise_large_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
    dealt.zero_padding(tensor.mutable_data_ptr(), row * tensor.element_size());
    return tensor;
  }

  Geometry g;
  const Plan plan;
  const DealtSequences dealt;

 private:
  static const LayerArguments& checked(const LayerArguments& a) {
    check(a.input.is_cpu(), "input is not on the CPU; this kernel runs there only");
    return a;
  }
};

}  // namespace

LayerResult cpu_layer_forward(const LayerArguments& a, int64_t save) {
  check_save(save);
  const Call call(a, false);
  const Geometry& g = call.g;
  const auto allocate_rows = [&](bool want, std::initializer_list<int64_t> last, ScalarType type) {
    if (!want) return new_empty(a.input, {0}, type);
    return call.rows_tensor(last, type);
  };
  const ScalarType input_type = a.input.scalar_type();
  const bool keep_hidden = save == 2 && g.projection;
  Tensor output = allocate_rows(true, {g.directions * g.output_size}, input_type);
  Tensor h_n = new_empty(a.input, {g.directions, g.batch, g.output_size}, input_type);
  const int64_t state_values = call.cell.states() * g.hidden_size;
  Tensor c_n = new_empty(a.input, {g.directions, g.batch, state_values}, input_type);
  Tensor c_all = allocate_rows(save >= 1, {g.directions * state_values}, call.saved_type());
  Tensor gates = allocate_rows(save == 2, {g.directions, call.saved_values(), g.hidden_size}, call.saved_type());
  Tensor hidden = allocate_rows(keep_hidden, {g.directions * g.hidden_size}, call.saved_type());

  ForwardParams p = {};
  call.fill(p);
  p.output = output.mutable_data_ptr();
  p.h_n = h_n.mutable_data_ptr();
  p.c_n = c_n.mutable_data_ptr();
  p.c_all = save >= 1 ? c_all.mutable_data_ptr() : nullptr;
  p.gates = save == 2 ? gates.mutable_data_ptr() : nullptr;
  p.hidden = keep_hidden ? hidden.mutable_data_ptr() : nullptr;
  const ForwardKernels& kernel = cpu_kernels(call.cell, call.type).forward;
  const Scratch workspace(kernel.workspace(p));
  p.workspace = workspace.data();
  run_kernel(kernel.run, p);
  return {output, h_n, c_n, c_all, gates, hidden};
}

LayerGradients cpu_layer_backward(const LayerArguments& a, const SavedTensors& saved, const GradOutputs& grads,
                                  const std::vector<int64_t>& needs) {
  const Call call(a, true);
  const Geometry& g = call.g;
  call.check_needs(needs);
  const int64_t weight_count = static_cast<int64_t>(a.weights.size());
  const ScalarType input_type = call.input_type(), saved_type = call.saved_type();
  const Tensor output = saved.output.is_contiguous() ? saved.output : torch::stable::contiguous(saved.output);
  const Tensor c_all = saved.c_all.is_contiguous() ? saved.c_all : torch::stable::contiguous(saved.c_all);
  call.check_saved({output, c_all, saved.gates, saved.hidden});
  call.check_grads(grads);
  const Contiguous grad_output(grads.output), grad_h_n(grads.h_n), grad_c_n(grads.c_n), grad_c_all(grads.c_all);

  const auto wanted = [&](bool want, const std::vector<int64_t>& shape, ScalarType type, bool zeros) {
    const std::vector<int64_t> size = want ? shape : std::vector<int64_t>{0};
    return zeros ? new_zeros(a.input, size, type) : new_empty(a.input, size, type);
  };
  Tensor grad_input = needs[0] ? call.rows_tensor({g.input_size}, input_type) : new_empty(a.input, {0}, input_type);
  Tensor grad_h_0 = wanted(needs[1], {g.directions, g.batch, g.output_size}, input_type, false);
  Tensor grad_c_0 = wanted(needs[2], {g.directions, g.batch, call.cell.states() * g.hidden_size}, input_type, false);

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

  // Weight gradients are summed in the accumulation type. Both biases have the same one, and with them those of the
  // layer norms of the products: it is summed once and copied.
  const bool nothing_summed = g.valid_rows == 0;
  std::vector<Tensor> grad_weights;
  for (int64_t k = 0; k < weight_count; ++k) {
    const Tensor& weight = a.weights[k];
    std::vector<int64_t> shape(weight.dim());
    for (int64_t n = 0; n < weight.dim(); ++n) shape[n] = weight.size(n);
    grad_weights.push_back(wanted(needs[3 + k], shape, saved_type, nothing_summed));
  }
  const std::vector<int64_t> biases = call.added_to_gates();
  for (int64_t d = 0; d < g.directions; ++d) {
    const int64_t first = d * call.per_direction;
    const auto pointer = [&](int64_t k) -> void* {
      return needs[3 + first + k] ? grad_weights[first + k].mutable_data_ptr() : nullptr;
    };
    auto& to = p.grad_weights[d];
    to.w_ih = pointer(0);
    to.w_hh = pointer(1);
    for (const int64_t k : biases) {
      if (to.bias == nullptr) to.bias = pointer(k);
    }
    for (int place = 0; place < kNormPlaces; ++place) {
      if (g.norms[place]) to.norms[place] = {pointer(call.norm_index(place)), pointer(call.norm_index(place) + 1)};
    }
    to.w_hr = g.projection ? pointer(call.w_hr_index()) : nullptr;
    for (int64_t k = 0; k < g.unit_parameters; ++k) to.unit_parameters[k] = pointer(call.first_unit_parameter() + k);
  }

  const BackwardKernels& kernel = cpu_kernels(call.cell, call.type).backward;
  const Scratch workspace(kernel.workspace(p));
  p.workspace = workspace.data();
  run_kernel(kernel.run, p);

  for (int64_t d = 0; d < g.directions; ++d) {
    const Tensor* summed = nullptr;
    for (const int64_t k : biases) {
      const int64_t at = d * call.per_direction + k;
      if (!needs[3 + at]) continue;
      if (summed != nullptr) torch::stable::copy_(grad_weights[at], *summed);
      if (summed == nullptr) summed = &grad_weights[at];
    }
  }
  if (saved_type != input_type) {
    for (Tensor& grad : grad_weights) grad = torch::stable::to(grad, input_type);
  }
  return {grad_input, grad_h_0, grad_c_0, grad_weights};
}

}  // namespace customlstm
