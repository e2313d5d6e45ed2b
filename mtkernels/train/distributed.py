"""The ranks of a run, as torchrun starts them: who has which rows, and what they tell each other."""

import contextlib
import inspect
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

_SHARDED = 2**16  # weights from which a layer is a unit of its own


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model; alone unless torchrun has started several."""

    rank: int = 0
    world: int = 1

    def same(self, number: int) -> bool:
        """Whether all ranks have the same number."""
        if self.world == 1:
            return True
        both = self.max_(torch.tensor([number, -number]))
        return bool(both[0] == -both[1])

    @property
    def main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """The largest of all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank. Between hosts: waits for no GPU."""
        return bool(self.max_(torch.tensor(float(flag)))) if self.world > 1 else flag

    def told(self, value: Any) -> Any:
        """What the main rank has as `value`: numbers, texts, lists and mappings of them."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def by_main(self, function: Callable[[], Any]) -> Any:
        """What function() gives on the main rank; its OSError is raised on all, not waited for in vain."""
        if self.world == 1:
            return function()
        value = sentence = None
        if self.main:
            try:
                value = function()
            except OSError as error:
                sentence = str(error)
        value, sentence = self.told((value, sentence))
        if sentence is not None:
            raise OSError(sentence)
        return value

    def gathered(self, value: dict[str, str]) -> dict[str, str]:
        """The entries of all ranks."""
        if self.world == 1:
            return value
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, value)
        return {name: entry for part in parts for name, entry in part.items()}


ALONE = Ranks()


@contextmanager
def started_ranks(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun's environment tells of, connected within the context: by NCCL for GPUs, else gloo.

    An error that leaves it gets `elsewhere`: whether another rank reports one of its kind.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    _connect("cpu:gloo,cuda:nccl" if device.startswith("cuda") and torch.cuda.is_available() else "gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        yield ranks
    except Exception as error:
        error.elsewhere = _reported(type(error).__name__, ranks)
        raise  # still connected: leaving would wait for the other ranks
    dist.destroy_process_group()


def _connect(backend: str) -> None:
    """As torchrun's environment says. After a restart its store may still have the addresses of ranks that are gone."""
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"mtkernels-{_agreed(store, rank, world)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def _agreed(store: dist.Store, rank: int, world: int, seconds: float = 600) -> str:
    """A word that the ranks of this start share, and those of no other: the main one's, told to each that asks.

    A restart's number is no such word: each machine counts its own.
    """
    mine, until = uuid.uuid4().hex, time.monotonic() + seconds
    store.set(f"mtkernels/asks/{rank}", mine)
    if rank:
        store.wait([f"mtkernels/told/{mine}"], timedelta(seconds=seconds))
        word = store.get(f"mtkernels/told/{mine}").decode()
        store.set(f"mtkernels/heard/{word}/{rank}", "yes")
        return word
    waiting, told = set(range(1, world)), dict[int, bytes]()
    while waiting:
        for other in sorted(waiting):
            asks = store.get(f"mtkernels/asks/{other}") if store.check([f"mtkernels/asks/{other}"]) else None
            if asks != told.get(other):  # it may ask anew, when what it was has been ended
                store.set(f"mtkernels/told/{asks.decode()}", mine)
                told[other] = asks
        waiting = {other for other in waiting if not store.check([f"mtkernels/heard/{mine}/{other}"])}
        if time.monotonic() > until:
            raise RuntimeError(f"ranks {sorted(waiting)} have not come within {seconds:g} s")
        time.sleep(0.02)
    return mine


def _reported(kind: str, ranks: Ranks) -> bool:
    """Whether another rank has come first. The main one always speaks: it knows most."""
    store = dist.distributed_c10d._get_default_store()
    with contextlib.suppress(dist.DistError):  # it was the other's: there is no one to ask
        if not ranks.main:
            with contextlib.suppress(dist.DistStoreError):  # the main rank is well, and waits for this one
                store.wait([f"failed/{kind}"], timedelta(seconds=2))
        return store.add(f"failed/{kind}", 1) > 1 and not ranks.main
    return False


def is_main() -> bool:
    """Whether this process is the one that speaks, before and after the ranks are connected."""
    return os.environ.get("RANK", "0") == "0"


def local_device(name: str) -> str:
    """`cuda` as this rank's own GPU of the machine."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if name == "cuda" and rank is not None else name


def places(unlabeled: int, rows: int, part: int, parts: int) -> Tensor:
    """The rows [n] int64 of a batch that are its part number `part`, of `parts`: so much of each stream.

    The first `unlabeled` of `rows` are the one stream, the rest the other. Of streams that `parts` does not divide the
    first gives its surplus to the last parts, the other to the first ones: parts differ by one row at most.
    """
    few, surplus = divmod(unlabeled, parts)
    first = range(*(few * at + max(0, at - parts + surplus) for at in (part, part + 1)))
    few, surplus = divmod(rows - unlabeled, parts)
    last = range(*(unlabeled + few * at + min(at, surplus) for at in (part, part + 1)))
    return torch.tensor([*first, *last], dtype=torch.int64)


def share(unlabeled: int, rows: int, ranks: Ranks, parts: int) -> tuple[Tensor, list[Tensor]]:
    """The rows [n] int64 of a batch that are this rank's; and which of those are in each of so many parts.

    Part by part the ranks have what one rank alone would have in that part: batch norm sees the same rows together.
    """
    mine = []
    for number in range(parts):
        part = places(unlabeled, rows, number, parts)
        first = int((part < unlabeled).sum())
        mine.append(part[places(first, len(part), ranks.rank, ranks.world)])
    all_ = torch.cat(mine).sort().values
    return all_, [torch.searchsorted(all_, part) for part in mine]


def averaging(student: nn.Module) -> nn.Module:
    """The student in DistributedDataParallel. Its buffers are alike, or each rank's own until someone asks for them."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    # The first name is torch 2.13's.
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(student, gradient_as_bucket_view=True, **{buffers: False})


def shard_(model: nn.Module, device: torch.device) -> nn.Module:
    """FSDP2 over all ranks, in place: each block of a sequence with enough weights by itself, then what is left."""
    from torch.distributed.fsdp import fully_shard

    model = model.to(memory_format=torch.contiguous_format)  # it takes no other; images may have another
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # The outermost would stay whole after a forward pass, for a backward pass that a teacher's never has.
    split = partial(fully_shard, mesh=mesh, reshard_after_forward=True)
    for module in list(model.modules()):
        for child in module.children() if isinstance(module, nn.Sequential | nn.ModuleList) else ():
            own = sum(weight.numel() for weight in child.parameters() if not sharded(weight))
            if own >= _SHARDED and not isinstance(child, nn.Sequential | nn.ModuleList):
                split(child)
    split(model)
    return model


def sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Their class is not asked for: it takes a second to import."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, the same memory; any other tensor as it is."""
    return tensor.to_local() if sharded(tensor) else tensor


def whole(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """All of a sharded tensor, on every rank. `like`: the sharded tensor of which `tensor` is this rank's part."""
    if like is not None and sharded(like) and not sharded(tensor):
        if tensor.shape != like.to_local().shape:  # a number kept for each tensor, such as Adam's step
            return tensor
        tensor = type(like).from_local(
            tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
    return tensor.full_tensor() if sharded(tensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this rank has of a whole tensor where `like` is sharded; else all of it."""
    if not sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(like.to_local().device)
    return distribute_tensor(moved, like.device_mesh, like.placements).to_local()
