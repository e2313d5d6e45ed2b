"""The training loop of every method here, as the paper has it. Imports torch, numpy and mtkernels only."""

from collections.abc import Callable

import torch

from .config import Config
from .data import DATASETS, Augment, Dataset, LabeledBatches, TwoStreamBatches
from .meter import Meter, Record
from .methods import METHODS, Method
from .models import MODELS
from .ramps import learning_rate
from .seeds import stream_seed


def train(
    config: Config,
    method: Method,
    data: Dataset,
    *,
    on_record: Callable[[Record], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train `method` for `config.steps` steps; `on_record` gets each evaluation's metrics, and a stop's.

    Seeds torch's global generator each step: dropout draws from it.
    """
    batches = make_batches(config, method, data)
    augment = make_augment(config)
    optimizer = make_optimizer(config, method)
    meter = Meter(config, method, data)
    for step in range(config.steps):
        batch = batches.batch(step)
        images, labels = data.images[batch], data.labels[batch]
        views = [augment(images, seed=config.seed, step=step, view=view) for view in range(method.views)]

        torch.manual_seed(stream_seed(config.seed, "dropout", step))
        losses = method.losses(views, labels, step)
        optimizer.param_groups[0]["lr"] = learning_rate(step, config)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        method.after_step()  # the teacher moves towards the new student

        meter.add({name: loss.detach() for name, loss in losses.items()}, images=len(images))
        stop = should_stop() or step + 1 == config.steps
        if stop or (step + 1) % config.eval_interval == 0:
            on_record(meter.record(step + 1))
        if stop:
            break


def make_method(config: Config, data: Dataset) -> Method:
    """The method and its student, whose first weights depend on the seed alone, not on the method."""
    torch.manual_seed(stream_seed(config.seed, "model"))
    classes = DATASETS[config.dataset].classes
    student = MODELS[config.model](classes, width=config.width, dropout=config.dropout)
    return METHODS[config.method](student.to(data.images.device), config)


def make_batches(config: Config, method: Method, data: Dataset) -> LabeledBatches | TwoStreamBatches:
    """Two-stream batches for a method that uses unlabeled images, else their labeled part alone."""
    if not method.uses_unlabeled:
        return LabeledBatches(data.labeled, batch_size=config.labeled_batch_size, seed=config.seed)
    return TwoStreamBatches(
        data.unlabeled,
        data.labeled,
        batch_size=config.batch_size,
        labeled_batch_size=config.labeled_batch_size,
        seed=config.seed,
    )


def make_augment(config: Config) -> Augment:
    """The augmentation that `config` describes."""
    amounts = ("rotate", "zoom", "shear", "shift", "warp", "noise")
    return Augment(**{name: getattr(config, name) for name in amounts})


def make_optimizer(config: Config, method: Method) -> torch.optim.Optimizer:
    """SGD over the student's parameters; the teacher has no gradients."""
    return torch.optim.SGD(
        method.student.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
