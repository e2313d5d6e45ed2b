"""Interleaved timing: every candidate of a group has its turn in each round, in a new random order.

So what drifts (clocks, other users of the machine) falls on all of them alike, and the ratio of two is the
median of the ratios within rounds.
"""

import ctypes
import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.cases import Case, disagreement
from bench.peers import Candidate, Factory

ROUND_SECONDS = 1e-3  # on the CPU a round repeats the call for at least this long
MIN_ROUNDS, MAX_ROUNDS = 7, 100


@dataclass
class Series:
    """One candidate's times, in seconds a call, one a round; `error` in place of them where there is none."""

    times: list[float] = field(default_factory=list)
    host_times: list[float] = field(default_factory=list)  # GPU: until the call returns, nothing waited for
    iterations: int = 1  # calls in a round
    peak: int | None = None  # bytes that a call has allocated at most, beyond what stood before it
    note: str = ""
    error: str | None = None


def session(case: Case, factories: dict[str, Factory], seconds: float) -> dict[str, Series]:
    """Builds, checks and times the candidates of one case. `seconds` is for all their rounds together."""
    series = {name: Series() for name in factories}
    steps = {}
    for name, factory in factories.items():
        candidate, series[name].error = prepare(case, factory)
        if series[name].error is None:
            steps[name] = candidate.step
            series[name].note = candidate.note
            series[name].peak = peak_bytes(candidate, case.device)
    gc.collect()
    if not steps:
        return series
    enabled = gc.isenabled()
    gc.disable()
    try:
        timed = _Device(case.device) if case.device == "cuda" else _Host()
        timed.warm_up(steps, series)
        _rounds(timed, steps, series, seconds)
    finally:
        if enabled:
            gc.enable()
    return series


def prepare(case: Case, factory: Factory) -> tuple[Candidate | None, str | None]:
    """A candidate that has made one step and agrees with the reference, or what is wrong with it."""
    try:
        candidate = factory(case.workload())
        candidate.step()
        return candidate, disagreement(case, candidate.outputs())
    except Exception as error:  # whatever a peer raises is its row in the report
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0] if lines else ''}".strip()[:160]


def peak_bytes(candidate: Candidate, device: str) -> int | None:
    """What a call adds to the memory in use, at its peak. On a CPU in the process's pages; None where Linux is not."""
    candidate.release()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        candidate.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # pages kept for later would hide what is allocated in them
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _pages("VmRSS")
    except (AttributeError, OSError):
        return None
    candidate.step()
    return max(_pages("VmHWM") - before, 0)


def _pages(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def _rounds(timed, steps: dict[str, Callable], series: dict[str, Series], seconds: float) -> None:
    order, shuffle = list(steps), random.Random(0).shuffle
    deadline = time.perf_counter() + seconds
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        shuffle(order)
        for name in order:
            timed.measure(steps[name], series[name])


class _Host:
    """The CPU, with its caches warm: one untimed call, then as many timed ones as fill ROUND_SECONDS."""

    def warm_up(self, steps, series) -> None:
        for name, step in steps.items():
            best, start = float("inf"), time.perf_counter()
            while time.perf_counter() - start < 0.03:
                before = time.perf_counter()
                step()
                best = min(best, time.perf_counter() - before)
            series[name].iterations = max(1, round(ROUND_SECONDS / best))

    def measure(self, step, series: Series) -> None:
        step()  # brings its tensors back to the cache, and waits out the threads of the one before it
        start = time.perf_counter()
        for _ in range(series.iterations):
            step()
        series.times.append((time.perf_counter() - start) / series.iterations)


class _Device:
    """A GPU, with its L2 cold: device time between events of one call, and host time of another.

    Before the events the device reads a buffer of four times its L2 (reads leave no dirty lines for the
    call to write back), then spins for as long as the host needs to enqueue the call: the time is the
    device's own.
    """

    def __init__(self, device: str):
        properties = torch.cuda.get_device_properties(device)
        self.ticks = getattr(properties, "clock_rate", 2_000_000) * 1e3  # a second
        size = max(4 * getattr(properties, "L2_cache_size", 64 << 20), 64 << 20)
        self.buffer = torch.zeros(size // 4, device=device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.host: dict[int, float] = {}

    def warm_up(self, steps, series) -> None:
        for step in steps.values():
            for _ in range(5):
                step()
            self.host[id(step)] = statistics.median(self._host_time(step) for _ in range(5))

    def measure(self, step, series: Series) -> None:
        series.host_times.append(self._host_time(step))
        self.buffer.sum()
        torch.cuda._sleep(int(min(1.5 * self.host[id(step)] + 5e-5, 0.05) * self.ticks))
        self.start.record()
        step()
        self.end.record()
        torch.cuda.synchronize()
        series.times.append(self.start.elapsed_time(self.end) * 1e-3)

    def _host_time(self, step) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        elapsed = time.perf_counter() - start
        torch.cuda.synchronize()
        return elapsed


def copy_bandwidth(device: str, copies: int = 5) -> float:
    """Bytes a second of a large copy, read and written both counted; the best of some, as it is a ceiling."""
    source = torch.arange((1 << 30 if device == "cuda" else 1 << 28) // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # touched, so that no page fault is timed
    times = Series()
    step = {"copy": lambda: target.copy_(source)}
    timed = _Device(device) if device == "cuda" else _Host()
    timed.warm_up(step, {"copy": times})
    for _ in range(copies):
        timed.measure(step["copy"], times)
    return 2 * source.nbytes / min(times.times)
