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
from .data import Batches, Dataset, Evaluation, load_dataset, make_feed
from .environment import environment
from .files import write_json
from .folder import Summary, describe_data, finish_folder, make_folder
from .loop import make_batches, make_method, train
from .meter import Record
from .methods import Method
from .methods.method import heads_of


def run(config: Config, *, command: Sequence[str] | None = None) -> tuple[Path, Summary]:
    """Train as `config` says and fill the run's folder; Ctrl-C ends the training early, not the filling."""
    data, batches, method = prepare(config)
    folder = make_folder(config)
    describe_data(folder, data)
    write_json(folder / "config.json", config.as_dict())
    write_json(folder / "environment.json", environment(data.device, command))
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
    """All that a run needs but its folder; what cannot be trained is refused here."""
    config.validate()
    device = _device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    data = load_dataset(config).to(device)
    batches = make_batches(config, data)
    with make_feed(config, data, batches, 1):  # settings of views that the images cannot have
        pass
    return data, batches, _method(config, data, batches)


def _method(config: Config, data: Dataset, batches: Batches) -> Method:
    """The method, its networks tried on one image: before hours of work, and before there is a folder."""
    images, _ = next(iter(Evaluation(config, data)))
    try:
        method = make_method(config, data, batches)
        with torch.no_grad():
            logits, _ = heads_of(method.teacher.eval()(images[:1]))
        method.teacher.train()
    except SettingError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        shape, reason = " x ".join(map(str, images.shape[1:])), str(error).splitlines()[0]
        raise SettingError(f"arch {config.arch} cannot be trained on images of {shape}: {reason}") from error
    if logits.shape != (1, data.classes):
        raise SettingError(
            f"arch {config.arch} must give {data.classes} logits an image, got {list(logits.shape)} for one"
        )
    return method


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
        torch.zeros(1, device=device).item()  # one that computes: not meta
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"device must be one that this torch can use, got {config.device!r}: {reason}"
        ) from error
    return device
