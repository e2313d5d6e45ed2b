"""How a backend is held against the reference.

The reference runs twice: on the inputs in float64 it is the truth, on the inputs as they are it is the yardstick. A
backend may be off by twice the yardstick's error plus one rounding of the output, and by no more.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mtkernels.backends import reference
from mtkernels.testing._ops import Op

__all__ = ["check"]


# Larger tensors of a GPU meet the reference there, where it is quick; smaller ones in host memory.
_ON_HOST = 16 * 1024


def check(
    op: Op,
    backend: ModuleType,
    make_inputs: Callable[[int], tuple],
    *,
    draws: int = 64,
    least: int = 2,
    **options,
) -> None:
    """Asserts that a backend is no worse than the reference on the same inputs, and that it leaves them as they are.

    make_inputs(seed) gives the inputs. The largest error of few numbers is luck: small cases are drawn again and again,
    `draws` times at most. least: draws of large cases where few of the numbers decide, as the largest classes of a row.
    """
    inputs, numbers = [], 0
    while len(inputs) < least or (len(inputs) < draws and numbers < 1024 * 64):
        inputs.append(make_inputs(len(inputs)))
        drawn = sum(tensor.numel() for tensors in inputs[-1] for tensor in tensors)
        numbers += 1024 + drawn if drawn else 1024 * 64  # of none no second is different
    flat = [tensors for lists in inputs for tensors in lists]
    # augment's matrices are made where the draws are, and not of the same bits.
    on_host = op.name != "augment" and all(
        tensor.device.type != "cpu" and tensor.numel() <= _ON_HOST for of in flat for tensor in of
    )
    copied = _on_host if on_host else _clones
    before = copied(flat)
    outputs = [op.call(backend, lists, **options) for lists in inputs]
    after = copied(flat) if on_host else flat
    assert all(
        torch.equal(_bits(tensor), _bits(copy))
        for tensors, copies in zip(after, before, strict=True)
        for tensor, copy in zip(tensors, copies, strict=True)
    ), f"{op.name} wrote to an input"
    if on_host:
        outputs, lists = _on_host(outputs), iter(before)
        inputs = [tuple(next(lists) for _ in drawn) for drawn in inputs]
    runs = [_measured(op, ours, drawn, options) for ours, drawn in zip(outputs, inputs, strict=True)]
    for index, of_output in enumerate(zip(*runs, strict=True)):
        _judge(f"{op.name} output {index}", of_output)


def _on_host(lists: list[list[Tensor]]) -> list[list[Tensor]]:
    """Copies in host memory, by one transfer for each dtype: processes that share a GPU wait for each other at each."""
    tensors = {tensor.dtype: [] for tensors in lists for tensor in tensors}
    for tensor in itertools.chain.from_iterable(lists):
        tensors[tensor.dtype].append(tensor)
    parts = {
        dtype: iter(torch.cat([t.reshape(-1) for t in of]).cpu().split([t.numel() for t in of]))
        for dtype, of in tensors.items()
    }
    return [[next(parts[tensor.dtype]).view(tensor.shape) for tensor in of] for of in lists]


def _clones(lists: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[tensor.clone() for tensor in tensors] for tensors in lists]


def _judge(name: str, runs: tuple["_Run", ...]) -> None:
    yardstick = max(run.yardstick_error for run in runs)
    for run in runs:
        if not run.error.numel():
            continue
        excess = (run.error - 2 * yardstick - run.rounding).max()
        assert excess <= 0, (
            f"{name}: off by {run.error.max():.3g} where the reference is off by {yardstick:.3g}"
        )


@dataclass(frozen=True)
class _Run:
    error: Tensor  # of each finite element of one output
    rounding: Tensor  # half a unit in the last place of the truth
    yardstick_error: float  # the largest


def _measured(op: Op, outputs: list[Tensor], inputs, options) -> list[_Run]:
    truths = op.call(reference, _as(inputs, torch.float64), **options)
    yardsticks = op.call(reference, inputs, **options)
    scale = 1.0
    if any(tensor.dtype == torch.float64 for tensors in inputs for tensor in tensors):
        # The truth is no better than float64: the yardstick is the float32 run scaled to float64's last place, and
        # counts once more for the truth.
        narrow = _as(inputs, torch.float32)
        scale = 2 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        narrow_truths = op.call(reference, _as(narrow, torch.float64), **options)
        errors = [
            (y.double() - t).abs()
            for y, t in zip(op.call(reference, narrow, **options), narrow_truths, strict=True)
        ]
    else:
        errors = [(y.double() - t).abs() for y, t in zip(yardsticks, truths, strict=True)]
    return [_measure(*row, scale) for row in zip(outputs, truths, yardsticks, errors, strict=True)]


def _measure(output: Tensor, truth: Tensor, yardstick: Tensor, error: Tensor, scale: float) -> _Run:
    assert output.dtype == yardstick.dtype, (
        f"dtype {output.dtype} where the reference gives {yardstick.dtype}"
    )
    assert output.shape == yardstick.shape, (
        f"shape {output.shape} where the reference gives {yardstick.shape}"
    )
    sound = bool(output.isfinite().all() and yardstick.isfinite().all())
    assert sound or torch.equal(output.isnan(), yardstick.isnan()), (
        "NaN where the reference has none, or none where it has"
    )
    assert sound or torch.equal(output.isinf(), yardstick.isinf()), (
        "infinite where the reference is not, or not where it is"
    )
    if not output.is_floating_point():  # counts
        assert torch.equal(output, truth), f"{output.tolist()} where the reference counts {truth.tolist()}"
        return _Run(output.new_zeros(0, dtype=torch.float64), output.new_zeros(0, dtype=torch.float64), 0.0)
    info = torch.finfo(output.dtype)
    finite = ... if sound else output.isfinite()
    rounding = torch.clamp(truth[finite].abs(), min=info.smallest_normal) * info.eps / 2
    largest = float(error[error.isfinite()].max()) if error.isfinite().any() else 0.0
    return _Run((output[finite].double() - truth[finite]).abs(), rounding, largest * scale)


def _as(inputs, dtype: torch.dtype):
    """The floating inputs in another dtype, strides kept."""
    return tuple([t.to(dtype) if t.is_floating_point() else t for t in tensors] for tensors in inputs)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
