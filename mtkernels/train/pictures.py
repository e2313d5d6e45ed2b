"""Pictures of a run: the views that it trains on, and what its networks take for something else."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .config import Config
from .data import NO_LABEL, Batches, Dataset, Draw, Evaluation, make_feed
from .data.raw import Facts
from .files import write_with
from .methods import METHODS, Method
from .methods.method import evaluating, heads_of
from .plots import plot_confusion, plot_sheet

_PAIRS = 12
_MISTAKES = 24
_MOST_CLASSES = 2000  # of a confusion matrix: beyond, its file takes more than 10 MB


def write_pairs(folder: Path, config: Config, data: Dataset, batches: Batches) -> None:
    """pairs.png: the first and last images of batch 0, each with all its views side by side, as the networks get them.

    Draws nothing from torch's global generator. Of images on disk these alone are read, without worker processes.
    """
    in_memory = isinstance(data.pool.images, Tensor)
    if not in_memory:
        config, batches = replace(config, workers=0), _Ends(batches)
    with make_feed(config, data, batches, METHODS[config.method].views) as feed:
        batch = feed.batch(0)
    rows = _ends(len(batch.labels)).to(batch.labels.device)
    views = [shown(view[rows], config, data.raw) for view in batch.views]
    names = data.raw.class_names
    captions = ["unlabeled" if at == NO_LABEL else names[at] for at in batch.labels[rows].tolist()]
    pairs = _side_by_side(views)
    title = f"images of the first batch, each with {_counted(len(views), 'view')}: {config.augment}"
    if config.noise:
        title += f", noise {config.noise:g}"
    write_with(folder / "pairs.png", lambda path: plot_sheet(path, pairs, captions, title))


class _Ends:
    """The first and last images of `batches`: of two streams, some of each."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def draw(self, step: int) -> Draw:
        draw = self.batches.draw(step)
        return draw.take(_ends(len(draw.index)))


def _ends(count: int) -> Tensor:
    """The rows of the sheet, among `count`."""
    half = _PAIRS // 2
    return (
        torch.arange(count)
        if count <= _PAIRS
        else torch.cat([torch.arange(half), torch.arange(-half, 0) + count])
    )


def _side_by_side(views: Sequence[np.ndarray]) -> np.ndarray:
    """[rows, height, width, 3] of each view, with a white gap between two."""
    rows, height, width, _ = views[0].shape
    gap = np.ones((rows, height, max(1, width // 16), 3), np.float32)
    return np.concatenate([part for view in views for part in (view, gap)][:-1], 2)


def write_pictures(folder: Path, config: Config, method: Method, data: Dataset, batches: Batches) -> None:
    """confusion.png and .csv: evaluation images by true and predicted class, of the model that stands for the method;
    mistakes.png: the teacher's mistakes that it is surest of.
    """
    truth, guesses, mistakes = _examine(method, Evaluation(config, data))
    names, split = data.raw.class_names, f"{config.eval_split} images"
    if len(names) <= _MOST_CLASSES:
        counts = np.zeros((len(names), len(names)), np.int64)
        np.add.at(counts, (truth, guesses), 1)
        write_with(folder / "confusion.csv", lambda path: _write_counts(path, counts, names))
        error = 100 * (truth != guesses).mean()
        title = f"{method.headline} on {len(truth):,} {split}: {error:.2f}% wrong"
        write_with(folder / "confusion.png", lambda path: plot_confusion(path, counts, names, title))
    columns = zip(mistakes.truth.tolist(), mistakes.guess.tolist(), mistakes.confidence.tolist(), strict=True)
    captions = [
        f"{names[true]}\ntaken for {names[guess]}, {100 * sure:.1f}%" for true, guess, sure in columns
    ]
    images = shown(mistakes.images, config, data.raw)
    title = f"mistakes on {split} of which the teacher is surest"
    if not len(images):
        title = f"the teacher makes no mistake on {len(truth):,} {split}"
    write_with(folder / "mistakes.png", lambda path: plot_sheet(path, images, captions, title))


class _Mistakes(NamedTuple):
    """Images with what they are and what they are taken for."""

    images: Tensor  # [rows, channels, height, width] as networks get them
    truth: Tensor  # [rows] int64
    guess: Tensor  # [rows] int64
    confidence: Tensor  # [rows] float32, probability of the guess

    def surest(self) -> "_Mistakes":
        """The wrong ones alone, and of these the surest first."""
        wrong = (self.guess != self.truth).nonzero().flatten()
        places = wrong[self.confidence[wrong].topk(min(_MISTAKES, len(wrong))).indices]
        return _Mistakes(*(column[places] for column in self))


@torch.no_grad()
def _examine(method: Method, evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, _Mistakes]:
    """True and predicted class of each image [images], the method's own model predicting; the teacher's mistakes."""
    models = list(dict.fromkeys([getattr(method, method.headline), method.teacher]))
    truth, guesses, worst = [], [], None
    with evaluating(models):
        for images, labels in evaluation:
            probs = [heads_of(model(images))[0].float().softmax(1) for model in models]
            truth.append(labels.cpu())
            guesses.append(probs[0].argmax(1).cpu())
            confidence, guess = probs[-1].max(1)
            found = _Mistakes(images, labels, guess, confidence).surest()
            both = found if worst is None else _Mistakes(*map(torch.cat, zip(worst, found, strict=True)))
            worst = both.surest()
    return torch.cat(truth).numpy(), torch.cat(guesses).numpy(), worst


def _write_counts(path: Path, counts: np.ndarray, names: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true class", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))


def shown(images: Tensor, config: Config, raw: Facts) -> np.ndarray:
    """What networks get [rows, channels, height, width] as pictures [rows, height, width, 3] of values 0 to 1.

    Where each image was normalised by itself or whitened, it is stretched: its 1st percentile becomes 0, its 99th 1.
    """
    pixels = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    if config.normalize == "channels":
        pixels = pixels * np.array(raw.std, np.float32) + np.array(raw.mean, np.float32)
    elif config.normalize != "none":
        low, high = (np.percentile(pixels, at, axis=(1, 2, 3), keepdims=True) for at in (1, 99))
        pixels = (pixels - low) / np.maximum(high - low, 1e-6)
    if pixels.shape[3] not in (3, 4):
        pixels = np.repeat(pixels.mean(3, keepdims=True), 3, axis=3)
    return pixels[..., :3].clip(0, 1).astype(np.float32)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
