"""Two ranks with uneven rows normalize as one process with the whole batch: outputs, gradients, running statistics."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtkernels.train.config import SettingError
from mtkernels.train.models import make_model
from mtkernels.train.models.rows import Rows, set_rows
from mtkernels.train.models.sync_norm import SynchronizedBatchNorm, synchronize

PARTS = [torch.tensor([0, 1, 2, 6, 4]), torch.tensor([3, 5, 7])]


class Case(NamedTuple):
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of the whole batch
    dtype: torch.dtype = torch.float64
    amp: bool = False
    format: torch.memory_format = torch.contiguous_format


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's."""

    def __init__(self, filters: int) -> None:
        super().__init__(filters)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(inputs)))


BatchNormAct2d.__module__ = "timm.layers.norm_act"
IMAGES = (8, 4, 5, 3)
CASES = {
    "2d": Case(lambda: nn.BatchNorm2d(4), IMAGES),
    "2d-float32": Case(lambda: nn.BatchNorm2d(4), IMAGES, torch.float32),
    "2d-channels-last": Case(lambda: nn.BatchNorm2d(4), IMAGES, format=torch.channels_last),
    "1d": Case(lambda: nn.BatchNorm1d(4), (8, 4)),
    "1d-float32": Case(lambda: nn.BatchNorm1d(4, momentum=0.3, eps=0.1), (8, 4, 6), torch.float32),
    "3d": Case(lambda: nn.BatchNorm3d(4), (8, 4, 2, 2, 3)),
    "cumulative": Case(lambda: nn.BatchNorm2d(4, momentum=None), IMAGES),
    "not-affine": Case(lambda: nn.BatchNorm2d(4, affine=False), IMAGES),
    "no-running": Case(lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGES),
    "activation": Case(lambda: BatchNormAct2d(4), IMAGES),
    "inside": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)), (8, 4)),
    "amp": Case(
        lambda: nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)), IMAGES, torch.float32, amp=True
    ),
    "convnet13": Case(lambda: make_model("convnet13", 3, channels=3, dropout=0.3, noise=0.2), (8, 3, 12, 12)),
    "wrn": Case(lambda: make_model("wrn-28-1", 3, channels=3, dropout=0.3), (8, 3, 8, 8)),
}


def build(case: Case, device: str = "cpu") -> tuple[nn.Module, Tensor]:
    """The model and the batch, whose mean is three standard deviations off, alike in every process."""
    torch.manual_seed(0)
    model = case.model().to(case.dtype)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5)
    inputs = torch.randn(case.shape, dtype=case.dtype) + 3
    return model.to(device), inputs.to(device, memory_format=case.format)


def results(model: nn.Module, inputs: Tensor, index: Tensor, case: Case) -> dict[str, Any]:
    """A student's step and its teacher's predictions in training and in evaluation, on rows `index`."""
    wrapper = model if isinstance(model, DistributedDataParallel) else None
    student = wrapper.module if wrapper else model
    teacher = copy.deepcopy(student)
    part = inputs[index].contiguous(memory_format=case.format).requires_grad_()
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=case.amp):
        torch.manual_seed(1)
        outputs = model(part)
        with torch.no_grad():
            torch.manual_seed(1)
            taught = teacher(part)
            evaluated = copy.deepcopy(teacher).eval()(part)
    weights = torch.randn(len(inputs), *outputs.shape[1:], dtype=inputs.dtype, device=inputs.device)
    (outputs * weights[index]).square().sum().backward()
    return {
        "outputs": outputs.detach(),
        "taught": taught,
        "evaluated": evaluated,
        "dinputs": part.grad,
        "gradients": {name: parameter.grad for name, parameter in student.named_parameters()},
        "state": dict(student.state_dict()),
        "teacher": dict(teacher.state_dict()),
    }


def worker(rank: int, folder: str, device: str) -> None:
    """One of two processes, both on one device: every case on its rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    index = PARTS[rank].to(device)
    found = {}
    for name, case in CASES.items():
        model, inputs = build(case, device)
        # A group of its own: a copy of the model must do without a copy of that.
        model = synchronize(model, dist.new_group() if name == "2d" else None)
        set_rows(model, Rows(index, 8))
        found[name] = results(model, inputs, index, case)
    if device == "cpu":
        model, inputs = build(CASES["wrn"], device)
        model = DistributedDataParallel(synchronize(model))
        set_rows(model, Rows(index, 8))
        found["ddp"] = results(model, inputs, index, CASES["wrn"])
        found["two"] = refusal(torch.zeros(1 - rank, 4))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def refusal(inputs: Tensor) -> str:
    with pytest.raises(ValueError) as error:
        synchronize(nn.BatchNorm1d(4))(inputs)
    return str(error.value)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawn(tmp_path_factory.mktemp("ranks"), "cpu")


def spawn(folder: Path, device: str) -> list[dict[str, Any]]:
    torch.multiprocessing.spawn(worker, (str(folder), device), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def check(mine: Tensor, whole: Tensor, case: Case, least: float = 0.0) -> None:
    """Relative to the largest value, or to `least`: 1e-12, and 1e-6 in float32; ten times that on a GPU."""
    assert mine.dtype == whole.dtype and mine.shape == whole.shape
    epsilon = (1e-6 if case.dtype == torch.float32 else 1e-12) * (10 if mine.is_cuda else 1)
    error = (mine.double() - whole.double()).abs().max().item()
    assert error <= epsilon * max(whole.double().abs().max().item(), least)


def joined(ranks: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Both ranks' results as one's: rows in their places, gradients summed, statistics that both have."""
    first, second = (rank[name] for rank in ranks)
    whole: dict[str, Any] = {}
    for part in ("outputs", "taught", "evaluated", "dinputs"):
        whole[part] = first[part].new_empty(8, *first[part].shape[1:])
        for index, values in zip(PARTS, (first[part], second[part]), strict=True):
            whole[part][index.to(values.device)] = values
    whole["gradients"] = {key: grad + second["gradients"][key] for key, grad in first["gradients"].items()}
    for part in ("state", "teacher"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(values, second[part][key]) for key, values in first[part].items())
        whole[part] = first[part]
    return whole


