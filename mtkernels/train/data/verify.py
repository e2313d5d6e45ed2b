"""Decode each image of class folders once, and list those that are broken."""

import hashlib
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from ..config import SettingError
from ..files import write_json
from .decode import DecodeError, decode_noting, in_threads
from .folder import Files, Listing, scan
from .raw import NO_LABEL

CACHE = ".mtkernels-verified.json"  # in the data set's folder: what was found, and a hash of names, sizes and times


@dataclass(frozen=True)
class VerifyReport:
    """What the images are."""

    root: str
    classes: int
    train: int  # labeled images
    unlabeled: int
    test: int
    shorter_side: tuple[int, float, int]  # least, median, most; of the sound images, in pixels
    broken: tuple[tuple[str, str], ...]  # (PART/CLASS/FILE, reason)
    mended: tuple[tuple[str, str], ...]  # (file, what simplejpeg holds against it): JPEGs that Pillow decodes
    kept: bool = True  # for the next time

    def lines(self) -> list[str]:
        """The report as text."""
        least, median, most = self.shorter_side
        lines = [
            f"{self.root}: {self.classes:,} classes, {self.train:,} training images, {self.unlabeled:,} unlabeled,"
            f" {self.test:,} test images; shorter side {least:,} to {most:,} pixels, median {median:,.0f}"
        ]
        lines += [f"{len(self.broken):,} broken" + ":" * bool(self.broken)]
        lines += [f"  {path}: {reason}" for path, reason in self.broken]
        if self.mended:
            lines += [f"{len(self.mended):,} damaged, and decoded by Pillow:"]
            lines += [f"  {path}: {reason}" for path, reason in self.mended]
        if not self.kept:
            lines += [f"{Path(self.root, CACHE)} could not be written: the next time starts anew"]
        return lines


def verify_folder(
    root: Path,
    *,
    train: str = "train",
    test: str = "val",
    workers: int | None = None,
    again: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Decode all images in full, in `workers` threads; for files that did not change since, tell what was found then.

    `again` decodes in any case; `progress(done, images)` is called after each image.
    """
    root = Path(root)
    classes, listings = scan(root, train=train, test=test)
    state = _state(root, (train, test), listings)
    if not again and (known := _known(root, state)):
        return known
    images = sum(len(listing.names) for listing in listings)
    sides, broken, mended, done = [], [], [], 0
    for part, (files, names, _) in zip((train, test), listings, strict=True):
        for name, found in zip(names, in_threads(partial(_look, files), len(files), workers), strict=True):
            if isinstance(found, DecodeError):
                broken.append((f"{part}/{name}", found.reason))
            else:
                sides.append(found[0])
                mended += [(f"{part}/{name}", found[1])] if found[1] else []
            done += 1
            if progress is not None:
                progress(done, images)
    if not sides:
        raise SettingError(f"all {images:,} images of {root} are broken, the first: {': '.join(broken[0])}")
    unlabeled = int((listings[0].labels == NO_LABEL).sum())
    report = VerifyReport(
        root=str(root),
        classes=len(classes),
        train=len(listings[0].labels) - unlabeled,
        unlabeled=unlabeled,
        test=len(listings[1].labels),
        shorter_side=(min(sides), statistics.median(sides), max(sides)),
        broken=tuple(broken),
        mended=tuple(mended),
    )
    return _keep(root, state, report)


def _look(files: Files, at: int) -> tuple[int, str | None] | DecodeError:
    """The shorter side, and what simplejpeg held against a JPEG that Pillow then decoded."""
    try:
        pixels, refusal = decode_noting(files.paths[at])
    except DecodeError as error:
        return error
    return min(pixels.shape[:2]), refusal


def _state(root: Path, parts: Sequence[str], listings: Sequence[Listing]) -> str:
    """A hash that changes when a file is added, removed or written to."""
    digest = hashlib.sha256()
    for part, listing in zip(parts, listings, strict=True):
        for name in listing.names:
            try:
                stat = os.stat(root / part / name)
                facts = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                facts = "missing"
            digest.update(os.fsencode(f"{part}/{name}\0{facts}\n"))
    return digest.hexdigest()


def _known(root: Path, state: str) -> VerifyReport | None:
    try:
        known = json.loads((root / CACHE).read_text(encoding="utf-8"))
        if known.pop("state") != state:
            return None
        for name in ("broken", "mended"):
            known[name] = tuple((path, reason) for path, reason in known[name])
        return VerifyReport(**known | {"root": str(root), "shorter_side": tuple(known["shorter_side"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or not ours
        return None


def _keep(root: Path, state: str, report: VerifyReport) -> VerifyReport:
    try:
        write_json(root / CACHE, asdict(report) | {"state": state})
    except OSError:  # a data set is often read-only
        return replace(report, kept=False)
    return report
