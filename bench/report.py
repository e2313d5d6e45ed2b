"""Turns pytest-benchmark's JSON of the benches into results.md, results.csv and results.png.

python bench/report.py results.json [--out bench/results/<device>/] [--readme README.md]
"""

import argparse
import csv
import json
import re
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

OURS = "mtkernels"
BOUND = "mtkernels WeightEMA"
MANY = "500x16"  # so little in each tensor that the time is what a tensor costs


@dataclass
class Row:
    """One candidate at one size; an error in place of a time where it has none. Times in seconds a call."""

    op: str
    case: str
    peer: str
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    rounds: int = 0
    iterations: int = 0
    host: float | None = None  # GPU: until the call returns
    floor_bytes: int | None = None
    peak_bytes: int | None = None  # allocated at most during a call
    bandwidth_share: float | None = None  # floor_bytes / median, over the measured copy; None where in cache
    ratio: float | None = None  # its time over mtkernels' in the same round, median over the rounds
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    ratio_bound: float | None = None  # the same over mtkernels WeightEMA's
    tensors: int | None = None
    note: str = ""
    error: str = ""


def read(path: Path) -> tuple[dict, list[Row]]:
    """What stood around the run, and its rows in the order of the run, errors last in their group."""
    report = json.loads(path.read_text())
    facts = report.get("mtkernels", {})
    facts["date"] = report.get("datetime", "")[:16].replace("T", " ")
    commit = report.get("commit_info") or {}
    facts["commit"] = (commit.get("id") or "unknown")[:12] + (" and changes" if commit.get("dirty") else "")
    groups: dict[tuple[str, str], list[dict]] = {}
    for benchmark in report["benchmarks"]:
        info = benchmark["extra_info"]
        groups.setdefault((info["op"], info["case"]), []).append(benchmark)
    errors = facts.get("errors", [])
    rows = []
    for group in dict.fromkeys([*groups, *((error["op"], error["case"]) for error in errors)]):
        members = groups.get(group, [])
        times = {member["extra_info"]["peer"]: member["stats"]["data"] for member in members}
        rows += [_row(member, times, facts) for member in members]
        rows += [Row(*group, e["peer"], error=e["error"]) for e in errors if (e["op"], e["case"]) == group]
    return facts, rows


def _row(benchmark: dict, of_group: dict[str, list[float]], facts: dict) -> Row:
    info, times = benchmark["extra_info"], benchmark["stats"]["data"]
    row = Row(info["op"], info["case"], info["peer"], note=info.get("note") or "")
    row.q1, row.median, row.q3 = _quartiles(times)
    row.rounds, row.iterations = len(times), benchmark["stats"]["iterations"]
    row.host, row.tensors = info.get("host_seconds"), info.get("tensors")
    row.floor_bytes, row.peak_bytes = info["floor_bytes"], info.get("peak_bytes")
    if info["resident_bytes"] > 2 * facts.get("cache_bytes", 0) and facts.get("copy_bandwidth"):
        row.bandwidth_share = row.floor_bytes / row.median / facts["copy_bandwidth"]
    if OURS in of_group:
        row.ratio_q1, row.ratio, row.ratio_q3 = _ratios(times, of_group[OURS])
    if BOUND in of_group:
        row.ratio_bound = _ratios(times, of_group[BOUND])[1]
    return row


def _ratios(times: list[float], ours: list[float]) -> tuple[float, float, float]:
    return _quartiles([time / own for time, own in zip(times, ours, strict=True)])


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def markdown(facts: dict, rows: list[Row]) -> str:
    lines = [f"# Benches on {facts['device']}", "", *_about(facts), "", "![plot](results.png)", ""]
    on_gpu = facts["device_type"] == "cuda"
    for op in dict.fromkeys(row.op for row in rows):
        found = [row for row in rows if row.op == op]
        bound = any(row.ratio_bound is not None for row in found)
        head = ["size", "candidate", "time", *(["host time"] if on_gpu else [])]
        head += ["bytes moved", "of copy bandwidth", "memory", "time over mtkernels'"]
        head += [*(["over WeightEMA's"] if bound else []), "notes"]
        lines += [f"## {op}", "", *overhead(found, on_gpu), _line(head), _line(["---"] * len(head))]
        case = None
        for row in found:
            name = f"**{row.peer}**" if row.peer.startswith(OURS) else row.peer
            cells = [row.case if row.case != case else "", name, *_cells(row, on_gpu, bound)]
            lines.append(_line(cells))
            case = row.case
        lines.append("")
    return "\n".join(lines)