def compare(ranks: list[dict[str, Any]], name: str, device: str) -> None:
    case = CASES.get(name, CASES["wrn"])
    model, inputs = build(case, device)
    whole = results(model, inputs, torch.arange(8, device=device), case)
    mine = joined(ranks, name)  # of gradients DDP leaves the mean on both ranks: their sum too is the whole's
    for part in ("outputs", "taught", "dinputs", "evaluated"):
        if (name, part) != ("no-running", "evaluated"):  # has the statistics of the rows at hand
            check(mine[part], whole[part], case)
    # Batch norm cancels a bias before it, whose gradient then is rounding alone.
    least = max((grad.abs().max().item() for grad in whole["gradients"].values()), default=0) / 100
    for part in ("gradients", "state", "teacher"):
        assert mine[part].keys() == whole[part].keys()
        for key, values in whole[part].items():
            check(mine[part][key], values, case, least if part == "gradients" else 0.0)
    if case.shape == IMAGES:  # a rank's own statistics would not do
        index = PARTS[1].to(device)
        own = results(build(case, device)[0], inputs, index, case)
        assert not torch.allclose(own["outputs"], whole["outputs"][index], rtol=1e-3)


@pytest.mark.parametrize("name", [*(name for name in CASES if name != "amp"), "ddp"])
def test_two_ranks_are_as_one_process(ranks, name):
    compare(ranks, name, "cpu")


@pytest.mark.gpu
def test_two_ranks_on_a_gpu_are_as_one_process(tmp_path):
    ranks = spawn(tmp_path, "cuda")
    for name in CASES:
        if name != "amp":
            compare(ranks, name, "cuda")


def test_autocast_is_no_worse_than_torchs(ranks):
    """Against float64, at most twice the error that one process's batch norm has, and one rounding."""
    case = CASES["amp"]
    model, inputs = build(case)
    true = results(copy.deepcopy(model).double(), inputs.double(), torch.arange(8), case._replace(amp=False))
    whole, mine = results(model, inputs, torch.arange(8), case), joined(ranks, "amp")

    def no_worse(mine: Tensor, whole: Tensor, true: Tensor) -> None:
        assert mine.dtype == whole.dtype
        error, yardstick = ((values.double() - true).abs().max() for values in (mine, whole))
        assert error <= 2 * yardstick + 2**-8 * true.abs().max()

    for part in ("outputs", "taught", "evaluated", "dinputs"):
        no_worse(mine[part], whole[part], true[part])
    for part in ("gradients", "state", "teacher"):
        for key, values in true[part].items():
            no_worse(mine[part][key], whole[part][key], values)


def test_statistics_are_float32_under_autocast(ranks):
    state = ranks[0]["amp"]["state"]
    model, inputs = build(CASES["amp"])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        values = model[0](inputs).double()
    assert ranks[0]["amp"]["outputs"].dtype == torch.bfloat16
    mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3))
    torch.testing.assert_close(state["1.running_mean"].double(), 0.1 * mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state["1.running_var"].double(), 0.9 + 0.1 * variance, rtol=1e-6, atol=1e-6)


def test_one_value_a_channel_over_all_ranks_is_refused(ranks):
    for rank in ranks:
        assert (
            rank["two"] == "batch norm in training must get 2 or more values a channel over all ranks, got 1"
        )


def test_one_process_is_as_without():
    for name in ("2d", "convnet13"):
        model, inputs = build(CASES[name])
        plain = copy.deepcopy(model)
        assert synchronize(model) is model
        for mode in (True, False):
            torch.manual_seed(1)
            expected = plain.train(mode)(inputs)
            torch.manual_seed(1)
            assert torch.equal(model.train(mode)(inputs), expected)
        assert str(model).replace("_BatchNorm", "BatchNorm") == str(plain)


def test_kinds():
    torchs = nn.SyncBatchNorm(2)
    model = synchronize(nn.Sequential(nn.BatchNorm2d(2), torchs, nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)))
    assert isinstance(model[0], SynchronizedBatchNorm) and isinstance(model[0], nn.BatchNorm2d)
    assert [type(layer) for layer in model[1:]] == [nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d]
    again = synchronize(model)
    assert again[0].process_group is None and again[1] is torchs

    class Own(nn.BatchNorm2d):
        pass

    message = r"^a batch norm must be torch's own or timm's to be synchronized, got '0', a Own$"
    with pytest.raises(SettingError, match=message):
        synchronize(nn.Sequential(Own(2)))
