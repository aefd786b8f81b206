"""Layer normalisation (Ba et al. 2016) in a cell: its places, its parameters, and all that a cell adds."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Union

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .options import Cell
    from .written import UserCell

__all__ = [
    "EPS", "INITIAL", "PLACES", "decode_places", "encode_places", "norm_parameters", "normalise",
    "own_parameters", "places",
]  # fmt: skip

#: Added to every variance; that of ``torch.nn.LayerNorm``.
EPS = 1e-5

#: Where a cell can normalise, in the order of the parameters, and what its parameters are called after.
PLACES = {"input": "ih", "recurrent": "hh", "cell": "c"}

#: What the parameters begin with: a gain of 1 and a bias of 0, so that no random number is drawn for them.
INITIAL = {
    f"{kind}_ln_{name}": start for name in PLACES.values() for kind, start in (("weight", 1.0), ("bias", 0.0))
}


def places(given: object) -> tuple[str, ...]:
    """``given``, one place or any iterable of them, as a tuple in the order of :data:`PLACES`.

    Raises:
        TypeError: ``given`` is neither a name nor an iterable of names.
        ValueError: a name that is no place.
    """
    expected = f"expected any of {', '.join(map(repr, PLACES))}, such as layer_norm=('input', 'recurrent')"
    if isinstance(given, str):
        given = (given,)
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Tensor)):
        raise TypeError(f"layer_norm names the places, got {given!r} ({type(given).__name__}); {expected}")
    names = list(given)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"layer_norm names the places, got {name!r} ({type(name).__name__}); {expected}")
        if name not in PLACES:
            raise ValueError(f"layer_norm: unknown place {name!r}; {expected}")
    return tuple(place for place in PLACES if place in names)


def encode_places(names: Iterable[str]) -> float:
    """The places as one number: 1 for input, 2 for recurrent and 4 for cell, added up."""
    return float(sum(1 << k for k, place in enumerate(PLACES) if place in names))


def decode_places(mask: float) -> tuple[str, ...]:
    """The places of which :func:`encode_places` gave ``mask``.

    Raises:
        ValueError: no place, or a number that :func:`encode_places` does not give.
    """
    if mask not in range(1, 1 << len(PLACES)):
        raise ValueError(f"cell_args: layer_norm is {mask}, expected a whole number from 1 to 7")
    return tuple(place for k, place in enumerate(PLACES) if int(mask) >> k & 1)


def norm_parameters(names: Iterable[str]) -> dict[str, int]:
    """Names of the gain and the bias of every place, with their sizes as multiples of hidden_size."""
    return {
        f"{kind}_ln_{PLACES[place]}": 1 if place == "cell" else 4
        for place in names
        for kind in ("weight", "bias")
    }


def own_parameters(cell: Union["Cell", "UserCell"]) -> dict[str, int]:
    """What ``cell`` adds to the parameters of every layer and direction, in the operators' order.

    Names with sizes as multiples of hidden_size: per-unit parameters, then those of layer normalisation.
    """
    return dict.fromkeys(cell.unit_parameters, 1) | norm_parameters(getattr(cell, "layer_norm", ()))


def normalise(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """``x`` with mean 0 and (biased) variance 1 over its last dimension, times ``gain`` plus ``bias``."""
    return F.layer_norm(x, gain.shape, gain, bias, EPS)