def overhead(rows: list[Row], on_gpu: bool) -> list[str]:
    """What each candidate costs a tensor, whatever is in it."""
    costs = [
        f"{row.peer} {time / row.tensors * 1e6:.2f} us"
        for row in rows
        if row.case == MANY and row.tensors and (time := row.host if on_gpu else row.median)
    ]
    what = "Host time" if on_gpu else "Time"
    return [f"{what} for each of the {MANY.split('x')[0]} tensors of {MANY}: {', '.join(costs)}.", ""] * bool(
        costs
    )


def _cells(row: Row, on_gpu: bool, bound: bool) -> list[str]:
    columns = 5 + on_gpu + bound
    if row.error:
        return ["no time", *[""] * (columns - 1), row.error.replace("|", "\\|")]
    share = "in cache" if row.bandwidth_share is None else f"{row.bandwidth_share:.0%}"
    host = [seconds(row.host) if row.host else ""] if on_gpu else []
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.ratio_q1:.2f} - {row.ratio_q3:.2f})"
    over_bound = "" if row.ratio_bound is None else f"{row.ratio_bound:.2f}"
    return [
        seconds(row.median),
        *host,
        size(row.floor_bytes),
        share,
        "" if row.peak_bytes is None else size(row.peak_bytes),
        "1" if row.peer == OURS else ratio,
        *([over_bound] if bound else []),
        row.note,
    ]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _about(facts: dict) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    cold = (
        "device time between events, with L2 flushed before each call; host time is until the call returns"
        if facts["device_type"] == "cuda"
        else "caches warm"
    )
    return [
        f"* Device: {facts['device']}, {facts['threads']} CPU threads; copy bandwidth, measured: "
        f"{facts['copy_bandwidth'] / 1e9:.1f} GB/s in and out. {busy(facts)}",
        f"* {facts['date']} UTC, commit {facts['commit']}; {versions}.",
        f"* Command: `{facts['command']}`",
        f"* Times are medians over rounds, one call; {cold}. All candidates of a size take turns in each "
        "round; the ratio is the median (and quartiles) of the ratios in rounds: above 1, ours is faster.",
        "* Losses: forward, autograd graph and backward, float32. Bytes moved: the fewest possible, each "
        "input read once, each output written once; share: those bytes over the time, against a copy's. "
        "In cache: a call touches less than twice the last-level cache. Memory: what a call allocates, at its peak"
        f"{'' if facts['device_type'] == 'cuda' else ', in new pages: small ones find room in old ones'}.",
    ]


def busy(facts: dict) -> str:
    """OpenMP's threads wait for each other: with others on the cores, a time is the scheduler's, not the kernel's."""
    others = facts.get("others_cpu")
    if others is None:
        return ""
    warning = " BUSY MACHINE, NOT TO BE QUOTED." if others > 0.05 else ""
    return f"Other processes used {others:.0%} of the CPUs meanwhile.{warning}"


def seconds(value: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1 or unit == "us":
            return f"{value * scale:.3g} {unit}" if value * scale < 1000 else f"{value * scale:.0f} {unit}"
    raise AssertionError


def size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(r).items()} for r in rows
        )


def slug(facts: dict) -> str:
    words = re.sub(r"\((R|TM)\)|Processor|CPU|@.*", " ", facts["device"], flags=re.IGNORECASE)
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "unknown"
    return name if facts["device_type"] == "cuda" else f"cpu-{name}-{facts['threads']}-threads"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--out", type=Path, help="default: bench/results/<device>/ beside this file")
    parser.add_argument("--readme", type=Path, help="a file whose speed tables are to show this run")
    options = parser.parse_args()
    facts, rows = read(options.json)
    out = options.out or Path(__file__).parent / "results" / slug(facts)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text(markdown(facts, rows))
    write_csv(rows, out / "results.csv")
    from plot import draw  # matplotlib takes a second to import

    draw(facts, rows, out / "results.png")
    print(out / "results.md", out / "results.csv", out / "results.png", sep="\n")
    if options.readme:
        from readme import rewrite

        rewrite(options.readme, facts, rows)


if __name__ == "__main__":
    main()
