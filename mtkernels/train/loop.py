"""The training loop of every method here, as the papers have it. Imports torch, numpy and mtkernels only."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import Config
from .data import Batches, Dataset, EpochBatches, LabeledBatches, TwoStreamBatches, make_feed
from .meter import Meter, Record
from .methods import METHODS, Method
from .models import make_model
from .seeds import Purpose, stream_seed
from .timeline import Timeline


def train(
    method: Method,
    data: Dataset,
    batches: Batches,
    *,
    on_record: Callable[[Record], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train `method` to the end of its timeline; `on_record` gets each evaluation's metrics, and a stop's.

    Seeds torch's global generator each step: dropout and shake-shake draw from it.
    """
    config, timeline = method.config, method.timeline
    optimizer = make_optimizer(config, method)
    meter = Meter(method, data)
    with make_feed(config, data, batches, method.views) as feed:
        for step in range(timeline.steps):
            views, labels = feed.batch(step)
            torch.manual_seed(stream_seed(config.seed, "dropout", step))
            loss, parts = method.objective(views, labels, step)
            set_rates(optimizer, timeline, step)
            optimizer.zero_grad()
            loss.backward()
            method.before_step()
            optimizer.step()
            method.after_step()  # the teacher moves towards the new student

            meter.add(parts, images=len(labels))
            stop = should_stop() or step + 1 == timeline.steps
            if stop or timeline.evaluates(step + 1):
                on_record(meter.record(step + 1))
            if stop:
                break


def make_method(config: Config, data: Dataset, batches: Batches) -> Method:
    """The method and its student, whose first weights depend on the seed alone, not on the method."""
    timeline = Timeline(config, batches.steps_per_epoch)
    student = _network(config, data, "model", batches)
    teacher = _network(config, data, "teacher", batches) if config.teacher_init == "independent" else None
    return METHODS[config.method](student, timeline, teacher)


def _network(config: Config, data: Dataset, purpose: Purpose, batches: Batches) -> nn.Module:
    torch.manual_seed(stream_seed(config.seed, purpose))
    model = build_model(config, classes=data.classes, channels=data.channels).to(data.device)
    if hasattr(model, "initialize"):  # weight norm's scales, from the first minibatch
        with make_feed(config, data, batches, 1) as feed:
            model.initialize(feed.batch(0)[0][0])
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


def make_optimizer(config: Config, method: Method) -> torch.optim.Optimizer:
    """Over the student's parameters; the teacher has no gradients."""
    weights: list[Tensor] = list(method.student.parameters())
    if config.optimizer == "adam":
        return torch.optim.Adam(
            weights, lr=config.lr, eps=config.adam_epsilon, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(
        weights,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def set_rates(optimizer: torch.optim.Optimizer, timeline: Timeline, step: int) -> None:
    """The optimizer's numbers at `step`."""
    for group in optimizer.param_groups:
        group["lr"] = timeline.learning_rate(step)
        if "betas" in group:
            group["betas"] = timeline.adam_betas(step)
