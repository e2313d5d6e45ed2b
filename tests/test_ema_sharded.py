"""WeightEMA and ema_update under DDP, FSDP2 and DTensor: several processes over gloo, against one that has it all."""

import copy
import os
import sys
import traceback
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import mtkernels
from mtkernels import WeightEMA, schedules

STEPS = 4


def network() -> nn.Module:
    """Dims that 2 and 4 ranks do not divide, and fewer rows than ranks: uneven and empty shards."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 1))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 6, generator=generator) for _ in range(STEPS)]


def alone() -> tuple[list[dict], list[dict]]:
    """Student and average after each step, in one process."""
    student = network()
    ema = WeightEMA(student, schedules.running_mean(0.9))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    students, averages = [], []
    for batch in batches():
        optimizer.zero_grad()
        student(batch).square().mean().backward()
        optimizer.step()
        ema.update()
        students.append(copy.deepcopy(student.state_dict()))
        averages.append(copy.deepcopy(ema.module.state_dict()))
    return students, averages


def assert_same(module: nn.Module, expected: dict) -> None:
    for name, tensor in module.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        torch.testing.assert_close(full, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@contextmanager
def no_traffic():
    """Refuses collectives. By the profiler: a dispatch mode would send the update another way."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield
    names = {event.name for event in profile.events()}
    assert not [name for name in names if name.startswith(("gloo:", "c10d::", "_c10d_functional::"))], names


def fsdp(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    student, teacher = network(), network()
    for model in (student, teacher):
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    ema = WeightEMA(student, schedules.running_mean(0.9), teacher=teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    students, averages = alone()
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        student(batch).square().mean().backward()
        optimizer.step()
        with no_traffic():
            drift = ema.update(drift=True)
        assert_same(student, students[step])
        assert_same(teacher, averages[step])
    distance = sum((averages[-1][name] - students[-1][name]).square().sum() for name in averages[-1])
    squared = drift.square().clone()
    dist.all_reduce(squared)
    torch.testing.assert_close(squared.float(), distance)
    before = [tensor.to_local().detach().clone() for tensor in student.parameters()]
    expected = [
        distribute_tensor(averages[-1][name], mesh, parameter.placements).to_local()
        for name, parameter in student.named_parameters()
    ]
    with no_traffic(), ema.swapped():
        for parameter, average in zip(student.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.to_local(), average)
    assert all(torch.equal(a, b.to_local()) for a, b in zip(before, student.parameters(), strict=True))
    if rank == 3:
        assert any(tensor.to_local().numel() == 0 for tensor in teacher.parameters()), (
            "no empty shard was tested"
        )


def ddp(rank: int, world: int) -> None:
    """Each rank's own average, alike without traffic; found through DDP's and torch.compile's wrappers."""
    student = nn.parallel.DistributedDataParallel(network())
    ema = WeightEMA(torch.compile(student), schedules.running_mean(0.9))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    _, averages = alone()
    for step, batch in enumerate(batches()):
        part = batch.tensor_split(world)[rank]
        optimizer.zero_grad()
        student(part).square().mean().backward()
        optimizer.step()
        with no_traffic():
            ema.update()
        assert_same(ema.module, averages[step])
    for tensor in ema.module.state_dict().values():
        gathered = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(gathered, tensor)
        assert all(torch.equal(tensor, other) for other in gathered)


def dtensors(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(0)
    full = [torch.randn(7, 3) for _ in range(2)]
    for placement in (Shard(0), Shard(1), Replicate()):
        teacher, student = (distribute_tensor(tensor.clone(), mesh, [placement]) for tensor in full)
        plain = [torch.zeros(2), torch.ones(2)]
        with no_traffic():
            mtkernels.ema_update([teacher, plain[0]], [student, plain[1]], 0.75)
        torch.testing.assert_close(teacher.full_tensor(), 0.75 * full[0] + 0.25 * full[1])
        assert torch.equal(plain[0], torch.full((2,), 0.25))
    sharded, replicated = (
        distribute_tensor(full[0], mesh, [Shard(0)]),
        distribute_tensor(full[1], mesh, [Replicate()]),
    )
    for student in (replicated, full[1]):
        with pytest.raises(ValueError, match=r"teacher\[0\] \('w'\) must be sharded as its student is"):
            mtkernels.ema_update({"w": sharded}, {"w": student}, 0.75)
    with pytest.raises(NotImplementedError, match="skip_nonfinite must be False for DTensors"):
        mtkernels.ema_update([sharded], [sharded.clone()], 0.75, skip_nonfinite=True)
    model = nn.Linear(3, 7)
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match="WeightEMA: teacher must be given where model is sharded"):
        WeightEMA(model)


def _worker(rank: int, world: int, store: str, errors) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}")
    try:
        for scenario in (fsdp, ddp, dtensors):
            scenario(rank, world)
    except BaseException:
        errors.put((rank, traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file store")
def test_sharded(world, tmp_path):
    context = mp.get_context("spawn")
    errors = context.SimpleQueue()
    processes = [
        context.Process(target=_worker, args=(rank, world, os.fspath(tmp_path / "store"), errors))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
    failures = []
    while not errors.empty():
        failures.append(errors.get())
    assert not failures, "\n".join(f"rank {rank}: {text}" for rank, text in failures)
    assert [process.exitcode for process in processes] == [0] * world
