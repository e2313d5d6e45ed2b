"""The losses as modules, for configs: what does not change from step to step is an argument of the constructor."""

import inspect
from collections.abc import Callable

from torch import Tensor, nn

from mtkernels.ops import consistency, mean_teacher

__all__ = [
    "LogitMSE",
    "MeanTeacherLoss",
    "SoftmaxCrossEntropy",
    "SoftmaxJS",
    "SoftmaxKL",
    "SoftmaxMSE",
    "SoftmaxReverseKL",
]


class _Loss(nn.Module):
    """Holds keyword arguments of `function` and passes them on; `tensors` are given to forward instead."""

    function: Callable
    tensors: tuple[str, ...] = ("weight",)

    def __init__(self, **options) -> None:
        super().__init__()
        parameters = inspect.signature(type(self).function).parameters.values()
        self._defaults = {
            each.name: each.default
            for each in parameters
            if each.kind is each.KEYWORD_ONLY and each.name not in self.tensors
        }
        for name, value in options.items():
            if name not in self._defaults:
                raise TypeError(
                    f"{type(self).__name__}: {name} must be one of {', '.join(self._defaults)}, got another option"
                )
            if isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        self._given = tuple(options)

    def _options(self) -> dict:
        return {name: getattr(self, name) for name in self._given}

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None):
        return type(self).function(student, teacher, weight=weight, **self._options())

    def extra_repr(self) -> str:
        shown = (
            f"{name}=tensor{list(value.shape)}" if isinstance(value, Tensor) else f"{name}={value!r}"
            for name, value in self._options().items()
        )
        return ", ".join(shown)


class SoftmaxMSE(_Loss):
    """`mtkernels.softmax_mse(student, teacher, weight=...)`, with its other options given here."""

    function = staticmethod(consistency.softmax_mse)


class SoftmaxKL(_Loss):
    """`mtkernels.softmax_kl(student, teacher, weight=...)`, with its other options given here."""

    function = staticmethod(consistency.softmax_kl)


class SoftmaxReverseKL(_Loss):
    """`mtkernels.softmax_reverse_kl(student, teacher, weight=...)`, with its other options given here."""

    function = staticmethod(consistency.softmax_reverse_kl)


class SoftmaxJS(_Loss):
    """`mtkernels.softmax_js(student, teacher, weight=...)`, with its other options given here."""

    function = staticmethod(consistency.softmax_js)


class SoftmaxCrossEntropy(_Loss):
    """`mtkernels.softmax_cross_entropy(student, teacher, weight=...)`, with its other options given here."""

    function = staticmethod(consistency.softmax_cross_entropy)


class LogitMSE(_Loss):
    """`mtkernels.logit_mse(student, teacher, weight=...)`, with its other options given here."""

    function = staticmethod(consistency.logit_mse)


class MeanTeacherLoss(_Loss):
    """`mtkernels.mean_teacher_loss(student, teacher, labels, second=...)`, with its other options given here.

    consistency_weight ramps up: set the attribute (`loss.consistency_weight = w`), or give a 0-d tensor and fill it.
    """

    function = staticmethod(mean_teacher.mean_teacher_loss)
    tensors = ("second",)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor, second: Tensor | None = None):
        return type(self).function(student, teacher, labels, second=second, **self._options())
