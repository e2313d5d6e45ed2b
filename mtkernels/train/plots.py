"""The figures: curves of one run, runs side by side, a confusion matrix, a sheet of images. No display is needed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .config import Config
from .meter import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .report import Run


def plot_curves(path: Path, config: Config, records: Sequence[Record]) -> None:
    """Error of student and teacher, losses, and consistency weight with learning rate, against the step."""
    figure = _figure(width=13, height=3.8)
    errors, losses, weights = figure.subplots(1, 3)
    for role, style in (("teacher", "-"), ("student", "--")):
        errors.plot(_column(records, "step"), _column(records, f"{role}_error"), style, label=role)
    _label(errors, f"error on {_SPLITS[config.eval_split]} images (%)")
    for name in [name for name in records[0] if name.endswith("_loss")]:
        losses.plot(_column(records, "step"), _column(records, name), label=name.replace("_", " "))
    losses.set_yscale("log")
    _label(losses, "loss (as weighted in the sum)")
    weights.plot(_column(records, "step"), _column(records, "consistency_weight"), label="consistency weight")
    rate = weights.twinx()
    rate.plot(_column(records, "step"), _column(records, "lr"), "C1--", label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    _label(weights, "consistency weight", legend_of=(weights, rate))
    figure.suptitle(f"{config.method} on {config.dataset}, {config.labels} labels, seed {config.seed}")
    figure.savefig(path, format="png", dpi=_DPI)


def plot_groups(path: Path, groups: Mapping[str, Sequence["Run"]]) -> None:
    """For each group the headline model's error against the step, and each run's last error and the mean.

    Runs that were evaluated at the same steps are drawn as their mean, in a band from the best to the worst.
    """
    figure = _figure(width=11, height=4.2)
    curves, finals = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (label, runs) in enumerate(groups.items()):
        color = f"C{place}"
        _plot_group(curves, label, runs, color)
        last = [run.error for run in runs]
        mean = sum(last) / len(last)
        finals.bar(place, mean, color=color, alpha=0.3)
        finals.plot([place] * len(last), last, "o", color=color)
        finals.annotate(f"{mean:.1f}%", (place, mean), (14, 3), textcoords="offset points", color=color)
    splits = {run.config["eval_split"] for runs in groups.values() for run in runs}
    words = " / ".join(_SPLITS[split] for split in sorted(splits))
    _label(curves, f"error on {words} images (%)")
    finals.set_xticks(range(len(groups)), list(groups), rotation=0 if len(groups) <= 3 else 20)
    finals.set_ylabel("last error (%): each seed, and the mean")
    figure.savefig(path, format="png", dpi=_DPI)


def _plot_group(axes: "Axes", label: str, runs: Sequence["Run"], color: str) -> None:
    role = runs[0].headline
    steps = [_column(run.records, "step") for run in runs]
    errors = [_column(run.records, f"{role}_error") for run in runs]
    label = f"{label} ({role}{f', {len(runs)} seeds' if len(runs) > 1 else ''})"
    if len(runs) > 1 and all(each == steps[0] for each in steps):
        at_each_step = list(zip(*errors, strict=True))
        axes.plot(steps[0], [statistics.mean(each) for each in at_each_step], color=color, label=label)
        best, worst = ([choose(each) for each in at_each_step] for choose in (min, max))
        axes.fill_between(steps[0], best, worst, color=color, alpha=0.2, linewidth=0)
        return
    for number, (at, values) in enumerate(zip(steps, errors, strict=True)):
        axes.plot(at, values, color=color, alpha=0.8, label=None if number else label)


def plot_confusion(path: Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    """`counts` [true class, predicted class]; of many classes also a list of what is taken for what most often."""
    from matplotlib.colors import PowerNorm

    few = len(names) <= _WRITTEN
    side = max(5.5, 0.42 * len(names) + 2) if few else 8.5
    figure = _figure(width=side if few else side + 4, height=side)
    figure.suptitle(title, fontsize="medium")
    axes = figure.add_subplot() if few else figure.subplots(1, 2, width_ratios=(2, 1))[0]
    block = -(-len(names) // _CELLS)
    cells = _summed(counts, block)
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    # The root shows one image in fifty, which a straight scale leaves white.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="auto")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class" + f" (a cell is {block} x {block} classes)" * (block > 1))
    shown = range(0, len(cells), -(-len(cells) // _TICKS))
    labels = [_short(names[at * block]) for at in shown]
    axes.set_xticks(shown, labels, rotation=90, fontsize=8 if few else 6)
    axes.set_yticks(shown, labels, fontsize=8 if few else 6)
    if few:
        _write_counts(axes, counts, shares)
    else:
        _list_confusions(figure.axes[1], counts, names)
    figure.savefig(path, format="png", dpi=_DPI)


def _summed(counts: np.ndarray, block: int) -> np.ndarray:
    """The sums of blocks of so many rows and columns."""
    rest = -len(counts) % block
    cells = np.pad(counts, (0, rest))
    return cells.reshape(len(cells) // block, block, -1, block).sum((1, 3))


def _write_counts(axes: "Axes", counts: np.ndarray, shares: np.ndarray) -> None:
    for row, column in zip(*counts.nonzero(), strict=True):
        color = "white" if shares[row, column] > 0.4 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=7)


def _list_confusions(axes: "Axes", counts: np.ndarray, names: Sequence[str]) -> None:
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
    pairs = [np.unravel_index(at, wrong.shape) for at in order if wrong.flat[at]]
    lines = [
        f"{wrong[true, guess]:>5}  {_short(names[true])} as {_short(names[guess])}" for true, guess in pairs
    ]
    axes.set_axis_off()
    words = "\n".join(["most often wrong, in images", *lines]) if lines else "no image is wrong"
    axes.text(0, 1, words, va="top", family="monospace", fontsize=8, transform=axes.transAxes)


def plot_sheet(path: Path, images: np.ndarray, captions: Sequence[str], title: str) -> None:
    """Images [count, height, width, 3] of values 0 to 1, each above its caption; of no image the title alone.

    All are one picture in one pair of axes: an axes for each takes matplotlib seconds.
    """
    count, high, wide = images.shape[:3]
    columns = min(count, 6 if wide < 2 * high else 4) or 1
    rows = -(-count // columns)
    across, down = wide + max(1, wide // 6), high + max(1, round(high * 0.4))
    sheet = np.ones((rows * down or 1, columns * across, 3), np.float32)
    inch = 1.4 / high  # of a pixel
    figure = _figure(width=max(sheet.shape[1] * inch + 0.3, 6), height=sheet.shape[0] * inch + 0.6)
    figure.suptitle(title, fontsize="medium")
    axes = figure.add_subplot()
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        top, left = (place // columns) * down, (place % columns) * across
        sheet[top : top + high, left : left + wide] = image
        axes.annotate(
            caption, (left - 0.5, top + high - 0.5), (0, -3), textcoords="offset points", va="top", fontsize=7
        )
    axes.imshow(sheet, interpolation="nearest" if high < 0.7 * _DPI else "antialiased")
    axes.set_axis_off()
    figure.savefig(path, format="png", dpi=_DPI)


_DPI = 120
_WRITTEN = 30  # classes whose counts can be read in their cells
_CELLS = 200  # along a matrix that can be seen
_TICKS = 50  # names along an axis
_LISTED = 40  # confusions
_SPLITS = {"test": "test", "validation": "validation", "unlabeled": "unlabeled training"}


def _figure(*, width: float, height: float) -> "Figure":
    # Figure itself, not pyplot: no global state, no display, and the user's backend stays as it is.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _short(name: str) -> str:
    return _plain(name if len(name) <= 20 else f"{name[:19]}…")


def _plain(text: str) -> str:
    """Without the meaning that matplotlib gives to $: a formula."""
    return text.replace("$", r"\$")


def _column(records: Sequence[Record], name: str) -> list[float]:
    return [record.get(name, float("nan")) for record in records]


def _label(axes: "Axes", title: str, legend_of: Sequence["Axes"] = ()) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    lines = [line for one in legend_of or (axes,) for line in one.get_lines()]
    axes.legend(handles=[line for line in lines if not line.get_label().startswith("_")], fontsize="small")
