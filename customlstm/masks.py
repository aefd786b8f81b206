"""Random masks for zoneout and dropout of states and weights, and the operator that draws them on a CPU."""

from typing import Any

import torch
from torch import Tensor

from . import _binary, schemas

_binary.load()  # which defines the operator, where there is a library
_library = torch.library.Library(schemas.NAMESPACE, "FRAGMENT")
_NAME = schemas.name_of(schemas.DRAW_MASK)
_QUALIFIED = f"{schemas.NAMESPACE}::{_NAME}"


def drawn(sizes: list[int], rate: float, like: Tensor) -> Tensor:
    """bool, True at this rate, on the device of ``like``.

    On a CPU one number of torch's generator is the seed of a mask. On other devices the mask is drawn as
    float32, whatever torch's default dtype is, which would change the rate; and not in place, which vmap
    refuses.

    Args:
        sizes: at least one. The last one may not change from call to call of a compiled program.
    """
    if like.device.type == "cpu":
        seed = torch.randint(0x7FFFFFFFFFFFFFFF, [1], dtype=torch.int64, device=like.device)
        rows = sizes[:-1]
        rows.append(0)
        return torch.ops.customlstm.draw_mask(
            seed, torch.empty(rows, dtype=torch.bool, device=like.device), sizes[-1], rate
        )
    return torch.rand(sizes, dtype=torch.float32, device=like.device) < rate


def _draw(seed: Tensor, rows: Tensor, width: int, rate: float) -> Tensor:
    """Where no library is loaded: other masks for a seed than the library's, as good ones, more slowly."""
    on_cpu = seed.device.type == "cpu" and rows.device.type == "cpu"
    if not on_cpu or seed.dtype != torch.int64 or seed.numel() != 1:
        raise RuntimeError(
            f"customlstm: seed must be one int64 on the CPU, as rows are, got {seed.dtype} "
            f"{list(seed.shape)} on {seed.device}, and rows on {rows.device}"
        )
    if rows.dim() < 1:
        raise RuntimeError("customlstm: rows must have the dimensions of the mask, got none")
    if width < 0:
        raise RuntimeError(f"customlstm: width must be 0 or more, got {width}")
    if not 0 <= rate <= 1:
        raise RuntimeError(f"customlstm: rate must be a number from 0 to 1, got {rate}")
    generator = torch.Generator().manual_seed(int(seed))
    return torch.rand(*rows.shape[:-1], width, dtype=torch.float32, generator=generator) < rate


def _fake(seed: Tensor, rows: Tensor, width: int, rate: float) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], width, dtype=torch.bool)


def _batched(
    info: Any, in_dims: Any, seed: Tensor, rows: Tensor, width: int, rate: float
) -> tuple[Tensor, int]:
    """vmap with randomness="different": one seed a sample. Of ``rows`` only the sizes count."""
    if in_dims[1] is not None:
        rows = rows.movedim(in_dims[1], 0)[0]
    if in_dims[0] is None:
        mask = torch.ops.customlstm.draw_mask(seed, rows, width, rate)
        return mask.expand(info.batch_size, *mask.shape), 0
    if info.batch_size == 0:
        return rows.new_empty(0, *rows.shape[:-1], width, dtype=torch.bool), 0
    seeds = seed.movedim(in_dims[0], 0)
    return torch.stack([torch.ops.customlstm.draw_mask(s, rows, width, rate) for s in seeds]), 0


if not hasattr(torch.ops.customlstm, _NAME):
    _library.define(schemas.DRAW_MASK)
_library.impl(_NAME, _draw, "CompositeExplicitAutograd")
torch.library.register_fake(_QUALIFIED, _fake, lib=_library)
torch.library.register_vmap(_QUALIFIED, _batched, lib=_library)
