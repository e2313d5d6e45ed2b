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
from .data import DATASETS
from .environment import environment
from .files import write_json
from .folder import Summary, finish_folder, make_folder
from .loop import make_batches, make_method, train
from .meter import Record


def run(config: Config, *, command: Sequence[str] | None = None) -> tuple[Path, Summary]:
    """Train as `config` says and fill the run's folder; Ctrl-C ends the training early, not the filling."""
    config.validate()
    device = _device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    data = DATASETS[config.dataset].load(config.labels, config.seed).to(device)
    method = make_method(config, data)
    make_batches(config, method, data)  # refuses batches that the data cannot fill, before there is a folder
    folder = make_folder(config)
    write_json(folder / "config.json", config.as_dict())
    write_json(folder / "environment.json", environment(device, command))
    records: list[Record] = []
    started = time.perf_counter()
    with (
        stop_on_interrupt() as should_stop,
        open(folder / "metrics.jsonl", "w", encoding="utf-8") as lines,
    ):
        with progress(config, folder) as show:

            def on_record(record: Record) -> None:
                records.append(record)
                lines.write(json.dumps(record) + "\n")
                lines.flush()  # a run that is killed keeps its metrics
                show(record)

            train(config, method, data, on_record=on_record, should_stop=should_stop)
        return folder, finish_folder(folder, config, method, records, time.perf_counter() - started)


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
