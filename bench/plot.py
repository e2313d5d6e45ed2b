"""The report's picture: per op, how much faster than each peer mtkernels is, and the times themselves."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.ticker import FuncFormatter
from report import OURS, Row, busy, seconds, size

# Below 1 (the peer is faster) orange, above 1 blue: told apart with any colour vision.
SPEED = LinearSegmentedColormap.from_list("speed", ["#d9662b", "#f6d5bd", "#f7f7f7", "#c3d9ec", "#2f79b5"])
COLOURS = ["#7f7f7f", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c564b", "#d55e00", "#bcbd22"]
MARKERS = "osDv^PXp"


def draw(facts: dict, rows: list[Row], path: Path) -> None:
    rows = [
        row for row in rows if not row.op.endswith("features")
    ] or rows  # cases with candidates of their own
    ops = list(dict.fromkeys(row.op for row in rows))
    heights = [len({row.case for row in rows if row.op == op}) + 1.6 for op in ops]
    figure, axes = plt.subplots(
        len(ops), 2, figsize=(13, 0.52 * sum(heights) + 1.6), height_ratios=heights, width_ratios=(1.15, 1),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for op, (left, right) in zip(ops, axes, strict=True):
        chosen = [row for row in rows if row.op == op]
        _ratios(left, op, chosen)
        _times(right, chosen, facts)
    figure.suptitle(
        f"mtkernels {facts['versions'].get('mtkernels', '')} and its peers on {facts['device']}"
        + (f", {facts['threads']} threads" if facts["device_type"] == "cpu" else ""),
        fontsize=15, fontweight="bold",
    )  # fmt: skip
    figure.supxlabel(_caption(facts), fontsize=8.5, color="#555555")
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


def _caption(facts: dict) -> str:
    return (
        "Left: 4.0x means that mtkernels takes a quarter of the peer's time (median of interleaved rounds). "
        "Blue: mtkernels is faster; orange: the peer is.\n"
        "Right: time of one call, further left is better; losses are forward + backward. "
        f"Copy floor: the fewest bytes at this machine's measured copy bandwidth, "
        f"{facts['copy_bandwidth'] / 1e9:.0f} GB/s.\n"
        f"{facts['date']} UTC, commit {facts['commit']}, torch {facts['versions'].get('torch')}, "
        f"{busy(facts)}"
    )


def _ratios(axis, op: str, rows: list[Row]) -> None:
    cases, peers = _cases(rows), [peer for peer in _peers(rows) if not peer.startswith(OURS)]
    found = {(row.case, row.peer): row for row in rows}
    grid = [[_ratio(found.get((case, peer))) for peer in peers] for case in cases]
    axis.imshow(grid, cmap=SPEED, norm=LogNorm(1 / 8, 8), aspect="auto")
    for y, case in enumerate(cases):
        for x, peer in enumerate(peers):
            text, colour = _cell(found.get((case, peer)))
            axis.text(
                x, y, text, ha="center", va="center", color=colour, fontsize=11 if text[0].isdigit() else 8
            )
    names = [peer.replace(" ", "\n", 1) for peer in peers]
    axis.set_xticks(range(len(peers)), names, fontsize=8 if len(peers) < 6 else 7)
    axis.set_yticks(range(len(cases)), [_label(found.get((case, OURS)), case) for case in cases], fontsize=9)
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.set_xticks([x + 0.5 for x in range(len(peers) - 1)], minor=True)
    axis.set_yticks([y + 0.5 for y in range(len(cases) - 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
    axis.set_facecolor("#ececec")
    axis.set_title(
        f"{op}: mtkernels is ... times as fast as", fontsize=12, fontweight="bold", loc="left", pad=8
    )


def _ratio(row: Row | None) -> float:
    return row.ratio if row is not None and row.ratio else float("nan")


def _cell(row: Row | None) -> tuple[str, str]:
    if row is None or (row.ratio is None and not row.error):
        return "-", "#777777"
    if row.error:
        return ("wrong\nresult" if row.error.startswith("wrong") else _short(row.error)), "#777777"
    digits = (
        f"{row.ratio:.0f}"
        if row.ratio >= 20
        else f"{row.ratio:.1f}"
        if row.ratio >= 1.95
        else f"{row.ratio:.2f}"
    )
    return f"{digits}x", "white" if row.ratio > 6 or row.ratio < 1 / 6 else "#222222"


def _short(error: str) -> str:
    if "needs a GPU" in error:
        return "GPU\nonly"
    return "not\ninstalled" if error.startswith(("ModuleNotFoundError", "ImportError")) else "error"


def _label(ours: Row | None, case: str) -> str:
    case = case.replace("x", " x ") if case[0].isdigit() else case
    return f"{case}\n{size(ours.floor_bytes)}, ours {seconds(ours.median)}" if ours and ours.median else case


def _times(axis, rows: list[Row], facts: dict) -> None:
    cases, peers = _cases(rows), _peers(rows)
    for index, peer in enumerate(peers):
        points = [(row.median, cases.index(row.case)) for row in rows if row.peer == peer and row.median]
        ours = peer.startswith(OURS)
        style = {
            "s": 90,
            "color": "#0b3d66",
            "marker": "*" if peer == OURS else MARKERS[index % len(MARKERS)],
            "zorder": 4,
        }
        if not ours:
            style = {
                "s": 38,
                "color": COLOURS[index % len(COLOURS)],
                "marker": MARKERS[index % len(MARKERS)],
                "zorder": 3,
            }
        if points:
            axis.scatter(*zip(*points, strict=True), label=peer, **style)
    _floors(axis, rows, cases, facts)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    axis.tick_params(labelsize=9, length=0)
    axis.set_yticks(range(len(cases)), [""] * len(cases))
    axis.set_ylim(len(cases) - 0.5, -0.5)
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    for y in range(len(cases)):
        axis.axhline(y, color="#eeeeee", zorder=0)
    axis.spines[:].set_visible(False)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, title_fontsize=8)
    axis.set_title("time of one call", fontsize=12, fontweight="bold", loc="left", pad=8)


def _floors(axis, rows: list[Row], cases: list[str], facts: dict) -> None:
    floors = {row.case: row.floor_bytes / facts["copy_bandwidth"] for row in rows if row.bandwidth_share}
    for index, (case, floor) in enumerate(floors.items()):
        y = cases.index(case)
        label = "copy floor" if index == 0 else None
        axis.plot([floor] * 2, [y - 0.35, y + 0.35], color="black", linewidth=2, zorder=2, label=label)


def _cases(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.case for row in rows))


def _peers(rows: list[Row]) -> list[str]:
    """Ours first, then those with times, then those without."""
    names = dict.fromkeys(row.peer for row in sorted(rows, key=lambda row: bool(row.error)))
    return sorted(names, key=lambda name: not name.startswith(OURS))
