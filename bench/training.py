"""Images a second of the trainer, beside a straightforward loop (plain_loop.py) with the same networks and settings.

python bench/training.py [--preset NAME[:ARCH] ...] [--device cuda] [--steps 64] [--rounds 3] [--workers N]: a Markdown
table. The two take turns in one process; a ratio is the median of the ratios in rounds. The plain loop has its workers
in its own turns alone, and its clock starts when they have filled their queue. --precision bf16 is of both;
--channels-last, --compile and --cuda-graph are the trainer's, as one setting each of it.
"""

import argparse
import copy
import os
import shlex
import statistics
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # the benches are no part of the package

from bench.plain_loop import PlainLoop, TwoViews, transform_of, transforms
from bench.train_step import Trainer, mode_arguments, modes, resized, seconds_a_step, setting, table
from mtkernels.train.config import Config
from mtkernels.train.environment import environment

DEFAULT = ("cifar10-4000-shakeshake-1gpu", "svhn-500-mean-teacher")
HEADER = ("model", "batch", "straightforward loop, images/s", "mtkernels, images/s", "ratio")


def plain_loop(trainer: Trainer, workers: int) -> PlainLoop:
    """With copies of the trainer's networks, and its images."""
    config, data = trainer.config, trainer.data
    networks = copy.deepcopy((trainer.method.student, trainer.method.teacher))
    for network in networks:
        network.to(memory_format=torch.contiguous_format)
    images = data.pool.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    transform = transform_of(config, data.raw.mean, data.raw.std)
    views = TwoViews(images, data.pool.labels.tolist(), transform)
    return PlainLoop(config, networks, views, workers=workers)


def rate(loop: PlainLoop | Trainer, steps: int, warm: int) -> float:
    """Images a second, after `warm` steps that do not count."""
    return loop.config.batch_size / seconds_a_step(loop, steps, warm)


def compare(config: Config, *, steps: int, rounds: int, workers: int) -> tuple[list[float], list[float]]:
    """Images a second by round: of the plain loop, and of the trainer."""
    trainer = Trainer(config)
    plain = plain_loop(trainer, workers)
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            if which:
                found[1].append(rate(trainer, steps, trainer.warm))
                continue
            with plain.loading():
                found[0].append(
                    rate(plain, steps, trainer.warm + 2 * workers)
                )  # a worker's queue has two batches
    return found


def line(config: Config, found: tuple[list[float], list[float]]) -> list[str]:
    """Cells of HEADER: medians."""
    ratio = statistics.median(ours / plain for plain, ours in zip(*found, strict=True))
    rates = [f"{statistics.median(rates):.4g}" for rates in found]
    return [config.arch, str(config.batch_size), *rates, f"{ratio:.2f}x"]


def about(workers: int) -> str:
    """Device, versions, command."""
    facts = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    device = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} threads"
    views = "Pillow" if transforms is None else "torchvision"
    command = shlex.join(["python", *sys.argv])
    return f"{device}; torch {facts['torch']}; views by {views} in {workers} workers. `{command}`"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=DEFAULT, metavar="NAME[:ARCH]")
    parser.add_argument("--steps", type=int, default=64, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the plain loop")
    mode_arguments(parser)
    options = parser.parse_args()
    if options.precision == "fp16":
        parser.error("precision must be fp32 or bf16, which the plain loop has too, got fp16")
    changes, lines = modes(options), []
    for preset in options.preset:
        config = resized(setting(preset, **changes), options.batch_size)
        rounds = compare(config, steps=options.steps, rounds=options.rounds, workers=options.workers)
        lines.append(line(config, rounds))
    print(table(HEADER, lines), "", about(options.workers), sep="\n")


if __name__ == "__main__":
    main()
