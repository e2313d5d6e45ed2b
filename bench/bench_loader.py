"""Images a second of the loader of class folders, beside Pillow under a DataLoader.

python bench/bench_loader.py [--workers 1 --rounds 7]: a Markdown table. The two take turns; a ratio is the median of
the ratios in rounds. It holds no test for pytest-benchmark, which times calls: here workers run ahead of them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # the benches are no part of the package

from bench import loader

LOADERS = {"mtkernels": loader.ours, "Pillow + DataLoader": loader.plain}
Rates = dict[str, list[float]]  # loader -> images a second, by round


def rates(batches: dict[str, Iterator], batch_size: int, steps: int, rounds: int, clock: Callable) -> Rates:
    """Each loader's images in a second of `clock`, in turns of `steps` batches."""
    found: Rates = {name: [] for name in batches}
    for turn in range(rounds):
        for name in sorted(batches, reverse=bool(turn % 2)):
            start = clock()
            for _ in range(steps):
                next(batches[name])
            found[name].append(batch_size * steps / (clock() - start))
    return found


def in_process(root: Path, batch_size: int, rounds: int) -> Rates:
    """Images in a second of CPU time, without workers: what other processes do hardly counts."""
    batches = {name: make(root, batch_size=batch_size, workers=0) for name, make in LOADERS.items()}
    rates(batches, batch_size, 1, 1, time.process_time)
    return rates(batches, batch_size, 1, rounds, time.process_time)


def with_workers(root: Path, batch_size: int, rounds: int, workers: int) -> Rates:
    """Images in a second of the clock. A round starts its workers anew: they would run ahead in the other's turn."""
    found: Rates = {name: [] for name in LOADERS}
    for turn in range(rounds):
        for name in sorted(LOADERS, reverse=bool(turn % 2)):
            batches = LOADERS[name](root, batch_size=batch_size, workers=workers)
            next(batches)
            [rate] = rates({name: batches}, batch_size, 4 * workers, 1, time.perf_counter)[name]
            found[name].append(rate / workers)
            batches.close()
    return found


def markdown(columns: dict[str, Rates]) -> str:
    """Medians, and how many times the last loader's they are."""
    lines = ["| images/s | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name in LOADERS:
        cells = []
        for found in columns.values():
            pairs = zip(found[name], found[list(LOADERS)[-1]], strict=True)
            ratio = statistics.median(one / other for one, other in pairs)
            cells.append(f"{statistics.median(found[name]):.0f} ({ratio:.2f}x)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="JPEG files that are written")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = loader.write_jpegs(Path(folder), options.images, width=options.width, height=options.height)
        columns = {
            "per CPU second, in process": in_process(root, options.batch_size, options.rounds),
            f"per worker, of {options.workers}": with_workers(
                root, options.batch_size, options.rounds, options.workers
            ),
        }
    print(markdown(columns))


if __name__ == "__main__":
    main()
