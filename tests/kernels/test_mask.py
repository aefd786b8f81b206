"""The operator that draws masks: its numbers are Philox's, on every instruction set and number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from customlstm import masks

GROUP = 128  # flags made at a time: words 0 of 32 blocks, then words 1 of them, and so on
WORDS = 1 << 32


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 (Salmon et al. 2011, section 3.3): four words of one block."""
    (a, b, c, d), (k, n) = counter, key
    for _ in range(10):
        even, odd = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (odd >> 32) ^ b ^ k, odd % WORDS, (even >> 32) ^ d ^ n, even % WORDS
        k, n = (k + 0x9E3779B9) % WORDS, (n + 0xBB67AE85) % WORDS
    return a, b, c, d


def draw(seed: int, sizes: tuple[int, ...], rate: float) -> Tensor:
    rows = torch.empty(*sizes[:-1], 0)
    return torch.ops.customlstm.draw_mask(torch.tensor([seed]), rows, sizes[-1], rate)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORDS - 1,) * 4, (WORDS - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Those that its authors publish with Random123."""
    assert philox(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63 - 1, -1])
@pytest.mark.parametrize("rate", [1e-9, 0.1, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("count", [1, 31, GROUP, GROUP + 1, 1000])
def test_every_flag_is_that_of_its_word(seed: int, rate: float, count: int) -> None:
    key = seed % WORDS, (seed >> 32) % WORDS
    blocks = [philox((block, 0, 0, 0), key) for block in range(-(-count // GROUP) * GROUP // 4)]
    places = (divmod(at, GROUP) for at in range(count))
    words = [blocks[group * GROUP // 4 + at % 32][at // 32] for group, at in places]
    expected = [word < round(rate * WORDS) for word in words]
    assert draw(seed, (count,), rate).tolist() == expected


@pytest.mark.parametrize("count", [2 * GROUP, 3_000_000, 3_000_001])
def test_threads_change_nothing(count: int, any_threads: None) -> None:
    masks_of = {}
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        masks_of[threads] = draw(7, (count,), 0.3)
    assert all(torch.equal(mask, masks_of[1]) for mask in masks_of.values())
    assert torch.equal(masks_of[1][: 2 * GROUP], draw(7, (2 * GROUP,), 0.3)), "a longer mask begins the same"


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_at_the_ends(rate: float) -> None:
    assert (draw(3, (5, 200), rate) == bool(rate)).all()


def test_sizes_and_kind() -> None:
    for sizes in [(3,), (0,), (2, 0, 4), (2, 3, 0), (4, 1, 2, 3)]:
        mask = draw(1, sizes, 0.5)
        assert mask.shape == sizes and mask.dtype == torch.bool and mask.is_contiguous()


def test_one_number_of_the_generator_makes_a_mask() -> None:
    torch.manual_seed(5)
    first, second = (masks.drawn([4, 50], 0.5, torch.empty(0)) for _ in range(2))
    after = torch.rand(3)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(masks.drawn([4, 50], 0.5, torch.empty(0)), first)
    torch.randint(2**63 - 1, [1])
    assert torch.equal(torch.rand(3), after)


def test_vmap_over_seeds_and_over_rows() -> None:
    operator = torch.ops.customlstm.draw_mask
    seeds, rows = torch.tensor([[4], [5], [6]]), torch.empty(3, 2, 7, 0)
    each = torch.stack([draw(seed, (2, 7, 9), 0.5) for seed in (4, 5, 6)])
    assert torch.equal(torch.func.vmap(lambda s: operator(s, rows[0], 9, 0.5))(seeds), each)
    both = torch.func.vmap(lambda s, r: operator(s, r, 9, 0.5), (0, 1))
    assert torch.equal(both(seeds, rows.movedim(0, 1)), each)
    one = torch.func.vmap(lambda r: operator(seeds[0], r, 9, 0.5))(rows)
    assert torch.equal(one, each[:1].expand(3, 2, 7, 9))


def test_bad_arguments() -> None:
    rows, seed = torch.empty(3, 0), torch.tensor([1])
    operator = torch.ops.customlstm.draw_mask
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(RuntimeError, match="rate must be a number from 0 to 1, got"):
            operator(seed, rows, 4, rate)
    with pytest.raises(RuntimeError, match=r"seed must be one int64 on the CPU, got float32 \[1\]"):
        operator(torch.ones(1), rows, 4, 0.5)
    with pytest.raises(RuntimeError, match=r"seed must be one int64 on the CPU, got int64 \[2\]"):
        operator(torch.tensor([1, 2]), rows, 4, 0.5)
    with pytest.raises(RuntimeError, match="width must be 0 or more, got -1"):
        operator(seed, rows, -1, 0.5)
    with pytest.raises(RuntimeError, match="rows must have the dimensions of the mask, got none"):
        operator(seed, torch.tensor(1.0), 4, 0.5)


def test_the_operator_is_sound() -> None:
    """Schema, fake kernel, functionalization: torch's own check of custom operators."""
    for rows in (torch.empty(3, 5, 0), torch.empty(0, 0)):
        torch.library.opcheck(torch.ops.customlstm.draw_mask.default, (torch.tensor([9]), rows, 6, 0.25))
