"""The counter-based numbers: Random123's known answers, the distribution, and that a row depends on its key alone."""

import math

import numpy as np
import pytest
import torch

from mtkernels.train.data.random import normals, philox, uniforms

ROWS = torch.arange(20000)
FIRST = torch.zeros(20000, dtype=torch.int64)


def draw(samples=ROWS, epochs=FIRST, *, seed=0, view=0, count=4, stream=0):
    return uniforms(seed, samples, epochs, view=view, count=count, stream=stream)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, answer):
    words = tuple(torch.tensor([int(word, 16)]) for word in counter.split())
    low, high = (int(word, 16) for word in key.split())
    assert philox(words, high << 32 | low).tolist() == [[int(word, 16) for word in answer.split()]]


def test_the_layout_of_the_counter():
    """Anyone can redraw a number of a published run from this."""
    sample, epoch, view, stream, seed = 5 + (7 << 32), 3, 2, 4, 2**63 + 11
    row = uniforms(seed, torch.tensor([sample]), torch.tensor([epoch]), view=view, count=7, stream=stream)
    for block in (0, 1):
        counter = (5, 3, 7, stream << 24 | view << 16 | block)
        words = philox(tuple(torch.tensor([word]) for word in counter), seed)[0].tolist()
        expected = [(word >> 8) / 2**24 for word in words][: 7 - 4 * block]
        assert row[0, 4 * block : 4 * block + 4].tolist() == expected


def test_uniform_on_a_grid_of_24_bits():
    numbers = draw(count=8)
    assert numbers.dtype == torch.float32 and numbers.min() >= 0 and numbers.max() < 1
    assert torch.equal(numbers * 2**24, (numbers * 2**24).round())
    counts = torch.bincount((numbers.flatten() * 256).long(), minlength=256).double()
    expected = numbers.numel() / 256
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)
    assert len(numbers.flatten().unique()) > 0.99 * numbers.numel()


OTHERS = {
    "sample": draw(ROWS + 1),
    "sample high": draw(ROWS + (1 << 32)),
    "epoch": draw(epochs=FIRST + 1),
    "view": draw(view=1),
    "stream": draw(stream=1),
    "seed": draw(seed=1),
    "seed high": draw(seed=1 << 32),
    "place": draw(count=8)[:, 4:],
}


@pytest.mark.parametrize("other", OTHERS)
def test_neighbours_are_independent(other):
    one, two = draw(), OTHERS[other]
    columns = torch.cat([one, two], 1).double()
    if other == "sample":  # rows overlap, moved by one
        columns = columns[::2]
    correlations = torch.corrcoef(columns.T) - torch.eye(8)
    assert correlations.abs().max() < 5 / math.sqrt(len(columns))
    squares = torch.corrcoef(((columns - 0.5) ** 2).T) - torch.eye(8)
    assert squares.abs().max() < 5 / math.sqrt(len(columns))


def test_a_row_depends_on_its_key_alone():
    whole = draw(epochs=ROWS % 7)
    order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(1))[:333]
    assert torch.equal(draw(ROWS[order], (ROWS % 7)[order]), whole[order])
    assert torch.equal(draw(ROWS[order].int(), (ROWS % 7)[order].to(torch.int16)), whole[order])
    assert torch.equal(draw(ROWS[order], (ROWS % 7)[order], count=11)[:, :4], whole[order])
    assert draw(ROWS[:0], FIRST[:0]).shape == (0, 4) and draw(count=0).shape == (20000, 0)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_several_views_at_once():
    together = draw(view=torch.tensor([0, 3])[:, None], count=5)
    assert together.shape == (2, 20000, 5)
    assert torch.equal(together[0], draw(count=5)) and torch.equal(together[1], draw(view=3, count=5))


def test_what_the_counter_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="view and stream must be 0 to 255, got 256 and 0"):
        draw(view=256)
    with pytest.raises(ValueError, match="view and stream must be 0 to 255, got 0 and -1"):
        draw(stream=-1)
    with pytest.raises(ValueError, match="count must be at most 262144, got 262145"):
        draw(ROWS[:1], FIRST[:1], count=262145)


def test_normals():
    numbers = normals(0, ROWS, FIRST, view=0, count=5).double()
    assert numbers.shape == (20000, 5) and numbers.isfinite().all()
    ordered = np.sort(numbers.flatten().numpy())
    cdf = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in ordered[::50]])
    places = (np.arange(len(ordered))[::50] + 0.5) / len(ordered)
    assert np.abs(cdf - places).max() < 2 / math.sqrt(len(ordered))  # Kolmogorov and Smirnov's statistic
    assert (torch.corrcoef(numbers.T) - torch.eye(5)).abs().max() < 5 / math.sqrt(20000)
    assert torch.equal(normals(0, ROWS[5:9], FIRST[5:9], view=0, count=2), numbers[5:9, :2].float())
