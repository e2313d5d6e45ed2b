"""The benches' fixtures and options, and what they add to pytest-benchmark's JSON.

pytest-benchmark times one test after the other, and a ratio of two such times is one of two moments. Here
the first test of a group measures the whole group, interleaved (measure.session), and each test hands its
own series of that session to pytest-benchmark. A candidate without a time is skipped with its error's text,
which goes into the JSON too.
"""

import importlib.metadata
import os
import platform
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import mtkernels
from bench import features
from bench.cases import Case, cases
from bench.measure import Series, copy_bandwidth, session
from bench.peers import candidates


class Measured(NamedTuple):
    case: Case
    sizes: dict[str, int]  # bytes and tensors
    series: dict[str, Series]  # by candidate


GROUPS = pytest.StashKey[dict[str, Measured]]()
FACTS = pytest.StashKey[dict]()
STARTED = pytest.StashKey[tuple[float, float]]()
DISTRIBUTIONS = (
    "torch",
    "triton",
    "ema-pytorch",
    "torch-ema",
    "timm",
    "diffusers",
    "liger-kernel",
    "kornia",
    "pillow",
    "numpy",
)


def pytest_addoption(parser):
    group = parser.getgroup("mtkernels")
    group.addoption(
        "--bench-device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda")
    )
    group.addoption("--bench-threads", type=int, default=None, help="for torch.set_num_threads")
    group.addoption(
        "--bench-seconds", type=float, default=3.0, help="measuring time of a group (one op at one size)"
    )
    group.addoption(
        "--bench-large", action="store_true", help="the weight average of ViT-B/16 and a 1 B GPT, too"
    )


def pytest_configure(config):
    path = config.getoption("--benchmark-json", None)
    if isinstance(path, str | Path):  # it is opened after the last bench, too late to find no folder
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def pytest_generate_tests(metafunc):
    device = metafunc.config.getoption("--bench-device")
    large = metafunc.config.getoption("--bench-large")
    op = metafunc.module.OP
    found = features.cases(device) if op == features.OP else cases(op, device, large)
    rows = [(case, peer) for case in found for peer in candidates(case)]
    metafunc.parametrize(("case", "peer"), rows, ids=[f"{case.name}-{peer}" for case, peer in rows])


@pytest.fixture(scope="session")
def facts(pytestconfig) -> dict:
    """What a reader needs beside the times, taken before them."""
    threads = pytestconfig.getoption("--bench-threads")
    if threads is not None:
        torch.set_num_threads(threads)
    device = pytestconfig.getoption("--bench-device")
    pytestconfig.stash[STARTED] = time.monotonic(), _others_cpu_seconds()
    pytestconfig.stash[FACTS] = {
        "device_type": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "cache_bytes": 0 if device == "cuda" else _last_level_cache(),  # 0: flushed before each call
        "copy_bandwidth": 0.0,  # the best seen, measured again before each group
        "command": " ".join(["python -m pytest", *map(str, pytestconfig.invocation_params.args)]),
        "versions": _versions(),
    }
    return pytestconfig.stash[FACTS]


@pytest.fixture
def interleaved(benchmark, request, facts):
    """Call it with the test's case and peer: reports that peer's series of the group's session."""

    def report(case: Case, peer: str) -> None:
        measured = _measured(request, case, facts)
        series = measured.series[peer]
        if series.error is not None:
            benchmark.skipped = True
            if peer.startswith("mtkernels") and series.error.startswith("wrong result"):
                pytest.fail(series.error, pytrace=False)
            pytest.skip(series.error)
        benchmark.group = case.group
        benchmark.extra_info.update(
            op=case.op,
            case=case.name,
            peer=peer,
            note=series.note,
            host_seconds=statistics.median(series.host_times) if series.host_times else None,
            peak_bytes=series.peak,
            **measured.sizes,
        )
        benchmark.pedantic(
            lambda: None
        )  # makes the row; the session's rounds then replace its one empty round
        if benchmark.stats is not None:
            benchmark.stats.stats.data[:] = series.times
            benchmark.stats.iterations = series.iterations

    return report


def _measured(request, case: Case, facts: dict) -> Measured:
    groups = request.config.stash.setdefault(GROUPS, {})
    if case.group not in groups:
        chosen = [item.callspec.params for item in request.session.items if "peer" in item.callspec.params]
        names = {params["peer"] for params in chosen if params["case"].group == case.group}
        factories = {name: make for name, make in candidates(case).items() if name in names}
        facts["copy_bandwidth"] = max(facts["copy_bandwidth"], copy_bandwidth(case.device))
        seconds = request.config.getoption("--bench-seconds") / (3 if case.op == features.OP else 1)
        sizes = {"floor_bytes": case.floor_bytes(), "resident_bytes": case.resident_bytes()}
        sizes["tensors"] = len(case.inputs[1])
        groups[case.group] = Measured(case, sizes, session(case, factories, seconds))
        case.forget()
    return groups[case.group]


def pytest_benchmark_update_json(config, benchmarks, output_json):
    errors = [
        {"op": group.case.op, "case": group.case.name, "peer": peer, "error": series.error}
        for group in config.stash.get(GROUPS, {}).values()
        for peer, series in group.series.items()
        if series.error is not None
    ]
    output_json["mtkernels"] = {**config.stash.get(FACTS, {}), "errors": errors, "others_cpu": None}
    if config.stash.get(STARTED, None):
        start, seconds = config.stash[STARTED]
        busy = (_others_cpu_seconds() - seconds) / (time.monotonic() - start) / (os.cpu_count() or 1)
        output_json["mtkernels"]["others_cpu"] = round(max(busy, 0.0), 3)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "mtkernels": mtkernels.__version__}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _others_cpu_seconds() -> float:
    """CPU time that all processes but this one and its children have had so far; 0 where the machine does not tell."""
    fields = (_lines("/proc/stat") or ["cpu 0"])[0].split()[1:]
    user, nice, system = (float(field) / os.sysconf("SC_CLK_TCK") for field in (*fields, 0, 0)[:3])
    return user + nice + system - sum(os.times()[:4])


def _cpu_name() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _last_level_cache() -> int:
    """Bytes; 32 MiB where the machine does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        sizes += [
            int(line[:-1]) << {"K": 10, "M": 20}[line[-1]] for line in _lines(path) if line[-1:] in "KM"
        ]
    return max(sizes) or 32 << 20


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
