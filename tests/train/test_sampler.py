"""Properties of the batches: permutations, order, separation, and that any step can be redrawn alone."""

import pytest
import torch

from mtkernels.train.data import EpochBatches, LabeledBatches, TwoStreamBatches

UNLABELED, LABELED = torch.arange(100, 123), torch.arange(7)


def two_streams(seed: int = 0) -> TwoStreamBatches:
    return TwoStreamBatches(UNLABELED, LABELED, batch_size=8, labeled_batch_size=3, seed=seed)


def test_batch_is_the_unlabeled_part_then_the_labeled_part():
    for step in range(20):
        batch = two_streams().draw(step).index
        assert len(batch) == 8 and two_streams().draw(step).unlabeled == 5
        assert (batch[:5] >= 100).all() and (batch[5:] < 100).all()


def test_an_epoch_is_a_permutation_without_its_incomplete_end():
    batches = two_streams()
    assert batches.steps_per_epoch == 23 // 5
    orders = []
    for epoch in range(3):
        parts = [batches.draw(epoch * batches.steps_per_epoch + place).index[:5] for place in range(4)]
        orders.append(torch.cat(parts).tolist())
        assert len(set(orders[-1])) == 20 and set(orders[-1]) <= set(UNLABELED.tolist())
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("labeled_batch_size", [1, 3, 7, 17])
def test_the_labeled_stream_is_permutations_end_to_end(labeled_batch_size):
    batches = LabeledBatches(LABELED, batch_size=labeled_batch_size, seed=0)
    stream = torch.cat([batches.draw(step).index for step in range(28)]).tolist()
    epochs = [stream[start : start + 7] for start in range(0, 28 * labeled_batch_size - 6, 7)]
    assert all(sorted(epoch) == LABELED.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_both_samplers_share_the_labeled_stream():
    alone = LabeledBatches(LABELED, batch_size=3, seed=0)
    assert all(torch.equal(two_streams().draw(step).index[5:], alone.draw(step).index) for step in range(10))


def test_a_batch_depends_on_seed_and_step_alone():
    in_order = two_streams()
    batches = [in_order.draw(step).index for step in range(12)]
    for step in (11, 0, 5, 4, 9):
        assert torch.equal(two_streams().draw(step).index, batches[step])
        assert torch.equal(in_order.draw(step).index, batches[step])
    assert not all(torch.equal(two_streams(seed=1).draw(step).index, batches[step]) for step in range(12))


def test_iteration_is_the_batches_in_order():
    batches = two_streams()
    for step, batch in zip(range(9), batches, strict=False):
        assert torch.equal(batch.index, two_streams().draw(step).index)


@pytest.mark.parametrize(
    ("unlabeled", "labeled", "message"),
    [
        (4, 7, r"the unlabeled part of a batch must hold between 1 and 4 images, got 5"),
        (0, 7, r"there are no unlabeled images to draw batches from"),
        (23, 0, r"there are no labeled images to draw batches from"),
    ],
)
def test_batches_that_cannot_be_filled_are_refused(unlabeled, labeled, message):
    with pytest.raises(ValueError, match=message):
        TwoStreamBatches(UNLABELED[:unlabeled], LABELED[:labeled], batch_size=8, labeled_batch_size=3, seed=0)


def test_an_image_never_comes_twice_from_the_same_pass():
    """Views are drawn by image and pass: two equal pairs would be two equal views."""
    batches, seen = TwoStreamBatches(UNLABELED, LABELED, batch_size=22, labeled_batch_size=17, seed=0), set()
    for step in range(20):
        draw = batches.draw(step)
        pairs = set(zip(draw.index.tolist(), draw.passes.tolist(), strict=True))
        assert len(pairs) == 22 and not pairs & seen
        seen |= pairs


def test_batches_of_all_images_alike():
    batches = EpochBatches(torch.arange(10), batch_size=3, seed=0)
    assert batches.steps_per_epoch == 3
    epochs = [torch.cat([batches.draw(3 * epoch + step).index for step in range(3)]) for epoch in range(2)]
    assert all(len(set(epoch.tolist())) == 9 for epoch in epochs) and not torch.equal(*epochs)
    assert batches.draw(0).unlabeled == 0 and batches.draw(4).passes.tolist() == [1, 1, 1]
