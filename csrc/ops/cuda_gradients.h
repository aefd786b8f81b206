// Backward on the GPU after its recurrence: the gradients of the weights and of the input, which need no order of time,
// so each is one product or one sum over all rows.
#pragma once

#include "cuda_call.h"

namespace customlstm {

// What the recurrence leaves.
struct RecurrenceGradients {
  Tensor gates;            // [rows, D, G, H]: of the pre-activations, with layer norm of W_hh h
  Tensor input_products;   // of W_ih x, which is the same tensor where neither product is normalised
  Tensor parameters;       // [rows, D, unit parameters, H], or empty: not wanted
  Tensor state;            // [rows, D, P]: of the hidden state, before the projection's transpose
  Tensor norm_sums;        // see cuda_norm.h
};

// The gradients of the weights, in their order; empty where `needs` says 0.
std::vector<Tensor> weight_gradients(const CudaCall& call, const SavedTensors& saved, const RecurrenceGradients& from,
                                     const std::vector<int64_t>& needs);

// Of the input, or an empty tensor if it is not wanted.
Tensor input_gradient(const CudaCall& call, const RecurrenceGradients& from, bool wanted);

// Of a call without a row: the state's gradients pass through and all others are zero.
LayerGradients gradients_of_nothing(const CudaCall& call, const GradOutputs& grads, const std::vector<int64_t>& needs);

}  // namespace customlstm
