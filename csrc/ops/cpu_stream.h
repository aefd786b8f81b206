// Streaming on the CPU: weights packed once, a state that is updated in place. What the ops in library.cpp call.
#pragma once

#include <string>
#include <vector>

#include "checks.h"

namespace customlstm {

// The weights of one direction of one layer, for batches of this size, and the cell: all that a step needs, in one
// tensor of bytes that is good for this process's instruction set only. weights: as in the op lstm_layer.
Tensor cpu_pack(const std::vector<Tensor>& weights, const std::string& cell, const std::vector<double>& cell_args,
                bool bias, bool projection, int64_t batch);

// Steps over input [T, B, L] from the state h [B, P], c [B, H], which becomes the state after it. Returns the output
// [T, B, P]: the very bits of lstm_layer on the whole sequence, in however many pieces it comes (16-bit types round
// the cell state between pieces). Nothing is differentiated.
Tensor cpu_stream(const Tensor& packed, const Tensor& input, const Tensor& h, const Tensor& c);

}  // namespace customlstm
