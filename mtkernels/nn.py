"""The losses as modules, for configs: their options are arguments of the constructor, and attributes."""

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


def _shown(value: object) -> str:
    return f"tensor{list(value.shape)}" if isinstance(value, Tensor) else repr(value)


class _Loss(nn.Module):
    """Holds the keyword arguments of `function` as attributes, the defaults too, and passes them on at each call.

    Set one whenever you like, a number where a tensor was or the other way round: `loss.threshold = 0.9`. A tensor is a
    buffer, so that `.to(device)` takes it along; `.half()` and the like cast a centre, and leave 0-d tensors in the
    dtype that they have, as the losses take no half-precision one. The state_dict is empty: options are the config's,
    and what moves in training, such as a centre, is for its owner to save.
    """

    function: Callable
    tensors: tuple[str, ...] = ("weight",)  # given to forward instead
    _defaults: dict

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        cls._defaults = {
            each.name: each.default
            for each in inspect.signature(cls.function).parameters.values()
            if each.kind is each.KEYWORD_ONLY and each.name not in cls.tensors
        }

    def __init__(self, *positional, **options) -> None:
        super().__init__()
        name = type(self).__name__
        if positional:
            raise TypeError(
                f"{name}: options must be given by name ({', '.join(self._defaults)}), "
                f"got {', '.join(map(_shown, positional))} by position"
            )
        for option, value in options.items():
            if option not in self._defaults and option not in self.tensors:
                raise TypeError(
                    f"{name}: {option} must be one of its options ({', '.join(self._defaults)}), "
                    f"got {option}={_shown(value)}"
                )
        for option, value in (self._defaults | options).items():
            setattr(self, option, value)

    def __setattr__(self, name: str, value) -> None:
        if name in self.tensors:
            raise TypeError(
                f"{type(self).__name__}: {name} must be given to forward, got {_shown(value)} here"
            )
        if name not in self._defaults:
            super().__setattr__(name, value)
        elif isinstance(value, Tensor):
            self.__dict__.pop(name, None)
            self.register_buffer(name, value, persistent=False)
        else:
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
            object.__setattr__(self, name, value)

    def _apply(self, fn, recurse=True):
        tensors = {name: self._buffers[name] for name in self._defaults if name in self._buffers}
        super()._apply(fn, recurse)
        for name, before in tensors.items():
            after = self._buffers[name]
            if before.dim() == 0 and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def _options(self) -> dict:
        return {name: getattr(self, name) for name in self._defaults}

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None):
        return type(self).function(student, teacher, weight=weight, **self._options())

    def extra_repr(self) -> str:
        """The options that are not at their defaults."""
        return ", ".join(
            f"{name}={_shown(value)}"
            for name, value in self._options().items()
            if isinstance(value, Tensor) or value != self._defaults[name]
        )


class SoftmaxMSE(_Loss):
    """`mtkernels.softmax_mse(student, teacher, weight=...)`, with its other options as attributes."""

    function = staticmethod(consistency.softmax_mse)


class SoftmaxKL(_Loss):
    """`mtkernels.softmax_kl(student, teacher, weight=...)`, with its other options as attributes."""

    function = staticmethod(consistency.softmax_kl)


class SoftmaxReverseKL(_Loss):
    """`mtkernels.softmax_reverse_kl(student, teacher, weight=...)`, with its other options as attributes."""

    function = staticmethod(consistency.softmax_reverse_kl)


class SoftmaxJS(_Loss):
    """`mtkernels.softmax_js(student, teacher, weight=...)`, with its other options as attributes."""

    function = staticmethod(consistency.softmax_js)


class SoftmaxCrossEntropy(_Loss):
    """`mtkernels.softmax_cross_entropy(student, teacher, weight=...)`, with its other options as attributes."""

    function = staticmethod(consistency.softmax_cross_entropy)


class LogitMSE(_Loss):
    """`mtkernels.logit_mse(student, teacher, weight=...)`, with its other options as attributes."""

    function = staticmethod(consistency.logit_mse)


class MeanTeacherLoss(_Loss):
    """`mtkernels.mean_teacher_loss(student, teacher, labels, second=...)`, with its other options as attributes.

    consistency_weight ramps up: set the attribute (`loss.consistency_weight = w`), or fill it where it is a 0-d tensor,
    as under torch.compile and in CUDA graphs. What a call returns is `mtkernels.MeanTeacherLoss`, a tuple of this name.
    """

    function = staticmethod(mean_teacher.mean_teacher_loss)
    tensors = ("second",)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor, second: Tensor | None = None):
        return type(self).function(student, teacher, labels, second=second, **self._options())
