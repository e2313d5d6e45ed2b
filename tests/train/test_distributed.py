"""Several ranks over gloo train as one process does, to float64's rounding; any number goes on from a checkpoint."""

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

from mtkernels.train import loop, plots
from mtkernels.train.checkpoint import checkpoints
from mtkernels.train.config import Config, SettingError
from mtkernels.train.distributed import Ranks, _reported, places, share
from mtkernels.train.models import rows
from mtkernels.train.run import run

from .conftest import ENVIRONMENT
from .data.images import write_digits

PATIENCE = 200  # seconds
HALF, END = 2, 4  # steps, of which there are checkpoints
SETTINGS = Config(
    steps=END,
    eval_interval=HALF,
    checkpoint_interval=HALF,
    keep_checkpoints=END,
    pictures=False,
    width=4,
    batch_size=31,  # no multiple of the ranks
    labeled_batch_size=10,
    lr=0.02,
    consistency_rampup=0,
    dropout=0.3,
    warp=0.3,
    noise=0.1,
)
PI = replace(SETTINGS, method="pi-model", optimizer="adam", lr=1e-3, accumulate=2, logit_distance_cost=0.01)
STREAMED = replace(
    SETTINGS,
    dataset="imagenet",
    train_subdir="train",
    labels=4,
    augment="imagenet",
    image_size=24,
    workers=1,
    batch_size=7,
    labeled_batch_size=3,
    channels_last=True,
    fsdp=True,
)
CASES = {
    "mean-teacher": SETTINGS,
    "pi-model": replace(PI, labels=400, labeled_batch_size=None, class_loss_over="labeled"),
    "supervised": replace(SETTINGS, method="supervised", logit_distance_cost=0.01),
    "streamed": STREAMED,
    "parts": replace(SETTINGS, arch=f"{__name__}:plain", accumulate=3, fsdp=True),
    "two-passes": replace(PI, fsdp=True),
}
AGAIN = ["pi-model", "streamed", "parts"]
WAYS = {"2": list(CASES), "1 then 2": AGAIN, "2 then 1": AGAIN, "2 then 2": AGAIN}
WAYS["4"] = ["mean-teacher", "streamed"]  # of three test images one rank has none


