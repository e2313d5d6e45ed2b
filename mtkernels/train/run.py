"""One run from config to a filled folder: what `mtkernels train` does once and `demo` several times."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .board import summary_writer
from .config import Config, SettingError
from .data import Batches, Dataset, Evaluation, load_dataset, make_feed
from .distributed import ALONE, Ranks, local_device, started_ranks
from .folder import Summary, describe_run, finish_folder, make_folder, write_weights
from .interrupt import stop_on_signals
from .loop import loop, make_batches, make_method, make_step
from .meter import Meter
from .methods import Method
from .methods.method import evaluating, heads_of
from .models.rows import draws_alone
from .resume import AtItsEndError, Start, start_of
from .show import Show, Silent
from .state import restore
from .step import Step
from .watch import Watch


def run(
    config: Config, *, command: Sequence[str] | None = None, resume: Path | None = None
) -> tuple[Path, Summary]:
    """Train as `config` says and fill the run's folder; Ctrl-C and SIGTERM save, and end it early, but filled.

    resume: a run's folder, or one of its checkpoints, to go on from. All ranks that torchrun started train one model.
    """
    with started_ranks(config.device) as ranks:
        start = start_of(resume, config)
        if not ranks.same(start.step):
            raise SettingError(f"resume must be a folder that all ranks see alike, got {resume}")
        data, batches, method = prepare(config, ranks)
        if start.is_over(method.timeline.steps):
            raise AtItsEndError(
                f"the run is at its end, step {start.step}: to go on, resume it with more {config.unit}"
            )
        step = make_step(method, ranks)
        meter = Meter(step, data)
        if start.checkpoint is not None:
            restore(step, meter, start.checkpoint)
        folder = Path(ranks.by_main(lambda: str(start.folder or make_folder(config))))
        ranks.by_main(lambda: describe_run(folder, config, data, batches, start, command))
        watch = _train(folder, data, batches, step, meter, start)
        data.quarantine.broken.update(ranks.gathered(data.quarantine.broken))
        return folder, _finish(folder, data, batches, method, watch)


def _train(folder: Path, data: Dataset, batches: Batches, step: Step, meter: Meter, start: Start) -> Watch:
    config, ranks, method = step.config, step.ranks, step.method
    began = time.perf_counter() - start.seconds
    show = Show if ranks.main else Silent
    with (
        stop_on_signals() as should_stop,
        show(config, folder, method.timeline.steps, earlier=start.records, first=start.step) as shown,
        make_feed(config, data, batches, method.views, ranks) as feed,
    ):
        watch = Watch(step, meter, folder, shown, should_stop, start)
        if start.checkpoint is not None:
            start.checkpoint.tensors.clear()  # all of them are where they belong
        watch.seconds = lambda: time.perf_counter() - began
        if (alone := draws_alone(method.student)) and ranks.world * config.accumulate > 1:
            shown.note(
                f"{alone[0]} draws for the rows that it gets: the training depends on ranks and accumulate"
            )
        loop(step, feed, meter, watch, first=start.step)
    return watch


def _finish(folder: Path, data: Dataset, batches: Batches, method: Method, watch: Watch) -> Summary:
    from .pictures import write_pictures

    config, ranks, steps = method.config, watch.ranks, method.timeline.steps
    # Stopped under torchrun, which waits half a minute: the checkpoint has all.
    hurries = ranks.world > 1 and watch.steps_done < steps
    if not hurries:
        for role in ("teacher", "student"):
            write_weights(folder / f"{role}.safetensors", getattr(method, role), ranks)
    summary: Summary = {}
    if ranks.main:
        data.quarantine.write(folder / "broken.txt")
        sharded = config.fsdp and ranks.world > 1  # one rank alone cannot run it
        if config.pictures and not hurries and not sharded:
            write_pictures(folder, config, method, data, batches)
        summary = finish_folder(
            folder,
            config,
            watch.records,
            watch.best,
            steps_done=watch.steps_done,
            steps=steps,
            seconds=watch.seconds(),
        )
    return ranks.told(summary)


def prepare(config: Config, ranks: Ranks = ALONE) -> tuple[Dataset, Batches, Method]:
    """All that a run needs but its folder; what cannot be trained is refused here."""
    config.validate()
    device = usable_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.tensorboard:
        summary_writer()  # not installed: said before there is a folder
    data = load_dataset(config).to(device)
    batches = make_batches(config, data)
    rows = len(batches.draw(0).index)
    if rows < ranks.world * config.accumulate:
        raise SettingError(
            f"a batch must have at least ranks x accumulate images ({ranks.world} x {config.accumulate}), got {rows}"
        )
    with make_feed(config, data, batches, 1):  # settings of views that the images cannot have
        pass
    return data, batches, _method(config, data, batches, ranks)


def _method(config: Config, data: Dataset, batches: Batches, ranks: Ranks) -> Method:
    """The method, its networks tried on one image: before hours of work, and before there is a folder."""
    images, _ = next(iter(Evaluation(config, data)))
    try:
        method = make_method(config, data, batches, ranks)
        with torch.no_grad(), evaluating([method.teacher]):
            logits, _ = heads_of(method.teacher(images[:1]))
    except SettingError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        shape, reason = " x ".join(map(str, images.shape[1:])), str(error).splitlines()[0]
        raise SettingError(f"arch {config.arch} cannot be trained on images of {shape}: {reason}") from error
    if logits.shape != (1, data.classes):
        raise SettingError(
            f"arch {config.arch} must give {data.classes} logits an image, got {list(logits.shape)} for one"
        )
    return method


def usable_device(name: str) -> torch.device:
    """The torch device of that name, `cuda` being each rank's own; SettingError where this torch cannot use it."""
    try:
        device = torch.device(local_device(name))
        torch.zeros(1, device=device).item()  # one that computes: not meta
        if device.index is not None:
            torch.cuda.set_device(device)  # NCCL, and CUDA graphs, take the current one
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"device must be one that this torch can use, got {name!r}: {reason}") from error
    return device
