"""A training step of presets, part by part, on random images: how much of it is not the network.

python bench/train_step.py [--preset NAME[:ARCH] ...] [--device cuda] [--steps 30]: a Markdown table, one line a preset.
The parts are medians of steps that wait for the device after each part. On a GPU the line goes on with a step that
waits for nothing: its time, the share of it in which the GPU worked, and its launches. --precision bf16,
--channels-last, --compile and --cuda-graph as of the trainer; the last two leave the parts out.
--profile: torch.profiler's table of each preset too.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import DeviceType, Variable
from torch.profiler import ProfilerActivity, profile

sys.path.append(str(Path(__file__).parents[1]))  # the benches are no part of the package

from mtkernels.train.config import Config
from mtkernels.train.data import ImageSet, Quarantine, RawData, make_feed
from mtkernels.train.data.dataset import make_dataset
from mtkernels.train.loop import make_batches, make_method, make_step
from mtkernels.train.meter import Meter
from mtkernels.train.presets import PRESETS

DEFAULT = (
    "svhn-500-mean-teacher",
    "cifar10-4000-shakeshake-1gpu",
    "cifar10-4000-shakeshake-1gpu:wrn-28-2",
)
PARTS = (
    *("batch and views", "student forward", "teacher forward", "loss", "backward"),
    *("optimizer", "average", "rest"),
)
NETWORK = ("student forward", "teacher forward", "backward")


def random_images(count: int, *, side: int = 32, classes: int = 10) -> RawData:
    """Noise with labels."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=draw)
    train = ImageSet(images, torch.arange(count) % classes)
    test = ImageSet(images[:100], train.labels[:100])
    return RawData(train, test, tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3)


class Trainer:
    """The trainer's step on random images; parts of it can be watched."""

    def __init__(self, config: Config) -> None:
        side = config.image_size or 32
        least = 0 if config.labels == "all" else 2 * config.labels  # a batch made smaller leaves the labels
        count = 10_000 if side < 64 else max(3 * config.batch_size, least)
        images = random_images(count, side=side)
        self.config, self.device = config, torch.device(config.device)
        self.data = make_dataset(images, config, Quarantine()).to(self.device)
        batches = make_batches(config, self.data)
        self.method = make_method(config, self.data, batches)
        self.move, self.steps = make_step(self.method), 0
        self.feed = make_feed(config, self.data, batches, self.method.views)
        self.meter = Meter(self.move, self.data)
        self.warm = (
            5 if self.device.type == "cuda" else 1
        )  # steps before those that count: a graph has its own first ones

    def step(self, between: Callable[[], object] = lambda: None) -> None:
        """The next one, as the trainer's loop has it; `between` batch and step something may be called."""
        batch = self.feed.batch(self.steps)
        between()
        terms = self.move(batch, self.steps)
        self.meter.add(terms, images=batch.counts.rows)
        self.steps += 1

    def wait(self) -> None:
        """For the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def parts(self, steps: int) -> dict[str, list[float]]:
        """Seconds of each part of each step."""
        with _watched(self) as laps:
            for at in range(steps + self.warm):
                if at == self.warm:
                    laps.clear()
                laps.start()
                self.step(lambda: laps.lap("batch and views"))
                laps.lap("rest")
        return laps.seconds

    def seconds(self, steps: int) -> float:
        """Of a step that waits for nothing."""
        return seconds_a_step(self, steps, self.warm)

    def profiled(self, steps: int) -> profile:
        """What torch's profiler has seen of so many steps."""
        self.step()
        on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as seen:
            for _ in range(steps):
                self.step()
            self.wait()
        return seen


def seconds_a_step(loop: object, steps: int, warm: int) -> float:
    """In the mean, of steps that wait for the device at the end alone, after `warm` ones; loop: step() and wait()."""
    for _ in range(warm):
        loop.step()
    loop.wait()
    start = time.perf_counter()
    for _ in range(steps):
        loop.step()
    loop.wait()
    return (time.perf_counter() - start) / steps


