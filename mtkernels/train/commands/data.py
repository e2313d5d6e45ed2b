"""`mtkernels data`: get a dataset's files, and look whether images are sound."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..console import progress_of
from ..data.download import fetch
from ..data.verify import verify_folder


@dataclass(frozen=True, kw_only=True)
class Download:
    """Get a dataset's files, and hold them against their checksums; an interrupted download goes on."""

    dataset: tyro.conf.Positional[Literal["cifar10", "cifar100", "svhn"]]
    """Which."""
    folder: Path | None = None
    """Where to (when not given: data/ and the dataset's name, where `train` looks)."""
    url: str | None = None
    """Where from: the address of a folder that holds the files (when not given: the authors')."""
    extra: bool = False
    """SVHN's extra part too."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Decode every image of a folder of class folders once, and name those that cannot be."""

    folder: tyro.conf.Positional[Path]
    """Folder that holds the train and test subfolders."""
    train_subdir: str = "train"
    """Subfolder of training images."""
    eval_subdir: str = "val"
    """Subfolder of test images."""
    workers: int = 4
    """Threads that decode."""
    again: bool = False
    """Decode everything anew, where no file has changed since the last time too."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Get a dataset's files, or look whether images are sound."""

    action: (
        Annotated[Download, tyro.conf.subcommand("download")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
    )


def data(command: Data) -> int:
    """Do it, and return the exit code."""
    return _download(command.action) if isinstance(command.action, Download) else _verify(command.action)


def _download(command: Download) -> int:
    folder = Path("data") / command.dataset if command.folder is None else command.folder
    names = [command.dataset, *(["svhn-extra"] if command.dataset == "svhn" and command.extra else [])]
    with progress_of("bytes") as show:
        paths = [path for name in names for path in fetch(name, folder, base_url=command.url, progress=show)]
    print("\n".join(f"{path}: complete" for path in paths))
    return 0


def _verify(command: Verify) -> int:
    with progress_of("images") as show:
        report = verify_folder(
            command.folder,
            train=command.train_subdir,
            test=command.eval_subdir,
            workers=command.workers,
            again=command.again,
            progress=show,
        )
    print("\n".join(report.lines()))
    return 1 if report.broken else 0
