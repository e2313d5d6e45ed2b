"""EMAModel, in the place of diffusers'."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtkernels.ops.ema import update
from mtkernels.ops.matching import Pairs


class EMAModel:
    """A weight average of a list of parameters: `from mtkernels.compat.diffusers import EMAModel`.

    shadow <- decay * shadow + (1 - decay) * parameter; parameters that do not require grad are copied.

    Args:
        parameters: what is averaged.
        decay, min_decay: bounds of the decay, without unit.
        update_after_step: up to step update_after_step + 1 the parameters are copied.
        use_ema_warmup, inv_gamma, power: 1 - (1 + t / inv_gamma)^-power in place of (1 + t) / (10 + t).
        foreach: has no effect; there is one way.
        model_cls, model_config: for `save_pretrained`.

    Nothing is bound from step to step. The deprecated forms (a module as `parameters`; max_value, min_value, device)
    and DeepSpeed's ZeRO stage 3 are refused. Same results, but one rounding where the original's three passes round
    three times.

    Raises:
        TypeError, ValueError, NotImplementedError: naming the argument.

    Source: diffusers.training_utils (Apache-2.0), version 0.42.1.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_ema_warmup: bool = False,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        foreach: bool = False,
        model_cls: Any = None,
        model_config: dict[str, Any] | None = None,
    ) -> None:
        self.shadow_params = [parameter.clone().detach() for parameter in _listed(parameters)]
        self.temp_stored_params: list[Tensor] | None = None
        self.decay, self.min_decay, self.update_after_step = decay, min_decay, update_after_step
        self.use_ema_warmup, self.inv_gamma, self.power = use_ema_warmup, inv_gamma, power
        self.optimization_step = 0
        self.cur_decay_value: float | None = None
        self.foreach = foreach
        self.model_cls, self.model_config = model_cls, model_config

    @classmethod
    def from_pretrained(cls, path: str, model_cls: Any, foreach: bool = False) -> "EMAModel":
        """The average that save_pretrained wrote: the weights of a diffusers model, its state in their config."""
        _, state = model_cls.from_config(model_cls.load_config(path), return_unused_kwargs=True)
        model = model_cls.from_pretrained(path)
        average = cls(model.parameters(), model_cls=model_cls, model_config=model.config, foreach=foreach)
        average.load_state_dict(state)
        return average

    def save_pretrained(self, path: str) -> None:
        """Writes the average as a diffusers model, its state into the config."""
        for argument in ("model_cls", "model_config"):
            if getattr(self, argument) is None:
                raise ValueError(f"EMAModel.save_pretrained: {argument} must be given to EMAModel, got None")
        model = self.model_cls.from_config(self.model_config)
        state = self.state_dict()
        del state["shadow_params"]
        model.register_to_config(**state)
        self.copy_to(model.parameters())
        model.save_pretrained(path)

    def get_decay(self, optimization_step: int) -> float:
        """The decay of an update at that step."""
        step = max(0, optimization_step - self.update_after_step - 1)
        if step <= 0:
            return 0.0
        warmup = 1 - (1 + step / self.inv_gamma) ** -self.power
        decay = warmup if self.use_ema_warmup else (1 + step) / (10 + step)
        return max(min(decay, self.decay), self.min_decay)

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Moves the average toward the parameters; after each optimizer step."""
        parameters = self._checked(parameters)
        decay = self.get_decay(self.optimization_step + 1)
        averaged, copied = [], []
        for pair in zip(self.shadow_params, parameters, strict=True):
            (averaged if pair[1].requires_grad else copied).append(pair)
        if averaged or copied:
            shadow, current = zip(*averaged, *copied, strict=True)
            update(Pairs(shadow, current, len(copied), None), decay)
        self.optimization_step += 1
        self.cur_decay_value = decay

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copies the average into the parameters."""
        if parameters := self._checked(parameters):
            torch._foreach_copy_(parameters, self.shadow_params)

    def pin_memory(self) -> None:
        """Moves the average into pinned host memory."""
        self.shadow_params = [tensor.pin_memory() for tensor in self.shadow_params]

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> None:
        """Moves the average, as Tensor.to does; dtype: of floating tensors."""
        self.shadow_params = [
            tensor.to(
                device=device, dtype=dtype if tensor.is_floating_point() else None, non_blocking=non_blocking
            )
            for tensor in self.shadow_params
        ]

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keeps copies of the parameters, in host memory, for `restore`."""
        self.temp_stored_params = [
            parameter.detach().cpu().clone() for parameter in self._checked(parameters)
        ]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copies what `store` kept back into the parameters."""
        if self.temp_stored_params is None:
            raise RuntimeError("EMAModel.restore: parameters must be stored before, got none stored")
        if parameters := self._checked(parameters):
            torch._foreach_copy_(parameters, self.temp_stored_params)
        self.temp_stored_params = None

    def state_dict(self) -> dict[str, Any]:
        """The state under diffusers' names; references to the tensors, no copies."""
        return {name: getattr(self, name) for name in (*_STATE, "shadow_params")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what state_dict gave, diffusers' too. What is missing stays as it is."""
        state = copy.deepcopy(state_dict)
        values = {name: state.get(name, getattr(self, name)) for name in _STATE}
        for name, (kind, word) in _STATE.items():
            if not isinstance(values[name], kind):
                raise TypeError(f"EMAModel: {name} must be {word}, got {type(values[name]).__name__}")
        if not 0 <= values["decay"] <= 1:
            raise ValueError(f"EMAModel: decay must be between 0 and 1, got {values['decay']}")
        shadow = state.get("shadow_params")
        if shadow is not None and not (
            isinstance(shadow, list) and all(isinstance(tensor, Tensor) for tensor in shadow)
        ):
            raise TypeError(f"EMAModel: shadow_params must be a list of tensors, got {type(shadow).__name__}")
        for name, value in values.items():
            setattr(self, name, value)
        if shadow is not None:
            self.shadow_params = shadow

    def _checked(self, parameters: Iterable[nn.Parameter]) -> Sequence[nn.Parameter]:
        parameters = _listed(parameters)
        if len(parameters) != len(self.shadow_params):
            raise ValueError(
                f"EMAModel: parameters must be as many as in the average ({len(self.shadow_params)}), "
                f"got {len(parameters)}"
            )
        return parameters


_NUMBER = ((float, int), "a number")
_STATE = {
    "decay": _NUMBER,
    "min_decay": _NUMBER,
    "optimization_step": (int, "an int"),
    "update_after_step": (int, "an int"),
    "use_ema_warmup": (bool, "a bool"),
    "inv_gamma": _NUMBER,
    "power": _NUMBER,
}


def _listed(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    if isinstance(parameters, nn.Module):
        raise TypeError(
            f"EMAModel: parameters must be tensors (pass model.parameters()), got a {type(parameters).__name__}"
        )
    parameters = list(parameters)
    if parameters and hasattr(parameters[0], "ds_id"):
        raise NotImplementedError(
            "EMAModel: parameters must be whole, or DTensors, got some partitioned by DeepSpeed's ZeRO stage 3"
        )
    return parameters
