"""The loop: same seed, same bits; records, stopping, and what it needs to be imported."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mtkernels.train.data import load_dataset
from mtkernels.train.loop import make_batches, make_method, train
from mtkernels.train.methods import METHODS


def trained(config, **options):
    data, records = load_dataset(config), []
    batches = make_batches(config, data)
    method = make_method(config, data, batches)
    train(method, data, batches, on_record=records.append, **options)
    return method, records


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_bits(small, name):
    config = replace(small, method=name, dropout=0.3)
    one, records = trained(config)
    torch.rand(7)  # the global generator's state must not matter
    two, again = trained(config)
    for role in ("student", "teacher"):
        first, second = bits(getattr(one, role)), bits(getattr(two, role))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert [r["class_loss"] for r in records] == [r["class_loss"] for r in again]
    other, _ = trained(replace(config, seed=1))
    assert not torch.equal(other.student.classifier.weight, one.student.classifier.weight)


def test_how_often_it_is_evaluated_does_not_change_the_training(small):
    one, _ = trained(small)
    two, _ = trained(replace(small, eval_interval=1, eval_split="unlabeled"))
    assert torch.equal(one.teacher.classifier.weight, two.teacher.classifier.weight)


def test_records(small):
    _, records = trained(replace(small, steps=7))
    assert [record["step"] for record in records] == [3, 6, 7]
    for record in records:
        assert 0 <= record["student_error"] <= 100 and 0 <= record["teacher_error"] <= 100
        assert (
            record["class_loss"] > 0 and record["consistency_loss"] >= 0 and record["images_per_second"] > 0
        )
        assert record["consistency_weight"] > 0 and record["lr"] >= 0


def test_losses_are_means_over_the_steps_since_the_last_record(small):
    _, fine = trained(replace(small, eval_interval=1))
    _, coarse = trained(small)
    for start, record in zip((0, 3), coarse, strict=True):
        mean = sum(one["class_loss"] for one in fine[start : start + 3]) / 3
        assert record["class_loss"] == pytest.approx(mean, rel=1e-5)


def test_a_stop_ends_after_the_step_with_a_record(small):
    answers = iter([False, True])
    _, records = trained(small, should_stop=lambda: next(answers))
    assert [record["step"] for record in records] == [2]


def test_supervised_learns_the_labels(small):
    config = replace(small, method="supervised", steps=100, eval_interval=100, width=8, dropout=0.0, lr=0.05)
    _, records = trained(config)
    assert records[-1]["student_error"] < 60  # chance is 90


def test_mean_teacher_learns_the_labels(small):
    config = replace(
        small, steps=60, eval_interval=60, width=8, dropout=0.0, lr=0.05, labels=100, consistency=1.0
    )
    _, records = trained(config)
    assert records[-1]["student_error"] < 60


def test_a_diverged_run_says_so(small):
    with pytest.raises(
        FloatingPointError,
        match=r"gradients and batch statistics must stay finite, got inf or nan at step \d: try a",
    ):
        trained(replace(small, lr=1e9, momentum=0.0, nesterov=False, eval_interval=6))


def test_imports_without_the_extras():
    """Whoever calls the loop from a program of their own needs no command-line, plot or dataset library."""
    blocked = ["tyro", "rich", "matplotlib", "safetensors", "sklearn", "scipy", "PIL", "simplejpeg", "timm"]
    script = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import mtkernels.train.run\n"
    script += "assert 'torch.distributed.tensor' not in sys.modules, 'a second of each start'"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
