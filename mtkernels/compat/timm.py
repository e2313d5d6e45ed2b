"""ModelEmaV3, in the place of timm's."""

import copy

import torch
from torch import Tensor, nn

from mtkernels.compat._bound import Bound
from mtkernels.ops.ema import EmaOptions
from mtkernels.ops.matching import Pairs


class ModelEmaV3(nn.Module):
    """A weight average of the model's whole state_dict, in one launch: `from mtkernels.compat.timm import ModelEmaV3`.

    average <- decay * average + (1 - decay) * model

    Args:
        model: what is averaged; `module` is its copy, in eval mode.
        decay, min_decay, update_after_step: without unit; the step is `update`'s, and up to update_after_step + 1 the
            model is copied.
        use_warmup, warmup_gamma, warmup_power: decay(t) = 1 - (1 + t / gamma)^-power, kept within [min_decay, decay].
        device, dtype: of the average; None: the model's. Weights on another device are copied over at each update.
        stochastic_rounding, stochastic_rounding_seed: of averages in bfloat16. Right in the mean as timm's, but by
            Philox: other random bits. Where a model mixes bfloat16 and float16, float16 is rounded so, too.
        foreach: has no effect; there is one way.
        exclude_buffers: buffers are copied rather than averaged, and those outside the state_dict, too.

    Same results as timm's, but: one rounding instead of two where dtypes differ; weights under two names are averaged
    once, not twice; a model with other tensors than the average's is refused.

    Source: timm.utils.model_ema (Apache-2.0), version 1.0.31.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        stochastic_rounding: bool = True,
        stochastic_rounding_seed: int = 0,
        foreach: bool = True,
        exclude_buffers: bool = False,
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)
        self.module.eval()
        self.decay, self.min_decay, self.update_after_step = decay, min_decay, update_after_step
        self.use_warmup, self.warmup_gamma, self.warmup_power = use_warmup, warmup_gamma, warmup_power
        self.device, self.dtype, self.foreach = device, dtype, foreach
        self.stochastic_rounding, self.stochastic_rounding_seed = (
            stochastic_rounding,
            stochastic_rounding_seed,
        )
        self.exclude_buffers = exclude_buffers
        self.module.to(device=device, dtype=dtype)
        self._bound = Bound()
        self._updates = 0  # each rounds by random numbers of its own

    def get_decay(self, step: int | None = None) -> float:
        """The decay of an update at `step`; None: without warm-up."""
        if step is None:
            return self.decay
        step = max(0, step - self.update_after_step - 1)
        if step <= 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        decay = 1 - (1 + step / self.warmup_gamma) ** -self.warmup_power
        return max(min(decay, self.decay), self.min_decay)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Moves the average toward the model."""
        modules = self.module, model
        if not self._bound.holds(modules, self.exclude_buffers):
            pairs = _by_kind(*modules) if self.exclude_buffers else _by_state(*modules)
            self._bound.bind(modules, pairs, self.exclude_buffers)
            self._halves = any(tensor.dtype == torch.bfloat16 for tensor in pairs.teachers)
        self._updates += 1
        options = None
        if self.stochastic_rounding and self._halves:
            options = EmaOptions(step=self._updates, stochastic=True, seed=self.stochastic_rounding_seed)
        self._bound.update(self.get_decay(step), options)

    @torch.no_grad()
    def set(self, model: nn.Module) -> None:
        """Copies the model into the average."""
        for average, current in zip(*_by_state(self.module, model)[:2], strict=True):
            average.copy_(current)

    def forward(self, *arguments, **named):
        """The average's forward."""
        return self.module(*arguments, **named)


def _by_state(average: nn.Module, model: nn.Module) -> Pairs:
    """state_dict against state_dict, in their order, as timm does it."""
    return _in_order(_state(average), _state(model), 0)


def _by_kind(average: nn.Module, model: nn.Module) -> Pairs:
    buffers = dict(average.named_buffers())
    return _in_order(
        {**dict(average.named_parameters()), **buffers},
        {**dict(model.named_parameters()), **dict(model.named_buffers())},
        len(buffers),
    )


def _in_order(averages: dict[str, Tensor], currents: dict[str, Tensor], copied: int) -> Pairs:
    if len(averages) != len(currents):
        raise ValueError(
            f"ModelEmaV3: model must have as many tensors as its average ({len(averages)}), got {len(currents)}"
        )
    return Pairs(list(averages.values()), list(currents.values()), copied, list(averages))


def _state(module: nn.Module) -> dict[str, Tensor]:
    held = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):  # get_extra_state's
            continue
        if id(tensor) not in held:
            raise NotImplementedError(
                f"ModelEmaV3: model must have the tensors of its state_dict, got another for {name!r}, from a hook"
            )
        tensors[name] = tensor
    return tensors
