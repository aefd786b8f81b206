// The schemas of all ops, word for word those of customlstm/schemas.py (a test compares them): the Python side
// defines them itself where no library was compiled, so that a saved program loads in both installs.
#pragma once

#define CUSTOMLSTM_LAYER_SCHEMA                                                                              \
  "(Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, "        \
  "Tensor? resets, Tensor? recurrent_mask, Tensor? zoneout_h, Tensor? zoneout_c, str cell, "                 \
  "float[] cell_args, bool bias, bool projection, bool bidirectional, float recurrent_scale, "               \
  "float zoneout_h_rate, float zoneout_c_rate, int save) "                                                   \
  "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor c_all, Tensor gates, Tensor hidden)"

#define CUSTOMLSTM_LAYER_BACKWARD_SCHEMA                                                                     \
  "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_c_all, Tensor input, "             \
  "Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, Tensor? resets, "       \
  "Tensor? recurrent_mask, Tensor? zoneout_h, Tensor? zoneout_c, str cell, float[] cell_args, bool bias, "   \
  "bool projection, bool bidirectional, float recurrent_scale, float zoneout_h_rate, "                       \
  "float zoneout_c_rate, Tensor output, Tensor c_all, Tensor gates, Tensor hidden, int[] needs) "            \
  "-> (Tensor grad_input, Tensor grad_h_0, Tensor grad_c_0, Tensor[] grad_weights)"

#define CUSTOMLSTM_DRAW_MASK_SCHEMA \
  "(Tensor seed, Tensor rows, int width, float rate) -> Tensor mask"

#define CUSTOMLSTM_CELL_SCHEMA                                                                               \
  "(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, str cell, float[] cell_args, bool bias, "        \
  "bool projection, int save) -> (Tensor h_1, Tensor c_1, Tensor c_all, Tensor gates, Tensor hidden)"

#define CUSTOMLSTM_CELL_BACKWARD_SCHEMA                                                                      \
  "(Tensor? grad_h_1, Tensor? grad_c_1, Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, "            \
  "str cell, float[] cell_args, bool bias, bool projection, Tensor h_1, Tensor c_all, Tensor gates, "        \
  "Tensor hidden, int[] needs) "                                                                             \
  "-> (Tensor grad_input, Tensor grad_h_0, Tensor grad_c_0, Tensor[] grad_weights)"
