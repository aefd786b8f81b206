"""The CUDA recurrences on the host executor, as a layer: what surrounds them is done here in torch."""

import ctypes
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from customlstm.cells import AnyCell, Cell, own_parameters
from customlstm.cells.layer_norm import norm_parameters
from customlstm.launch_plan import VARIANTS, Tiling
from customlstm.reference import accumulation_dtype

MATHS = {"fma32": 0, "fma64": 1, "bf16": 2, "f16": 3, "tf32": 4}
DTYPES = {
    "fma32": torch.float32,
    "fma64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "tf32": torch.float32,
}
# Values of a unit among the sums of the gradients of layer norm; the bias is all that is added to the gates.
NORM_SLOTS, BIAS_SLOT = 14, 0
SLOTS = {"weight_ln_ih": 4, "weight_ln_hh": 8, "weight_ln_c": 12, "bias_ln_c": 13}
DEPTHS = {"fma32": 4, "fma64": 4, "bf16": 16, "f16": 16, "tf32": 8}
STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

_ROOT = Path(__file__).parents[2]


def sources(root: Path = _ROOT) -> list[tuple[Path, list[str]]]:
    """Sources of the library in a copy of the repository, each with its own flags."""
    native, device = root / "tests" / "cuda" / "native", root / "csrc" / "cuda" / "device"
    ours = ["-Wno-unknown-pragmas"]  # nvcc's unroll
    kinds = ("kFma32", "kFma64", "kBFloat16", "kFloat16", "kTf32")
    return [
        *[(native / "driver.cpp", [*ours, f"-DCUSTOMLSTM_MATH={kind}"]) for kind in kinds],
        (native / "recurrences.cpp", ours),
        *[(path, ["-O2"]) for path in sorted(device.glob("host_*.cpp"))],
    ]


