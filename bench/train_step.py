"""A training step of a preset, part by part, on random images of CIFAR's size.

python bench/train_step.py [--preset cifar10-4000-shakeshake-1gpu] [--device cuda] [--steps 30]: a Markdown table of
medians. Each part is waited for, so the parts together may take longer than a step that runs ahead of the device.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # the benches are no part of the package

from mtkernels.train.config import Config
from mtkernels.train.data import ImageSet, Quarantine, RawData, make_feed
from mtkernels.train.data.dataset import make_dataset
from mtkernels.train.loop import make_batches, make_method, make_optimizer, set_rates
from mtkernels.train.presets import PRESETS

PARTS = ("batch and views", "objective", "backward", "optimizer", "average")


def random_images(count: int, *, side: int = 32, classes: int = 10) -> RawData:
    """Noise with labels."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=draw)
    train = ImageSet(images, torch.arange(count) % classes)
    test = ImageSet(images[:100], train.labels[:100])
    return RawData(train, test, tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3)


def measure(config: Config, steps: int) -> dict[str, list[float]]:
    """Seconds of each part of each step, the first three steps left out."""
    data = make_dataset(random_images(10_000), config, Quarantine()).to(torch.device(config.device))
    batches = make_batches(config, data)
    method = make_method(config, data, batches)
    optimizer = make_optimizer(config, method)
    wait: Callable[[], object] = torch.cuda.synchronize if config.device.startswith("cuda") else lambda: None
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    with make_feed(config, data, batches, method.views) as feed:
        for step in range(steps + 3):
            marks = [time.perf_counter()]

            def mark(marks: list[float] = marks) -> None:
                wait()
                marks.append(time.perf_counter())

            views, labels = feed.batch(step)
            mark()
            loss, _ = method.objective(views, labels, step)
            mark()
            set_rates(optimizer, method.timeline, step)
            optimizer.zero_grad()
            loss.backward()
            mark()
            optimizer.step()
            mark()
            method.ema.update()
            mark()
            for part, (start, end) in zip(PARTS, pairwise(marks), strict=True):
                seconds[part].append(end - start)
    return {part: times[3:] for part, times in seconds.items()}


def markdown(config: Config, seconds: dict[str, list[float]]) -> str:
    """Medians, and each part's share of their sum."""
    medians = {part: statistics.median(times) for part, times in seconds.items()}
    whole = sum(medians.values())
    lines = [f"{config.arch}, batches of {config.batch_size}: {config.batch_size / whole:.0f} images/s", ""]
    lines += ["| part | ms | share |", "| --- | --- | --- |"]
    lines += [
        f"| {part} | {1000 * time:.2f} | {100 * time / whole:.1f} % |" for part, time in medians.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="cifar10-4000-shakeshake-1gpu", choices=PRESETS, metavar="NAME")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    config = replace(PRESETS[options.preset].config, labels=1000, validation=0, eval_split="test")
    if config.normalize.endswith("zca"):
        config = replace(config, normalize="channels")  # whitening is no part of a step
    config = replace(config, device=options.device)
    print(markdown(config, measure(config, options.steps)))


if __name__ == "__main__":
    main()
