"""Batches: what ranks and parts get of one is, put together, what one process gets of it."""

from dataclasses import replace

import pytest
import torch

from mtkernels.train.config import Config
from mtkernels.train.data import NO_LABEL, load_dataset, make_feed
from mtkernels.train.data.feed import Batch, MemoryFeed, StreamFeed
from mtkernels.train.distributed import ALONE, Ranks
from mtkernels.train.loop import make_batches

from .data.images import write_digits

CONFIG = Config(batch_size=31, labeled_batch_size=10, noise=0.1, warp=0.3, augment="affine")
STEPS = (0, 1, 63, 64, 2)  # forward and back, and past what is drawn at once


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Config:
    root = write_digits(tmp_path_factory.mktemp("feed"), train=6, unlabeled=5)
    streamed = replace(CONFIG, dataset="imagenet", data=root, train_subdir="train", labels=4, workers=0)
    return replace(streamed, augment="imagenet", image_size=24, batch_size=7, labeled_batch_size=3)


def batches_of(config: Config, ranks: Ranks) -> list[Batch]:
    data = load_dataset(config)
    with make_feed(config, data, make_batches(config, data), 2, ranks) as feed:
        assert isinstance(feed, StreamFeed if config.dataset == "imagenet" else MemoryFeed)
        return [feed.batch(step) for step in STEPS]


def joined(parts: list[Batch]) -> tuple[torch.Tensor, ...]:
    """Views, labels of the whole batch, in its order."""
    order = torch.cat([part.rows for part in parts]).argsort()
    views = [torch.cat(views)[order] for views in zip(*(part.views for part in parts), strict=True)]
    return *views, torch.cat([part.labels for part in parts])[order]


def cases(files: Config) -> dict[str, Config]:
    shifts = replace(CONFIG, augment="translate")
    return {
        "affine": CONFIG,
        "translate": replace(shifts, noise=0.0),
        "noise": shifts,
        "plain": replace(CONFIG, augment="none"),
        "any": replace(CONFIG, labeled_batch_size=None, class_loss_over="labeled", labels=400),
        "supervised": replace(CONFIG, method="supervised"),
        "streamed": files,
        "streamed-any": replace(files, labeled_batch_size=None, class_loss_over="labeled"),
    }


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (3, 2), (1, 3)])
@pytest.mark.parametrize("name", cases(CONFIG))
def test_shares_make_up_the_batch(files: Config, name: str, world: int, accumulate: int):
    config = cases(files)[name]
    if config.batch_size < 10 and world * accumulate > 5:
        accumulate = 1
    whole = batches_of(config, ALONE)
    shared = replace(config, accumulate=accumulate)
    ranks = [batches_of(shared, Ranks(rank, world)) for rank in range(world)]
    for expected, *batches in zip(whole, *ranks, strict=True):
        assert expected.rows is None and next(expected.parts()) is expected
        parts = [part for batch in batches for part in batch.parts()]
        assert len(parts) == world * accumulate
        for part in (*batches, *parts):
            assert part.counts.rows == len(expected.labels)
            assert int(part.counts.class_rows) == int(expected.counts.class_rows)
        for one, several in zip((*expected.views, expected.labels), joined(parts), strict=True):
            assert torch.equal(one, several)


def test_counts_are_of_the_whole_batch(files: Config):
    for name, config in cases(files).items():
        for batch in batches_of(config, ALONE):
            known = int((batch.labels != NO_LABEL).sum())
            over = max(known, 1) if config.class_loss_over == "labeled" else len(batch.labels)
            assert batch.counts.rows == len(batch.labels) and int(batch.counts.class_rows) == over, name


def test_a_step_has_one_batch_whichever_came_before(files: Config):
    for config in (CONFIG, files):
        data = load_dataset(config)
        with make_feed(config, data, make_batches(config, data), 1) as feed:
            first, _, again = feed.batch(3), feed.batch(4), feed.batch(3)
        assert torch.equal(first.views[0], again.views[0]) and torch.equal(first.labels, again.labels)
