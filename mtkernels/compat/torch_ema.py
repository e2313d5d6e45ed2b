"""ExponentialMovingAverage, in the place of torch_ema's."""

import contextlib
import copy
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtkernels.ops.ema import ema_update


class ExponentialMovingAverage:
    """A weight average of a list of parameters: `from mtkernels.compat.torch_ema import ExponentialMovingAverage`.

    shadow <- decay * shadow + (1 - decay) * parameter

    Args:
        parameters: what is averaged, of which weak references are kept. Every method takes others like them.
        decay: between 0 and 1, without unit.
        use_num_updates: min(decay, (1 + n) / (10 + n)) at update n = 1, 2, ...

    Nothing is bound from step to step, so that a model goes when its last user lets it go, as with the original. Same
    results, but one rounding where torch_ema's three passes round three times.

    Raises:
        ValueError: a decay that is none, or another number of parameters.

    Source: torch_ema (MIT), version 0.3.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], decay: float, use_num_updates: bool = True
    ) -> None:
        self.decay = _checked(decay)
        self.num_updates = 0 if use_num_updates else None
        parameters = list(parameters)
        self.shadow_params = [parameter.clone().detach() for parameter in parameters]
        self.collected_params: list[Tensor] | None = None
        self._params_refs = [weakref.ref(parameter) for parameter in parameters]

    def update(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Moves the average toward the parameters; after each optimizer step."""
        parameters = self._get_parameters(parameters)
        decay = self.decay
        if self.num_updates is not None:
            self.num_updates += 1
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        ema_update(self.shadow_params, parameters, decay)

    def copy_to(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Copies the average into the parameters."""
        _copy(self._get_parameters(parameters), self.shadow_params)

    def store(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Keeps copies of the parameters for `restore`."""
        self.collected_params = [parameter.detach().clone() for parameter in self._get_parameters(parameters)]

    def restore(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Copies what `store` kept back into the parameters."""
        if self.collected_params is None:
            raise RuntimeError(
                "ExponentialMovingAverage.restore: parameters must be stored before, got none stored"
            )
        _copy(self._get_parameters(parameters), self.collected_params)

    @contextlib.contextmanager
    def average_parameters(self, parameters: Iterable[nn.Parameter] | None = None) -> Iterator[None]:
        """`with ema.average_parameters():` the parameters hold the average; their own values come back afterwards."""
        parameters = self._get_parameters(parameters)
        self.store(parameters)
        self.copy_to(parameters)
        try:
            yield
        finally:
            self.restore(parameters)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """Moves the average, as Tensor.to does; dtype: of floating tensors."""
        self.shadow_params = [_moved(tensor, device, dtype) for tensor in self.shadow_params]
        if self.collected_params is not None:
            self.collected_params = [_moved(tensor, device, dtype) for tensor in self.collected_params]

    def state_dict(self) -> dict[str, Any]:
        """decay, num_updates, shadow_params, collected_params; references to the tensors, no copies."""
        return {
            "decay": self.decay,
            "num_updates": self.num_updates,
            "shadow_params": self.shadow_params,
            "collected_params": self.collected_params,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what state_dict gave, torch_ema's too, with the device and dtype of the parameters."""
        state = copy.deepcopy(state_dict)
        decay, num_updates = _checked(state["decay"]), state["num_updates"]
        if num_updates is not None and not isinstance(num_updates, int):
            raise TypeError(
                f"ExponentialMovingAverage: num_updates must be an int or None, got {type(num_updates).__name__}"
            )
        shadow = _tensors("shadow_params", state["shadow_params"], len(self._params_refs))
        collected = state["collected_params"]
        if collected is not None:
            collected = _tensors("collected_params", collected, len(shadow))
        parameters = [reference() for reference in self._params_refs]
        if all(parameter is not None for parameter in parameters):
            shadow = [
                tensor.to(like.device, like.dtype) for tensor, like in zip(shadow, parameters, strict=True)
            ]
            if collected is not None:
                collected = [
                    tensor.to(like.device, like.dtype)
                    for tensor, like in zip(collected, parameters, strict=True)
                ]
        self.decay, self.num_updates = decay, num_updates
        self.shadow_params, self.collected_params = shadow, collected

    def _get_parameters(self, parameters: Iterable[nn.Parameter] | None) -> Sequence[nn.Parameter]:
        if parameters is None:
            parameters = [reference() for reference in self._params_refs]
            if any(parameter is None for parameter in parameters):
                raise ValueError(
                    "ExponentialMovingAverage: parameters must be given where the constructor's are gone, got None"
                )
            return parameters
        parameters = list(parameters)
        if len(parameters) != len(self.shadow_params):
            raise ValueError(
                f"ExponentialMovingAverage: parameters must be as many as in the average "
                f"({len(self.shadow_params)}), got {len(parameters)}"
            )
        return parameters


def _checked(decay: float) -> float:
    if not 0 <= decay <= 1:
        raise ValueError(f"ExponentialMovingAverage: decay must be between 0 and 1, got {decay}")
    return decay


def _tensors(argument: str, value: Any, count: int) -> list[Tensor]:
    if not isinstance(value, list) or not all(isinstance(tensor, Tensor) for tensor in value):
        raise TypeError(
            f"ExponentialMovingAverage: {argument} must be a list of tensors, got {type(value).__name__}"
        )
    if len(value) != count:
        raise ValueError(f"ExponentialMovingAverage: {argument} must have {count} tensors, got {len(value)}")
    return value


def _copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    if to:
        with torch.no_grad():
            torch._foreach_copy_(list(to), list(source))


def _moved(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