def tile(
    variant: str, hidden: int, state: int, batch: int, units: int, column_tiles: int, warps: int, slices: int
) -> Tiling:
    """A tiling with ``units`` hidden units a block, and the batch in about ``slices`` slices."""
    unit_blocks = -(-hidden // units)
    width = 8 * column_tiles
    columns = width * -(-batch // (slices * width))
    state_rows = 0 if state == hidden else 16 * -(-state // (16 * unit_blocks))
    return Tiling(
        variant, units, state_rows, columns, column_tiles, warps, unit_blocks, max(1, -(-batch // columns)),
        unit_blocks if variant == "cluster" else 1,
    )  # fmt: skip


@dataclass
class Layer:
    """One layer's arguments. Weights in the order of the operators; lengths or batch_sizes or neither."""

    input: Tensor
    weights: list[Tensor]
    cell: AnyCell
    bias: bool
    projection: bool
    bidirectional: bool
    h_0: Tensor | None = None
    c_0: Tensor | None = None
    lengths: Tensor | None = None
    batch_sizes: Tensor | None = None
    resets: Tensor | None = None
    recurrent_mask: Tensor | None = None
    recurrent_scale: float = 1.0
    zoneout: tuple[Tensor | None, Tensor | None] = (None, None)
    zoneout_rates: tuple[float, float] = (0.0, 0.0)
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        directions = 2 if self.bidirectional else 1
        if self.batch_sizes is None:
            steps, batch = self.input.shape[:2]
            rows = steps * batch
        else:
            steps, batch, rows = len(self.batch_sizes), int(self.batch_sizes[0]), self.input.size(0)
        hidden, state = self.weights[1].size(0) // self.cell.gates, self.weights[1].size(1)
        self.sizes = [steps, batch, rows, hidden, state, directions, self.bias, self.projection]

    @property
    def kept_values(self) -> int:
        """Values of a unit that forward keeps for backward, without the one that zoneout adds."""
        products = [place for place in self.cell.layer_norm if place != "cell"]
        return 8 if products else 4

    @property
    def input_product(self) -> int:
        """Where among them W_ih x stands before the recurrence."""
        return 4 if self.cell.layer_norm[:2] in (("input",), ("input", "cell")) else 0

    @property
    def mixes_cells(self) -> bool:
        return self.zoneout[1] is not None or self.zoneout_rates[1] > 0

    @property
    def per_direction(self) -> int:
        return len(self.names)

    @property
    def names(self) -> list[str]:
        return [
            "w_ih",
            "w_hh",
            *(["b_ih", "b_hh"] if self.bias else []),
            *(["w_hr"] if self.projection else []),
            *own_parameters(self.cell),
        ]

    def weight(self, direction: int, name: str) -> Tensor | None:
        names = self.names
        return self.weights[direction * self.per_direction + names.index(name)] if name in names else None

    def to(self, dtype: torch.dtype) -> "Layer":
        def convert(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(dtype)

        return Layer(
            convert(self.input), [convert(w) for w in self.weights], self.cell, self.bias, self.projection,
            self.bidirectional, convert(self.h_0), convert(self.c_0), self.lengths, self.batch_sizes,
            self.resets, self.recurrent_mask, self.recurrent_scale, self.zoneout, self.zoneout_rates,
        )  # fmt: skip

    def sequences(self) -> list[Tensor | None]:
        """step_row, lengths, resets, the masks and their numbers as the kernels want them."""
        numbers = torch.tensor([self.recurrent_scale, *self.zoneout_rates], dtype=torch.float64)
        mask = [self.recurrent_mask, numbers, *self.zoneout]
        if self.batch_sizes is None:
            return [None, self.lengths, self.resets, *mask]
        row = torch.cumsum(self.batch_sizes, 0) - self.batch_sizes
        columns = torch.arange(int(self.batch_sizes[0]))
        return [row, (self.batch_sizes[:, None] > columns).sum(0), self.resets, *mask]


class HostKernels:
    """The library of :func:`sources`, called with torch tensors on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def _call(self, name: str, *args: object) -> None:
        error = ctypes.create_string_buffer(4000)
        if getattr(self.library, name)(*args, error, ctypes.c_int64(len(error))):
            raise RuntimeError(error.value.decode())

    def _run(
        self, name: str, layer: Layer, math: str, tiling: Tiling, arrays: list[Tensor | None], seed: int
    ) -> None:
        kept = [x if x is None else x.contiguous() for x in (*layer.sequences(), *_recurrent(layer), *arrays)]
        _, cell = layer.cell.encode()
        if not layer.cell.has_options:
            cell = [*cell, 0.0, 0.0, 0.0, 0.0]
        if not layer.cell.layer_norm:
            cell = [*cell, 0.0]
        kind = 2 if layer.cell.layer_norm else 0 if layer.cell == Cell() else 1
        numbers = [VARIANTS.index(tiling.variant), *astuple(tiling)[1:]]
        self._call(
            name, ctypes.c_int64(MATHS[math]), _longs(layer.sizes), _longs(numbers), _pointers(kept),
            ctypes.c_int64(kind), (ctypes.c_double * len(cell))(*cell), ctypes.c_uint64(seed),
        )  # fmt: skip

    def forward(self, layer: Layer, math: str, tiling: Tiling, seed: int, save: int = 2) -> dict[str, Tensor]:
        """output, h_n, c_n and what ``save`` keeps; poisoned where a kernel must write."""
        _, batch, rows, hidden, state, directions = layer.sizes[:6]
        dtype, sums = layer.input.dtype, accumulation_dtype(layer.input.dtype)
        ragged = layer.lengths is not None
        x = layer.input.reshape(rows, -1).to(sums)
        gates_x = torch.stack([x @ layer.weight(d, "w_ih").to(sums).T for d in range(directions)], 1)

        def rows_of(size: int, kind: torch.dtype) -> Tensor:
            fill = 0.0 if ragged else float("nan")
            return torch.full([rows, directions, size], fill, dtype=kind)

        result = {
            "output": rows_of(state, dtype),
            "h_n": torch.full([directions, batch, state], float("nan"), dtype=dtype),
            "c_n": torch.full([directions, batch, hidden], float("nan"), dtype=dtype),
            "c_all": rows_of(hidden, sums) if save >= 1 else None,
            "gates": None,
            "hidden": rows_of(hidden, sums) if save >= 2 and layer.projection else None,
        }
        if save >= 2:
            gates_x, result["gates"] = _gate_arrays(layer, gates_x, rows_of, seed)
        self._run(
            "customlstm_forward", layer, math, tiling, [gates_x, layer.h_0, layer.c_0, *result.values()], seed
        )
        return result

    def backward(
        self,
        layer: Layer,
        math: str,
        tiling: Tiling,
        seed: int,
        saved: dict[str, Tensor],
        grads: dict[str, Tensor | None],
        wants_initial: bool = True,
    ) -> dict[str, Tensor]:
        """Gradients of input, h_0 and c_0 (where ``wants_initial``), and each weight ("w0", "w1", ...)."""
        _, batch, rows, hidden, state, directions = layer.sizes[:6]
        dtype, sums = layer.input.dtype, accumulation_dtype(layer.input.dtype)
        fill = 0.0 if layer.lengths is not None else float("nan")
        grad_gates = torch.full([rows, directions, 4 * hidden], fill, dtype=dtype)
        of_products = bool({"input", "recurrent"} & set(layer.cell.layer_norm))
        grad_input_products = torch.full_like(grad_gates, fill) if of_products else None
        normalised = bool(layer.cell.layer_norm)
        norm_sums = torch.zeros([batch, directions, NORM_SLOTS, hidden], dtype=sums) if normalised else None
        grad_state = torch.full([rows, directions, state], fill, dtype=dtype) if layer.projection else None
        grad_h_0 = torch.full([directions, batch, state], float("nan"), dtype=dtype)
        grad_c_0 = torch.full([directions, batch, hidden], float("nan"), dtype=dtype)
        parameters = len(layer.cell.unit_parameters)
        grad_parameters = torch.full([rows, directions, parameters, hidden], fill, dtype=sums)
        arrays = [
            layer.c_0, saved["c_all"], saved["gates"], grads["output"], grads["h_n"], grads["c_n"],
            grads["c_all"], grad_gates, grad_state,
            grad_h_0 if wants_initial else None, grad_c_0 if wants_initial else None,
            grad_parameters if parameters else None, grad_input_products, norm_sums,
        ]  # fmt: skip
        self._run("customlstm_backward", layer, math, tiling, arrays, seed)
        previous = torch.full([directions, rows, state], float("nan"), dtype=dtype)
        kept = [*layer.sequences(), layer.h_0, saved["output"], previous]
        self._call(
            "customlstm_previous_hidden", ctypes.c_int64(STORAGE[dtype]), _longs(layer.sizes),
            _pointers(kept), ctypes.c_uint64(seed),
        )  # fmt: skip

        x = layer.input.reshape(rows, -1).to(sums)
        result = {"input": torch.zeros_like(x), "h_0": grad_h_0, "c_0": grad_c_0}
        for d in range(directions):
            da = grad_gates[:, d].to(sums)
            dx = da if grad_input_products is None else grad_input_products[:, d].to(sums)
            result["input"] += dx @ layer.weight(d, "w_ih").to(sums)
            own = [dx.T @ x, da.T @ previous[d].to(sums)]
            norms = None if norm_sums is None else norm_sums[:, d].sum(0)
            of_bias = da.sum(0) if norms is None else norms[BIAS_SLOT : BIAS_SLOT + 4].flatten()
            own += [of_bias, of_bias] if layer.bias else []
            if layer.projection:
                own.append(grad_state[:, d].to(sums).T @ saved["hidden"][:, d].to(sums))
            own += grad_parameters[:, d].sum(0).unbind()
            for name, size in norm_parameters(layer.cell.layer_norm).items():
                slot = SLOTS.get(name, BIAS_SLOT)
                own.append(norms[slot : slot + size].flatten())
            for k, grad in enumerate(own):
                result[f"w{d * layer.per_direction + k}"] = grad
        result["input"] = result["input"].reshape(layer.input.shape)
        return result

    def zero_padding(self, layer: Layer, rows: Tensor, seed: int) -> None:
        """Zeroes what lies beyond a length in ``rows`` [T, B, any size]."""
        row_bytes = rows[0, 0].numel() * rows.element_size()
        kept = [*layer.sequences(), rows]
        self._call(
            "customlstm_zero_padding", _longs(layer.sizes), _pointers(kept), ctypes.c_int64(row_bytes),
            ctypes.c_uint64(seed),
        )  # fmt: skip


def _gate_arrays(
    layer: Layer, gates_x: Tensor, rows_of: Callable[[int, torch.dtype], Tensor], seed: int
) -> tuple[Tensor, Tensor]:
    """Where W_ih x stands, and where what backward needs is kept: often the same array.

    Then a kernel must read before it writes. ``rows_of`` makes the array.
    """
    if not layer.cell.layer_norm and not layer.mixes_cells:
        return gates_x, gates_x
    hidden, values = layer.sizes[3], layer.kept_values + layer.mixes_cells
    gates = rows_of(values * hidden, gates_x.dtype)
    if not layer.cell.layer_norm or seed % 2:
        return gates_x, gates
    gates[..., layer.input_product * hidden :][..., : 4 * hidden] = gates_x
    return gates, gates


def _recurrent(layer: Layer) -> list[Tensor | None]:
    names = ["w_hh", "b_ih", "b_hh", "w_hr", *layer.cell.unit_parameters, None, None, None][:7]
    names += norm_parameters(("input", "recurrent", "cell"))
    return [layer.weight(d, name) if d < layer.sizes[5] else None for d in range(2) for name in names]


def _longs(values: list[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*map(int, values))


def _pointers(tensors: list[Tensor | None]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*[None if x is None else x.data_ptr() for x in tensors])
