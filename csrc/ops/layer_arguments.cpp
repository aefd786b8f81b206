#include "layer_arguments.h"

#include <cmath>

namespace customlstm {

namespace {

int64_t batch_of(const LayerArguments& a) {
  if (!a.batch_sizes) {
    check(a.input.dim() == 3, "input has shape ", shape_of(a.input), ", expected [steps, batch, features]");
    return a.input.size(1);
  }
  check(a.h_0.has_value() && a.h_0->dim() == 3, "with batch_sizes, h_0 and c_0 must be given: they say the batch");
  return a.h_0->size(1);
}

}  // namespace

void check_save(int64_t save) {
  check(save >= 0 && save <= 2, "save is ", save, ", expected 0 (nothing), 1 (cell states) or 2 (all for backward)");
}

LayerCall::LayerCall(const LayerArguments& a)
    : arguments(a),
      type(storage_type(a.input)),
      cell(a.cell, a.cell_args),
      sequences(a.input, batch_of(a), a.batch_sizes, a.lengths, a.resets) {
  size.directions = a.bidirectional ? 2 : 1;
  per_direction = norm_index(kNormPlaces);
  check(static_cast<int64_t>(a.weights.size()) == size.directions * per_direction, "weights has ", a.weights.size(),
        " tensors, expected ", size.directions * per_direction, " for this bias, projection, bidirectional and cell");
  size.steps = sequences.steps();
  size.batch = sequences.batch();
  size.rows = sequences.rows();
  size.input_size = a.input.size(a.input.dim() - 1);
  const Tensor& w_hh = a.weights[1];
  check(w_hh.dim() == 2 && w_hh.size(0) % cell.gates() == 0, "weight_hh has shape ", shape_of(w_hh), ", expected [",
        cell.gates(), " * hidden_size, size of the hidden state]");
  size.hidden_size = w_hh.size(0) / cell.gates();
  size.state_size = w_hh.size(1);
  check(size.hidden_size > 0 && size.state_size > 0, "weight_hh has shape ", shape_of(w_hh),
        ", expected no empty side");
  check(a.projection || size.state_size == size.hidden_size, "weight_hh has shape ", shape_of(w_hh),
        ", expected [", cell.gates(), " * hidden_size, hidden_size] without projection");
  for (int64_t d = 0; d < size.directions; ++d) read_weights(d);
  check(a.h_0.has_value() == a.c_0.has_value(), "h_0 and c_0 must be given both or neither");
  if (a.h_0) {
    check_like("h_0", *a.h_0, a.input);
    check_like("c_0", *a.c_0, a.input);
    check_shape("h_0", *a.h_0, {size.directions, size.batch, size.state_size});
    check_shape("c_0", *a.c_0, {size.directions, size.batch, cell.states() * size.hidden_size});
    h_0 = Contiguous(*a.h_0);
    c_0 = Contiguous(*a.c_0);
  }
  read_recurrent_mask();
  read_zoneout();
}

void LayerCall::read_recurrent_mask() {
  const LayerArguments& a = arguments;
  if (!a.recurrent_mask) return;
  check(same_device(*a.recurrent_mask, a.input), "recurrent_mask is on ", device_of(*a.recurrent_mask),
        ", but input is on ", device_of(a.input), "; move it there");
  check(a.recurrent_mask->scalar_type() == ScalarType::Bool, "recurrent_mask is ",
        name_of(a.recurrent_mask->scalar_type()), ", expected bool");
  check_shape("recurrent_mask", *a.recurrent_mask, {size.directions, size.batch, size.state_size});
  check(a.recurrent_scale > 0 && std::isfinite(a.recurrent_scale), "recurrent_scale is ", a.recurrent_scale,
        ", expected a positive number");
  recurrent_mask_ = Contiguous(*a.recurrent_mask);
}

void LayerCall::read_zoneout() {
  const auto read = [&](const char* name, const std::optional<Tensor>& mask, double rate, int64_t width) {
    check(rate >= 0 && rate <= 1, name, "_rate is ", rate, ", expected a number from 0 to 1");
    if (!mask) return Contiguous();
    check(same_device(*mask, arguments.input), name, " is on ", device_of(*mask), ", but input is on ",
          device_of(arguments.input), "; move it there");
    check(mask->scalar_type() == ScalarType::Bool, name, " is ", name_of(mask->scalar_type()), ", expected bool");
    const std::vector<int64_t>& rows = sequences.leading();
    if (rows.size() == 1) {
      check_shape(name, *mask, {rows[0], width});
    } else {
      check_shape(name, *mask, {rows[0], rows[1], width});
    }
    return Contiguous(*mask);
  };
  zoneout_h_ = read("zoneout_h", arguments.zoneout_h, arguments.zoneout_h_rate, output_width());
  zoneout_c_ = read("zoneout_c", arguments.zoneout_c, arguments.zoneout_c_rate, hidden_width());
}

int64_t LayerCall::norm_index(int place) const {
  int64_t index = first_unit_parameter() + unit_parameters();
  for (int before = 0; before < place; ++before) index += cell.norm(before) ? 2 : 0;
  return index;
}

std::vector<int64_t> LayerCall::added_to_gates() const {
  std::vector<int64_t> found;
  if (arguments.bias) found = {2, 3};
  for (const NormPlace place : {kNormInput, kNormRecurrent}) {
    if (cell.norm(place)) found.push_back(norm_index(place) + 1);
  }
  return found;
}

void LayerCall::read_weights(int64_t d) {
  const Tensor* w = &arguments.weights[d * per_direction];
  const int64_t gate_rows = cell.gates() * size.hidden_size;
  const auto read = [&](int64_t k, const char* weight, std::initializer_list<int64_t> shape) {
    const std::string name = std::string(weight) + (d == 0 ? "" : "_reverse");
    check_shape(name.c_str(), w[k], shape);
    check_like(name.c_str(), w[k], arguments.input);
    weights_.emplace_back(w[k]);
  };
  read(0, "weight_ih", {gate_rows, size.input_size});
  read(1, "weight_hh", {gate_rows, size.state_size});
  if (arguments.bias) {
    read(2, "bias_ih", {gate_rows});
    read(3, "bias_hh", {gate_rows});
  }
  if (arguments.projection) read(w_hr_index(), "weight_hr", {size.state_size, size.hidden_size});
  for (int64_t k = 0; k < unit_parameters(); ++k) {
    read(first_unit_parameter() + k, cell.unit_parameters()[k].c_str(), {size.hidden_size});
  }
  const char* const gains[kNormPlaces] = {"weight_ln_ih", "weight_ln_hh", "weight_ln_c"};
  const char* const biases[kNormPlaces] = {"bias_ln_ih", "bias_ln_hh", "bias_ln_c"};
  for (int place = 0; place < kNormPlaces; ++place) {
    if (!cell.norm(place)) continue;
    const int64_t values = place == kNormCell ? size.hidden_size : gate_rows;
    read(norm_index(place), gains[place], {values});
    read(norm_index(place) + 1, biases[place], {values});
  }
}

WeightPointers LayerCall::weights(int64_t d) const {
  const Contiguous* w = &weights_[d * per_direction];
  WeightPointers pointers = {w[0].data(), w[1].data(), arguments.bias ? w[2].data() : nullptr,
                             arguments.bias ? w[3].data() : nullptr,
                             arguments.projection ? w[w_hr_index()].data() : nullptr, {}, {}};
  for (int64_t k = 0; k < unit_parameters(); ++k) {
    pointers.unit_parameters[k] = w[first_unit_parameter() + k].data();
  }
  for (int place = 0; place < kNormPlaces; ++place) {
    if (cell.norm(place)) pointers.norms[place] = {w[norm_index(place)].data(), w[norm_index(place) + 1].data()};
  }
  return pointers;
}

std::vector<int64_t> LayerCall::rows_shape(std::initializer_list<int64_t> last) const {
  std::vector<int64_t> shape = sequences.leading();
  shape.insert(shape.end(), last);
  return shape;
}

void LayerCall::check_saved(const SavedTensors& saved) const {
  const auto check_one = [&](const char* name, const Tensor& tensor, int64_t width, ScalarType dtype) {
    check(same_device(tensor, arguments.input) && tensor.scalar_type() == dtype && tensor.is_contiguous() &&
              tensor.numel() == size.rows * width,
          name, " has shape ", shape_of(tensor),
          ", which is not what forward saved for this input; call forward with save=2");
  };
  check_one("output", saved.output, output_width(), input_type());
  check_one("c_all", saved.c_all, cell_width(), saved_type());
  check_one("gates", saved.gates, saved_values() * hidden_width(), saved_type());
  if (arguments.projection) check_one("hidden", saved.hidden, hidden_width(), saved_type());
}

void LayerCall::check_grads(const GradOutputs& grads) const {
  const auto check_one = [&](const char* name, const std::optional<Tensor>& grad, int64_t numel, ScalarType dtype) {
    if (!grad) return;
    check(same_device(*grad, arguments.input) && grad->scalar_type() == dtype && grad->numel() == numel, name,
          " has shape ", shape_of(*grad), ", expected ", numel, " values of ", name_of(dtype));
  };
  check_one("grad_output", grads.output, size.rows * output_width(), input_type());
  check_one("grad_h_n", grads.h_n, size.batch * output_width(), input_type());
  check_one("grad_c_n", grads.c_n, size.batch * cell_width(), input_type());
  check_one("grad_c_all", grads.c_all, size.rows * cell_width(), saved_type());
}

void LayerCall::check_needs(const std::vector<int64_t>& needs) const {
  const size_t expected = 3 + arguments.weights.size();
  check(needs.size() == expected, "needs has ", needs.size(), " values, expected ", expected,
        ": input, h_0, c_0 and each weight");
}

}  // namespace customlstm
