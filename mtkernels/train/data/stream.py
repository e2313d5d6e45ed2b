"""Images from disk to batches: decoded, and training images augmented, in worker processes."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import SettingError
from ..interrupt import interrupts_wait
from .decode import DecodeError, Quarantine, resize_crop
from .raw import ImageFiles

# (n images, each uint8 [1, 3, height, width] with the strides of channels_last, n samples, n epochs) -> views
# [k, n, 3, size, size]. Several at once, as the random numbers of many cost no more than those of one.
ViewsOf = Callable[[Sequence[Tensor], Sequence[int], Sequence[int]], Tensor]
_TOGETHER = 32  # images: some 20 MB, decoded


class StreamBatches:
    """Views [k, rows, 3, size, size] and labels [rows] of `batches`, pairs of indices [rows] and epochs [rows].

    An image is decoded once for its k views, `views_of(images, indices, epochs)`, which workers that are spawned need
    to be picklable. A broken image is noted in `quarantine`, and the next one in the list that has its label stands in
    for it, with the random numbers of the broken one. So batches are a pure function of files, labels and `batches`,
    however many workers there are. To resume, start `batches` there. Each worker reads `prefetch` batches ahead.
    """

    def __init__(
        self,
        files: ImageFiles,
        labels: Tensor,
        views_of: ViewsOf,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        size: int,
        least: int | None = None,
        workers: int = 0,
        prefetch: int = 2,
        pin: bool = False,
        quarantine: Quarantine | None = None,
    ) -> None:
        """`least`: decode to no less than this (None: 8/7 of `size`, 256 for 224, as an evaluation's resize)."""
        self.quarantine = Quarantine(len(files)) if quarantine is None else quarantine
        least = default_side(size) if least is None else least
        rows = _TrainRows(files, labels.cpu().numpy(), views_of, least, self.quarantine.allowed)
        sampler = ((indices.tolist(), epochs.tolist()) for indices, epochs in batches)
        self._loaded: Iterator[_Loaded] | None = _started(_loader(rows, sampler, workers, prefetch, pin))

    def __iter__(self) -> "StreamBatches":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self._loaded is None:
            raise StopIteration
        try:
            with interrupts_wait():
                loaded = next(self._loaded)
            return _received(loaded, self.quarantine)
        except BaseException:  # the end of `batches`, an error in a worker, Ctrl-C
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers."""
        # Letting go is not enough after an error: its traceback holds on to the iterator.
        loaded, self._loaded = self._loaded, None
        with interrupts_wait():
            _stop(loaded)


class EvalBatches:
    """Images uint8 [rows, 3, size, size] and labels [rows] of all files in order, as often as it is iterated over.

    The shorter side is resized to 8/7 of `size` (256 for 224), then the centre is cut out, as torchvision has it on
    PIL images. Broken images are left out and noted in `quarantine`. Workers stay between iterations.
    """

    def __init__(
        self,
        files: ImageFiles,
        labels: Tensor,
        *,
        size: int,
        batch_size: int,
        side: int | None = None,
        workers: int = 0,
        prefetch: int = 2,
        pin: bool = False,
        quarantine: Quarantine | None = None,
        share: slice = slice(None),
    ) -> None:
        """share: of the images of each batch."""
        self.quarantine = Quarantine(len(files)) if quarantine is None else quarantine
        side = default_side(size) if side is None else side
        rows = _TestRows(files, labels.cpu().numpy(), side, size, self.quarantine.allowed)
        sampler = [
            range(start, min(start + batch_size, len(files)))[share]
            for start in range(0, len(files), batch_size)
        ]
        self._parted = share.step not in (None, 1)
        self._loader = _loader(rows, sampler, workers, prefetch, pin)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = _started(self._loader)
        while True:
            with interrupts_wait():
                loaded = next(batches, None)
            if loaded is None:
                return
            images, labels = _received(loaded, self.quarantine)
            if len(labels) or self._parted:  # each rank has a part of every batch, were it empty
                yield images, labels


def default_side(size: int) -> int:
    """256 for crops of 224."""
    return size * 8 // 7


class _Loaded(NamedTuple):
    """What a worker hands over."""

    views: Tensor | None
    labels: Tensor | None
    broken: dict[str, str]  # name -> reason
    error: (
        SettingError | None
    )  # handed over, as raising it would put the worker's traceback into its sentence


class _Rows(Dataset):
    """What both kinds of batches share: images that may be broken."""

    def __init__(self, files: ImageFiles, labels: np.ndarray, allowed: int) -> None:
        self.files, self.labels, self.allowed = files, labels, allowed

    def _try(self, at: int, least: int, broken: dict[str, str]) -> np.ndarray | None:
        try:
            return self.files.decode(at, least)
        except DecodeError as error:
            broken[str(error.path)] = error.reason
            if len(broken) > self.allowed:  # a disk that is gone: not all of its files need to be tried
                raise SettingError("too many images are broken") from error
            return None


class _TrainRows(_Rows):
    """Batches of views."""

    def __init__(
        self, files: ImageFiles, labels: np.ndarray, views_of: ViewsOf, least: int, allowed: int
    ) -> None:
        super().__init__(files, labels, allowed)
        self.views_of, self.least = views_of, least

    def __getitem__(self, batch: tuple[list[int], list[int]]) -> _Loaded:
        indices, epochs = batch
        parts, broken = [], {}
        try:
            for start in range(0, len(indices), _TOGETHER):
                some = slice(start, start + _TOGETHER)
                images = [_tensor(self._sound(at, broken)) for at in indices[some]]
                parts.append(self.views_of(images, indices[some], epochs[some]))
        except SettingError as error:
            return _Loaded(None, None, broken, error)
        views = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return _Loaded(views, torch.from_numpy(self.labels[indices]), broken, None)

    def _sound(self, at: int, broken: dict[str, str]) -> np.ndarray:
        """Image `at`, or the first sound one after it that has its label, round the end of the list."""
        image = self._try(at, self.least, broken)
        if image is not None:
            return image
        same = np.flatnonzero(self.labels == self.labels[at])
        for other in np.roll(same, -1 - int(np.searchsorted(same, at)))[:-1].tolist():
            image = self._try(other, self.least, broken)
            if image is not None:
                return image
        raise SettingError(
            f"{self.files.paths[at]} is broken, and so is every other image with label {self.labels[at]}"
        )


class _TestRows(_Rows):
    """Batches of images without augmentation, decoded in full: a scaled decode would change the figures a little."""

    def __init__(self, files: ImageFiles, labels: np.ndarray, side: int, size: int, allowed: int) -> None:
        super().__init__(files, labels, allowed)
        self.side, self.size = side, size

    def __getitem__(self, indices: Sequence[int]) -> _Loaded:
        images, kept, broken = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8), [], {}
        try:
            for at in indices:
                image = self._try(at, 0, broken)
                if image is not None:
                    images[len(kept)] = _tensor(resize_crop(image, side=self.side, size=self.size))[0]
                    kept.append(at)
        except SettingError as error:
            return _Loaded(None, None, broken, error)
        return _Loaded(images[: len(kept)], torch.from_numpy(self.labels[kept]), broken, None)


def _received(loaded: _Loaded, quarantine: Quarantine) -> tuple[Tensor, Tensor]:
    for name, reason in loaded.broken.items():
        quarantine.add(name, reason)
    if loaded.error is not None:
        raise loaded.error
    return loaded.views, loaded.labels


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)


def _loader(rows: _Rows, sampler: Iterable, workers: int, prefetch: int, pin: bool) -> DataLoader:
    return DataLoader(
        rows,
        batch_size=None,  # an item is a batch
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else it would draw from torch's own, which the model's weights come from
    )


_LIVE: "weakref.WeakSet[Iterator[_Loaded]]" = weakref.WeakSet()  # iterators


def _started(loader: DataLoader) -> Iterator[_Loaded]:
    """Its iterator. Workers are born with signals that stop a run held back: the parent decides what follows."""
    with (
        interrupts_wait(),
        _held_back() if loader.num_workers and loader._iterator is None else nullcontext(),
    ):
        loaded = iter(loader)
    _LIVE.add(loaded)
    return loaded


@contextmanager
def _held_back() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # its start, which a first queue would bring, lets them through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _stop(loaded: Iterator[_Loaded] | None) -> None:
    getattr(loaded, "_shutdown_workers", lambda: None)()


@atexit.register  # before multiprocessing's own, which signals workers and waits for them, with no limit
def _stop_all() -> None:
    for loaded in list(_LIVE):
        _stop(loaded)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        # macOS: torch's own handler ends a worker, whoever sends the signal.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    sys.excepthook = _say_unless_hung_up


def _end_when_the_parent_says() -> None:
    """Clusters send SIGTERM to all processes of a job at once, and the parent has a step to end: only its own counts.

    A parent that was killed sends none: DataLoader's loop looks for it every few seconds.
    """
    parent = multiprocessing.parent_process().pid  # os.getppid() may be a server that forks
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _say_unless_hung_up(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """An interrupted parent hangs up on the thread that hands it tensors; all else a worker raises reaches it whole."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, traceback)
