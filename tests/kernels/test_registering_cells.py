"""The compiled library takes the kernels of users' cells by a function of its own that no graph can name."""

import ctypes

import pytest
import torch

from customlstm import _binary
from customlstm.limits import MAX_GATES, MAX_PARAMETERS, MAX_SAVED, MAX_STATES

pytestmark = pytest.mark.skipif(
    not _binary.status().loaded, reason="no compiled library; a damaged one fails elsewhere"
)

Sizes = ctypes.c_int64 * 4
FILL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def register(name: str, sizes: tuple[int, ...], parameters: str = "", type_number: int = 0) -> str | None:
    function = ctypes.CDLL(_binary.status().path).customlstm_register_cell
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, *[ctypes.c_void_p] * 3]
    fill_sizes = FILL(lambda address: ctypes.memmove(address, Sizes(*sizes), ctypes.sizeof(Sizes)))
    nothing = FILL(lambda address: None)
    callbacks = [ctypes.cast(f, ctypes.c_void_p) for f in (fill_sizes, nothing, nothing)]
    error = function(name.encode(), parameters.encode(), type_number, *callbacks)
    return None if error is None else error.decode()


def test_no_operator_registers_cells() -> None:
    assert not any(
        "register" in name for name in torch._C._dispatch_get_all_op_names() if "customlstm" in name
    )


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0, 1, 1, 0), f"gates is 0, expected 1 to {MAX_GATES}"),
        ((MAX_GATES + 1, 1, 1, 0), f"gates is {MAX_GATES + 1}, expected 1 to {MAX_GATES}"),
        ((1, 0, 1, 0), f"states is 0, expected 1 to {MAX_STATES}"),
        ((1, MAX_STATES + 1, 1, 0), f"states is {MAX_STATES + 1}, expected 1 to {MAX_STATES}"),
        ((1, 1, 0, 0), f"saved is 0, expected 1 to {MAX_SAVED}"),
        ((1, 1, MAX_SAVED + 1, 0), f"saved is {MAX_SAVED + 1}, expected 1 to {MAX_SAVED}"),
        (
            (1, 1, 1, 2),
            f"has 2 unit parameters and 1 names of them, expected as many, and at most {MAX_PARAMETERS}",
        ),
    ],
)
def test_sizes_that_no_cell_has(sizes: tuple[int, ...], text: str) -> None:
    """The library's limits are those of the Python side."""
    assert (
        text in register("user.wrong", sizes, "p")[:200]
        if sizes[3]
        else text in register("user.wrong", sizes)
    )


def test_the_largest_cell() -> None:
    names = " ".join(f"p{k}" for k in range(MAX_PARAMETERS))
    assert register("user.largest", (MAX_GATES, MAX_STATES, MAX_SAVED, MAX_PARAMETERS), names) is None


def test_a_name_keeps_its_sizes() -> None:
    assert register("user.first", (2, 1, 3, 1), "p") is None
    assert register("user.first", (2, 1, 3, 1), "p") is None
    assert "a cell with other sizes is registered as user.first" in register("user.first", (3, 1, 3, 1), "p")
    assert "the name lstm is taken" in register("lstm", (4, 1, 4, 0))
    assert "type is 4, expected 0 to 3" in register("user.second", (4, 1, 4, 0), type_number=4)
