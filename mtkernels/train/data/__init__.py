"""Datasets by name, and what a run makes of its own: the batches and the augmentation."""

from .augment import Augment
from .dataset import NO_LABEL, Dataset, Source
from .digits import digits
from .sampler import LabeledBatches, TwoStreamBatches

DATASETS: dict[str, Source] = {"digits": Source(load=digits, classes=10)}

__all__ = ["DATASETS", "NO_LABEL", "Augment", "Dataset", "LabeledBatches", "Source", "TwoStreamBatches"]
