"""Training methods by name. A method holds the student and the teacher, and says what a step's loss is."""

from .mean_teacher import MeanTeacher
from .method import Method, Objective
from .pi_model import PiModel
from .supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "mean-teacher": MeanTeacher,
    "pi-model": PiModel,
    "supervised": Supervised,
}

__all__ = ["METHODS", "Method", "Objective"]
