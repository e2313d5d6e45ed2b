"""A run's metrics as TensorBoard reads them, in the folder `tensorboard` of the run's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .config import SettingError
from .meter import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def summary_writer() -> "type[SummaryWriter]":
    """TensorBoard's; SettingError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingError(
            "tensorboard must be installed where --tensorboard is on: pip install tensorboard"
        ) from error
    return SummaryWriter


class Board:
    """Scalars: `evaluation/*` of each record, `training/*` of the steps between; pictures where there are any."""

    def __init__(self, folder: Path, *, start: int = 0) -> None:
        """start: steps done where a run goes on; what was written of later ones is taken back."""
        purge = start + 1 if start else None  # from this step on
        self._writer = summary_writer()(str(folder / "tensorboard"), purge_step=purge, flush_secs=30)

    def record(self, record: Record) -> None:
        """The metrics of an evaluation."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(f"evaluation/{name}", value, int(record["step"]))

    def losses(self, steps_done: int, losses: Mapping[str, float], images_per_second: float) -> None:
        """Mean losses since the last evaluation."""
        for name, value in {**losses, "images_per_second": images_per_second}.items():
            self._writer.add_scalar(f"training/{name}", value, steps_done)

    def picture(self, path: Path, step: int) -> None:
        """A .png of the run's folder, under its name."""
        from matplotlib.image import imread

        self._writer.add_image(path.stem, imread(path)[..., :3], step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
