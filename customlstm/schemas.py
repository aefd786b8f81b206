"""Schema strings of the operators in the ``customlstm`` namespace.

The compiled library defines the same schemas from ``csrc/ops/schema.h``; the two texts must be equal.
Where no library is loaded, :mod:`customlstm.ops` defines them from here, so that the operators exist in every
installation.

Sizes: T steps, B sequences, N packed rows, L input features, H hidden size, P state size (``proj_size`` or
H), D directions. See :mod:`customlstm.reference` for what the operators compute.
"""

NAMESPACE = "customlstm"

LSTM_LAYER = (
    "lstm_layer(Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor? batch_sizes, "
    "Tensor? lengths, Tensor? resets, Tensor? recurrent_mask, Tensor? zoneout_h, Tensor? zoneout_c, "
    "str cell, float[] cell_args, bool bias, bool projection, bool bidirectional, float recurrent_scale, "
    "float zoneout_h_rate, float zoneout_c_rate, int save) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor c_all, Tensor gates, Tensor hidden)"
)

LSTM_LAYER_BACKWARD = (
    "lstm_layer_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_c_all, "
    "Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, "
    "Tensor? resets, Tensor? recurrent_mask, Tensor? zoneout_h, Tensor? zoneout_c, str cell, "
    "float[] cell_args, bool bias, bool projection, bool bidirectional, float recurrent_scale, "
    "float zoneout_h_rate, float zoneout_c_rate, Tensor output, Tensor c_all, Tensor gates, Tensor hidden, "
    "int[] needs) "
    "-> (Tensor grad_input, Tensor grad_h_0, Tensor grad_c_0, Tensor[] grad_weights)"
)

LSTM_CELL = (
    "lstm_cell(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, str cell, float[] cell_args, "
    "bool bias, bool projection, int save) "
    "-> (Tensor h_1, Tensor c_1, Tensor c_all, Tensor gates, Tensor hidden)"
)

LSTM_CELL_BACKWARD = (
    "lstm_cell_backward(Tensor? grad_h_1, Tensor? grad_c_1, Tensor input, Tensor h_0, Tensor c_0, "
    "Tensor[] weights, str cell, float[] cell_args, bool bias, bool projection, Tensor h_1, Tensor c_all, "
    "Tensor gates, Tensor hidden, int[] needs) "
    "-> (Tensor grad_input, Tensor grad_h_0, Tensor grad_c_0, Tensor[] grad_weights)"
)

# Zoneout and dropout draw with it; see csrc/ops/mask_op.cpp.
DRAW_MASK = "draw_mask(Tensor seed, Tensor rows, int width, float rate) -> Tensor mask"

SCHEMAS = (LSTM_LAYER, LSTM_LAYER_BACKWARD, LSTM_CELL, LSTM_CELL_BACKWARD, DRAW_MASK)


def name_of(schema: str) -> str:
    """``"lstm_layer(Tensor input, ...) -> ..."`` gives ``"lstm_layer"``."""
    return schema.partition("(")[0]


def reference_of(schema: str) -> str:
    """The schema of the twin operator that always runs the reference: ``lstm_layer_reference`` and so on."""
    name = name_of(schema)
    base, backward = name.removesuffix("_backward"), name.endswith("_backward")
    return f"{base}_reference{'_backward' if backward else ''}{schema[len(name) :]}"
