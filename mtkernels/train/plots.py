"""The figures: curves of one run, and runs side by side. matplotlib without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    figure.savefig(path, format="png", dpi=120)


def plot_groups(path: Path, groups: Mapping[str, Sequence["Run"]]) -> None:
    """For each group the headline model's error against the step, and each run's last error and the mean."""
    figure = _figure(width=11, height=4.2)
    curves, finals = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (label, runs) in enumerate(groups.items()):
        color, role = f"C{place}", runs[0].headline
        for number, run in enumerate(runs):
            steps, errors = _column(run.records, "step"), _column(run.records, f"{role}_error")
            curves.plot(steps, errors, color=color, alpha=0.8, label=None if number else f"{label} ({role})")
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
    figure.savefig(path, format="png", dpi=120)


_SPLITS = {"test": "test", "validation": "validation", "unlabeled": "unlabeled training"}


def _figure(*, width: float, height: float) -> "Figure":
    # Figure itself, not pyplot: no global state, no display, and the user's backend stays as it is.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


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
