// One layer over a whole sequence, forward and backward, on CPU tensors: what the ops in library.cpp call.
#pragma once

#include "layer_arguments.h"

namespace customlstm {

LayerResult cpu_layer_forward(const LayerArguments& arguments, int64_t save);

LayerGradients cpu_layer_backward(const LayerArguments& arguments, const SavedTensors& saved, const GradOutputs& grads,
                                  const std::vector<int64_t>& needs);

}  // namespace customlstm
