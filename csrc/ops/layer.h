// One layer over a whole sequence, forward and backward, on tensors: what the ops in library.cpp call.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"

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
  const std::string& cell;
  const std::vector<double>& cell_args;
  bool bias, projection, bidirectional;
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

// output, h_n, c_n, c_all, gates, hidden; save: 0 nothing kept, 1 c_all, 2 all that backward needs.
using LayerResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
LayerResult layer_forward(const LayerArguments& arguments, int64_t save);

// Gradients of input, h_0, c_0 and each weight; needs says 0 or 1 for each of them in that order, and what is not
// needed comes back empty.
using LayerGradients = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;
LayerGradients layer_backward(const LayerArguments& arguments, const SavedTensors& saved, const GradOutputs& grads,
                              const std::vector<int64_t>& needs);

}  // namespace customlstm
