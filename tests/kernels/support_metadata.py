"""Run by test_hostile_metadata.py in a process of its own: calls of the operators that must be refused."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from support_ops import Case, LayerCall, make_call, ops

from customlstm import _binary

Attempt = Callable[[], Any]
INT64_MAX = 2**63 - 1
MEMORY = 24 * 2**30
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def attempts() -> Iterator[tuple[str, Attempt]]:
    """Name and call."""
    padded = make_call(Case(5, 4, 3, 8, 2, bidirectional=True, resets="some"))
    ragged = make_call(Case(5, 4, 3, 8, layout="lengths"))
    packed = make_call(Case(5, 4, 3, 8, layout="packed", resets="some"))
    for name, call in changed_layers(padded, ragged, packed):
        yield name, lambda call=call: forward(call)
        yield f"backward, {name}", lambda call=call: backward_of_another(call, padded, ragged, packed)
    yield from changed_saves(padded)
    yield from changed_gradients(padded)
    yield from changed_steps(make_call(Case(1, 4, 3, 8, 2)))


def forward(call: LayerCall) -> Any:
    with torch.no_grad():
        return ops.lstm_layer(*call.arguments(), 2)


def backward(call: LayerCall, results: Any, grads: Any, needs: Any) -> Any:
    with torch.no_grad():
        return ops.lstm_layer_backward(*grads, *call.arguments(), results[0], *results[3:], needs)


def backward_of_another(call: LayerCall, *valid: LayerCall) -> Any:
    """Backward of a bad call with what a good one saved."""
    good = valid[2] if call.batch_sizes is not None else valid[1] if call.lengths is not None else valid[0]
    results = forward(good)
    return backward(call, results, results[:4], [1] * (3 + len(call.weights)))


def changed_layers(
    padded: LayerCall, ragged: LayerCall, packed: LayerCall
) -> Iterator[tuple[str, LayerCall]]:
    def weights(call: LayerCall, index: int, value: torch.Tensor) -> LayerCall:
        return call.replace(weights=[value if k == index else w for k, w in enumerate(call.weights)])

    x, h, c, w = padded.input, padded.h_0, padded.c_0, padded.weights
    yield "input of 2 dimensions", padded.replace(input=x[0])
    yield "input of 4 dimensions", padded.replace(input=x.unsqueeze(0))
    yield "input of 0 dimensions", padded.replace(input=x.sum())
    yield "input of more features", padded.replace(input=torch.cat([x, x], -1))
    yield "input of no features", padded.replace(input=x[..., :0])
    yield "input of another dtype", padded.replace(input=x.float())
    yield "input of integers", padded.replace(input=x.long())
    yield "input complex", padded.replace(input=x.to(torch.complex128))
    yield "input sparse", padded.replace(input=x.to_sparse())
    yield "input on the meta device", padded.replace(input=x.to("meta"))
    yield "h_0 without c_0", padded.replace(c_0=None)
    yield "c_0 without h_0", padded.replace(h_0=None)
    yield "h_0 of another batch", padded.replace(h_0=h[:, :2])
    yield "h_0 of one direction", padded.replace(h_0=h[:1])
    yield "h_0 of 2 dimensions", padded.replace(h_0=h[0])
    yield "h_0 of another dtype", padded.replace(h_0=h.float())
    yield "c_0 of another size", padded.replace(c_0=h)
    yield "c_0 of another dtype", padded.replace(c_0=c.half())
    yield "no weights", padded.replace(weights=[])
    yield "one weight", padded.replace(weights=w[:1])
    yield "one weight missing", padded.replace(weights=w[:-1])
    yield "one weight too many", padded.replace(weights=[*w, w[0]])
    yield "weights of one direction", padded.replace(weights=w[:5])
    for index, name in enumerate(["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"]):
        for direction in (0, 5):
            at, side = index + direction, " reverse" if direction else ""
            yield f"{name}{side} of fewer rows", weights(padded, at, w[at][:-1])
            yield f"{name}{side} of more rows", weights(padded, at, torch.cat([w[at], w[at]]))
            yield f"{name}{side} of one more dimension", weights(padded, at, w[at].unsqueeze(-1))
            yield f"{name}{side} of another dtype", weights(padded, at, w[at].float())
            yield f"{name}{side} empty", weights(padded, at, w[at][:0])
            yield f"{name}{side} a number", weights(padded, at, w[at].sum())
    yield "all weights of no hidden unit", padded.replace(weights=[v[:0] for v in w])
    yield "bias that is not there", padded.replace(bias=False)
    yield "projection that is not there", ragged.replace(projection=True)
    yield "directions that are not there", ragged.replace(bidirectional=True)
    yield (
        "h smaller than the hidden size without projection",
        padded.replace(weights=[v for k, v in enumerate(w) if k % 5 != 4], projection=False),
    )

    lengths = ragged.lengths
    yield "lengths out of range", ragged.replace(lengths=lengths + 5)
    yield "lengths negative", ragged.replace(lengths=lengths - 1)
    yield "lengths enormous", ragged.replace(lengths=torch.full((4,), INT64_MAX))
    yield "lengths below everything", ragged.replace(lengths=torch.full((4,), -INT64_MAX - 1))
    yield "lengths too few", ragged.replace(lengths=lengths[:3])
    yield "lengths too many", ragged.replace(lengths=torch.cat([lengths, lengths]))
    yield "lengths a number", ragged.replace(lengths=torch.tensor(3))
    yield "lengths int32", ragged.replace(lengths=lengths.int())
    yield "lengths floating", ragged.replace(lengths=lengths.double())
    yield "lengths on the meta device", ragged.replace(lengths=lengths.to("meta"))
    yield "lengths with batch_sizes", packed.replace(lengths=torch.full((4,), 1))

    sizes = packed.batch_sizes
    rows = int(sizes.sum())
    assert rows > 4
    yield "batch_sizes growing", packed.replace(batch_sizes=torch.tensor([1, 2, rows - 3]))
    yield "batch_sizes larger than the batch", packed.replace(batch_sizes=torch.tensor([5, rows - 5]))
    yield "batch_sizes with a zero", packed.replace(batch_sizes=torch.cat([sizes, sizes[:1] * 0]))
    yield "batch_sizes negative", packed.replace(batch_sizes=torch.cat([sizes, -sizes[:1]]))
    yield "batch_sizes enormous", packed.replace(batch_sizes=torch.tensor([INT64_MAX, INT64_MAX]))
    yield (
        "batch_sizes that overflow to the right sum",
        packed.replace(batch_sizes=torch.tensor([INT64_MAX, INT64_MAX, rows + 2])),
    )
    yield "batch_sizes add up to less", packed.replace(batch_sizes=sizes[:1])
    yield "batch_sizes add up to more", packed.replace(batch_sizes=torch.full((rows + 3,), 1))
    yield "batch_sizes empty", packed.replace(batch_sizes=sizes[:0], resets=None)
    yield "batch_sizes of 2 dimensions", packed.replace(batch_sizes=sizes.unsqueeze(0))
    yield "batch_sizes int32", packed.replace(batch_sizes=sizes.int())
    yield "batch_sizes of padded input", padded.replace(batch_sizes=torch.full((5,), 4))
    yield "packed input without states", packed.replace(h_0=None, c_0=None)
    yield "packed input with 2-dimensional states", packed.replace(h_0=packed.h_0[0], c_0=packed.c_0[0])
    yield "packed input of 3 dimensions", packed.replace(input=packed.input.unsqueeze(0))
    yield "packed input without batch_sizes", packed.replace(batch_sizes=None)

    resets = padded.resets
    yield "resets too short", padded.replace(resets=resets[:-1])
    yield "resets turned round", padded.replace(resets=resets.t())
    yield "resets of 1 dimension", padded.replace(resets=resets[0])
    yield "resets of integers", padded.replace(resets=resets.long())
    yield "resets of bytes", padded.replace(resets=resets.to(torch.uint8))
    yield "resets of packed rows", packed.replace(resets=torch.zeros(rows, dtype=torch.bool))
    yield "resets on the meta device", padded.replace(resets=resets.to("meta"))

    masked = make_call(Case(5, 4, 3, 8, 2, bidirectional=True, dropout=0.5))
    mask = masked.recurrent_mask
    yield "recurrent_mask of one direction", masked.replace(recurrent_mask=mask[:1])
    yield "recurrent_mask of another size", masked.replace(recurrent_mask=mask[..., :1])
    yield "recurrent_mask turned round", masked.replace(recurrent_mask=mask.transpose(1, 2))
    yield "recurrent_mask of 2 dimensions", masked.replace(recurrent_mask=mask[0])
    yield "recurrent_mask of floats", masked.replace(recurrent_mask=mask.double())
    yield "recurrent_mask of bytes", masked.replace(recurrent_mask=mask.to(torch.uint8))
    yield "recurrent_mask on the meta device", masked.replace(recurrent_mask=mask.to("meta"))

    zoned = make_call(Case(5, 4, 3, 8, 2, bidirectional=True, zoneout="both masks"))
    for name in ("zoneout_h", "zoneout_c"):
        mask = getattr(zoned, name)
        yield f"{name} too short", zoned.replace(**{name: mask[:-1]})
        yield f"{name} of another size", zoned.replace(**{name: mask[..., :-1]})
        yield f"{name} of 2 dimensions", zoned.replace(**{name: mask[0]})
        yield f"{name} of bytes", zoned.replace(**{name: mask.to(torch.uint8)})
        yield f"{name} on the meta device", zoned.replace(**{name: mask.to("meta")})
        for rate in (-0.5, 1.5, float("nan")):
            yield f"{name}_rate {rate}", zoned.replace(**{f"{name}_rate": rate})

    yield "unknown cell", padded.replace(cell="gru")
    yield "cell without a name", padded.replace(cell="")
    yield "cell with a zero byte", padded.replace(cell="lstm\0x")
    args = padded.cell_args
    for length in range(len(args)):
        yield f"cell_args truncated to {length}", padded.replace(cell_args=args[:length])
    yield "cell_args with more at the end", padded.replace(cell_args=[*args, 1.0])
    nan, inf = float("nan"), float("inf")
    for options in (
        [2, 0, 0, 0],
        [0, 0.5, 0, 0],
        [nan, 0, 0, 0],
        [0, 0, -1, 0],
        [0, 0, 0, inf],
        [0, 0, nan, 0],
    ):
        yield f"options {options}", padded.replace(cell_args=[*args, *map(float, options)])
    yield "peepholes without weights", padded.replace(cell_args=[*args, 1.0, 0.0, 0.0, 0.0])
    peepholes = make_call(Case(cell="peephole", bidirectional=True))
    yield "no peepholes with their weights", peepholes.replace(cell_args=peepholes.cell_args[:-4])
    yield "a peephole weight too many", peepholes.replace(weights=[*peepholes.weights, peepholes.weights[-1]])
    for name, weight in {
        "of another size": peepholes.weights[-1][:-1],
        "of two dimensions": peepholes.weights[-1].unsqueeze(0),
        "of another dtype": peepholes.weights[-1].float(),
        "on the meta device": peepholes.weights[-1].to("meta"),
    }.items():
        yield f"peephole weight {name}", peepholes.replace(weights=[*peepholes.weights[:-1], weight])
    no_options = [0.0] * 4
    for mask in (0.0, 8.0, 1.5, -1.0, nan, inf, 2.0**40):
        yield f"layer_norm {mask}", padded.replace(cell_args=[*args, *no_options, mask])
    yield "more after layer_norm", padded.replace(cell_args=[*args, *no_options, 1.0, 1.0])
    yield "layer norms without weights", padded.replace(cell_args=[*args, *no_options, 7.0])
    normalised = make_call(Case(cell="layer norm", bidirectional=True))
    own = normalised.weights
    yield "no layer norms with their weights", normalised.replace(cell_args=args)
    yield "layer norm of one place less", normalised.replace(cell_args=[*normalised.cell_args[:-1], 3.0])
    exchanged = [*own[:4], *own[8:10], *own[6:]]
    yield "layer norm of the cell for that of gates", normalised.replace(weights=exchanged)
    for index, name in enumerate(normalised.weight_names(bidirectional=False)[4:], 4):
        for change, weight in {
            "too short": own[index][:-1],
            "of two dimensions": own[index].unsqueeze(0),
            "of another dtype": own[index].float(),
            "on the meta device": own[index].to("meta"),
        }.items():
            changed = [*own[:index], weight, *own[index + 1 :]]
            yield f"{name} {change}", normalised.replace(weights=changed)
            changed = [*own[: index + 10], weight, *own[index + 11 :]]
            yield f"{name}_reverse {change}", normalised.replace(weights=changed)
    for value in (-1.0, 14.0, 13.0, 0.5, 1e300, -1e300, nan, inf, -inf, float(2**31), float(2**63)):
        yield f"kind {value}", padded.replace(cell_args=[value, *args[1:]])
    for value in (-1.0, 1.0, 0.5, 1e300, nan, inf, -inf, float(2**62), float(2**63)):
        yield f"number of knots {value}", padded.replace(cell_args=[*args[:3], value, *args[4:]])
    rest = args[4:]
    for name, knots in {
        "one knot": [1, 0, 0],
        "knots that do not increase": [3, 0, 1, 1, 0, 0, 0],
        "knots that fall": [2, 1, 0, 0, 0],
        "knots of NaN": [2, nan, 1, 0, 0],
        "knots at infinity": [2, 0, inf, 0, 0],
        "values of NaN": [2, 0, 1, nan, 0],
        "values of infinity": [2, 0, 1, 0, -inf],
        "fewer knots than announced": [9, 0, 1, 0, 1],
        "more knots than there are numbers": [1e9, 0, 1, 0, 1],
    }.items():
        yield name, padded.replace(cell_args=[13.0, 0.0, 0.0, *map(float, knots), *rest])

    if not SANITIZED:  # AddressSanitizer ends the process at an allocation that cannot be had
        # Views of one element: nothing of these sizes exists.
        one = torch.zeros(1, 1, 1, dtype=torch.float64)
        plain = make_call(Case(1, 1, 1, 1, given=False))
        yield "2^40 steps", plain.replace(input=one.expand(2**40, 1, 1))
        yield "2^40 sequences", plain.replace(input=one.expand(1, 2**40, 1))
        yield "2^62 rows", plain.replace(input=one.expand(2**31, 2**31, 1))
        yield "2^40 rows", plain.replace(input=one.expand(2**20, 2**20, 1))
        yield (
            "2^60 features",
            weights(plain.replace(input=one.expand(1, 1, 2**60)), 0, one[0].expand(4, 2**60)),
        )


def changed_saves(call: LayerCall) -> Iterator[tuple[str, Attempt]]:
    for save in (-1, 3, 2**40):
        yield f"save is {save}", lambda save=save: ops.lstm_layer(*call.arguments(), save)


def changed_gradients(call: LayerCall) -> Iterator[tuple[str, Attempt]]:
    """Backward with what forward did not save, and with gradients of other sizes."""
    results, needs = forward(call), [1] * (3 + len(call.weights))
    nothing = [None] * 4
    grads = list(results[:4])

    def attempt(saved: dict[int, Any], given: Any = grads, needed: Any = needs) -> Attempt:
        changed = [saved.get(k, y) for k, y in enumerate(results)]
        return lambda: backward(call, changed, given, needed)

    with torch.no_grad():
        kept = [ops.lstm_layer(*call.arguments(), save) for save in (0, 1)]
    yield "c_all of save 0", attempt({3: kept[0][3]})
    yield "gates of save 0", attempt({4: kept[0][4]})
    yield "gates of save 1", attempt({4: kept[1][4]})
    yield "hidden of save 1", attempt({5: kept[1][5]})
    for index, name in [(0, "output"), (3, "c_all"), (4, "gates"), (5, "hidden")]:
        yield f"{name} of another dtype", attempt({index: results[index].float()})
        yield f"{name} of fewer steps", attempt({index: results[index][:-1]})
        yield f"{name} of more features", attempt({index: torch.cat([results[index]] * 2, -1)})
        yield f"{name} on the meta device", attempt({index: results[index].to("meta")})
    for index, name in enumerate(["grad_output", "grad_h_n", "grad_c_n", "grad_c_all"]):
        for change, value in {
            "of fewer steps": grads[index][:-1],
            "of another dtype": grads[index].float(),
            "of more features": torch.cat([grads[index]] * 2, -1),
            "empty": grads[index][:0],
            "on the meta device": grads[index].to("meta"),
        }.items():
            yield f"{name} {change}", attempt({}, [value if k == index else None for k in range(4)])
    yield "needs too short", attempt({}, grads, needs[:-1])
    yield "needs too long", attempt({}, grads, [*needs, 1])
    yield "needs empty", attempt({}, nothing, [])


def changed_steps(call: LayerCall) -> Iterator[tuple[str, Attempt]]:
    """The same of a single step."""
    x, h, c = call.input[0], call.h_0[0], call.c_0[0]
    options = ["lstm", call.cell_args, True, True]

    def attempt(
        x: Any = x, h: Any = h, c: Any = c, weights: Any = call.weights, more: Any = options
    ) -> Attempt:
        return lambda: ops.lstm_cell(x, h, c, weights, *more, 2)

    yield "step: input of 3 dimensions", attempt(x=x.unsqueeze(0))
    yield "step: input of 1 dimension", attempt(x=x[0])
    yield "step: input of another dtype", attempt(x=x.float())
    yield "step: h_0 of another batch", attempt(h=h[:1])
    yield "step: h_0 of 3 dimensions", attempt(h=h.unsqueeze(0))
    yield "step: h_0 of 1 dimension", attempt(h=h[0])
    yield "step: h_0 and c_0 exchanged", attempt(h=c, c=h)
    yield "step: c_0 a number", attempt(c=c.sum())
    yield "step: no weights", attempt(weights=[])
    yield "step: weights of two directions", attempt(weights=[*call.weights, *call.weights])
    yield "step: unknown cell", attempt(more=["gru", *options[1:]])
    yield "step: no cell_args", attempt(more=["lstm", [], True, True])
    results = ops.lstm_cell(x, h, c, call.weights, *options, 2)
    saved = [results[0], *results[2:]]
    arguments = [x, h, c, call.weights, *options]
    for name, change in {
        "h_1": [saved[0][:1], *saved[1:]],
        "c_all": [saved[0], saved[1][:1], *saved[2:]],
        "gates": [*saved[:2], saved[2][:, :3], saved[3]],
        "hidden": [*saved[:3], saved[3][..., :1]],
        "everything": [y[:0] for y in saved],
    }.items():
        yield (
            f"step: less of {name}",
            lambda change=change: ops.lstm_cell_backward(
                results[0], results[1], *arguments, *change, [1] * 8
            ),
        )
    for needs in ([], [1] * 7, [1] * 9):
        yield (
            f"step: {len(needs)} needs",
            lambda needs=needs: ops.lstm_cell_backward(results[0], results[1], *arguments, *saved, needs),
        )
    yield (
        "step: grad_h_1 of another size",
        lambda: ops.lstm_cell_backward(results[1], None, *arguments, *saved, [1] * 8),
    )


def main() -> None:
    if not SANITIZED:
        # An array of a size that nobody has must be refused, not filled until the system ends some process.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # Without the library the operators run the reference, which checks less and is not what is tested.
    assert _binary.status().loaded, _binary.status().reason
    names = set()
    for name, attempt in attempts():
        assert name not in names, name
        names.add(name)
        print(f"trying {name}", flush=True)
        try:
            attempt()
        except (RuntimeError, TypeError, IndexError, ValueError, MemoryError, NotImplementedError) as error:
            text = str(error).strip().replace("\n", " ")
            print(f"{name} refused: {text[:300]}" if text else f"WRONG: {name} refused without a text")
        except BaseException as error:
            print(f"WRONG: {name} raised {type(error).__name__}: {error}")
        else:
            print(f"WRONG: {name} was accepted")
    # and the process still computes
    ops.lstm_layer(*make_call(Case()).arguments(), 2)
    print("end of the table")


if __name__ == "__main__":
    sys.exit(main())