def plain(num_classes: int) -> nn.Module:
    """Without batch norm, so that parts change nothing; its middle layer is large enough to be sharded by itself."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(512, 160),
        nn.LeakyReLU(),
        nn.Dropout(0.2),
        nn.Linear(160, num_classes),
    )


def in_float64(patch: pytest.MonkeyPatch) -> None:
    """Networks that the loop makes compute in float64; no time is spent on drawing curves."""
    build = loop.build_model

    def double(*arguments: object, **named: object) -> nn.Module:
        model = build(*arguments, **named).double()
        model.register_forward_pre_hook(lambda _, inputs: tuple(each.double() for each in inputs))
        return model

    patch.setattr(loop, "build_model", double)
    patch.setattr(plots, "plot_curves", lambda path, *_: path.touch())


def train(out: Path, name: str, data: Path) -> Path:
    """All steps of a case."""
    config = replace(CASES[name], out=out, name=name)
    return run(replace(config, data=data) if config.dataset == "imagenet" else config)[0]


def go_on(begun: Path, out: Path) -> Path:
    """From a copy of a run, as it was at its half."""
    folder = out / begun.name
    if int(os.environ.get("RANK", "0")) == 0:
        shutil.copytree(begun, folder)
    if dist.is_initialized():
        dist.barrier()
    settings = Config.from_dict(json.loads((folder / "config.json").read_text()))
    return run(settings, resume=folder / "checkpoints" / f"step-{HALF:09d}")[0]


def rank_main(rank: int, world: int, root: Path, errors) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    mp.set_start_method("fork", force=True)  # of processes that read images: as under torchrun, and at once
    faulthandler.dump_traceback_later(PATIENCE, exit=True)  # a rank that waits for ever says where
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{root}/store{world}")
    try:
        with pytest.MonkeyPatch.context() as patch:
            in_float64(patch)
            for name in WAYS[f"{world}"]:
                train(root / str(world), name, root / "data")
            for one in (1, 2) if world == 2 else ():
                for name in WAYS[f"{one} then 2"]:
                    go_on(root / str(one) / name, root / f"{one} then 2")
    except BaseException:
        errors.put(f"rank {rank}: {traceback.format_exc()}")
        raise SystemExit(1) from None
    dist.destroy_process_group()


def spawn(world: int, root: Path) -> None:
    context = mp.get_context("spawn")
    errors = context.SimpleQueue()
    arguments = [(rank, world, root, errors) for rank in range(world)]
    processes = [context.Process(target=rank_main, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE + 20)
        if process.is_alive() or process.exitcode:  # the others wait for it
            for each in processes:
                each.kill()
    failures = []
    while not errors.empty():
        failures.append(errors.get())
    assert not failures, "\n".join(failures)
    assert [process.exitcode for process in processes] == [0] * world


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Runs of all cases by one process, two ranks and four; those of two and one gone on with at their half."""
    root = tmp_path_factory.mktemp("ranks")
    write_digits(root / "data", train=6, test=1, classes=3, unlabeled=5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        in_float64(patch)
        for name in CASES:
            train(root / "1", name, root / "data")
        for world in (2, 4):
            spawn(world, root)
        for name in WAYS["2 then 1"]:
            go_on(root / "2" / name, root / "2 then 1")
    torch.set_num_threads(threads)
    return root


def state(folder: Path) -> dict[str, Tensor]:
    assert [path.name for path in checkpoints(folder)] == [f"step-{HALF:09d}", f"step-{END:09d}"]
    return load_file(checkpoints(folder)[-1] / "state.safetensors")


def records(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


@pytest.mark.parametrize(("way", "name"), [(way, name) for way in WAYS for name in WAYS[way]])
@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file store")
def test_any_number_of_ranks_trains_alike(root, way, name):
    one, several = root / "1" / name, root / way / name
    expected, found = state(one), state(several)
    assert found.keys() == expected.keys()
    # Where the number of labeled rows is on the device, the loss is divided by it in float32.
    tolerance = 1e-6 if CASES[name].class_loss_over == "labeled" else 1e-11
    for key, value in expected.items():
        scale = tolerance * max(float(value.abs().max()), 1e-3)
        torch.testing.assert_close(
            found[key], value, rtol=0, atol=scale, msg=lambda text, key=key: f"{key}: {text}"
        )
    for line, other in zip(records(one), records(several), strict=True):
        assert line == pytest.approx(other, rel=tolerance)
        assert line["teacher_error"] == other["teacher_error"]


@pytest.mark.parametrize("name", WAYS["2 then 2"])
@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file store")
def test_two_ranks_that_go_on_have_the_same_bits(root, name):
    expected, found = state(root / "2" / name), state(root / "2 then 2" / name)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file store")
def test_parts_change_nothing_without_batch_norm(root, monkeypatch):
    in_float64(monkeypatch)
    whole = run(replace(CASES["parts"], accumulate=1, out=root, name="whole"))[0]
    for key, value in state(root / "1" / "parts").items():
        torch.testing.assert_close(state(whole)[key], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(("unlabeled", "rows_"), [(0, 7), (3, 8), (21, 31), (30, 30), (5, 36)])
def test_places_share_out_both_streams(unlabeled, rows_, parts):
    found = [places(unlabeled, rows_, part, parts) for part in range(parts)]
    assert torch.equal(torch.cat(found).sort().values, torch.arange(rows_))
    assert all(torch.equal(part, part.sort().values) for part in found)
    for counts in ([len(part) for part in found], [int((part < unlabeled).sum()) for part in found]):
        assert max(counts) - min(counts) <= 1


def test_a_part_of_all_ranks_is_that_of_one():
    for unlabeled, total, world, parts in ((21, 31, 4, 3), (3, 8, 4, 2), (0, 12, 2, 6)):
        shares = [share(unlabeled, total, Ranks(rank, world), parts) for rank in range(world)]
        assert torch.equal(torch.cat([mine for mine, _ in shares]).sort().values, torch.arange(total))
        for number in range(parts):
            of_ranks = [mine[split[number]] for mine, split in shares]
            assert all(len(each) for each in of_ranks)
            assert torch.equal(torch.cat(of_ranks).sort().values, places(unlabeled, total, number, parts))


def noisy(num_classes: int) -> nn.Module:
    """A layer that draws by itself."""
    return nn.Sequential(nn.RReLU(), nn.Flatten(), nn.Linear(64, num_classes))


def test_layers_that_draw_by_themselves_are_told_of(tmp_path, capsys):
    assert rows.draws_alone(noisy(2)) == ["0"]
    config = replace(SETTINGS, arch=f"{__name__}:noisy", out=tmp_path)
    run(replace(config, name="one"))
    assert "draws for" not in capsys.readouterr().out
    run(replace(config, name="two", accumulate=2))
    assert capsys.readouterr().out.count("mtkernels: 0 draws for the rows that it gets") == 1


def test_a_batch_must_have_a_row_for_each(monkeypatch, tmp_path):
    from mtkernels.train.run import prepare

    with pytest.raises(SettingError, match=r"ranks x accumulate images \(16 x 2\), got 31"):
        prepare(replace(SETTINGS, accumulate=2), Ranks(0, 16))


def test_one_rank_reports_an_error_of_all_or_of_its_own(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    assert [_reported("OSError", Ranks(rank, 3)) for rank in (0, 1, 2)] == [False, True, True]
    began = time.monotonic()
    assert [_reported("SettingError", Ranks(rank, 3)) for rank in (2, 1)] == [False, True]
    assert time.monotonic() - began > 1.5  # the main rank was waited for


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torchrun_restarts_a_run_whose_rank_was_killed_and_hands_on_a_signal(tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=1",
    ]
    settings = "train --preset digits --width 4 --steps 100000 --eval-interval 0 --checkpoint-interval 10 --resume auto"
    command = [*torchrun, "-m", "mtkernels.train.cli", *settings.split(), "--name=x", f"--out={tmp_path}"]
    folder = tmp_path / "x"
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: checkpoints(folder))
            os.kill(child_of(process.pid, "RANK=1"), signal.SIGKILL)
            wait_until(lambda: "resumed" in (folder / "environment.json").read_text())
            begun = json.loads((folder / "environment.json").read_text())["resumed"][0]["step"]
            wait_until(lambda: checkpoints(folder)[-1].name > f"step-{begun:09d}")
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        finally:
            if process.poll() is None:
                process.terminate()  # so that it ends the ranks
                process.wait(PATIENCE)
        log.seek(0)
        said = log.read()
    done = json.loads((folder / "summary.json").read_text())
    assert done["interrupted"] and begun >= 10
    assert checkpoints(folder)[-1].name == f"step-{done['steps_done']:09d}"
    assert said.count(f"stopped at step {done['steps_done']} ") == 1
    assert said.count("mean-teacher on digits") == 2  # once a start, not once a rank


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def child_of(parent: int, variable: str) -> int:
    """The process that `parent` started with such an environment."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            started = int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            if started and variable in (path / "environ").read_text().split("\0"):
                return int(path.name)
    raise AssertionError(f"no child of {parent} has {variable}")
