// One layer over a whole sequence, forward and backward, on CUDA tensors: what the ops in library.cpp call.
#pragma once

#include "layer_arguments.h"

namespace customlstm {

// On the current stream of the input's device, without waiting for it.
LayerResult cuda_layer_forward(const LayerArguments& arguments, int64_t save);

LayerGradients cuda_layer_backward(const LayerArguments& arguments, const SavedTensors& saved,
                                   const GradOutputs& grads, const std::vector<int64_t>& needs);

}  // namespace customlstm
