"""What a weight average launches on a GPU: the device's kernels and copies in one update, model by model.

python bench/launches.py [--large]: a Markdown table; fails where one of ours launches more or less than one.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # the benches are no part of the package

from bench.cases import Case, cases
from bench.measure import prepare
from bench.peers import candidates

Table = dict[str, dict[str, int | str]]  # model -> candidate -> launches, or why there are none


def launches(step: Callable[[], object]) -> int:
    """Kernels, copies and fills of the device in one call."""
    for _ in range(2):  # tables are uploaded, kernels compiled
        step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def counted(found: list[Case], count: Callable[[Callable[[], object]], int]) -> Table:
    table: Table = {}
    for case in found:
        row = table[case.name] = {}
        for name, factory in candidates(case).items():
            candidate, error = prepare(case, factory)
            row[name] = error or count(candidate.step)
        case.forget()
    return table


def markdown(table: Table) -> str:
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = [["launches of one update", *names], ["---"] * (len(names) + 1)]
    for model, row in table.items():
        cells = [row.get(name, "") for name in names]
        lines.append([model, *(cell if isinstance(cell, str) else str(cell) for cell in cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def wrong(table: Table) -> list[str]:
    """What of ours is not one launch. A backend that this build lacks is no fault."""
    return [
        f"{name} on {model}: {found}"
        for model, row in table.items()
        for name, found in row.items()
        if name.startswith("mtkernels") and found != 1 and "no CUDA kernels" not in str(found)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="ViT-B/16 and a 1 B GPT, too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("launches: torch must see a CUDA GPU")
    known = torch.zeros(1, device="cuda")
    if (seen := launches(lambda: known.add_(1))) != 1:
        raise SystemExit(f"launches: the profiler must see the one kernel of an addition, got {seen}")
    models = [case for case in cases("ema_update", "cuda", options.large) if case.name[0].isalpha()]
    table = counted(models, launches)
    print(markdown(table))
    if faults := wrong(table):
        raise SystemExit("launches: must be 1, got " + "; ".join(faults))


if __name__ == "__main__":
    main()
