"""The training loop of every method here, as the papers have it. Imports torch, numpy and mtkernels only."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn

from .config import Config
from .data import Batches, Dataset, EpochBatches, Feed, LabeledBatches, TwoStreamBatches, make_feed
from .distributed import ALONE, Ranks, averaging, shard_
from .meter import Meter, Record
from .methods import METHODS, Method
from .models import make_model
from .models.network import TwoHeads
from .models.sync_norm import synchronize
from .seeds import Purpose, stream_seed
from .step import Step
from .timeline import Timeline


def loop(step: Step, feed: Feed, meter: Meter, done: Callable[[int], bool], *, first: int = 0) -> None:
    """Train from step `first` to the end of the timeline, or until done(steps so far) says that it is enough.

    Seeds torch's global generator each step: dropout and shake-shake draw from it.
    """
    for number in range(first, step.method.timeline.steps):
        batch = feed.batch(number)
        terms = step(batch, number)  # loss, gradients, the optimizer's step, the teacher's move
        meter.add(terms, images=batch.counts.rows)
        if done(number + 1):
            break


def train(
    method: Method,
    data: Dataset,
    batches: Batches,
    *,
    on_record: Callable[[Record], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """The loop alone, for programs of your own; `on_record` gets each evaluation's metrics, and a stop's."""
    step = make_step(method)
    meter = Meter(step, data)

    def done(steps: int) -> bool:
        stop = should_stop() or steps == method.timeline.steps
        if stop or method.timeline.evaluates(steps):
            on_record(meter.record(steps))
        return stop

    with make_feed(method.config, data, batches, method.views) as feed:
        loop(step, feed, meter, done)


def make_method(config: Config, data: Dataset, batches: Batches, ranks: Ranks = ALONE) -> Method:
    """The method and its student, whose first weights depend on the seed alone, not on the method."""
    timeline = Timeline(config, batches.steps_per_epoch)
    student = _network(config, data, "model", batches)
    teacher = _network(config, data, "teacher", batches) if config.teacher_init == "independent" else None
    if ranks.world > 1 and config.fsdp:  # sharded alike, so that the average of a shard is local
        teacher = deepcopy(student) if teacher is None else teacher
        student, teacher = (shard_(model, data.device) for model in (student, teacher))
    return METHODS[config.method](student, timeline, teacher)


def _network(config: Config, data: Dataset, purpose: Purpose, batches: Batches) -> nn.Module:
    torch.manual_seed(stream_seed(config.seed, purpose))
    model = build_model(config, classes=data.classes, channels=data.channels).to(data.device)
    if hasattr(model, "initialize"):  # weight norm's scales, from the first minibatch
        with make_feed(config, data, batches, 1) as feed:
            model.initialize(feed.batch(0).views[0])
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def build_model(config: Config, *, classes: int, channels: int) -> nn.Module:
    """The network that `config` names, with weights from torch's global generator."""
    return make_model(
        config.arch,
        classes,
        channels=channels,
        heads=config.heads,
        width=config.width,
        dropout=config.dropout,
        pretrained=config.pretrained,
    )


def make_step(method: Method, ranks: Ranks = ALONE) -> Step:
    """The method's step with all that the settings ask for around it: ranks, torch.compile, a CUDA graph."""
    config, student = method.config, method.student
    if ranks.world > 1 and config.sync_batch_norm:
        for model in (student, method.teacher):
            synchronize(model)
    if config.compile:
        for model in (student, method.teacher):
            model.compile()  # in place: names of the weights stay
    network: nn.Module = student
    if ranks.world > 1 and not config.fsdp:
        for module in student.modules():
            if isinstance(module, TwoHeads) and not method.uses_unlabeled:
                module.consistency_head.requires_grad_(False)  # its gradient would be waited for
        network = averaging(student)
    if config.cuda_graph:
        from .graph import GraphedStep

        return GraphedStep(method, ranks, network=network)
    return Step(method, ranks, network=network)


def make_batches(config: Config, data: Dataset) -> Batches:
    """Two streams for a method that uses unlabeled images; one of them for one that does not, or where so asked."""
    labeled, seed = data.labeled, config.seed
    if config.exclude_unlabeled:
        return EpochBatches(labeled, batch_size=config.batch_size, seed=seed, name="labeled")
    if not METHODS[config.method].uses_unlabeled:
        return LabeledBatches(labeled, batch_size=config.labeled_batch_size or config.batch_size, seed=seed)
    everything = torch.arange(len(data.pool), device=labeled.device)
    if config.labeled_batch_size is None:
        return EpochBatches(everything, batch_size=config.batch_size, seed=seed)
    return TwoStreamBatches(
        everything if config.unlabeled_from == "all" else data.unlabeled,
        labeled,
        batch_size=config.batch_size,
        labeled_batch_size=config.labeled_batch_size,
        seed=seed,
    )