class _Laps:
    """Seconds between events of a step, each waited for; a part's laps within a step are added up."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.clear()

    def clear(self) -> None:
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}

    def start(self) -> None:
        for times in self.seconds.values():
            times.append(0.0)
        self.trainer.wait()
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        self.trainer.wait()
        now = time.perf_counter()
        self.seconds[part][-1] += now - self.last
        self.last = now


@contextmanager
def _watched(trainer: Trainer) -> Iterator[_Laps]:
    """Laps at the borders of the networks, of the loss's own backward pass, of the optimizer and of the average."""
    laps, method, optimizer = _Laps(trainer), trainer.method, trainer.move.optimizer

    def after_student(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        laps.lap("student forward")
        heads = output if isinstance(output, tuple) else (output,)

        def has_gradients(_gradients: object) -> None:
            laps.lap("loss")
            Variable._execution_engine.queue_callback(lambda: laps.lap("backward"))

        torch.autograd.graph.register_multi_grad_hook(heads, has_gradients)

    update = method.ema.update

    def watched_update(**options: object) -> None:
        laps.lap("rest")
        update(**options)
        laps.lap("average")

    handles = [
        method.student.register_forward_pre_hook(lambda *_: laps.lap("rest")),
        method.student.register_forward_hook(after_student),
        method.teacher.register_forward_pre_hook(lambda *_: laps.lap("loss")),
        method.teacher.register_forward_hook(lambda *_: laps.lap("teacher forward")),
        optimizer.register_step_pre_hook(lambda *_: laps.lap("rest")),
        optimizer.register_step_post_hook(lambda *_: laps.lap("optimizer")),
    ]
    method.ema.update = watched_update
    try:
        yield laps
    finally:
        del method.ema.update
        for handle in handles:
            handle.remove()


def gpu_work(seen: profile, steps: int) -> tuple[float, float]:
    """Seconds and number of kernels and copies in a step."""
    events = [
        event
        for event in seen.key_averages()
        if event.device_type != DeviceType.CPU and not getattr(event, "is_user_annotation", False)
    ]
    microseconds = sum(event.self_device_time_total for event in events)
    return microseconds / 1e6 / steps, sum(event.count for event in events) / steps


def setting(preset: str, **changes: object) -> Config:
    """The config of NAME or NAME:ARCH, for random images."""
    name, _, arch = preset.partition(":")
    config = PRESETS[name].config
    labels = "all" if config.labels == "all" else min(1000, config.batch_size // 10 * 10)
    config = replace(config, labels=labels, validation=0, extra_unlabeled=0, eval_split="test")
    if config.normalize.endswith("zca"):
        config = replace(config, normalize="channels")  # whitening is no part of a step
    return replace(config, **{"arch": arch or config.arch} | changes)


def outside(seconds: Mapping[str, float]) -> float:
    """The share of a step that is not the networks."""
    return 1 - sum(seconds[part] for part in NETWORK) / sum(seconds.values())


HEADER = ("model", "batch", "images/s", *(f"{part}, ms" for part in PARTS), "outside the network")
GPU_HEADER = ("without waits, ms", "images/s", "GPU busy", "launches")


def line(config: Config, seconds: Mapping[str, list[float]] | None) -> list[str]:
    """Cells of HEADER: medians of the parts."""
    first = [config.arch, str(config.batch_size)]
    if seconds is None:
        return first + [""] * (len(HEADER) - 2)
    medians = {part: statistics.median(times) for part, times in seconds.items()}
    rate = config.batch_size / sum(medians.values())
    parts = [f"{1000 * medians[part]:.2f}" for part in PARTS]
    return [*first, f"{rate:.{0 if rate > 10 else 2}f}", *parts, f"{100 * outside(medians):.1f} %"]


def gpu_line(config: Config, whole: float, work: tuple[float, float]) -> list[str]:
    """Cells of GPU_HEADER; whole: seconds of a step."""
    busy, launches = work
    rate = config.batch_size / whole
    return [f"{1000 * whole:.2f}", f"{rate:.0f}", f"{100 * busy / whole:.0f} %", f"{launches:.0f}"]


def table(header: tuple[str, ...], lines: list[list[str]]) -> str:
    """In Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mode_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that the trainer has too."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    for flag in ("channels-last", "compile", "cuda-graph"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--batch-size", type=int, help="with as many labels in it, by proportion")
    parser.add_argument("--threads", type=int, help="of the CPU")


def modes(options: argparse.Namespace) -> dict[str, object]:
    """The settings that `mode_arguments` gave."""
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ("device", "precision", "channels_last", "compile", "cuda_graph")
    return {name: getattr(options, name) for name in names}


def resized(config: Config, batch_size: int | None) -> Config:
    """With batches of another size, of which as large a part is labeled."""
    labeled = config.labeled_batch_size
    if batch_size is None or labeled is None:
        return replace(config, batch_size=batch_size or config.batch_size)
    part = max(1, labeled * batch_size // config.batch_size)
    return replace(config, batch_size=batch_size, labeled_batch_size=part)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=DEFAULT, metavar="NAME[:ARCH]")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--profile", action="store_true")
    mode_arguments(parser)
    options = parser.parse_args()
    changes = modes(options)
    on_gpu, whole_only = options.device.startswith("cuda"), options.compile or options.cuda_graph
    lines, profiles = [], []
    for preset in options.preset:
        config = resized(setting(preset, **changes), options.batch_size)
        trainer = Trainer(config)
        cells = line(config, None if whole_only else trainer.parts(options.steps))
        whole = trainer.seconds(options.steps) if on_gpu or whole_only else None
        seen = trainer.profiled(5) if whole or options.profile else None
        if whole:
            cells += gpu_line(config, whole, gpu_work(seen, 5))
        lines.append(cells)
        if options.profile:
            order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
            averages = seen.key_averages()
            profiles.append(averages.table(sort_by=order, row_limit=25, max_name_column_width=70))
        del trainer
    print(table((*HEADER, *GPU_HEADER) if on_gpu or whole_only else HEADER, lines))
    print("", *profiles, sep="\n")


if __name__ == "__main__":
    main()
