"""One run from config to a filled folder: what `mtkernels train` does once and `demo` several times."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from .config import Config, SettingError
from .console import progress
from .data import Batches, Dataset, load_dataset
from .environment import environment
from .files import write_json
from .folder import Summary, describe_data, finish_folder, make_folder
from .loop import make_batches, make_method, train
from .meter import Record
from .methods import Method


def run(config: Config, *, command: Sequence[str] | None = None) -> tuple[Path, Summary]:
    """Train as `config` says and fill the run's folder; Ctrl-C ends the training early, not the filling."""
    data, batches, method = prepare(config)
    folder = make_folder(config)
    describe_data(folder, data)
    write_json(folder / "config.json", config.as_dict())
    write_json(folder / "environment.json", environment(data.pool.labels.device, command))
    records: list[Record] = []
    started = time.perf_counter()
    with (
        stop_on_interrupt() as should_stop,
        open(folder / "metrics.jsonl", "w", encoding="utf-8") as lines,
    ):
        with progress(config, folder, method.timeline.steps) as show:

            def on_record(record: Record) -> None:
                records.append(record)
                lines.write(json.dumps(record) + "\n")
                lines.flush()  # a run that is killed keeps its metrics
                show(record)

            train(method, data, batches, on_record=on_record, should_stop=should_stop)
        data.quarantine.write(folder / "broken.txt")
        return folder, finish_folder(folder, config, method, records, time.perf_counter() - started)


def prepare(config: Config) -> tuple[Dataset, Batches, Method]:
    """All that a run needs but its folder; refuses settings, and batches that the data cannot fill."""
    config.validate()
    device = _device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    data = load_dataset(config).to(device)
    batches = make_batches(config, data)
    return data, batches, make_method(config, data, batches)


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C makes the yielded function return True, and the second interrupts at once.

    So no step is cut in half: student and teacher are saved as a step left them.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stopped.is_set
        return

    def stop(_signal: int, _frame: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def _device(config: Config) -> torch.device:
    try:
        device = torch.device(config.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"device must be one that this torch can use, got {config.device!r}: {reason}"
        ) from error
    return device
