"""Fetching datasets: downloads that resume and are checked, archives that cannot write outside their folder."""

import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from ..config import SettingError
from ..files import write_with

Progress = Callable[[int, int | None], object]  # bytes there, bytes in all where the server says
_CHUNK = 1 << 16
_URL_VARIABLE = "MTKERNELS_DATA_URL"


@dataclass(frozen=True)
class Remote:
    """A file that a dataset needs."""

    url: str
    checksum: str  # sha256:HEX or md5:HEX

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


_CIFAR = "https://www.cs.toronto.edu/~kriz"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
# The SHA-256 sums are those that Keras (CIFAR) and torchvision's prototypes (SVHN) publish for the same files.
KNOWN: dict[str, tuple[Remote, ...]] = {
    "cifar10": (
        Remote(
            f"{_CIFAR}/cifar-10-python.tar.gz",
            "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    ),
    "cifar100": (
        Remote(
            f"{_CIFAR}/cifar-100-python.tar.gz",
            "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ),
    ),
    "svhn": (
        Remote(
            f"{_SVHN}/train_32x32.mat",
            "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        Remote(
            f"{_SVHN}/test_32x32.mat",
            "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    ),
    "svhn-extra": (
        Remote(
            f"{_SVHN}/extra_32x32.mat",
            "sha256:a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
        ),
    ),
}


def fetch(
    dataset: str, folder: Path, *, base_url: str | None = None, progress: Progress | None = None
) -> list[Path]:
    """Download a dataset's files of `KNOWN` that `folder` lacks, and check those that it has.

    `base_url`, or the environment's MTKERNELS_DATA_URL, replaces all of a file's address but its name: a mirror.
    """
    if dataset not in KNOWN:
        raise SettingError(f"dataset must be one of {', '.join(KNOWN)} to be downloaded, got {dataset!r}")
    base = base_url or os.environ.get(_URL_VARIABLE)
    paths = []
    for remote in KNOWN[dataset]:
        url = f"{base.rstrip('/')}/{remote.name}" if base else remote.url
        paths.append(folder / remote.name)
        download(url, paths[-1], checksum=remote.checksum, progress=progress)
    return paths


def download(
    url: str,
    path: Path,
    *,
    checksum: str,
    progress: Progress | None = None,
    attempts: int = 3,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> None:
    """`url` as the file `path`, whole and with `checksum` ("sha256:HEX" or "md5:HEX"), or OSError and no `path`.

    What an interrupted download has got stays in `path`.part, and the next attempt or call goes on from there if the
    server can (HTTP Range). `pause` seconds before the second attempt, twice that before the third; silence of the
    server for `timeout` seconds ends an attempt. A `path` that exists is checked, and not downloaded.
    """
    if not url.startswith(("http://", "https://")):
        raise SettingError(f"a download's address must start with http:// or https://, got {url!r}")
    if not checksum.startswith(("sha256:", "md5:")):
        raise SettingError(f"a checksum must be sha256:HEX or md5:HEX, got {checksum!r}")
    if path.exists():
        _check(path, checksum, "move it away to download it again")
        return
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, attempts + 1):
        try:
            _go_on(url, part, timeout, progress)
            break
        except urllib.error.HTTPError as error:
            failure: Exception = error
            if error.code < 500:
                raise OSError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            failure = error
        if attempt == attempts:
            raise OSError(
                f"{url}: {attempts} attempts, {_size(part)} bytes (the next call goes on from there): {failure}"
            ) from failure
        time.sleep(pause * attempt)
    try:
        _check(part, checksum, f"downloaded from {url}, and removed")
    except OSError:
        part.unlink()
        raise
    os.replace(part, path)


def extract(archive: Path, folder: Path) -> None:
    """Unpack a .zip or a .tar, compressed or not, into `folder`.

    Raises SettingError before anything is written if a member leads outside or is neither a file nor a folder: links
    can lead outside, and datasets need none.
    """
    try:
        with _members(archive) as members:
            for member in members:
                _refuse_unsafe(archive, folder, member)
            for member in members:
                target = folder / member.name
                (target if member.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
                if not member.is_folder:
                    write_with(target, partial(_copy, member))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise SettingError(f"{archive} is damaged, or neither .zip nor .tar: {error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _go_on(url: str, part: Path, timeout: float, progress: Progress | None) -> None:
    """Fetch what `part` lacks; raises if the connection ends before that."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing comes after what we have: the checksum tells if that is all
            return
        raise
    with response:
        if response.status != 206:  # the server sends the whole, whatever was asked for
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _check(path: Path, checksum: str, note: str) -> None:
    kind, _, expected = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected.lower():
        raise OSError(f"{path} must have {kind} {expected}, got {digest.hexdigest()}: {note}")


@dataclass(frozen=True)
class _Member:
    name: str
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes]]


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield [_zip_member(opened, info) for info in opened.infolist()]
    else:
        with tarfile.open(archive) as tar:
            yield [
                _Member(info.name, info.isreg(), info.isdir(), partial(tar.extractfile, info))
                for info in tar.getmembers()
            ]


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    is_file = kind in (0, stat.S_IFREG) and not info.is_dir()
    return _Member(
        info.filename, is_file, info.is_dir() and kind in (0, stat.S_IFDIR), partial(opened.open, info)
    )


def _refuse_unsafe(archive: Path, folder: Path, member: _Member) -> None:
    posix, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
    outside = (
        posix.is_absolute()
        or windows.anchor
        or ".." in windows.parts  # splits at both kinds of slashes
        or not (folder / posix).resolve().is_relative_to(folder.resolve())  # through a link that was there
    )
    if outside:
        raise SettingError(f"{archive}: {member.name!r} would be written outside {folder}: nothing unpacked")
    if not member.is_file and not member.is_folder:
        raise SettingError(f"{archive}: {member.name!r} is a link or a device: nothing unpacked")


def _copy(member: _Member, target: Path) -> None:
    with member.open() as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
