// What the CPU and the CUDA side of an op share: its arguments, their check and their sizes.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cell_args.h"
#include "checks.h"
#include "sequences.h"

namespace customlstm {

// What stays the same between the layer and its backward: the arguments of the op, by reference.
struct LayerArguments {
  const Tensor& input;
  const std::optional<Tensor>& h_0;
  const std::optional<Tensor>& c_0;
  const std::vector<Tensor>& weights;
  const std::optional<Tensor>& batch_sizes;
  const std::optional<Tensor>& lengths;
  const std::optional<Tensor>& resets;
  const std::optional<Tensor>& recurrent_mask;
  const std::optional<Tensor>& zoneout_h;
  const std::optional<Tensor>& zoneout_c;
  const std::string& cell;
  const std::vector<double>& cell_args;
  bool bias, projection, bidirectional;
  double recurrent_scale, zoneout_h_rate, zoneout_c_rate;
};

struct SavedTensors {
  const Tensor& output;
  const Tensor& c_all;
  const Tensor& gates;
  const Tensor& hidden;
};

struct GradOutputs {
  const std::optional<Tensor>& output;
  const std::optional<Tensor>& h_n;
  const std::optional<Tensor>& c_n;
  const std::optional<Tensor>& c_all;
};

// output, h_n, c_n, c_all, gates, hidden. The states of a cell that has several besides h lie one after the other in
// the last dimension of c_0, c_n and c_all. save: 0 nothing kept, 1 c_all, 2 all that backward needs.
using LayerResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients of input, h_0, c_0 and each weight; needs says 0 or 1 for each of them in that order, and what is not
// needed comes back empty.
using LayerGradients = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

struct LayerSizes {
  int64_t steps;        // T
  int64_t batch;        // B
  int64_t rows;         // T * B, or the number of packed rows
  int64_t input_size;   // L
  int64_t hidden_size;  // H
  int64_t state_size;   // P: size of the hidden state h_t, H without projection
  int64_t directions;   // D
};

// The weights of one direction as contiguous arrays; what the call does not have is null.
struct WeightPointers {
  const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
  const void* unit_parameters[kMaxUnitParameters];
  struct {
    const void *gain, *bias;
  } norms[kNormPlaces];
};

// A checked call: every shape, dtype and device fits the others, weights and states are contiguous, the cell is known.
class LayerCall {
 public:
  // Throws std::runtime_error for anything that does not fit together.
  explicit LayerCall(const LayerArguments& arguments);

  ScalarType input_type() const { return arguments.input.scalar_type(); }
  ScalarType saved_type() const { return accumulation_type(type); }
  int64_t output_width() const { return size.directions * size.state_size; }
  int64_t hidden_width() const { return size.directions * size.hidden_size; }
  // Of the states that the cell keeps besides h, one after the other.
  int64_t cell_width() const { return cell.states() * hidden_width(); }
  WeightPointers weights(int64_t direction) const;
  // Where in the weights of a direction W_hr stands, and the first of the cell's per-unit parameters.
  int64_t w_hr_index() const { return arguments.bias ? 4 : 2; }
  int64_t first_unit_parameter() const { return w_hr_index() + (arguments.projection ? 1 : 0); }
  // bool [D, B, P] or null.
  const uint8_t* recurrent_mask() const { return static_cast<const uint8_t*>(recurrent_mask_.data()); }
  // bool [rows, D * P] and [rows, D * H] or null; the latter holds for every state of a unit.
  const uint8_t* zoneout_h() const { return static_cast<const uint8_t*>(zoneout_h_.data()); }
  const uint8_t* zoneout_c() const { return static_cast<const uint8_t*>(zoneout_c_.data()); }
  // Values a unit in the saved gates: those of the cell, and where zoneout mixes cell states the cell's own.
  int64_t saved_values() const {
    return cell.saved() + (arguments.zoneout_c.has_value() || arguments.zoneout_c_rate > 0 ? cell.states() : 0);
  }
  int64_t unit_parameters() const { return static_cast<int64_t>(cell.unit_parameters().size()); }
  // Where in the weights of a direction the gain of the layer norm of a place stands, its bias being the next.
  int64_t norm_index(int place) const;
  // Where in the weights of a direction those stand that are added to the gates, [gates * H] each, and so have one
  // gradient: both biases, and those of the layer norms of the products.
  std::vector<int64_t> added_to_gates() const;
  // Sizes of a tensor with rows, each of sizes `last`.
  std::vector<int64_t> rows_shape(std::initializer_list<int64_t> last) const;

  // What forward saved must be what forward would save for these very arguments, contiguous.
  void check_saved(const SavedTensors& saved) const;
  void check_grads(const GradOutputs& grads) const;
  void check_needs(const std::vector<int64_t>& needs) const;

  const LayerArguments& arguments;
  const StorageType type;
  const CellArgs cell;
  const Sequences sequences;
  LayerSizes size;
  int64_t per_direction;   // number of weights
  Contiguous h_0, c_0;

 private:
  void read_weights(int64_t direction);
  void read_recurrent_mask();
  void read_zoneout();
  std::vector<Contiguous> weights_;
  Contiguous recurrent_mask_, zoneout_h_, zoneout_c_;
};

// save of the forward ops
void check_save(int64_t save);

}  // namespace customlstm
