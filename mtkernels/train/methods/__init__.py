"""Training methods by name. A method holds the student and the teacher, and says what a step's loss is."""

from .mean_teacher import MeanTeacher
from .method import Method
from .supervised import Supervised

METHODS: dict[str, type[Method]] = {"mean-teacher": MeanTeacher, "supervised": Supervised}

__all__ = ["METHODS", "Method"]
