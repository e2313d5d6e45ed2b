"""EMA, in the place of ema-pytorch's."""

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mtkernels.compat._bound import Bound, paired
from mtkernels.ops.matching import Pairs, is_average


class EMA(nn.Module):
    """A weight average that knows its model: `from mtkernels.compat.ema_pytorch import EMA`.

    average <- decay * average + (1 - decay) * model, in one launch, with
    decay(t) = 1 - (1 + t / inv_gamma)^-power, kept within [min_value, beta].

    Args:
        model: what is averaged, `online_model`; in the state_dict unless include_online_model=False.
        ema_model: the average's module, or a function that makes it; None: a copy of the model.
        beta: the decay's bound, without unit; 1 leaves the average as it is.
        update_every, update_after_step: every how many steps the average moves; up to which step it copies the model.
        inv_gamma, power, min_value: of the decay.
        param_or_buffer_names_no_ema: names that are copied rather than averaged.
        ignore_names, ignore_startswith_names: names that stay as they are.
        allow_different_devices, move_ema_to_online_device: copy weights to the average's device; move the average.
        use_foreach: has no effect; there is one way. coerce_dtype: dtypes may differ in any case.
        update_model_with_ema_every, update_model_with_ema_beta: every how many steps the model moves toward the
            average, and how much of it stays.
        forward_method_names: the average's methods that this module gets.
        lazy_init_ema: the copy is made at the first update.

    Same results and state_dict as ema-pytorch's; floating tensors alone move, integer buffers stay. The decay is
    computed in double precision on the host (the original: float32, on the device, and read back), so averages can
    differ by a rounding; `step` and `initted` are read back only when somebody else has written them.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: ema-pytorch (MIT), version 0.8.3.
    """

    def __init__(
        self,
        model: nn.Module,
        ema_model: nn.Module | Callable[[], nn.Module] | None = None,
        beta: float = 0.9999,
        update_after_step: int = 100,
        update_every: int = 10,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        min_value: float = 0.0,
        param_or_buffer_names_no_ema: Collection[str] = frozenset(),
        ignore_names: Collection[str] = frozenset(),
        ignore_startswith_names: Collection[str] = frozenset(),
        include_online_model: bool = True,
        allow_different_devices: bool = False,
        use_foreach: bool = False,
        update_model_with_ema_every: int | None = None,
        update_model_with_ema_beta: float = 0.0,
        forward_method_names: tuple[str, ...] = (),
        move_ema_to_online_device: bool = False,
        coerce_dtype: bool = False,
        lazy_init_ema: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"EMA: model must be a torch.nn.Module, got {type(model).__name__}")
        if lazy_init_ema and ema_model is not None:
            raise ValueError("EMA: ema_model must be None with lazy_init_ema=True, got one")
        self.beta, self.inv_gamma, self.power, self.min_value = beta, inv_gamma, power, min_value
        self.is_frozen = beta == 1.0
        self.update_every, self.update_after_step = update_every, update_after_step
        self.include_online_model = include_online_model
        self.online_model = model if include_online_model else [model]  # a list hides it from the state_dict
        self.param_or_buffer_names_no_ema = param_or_buffer_names_no_ema
        self.ignore_names, self.ignore_startswith_names = ignore_names, ignore_startswith_names
        self.update_model_with_ema_every = update_model_with_ema_every
        self.update_model_with_ema_beta = update_model_with_ema_beta
        self.allow_different_devices = allow_different_devices
        self.move_ema_to_online_device = move_ema_to_online_device
        self.coerce_dtype, self.use_foreach = coerce_dtype, use_foreach
        self.forward_method_names = forward_method_names
        self.ema_model = None
        if not lazy_init_ema:
            self.init_ema(ema_model if isinstance(ema_model, nn.Module) or ema_model is None else ema_model())
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("step", torch.tensor(0))
        self._known = {"initted": _Known(), "step": _Known()}
        self._to_average, self._to_model = Bound(), Bound()

    # ---- the average and its model

    def init_ema(self, ema_model: nn.Module | None = None) -> None:
        """Makes the average: the module given, or a copy of the model."""
        self.ema_model = copy.deepcopy(self.model) if ema_model is None else ema_model
        for parameter in self.ema_model.parameters():
            parameter.detach_()
        for name in self.forward_method_names:
            setattr(self, name, getattr(self.ema_model, name))
        self.parameter_names = {
            name for name, tensor in self.ema_model.named_parameters() if is_average(tensor)
        }
        self.buffer_names = {name for name, tensor in self.ema_model.named_buffers() if is_average(tensor)}

    @property
    def model(self) -> nn.Module:
        return self.online_model if self.include_online_model else self.online_model[0]

    def eval(self) -> nn.Module:
        """Puts the average into eval mode."""
        return self.ema_model.eval()

    @torch.no_grad()
    def forward_eval(self, *arguments: Any, **named: Any) -> Any:
        """The average's forward, in the mode that it is in, without autograd."""
        training = self.ema_model.training
        output = self.ema_model(*arguments, **named)
        self.ema_model.train(training)
        return output

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.ema_model(*arguments, **named)

    def restore_ema_model_device(self) -> None:
        """Moves the average to where `initted` is."""
        self.ema_model.to(self.initted.device)

    def get_params_iter(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that can move."""
        return ((name, tensor) for name, tensor in model.named_parameters() if name in self.parameter_names)

    def get_buffers_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Names and buffers that can move."""
        return ((name, tensor) for name, tensor in model.named_buffers() if name in self.buffer_names)

    def copy_params_from_model_to_ema(self) -> None:
        """Copies the model, parameters and floating buffers, into the average."""
        self._copy(self.ema_model, self.model)

    def copy_params_from_ema_to_model(self) -> None:
        """Copies the average, parameters and floating buffers, into the model."""
        self._copy(self.model, self.ema_model)

    # ---- moving

    def add_to_optimizer_post_step_hook(self, optimizer: torch.optim.Optimizer) -> Any:
        """Calls `update` after each step of the optimizer. Gives the hook's handle."""
        return optimizer.register_step_post_hook(lambda *_: self.update())

    def get_current_decay(self) -> float:
        """The decay at the current step."""
        epoch = max(self._read("step") - self.update_after_step - 1, 0)
        if epoch <= 0:
            return 0.0
        value = 1 - (1 + epoch / self.inv_gamma) ** -self.power
        return min(max(value, self.min_value), self.beta)

    def update(self) -> None:
        """One step: copies, moves, or leaves the average; after each optimizer step."""
        step = self._read("step")
        self._write("step", step + 1)
        if not self._read("initted"):
            if self.ema_model is None:
                self.init_ema()
            self.copy_params_from_model_to_ema()
            self._write("initted", True)
            return
        due = step % self.update_every == 0
        if due and step <= self.update_after_step:
            self.copy_params_from_model_to_ema()
            return
        if due:
            self.update_moving_average(self.ema_model, self.model)
        if self.update_model_with_ema_every is not None and step % self.update_model_with_ema_every == 0:
            self.update_model_with_ema()

    def update_model_with_ema(self, decay: float | None = None) -> None:
        """Moves the model toward the average; decay is how much of the model stays."""
        decay = self.update_model_with_ema_beta if decay is None else decay
        if decay == 0:
            self.copy_params_from_ema_to_model()
        else:
            self.update_moving_average(self.model, self.ema_model, decay)

    def update_moving_average(
        self, ma_model: nn.Module, current_model: nn.Module, current_decay: float | None = None
    ) -> None:
        """ma_model <- decay * ma_model + (1 - decay) * current_model, but for the names excepted."""
        if self.is_frozen:
            return
        if self.move_ema_to_online_device and _device(ma_model) != _device(current_model):
            ma_model.to(_device(current_model))
        bound = self._to_average if ma_model is self.ema_model else self._to_model
        modules = ma_model, current_model
        excepted = self.param_or_buffer_names_no_ema, self.ignore_names, self.ignore_startswith_names
        if not bound.holds(modules, excepted):
            pairs = self._pairs(*modules)
            self._check_devices(pairs)
            bound.bind(modules, pairs, excepted)
        bound.update(self.get_current_decay() if current_decay is None else current_decay)

    # ---- inside

    def _pairs(self, to: nn.Module, source: nn.Module) -> Pairs:
        averages, currents = self._movable(to), self._movable(source)
        prefixes = tuple(self.ignore_startswith_names)
        moving = {
            name: tensor
            for name, tensor in averages.items()
            if name not in self.ignore_names and not name.startswith(prefixes)
        }
        names = [name for name in moving if name not in self.param_or_buffer_names_no_ema]
        copied = [name for name in moving if name in self.param_or_buffer_names_no_ema]
        teachers = {name: moving[name] for name in names + copied}
        return Pairs(list(teachers.values()), paired("EMA", teachers, currents), len(copied), list(teachers))

    def _movable(self, module: nn.Module) -> dict[str, Tensor]:
        return dict([*self.get_params_iter(module), *self.get_buffers_iter(module)])

    @torch.no_grad()
    def _copy(self, to: nn.Module, source: nn.Module) -> None:
        tensors = self._movable(to)
        sources = paired("EMA", tensors, self._movable(source))
        if tensors:
            torch._foreach_copy_(list(tensors.values()), sources)

    def _check_devices(self, pairs: Pairs) -> None:
        for to, source, name in zip(pairs.teachers, pairs.students, pairs.names, strict=True):
            if to.device != source.device and not self.allow_different_devices:
                raise ValueError(
                    f"EMA: model ({name!r}) must be on the average's device ({to.device}) unless "
                    f"allow_different_devices=True, got {source.device}"
                )

    def _read(self, name: str) -> int | bool:
        return self._known[name].read(getattr(self, name))

    def _write(self, name: str, value: int | bool) -> None:
        tensor = getattr(self, name)
        tensor.fill_(value)
        self._known[name].remember(tensor, value)


class _Known:
    """What a 0-d tensor holds, as the host knows it: read again only when somebody else has written the tensor."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version = -1
        self._value: int | bool = False

    def read(self, tensor: Tensor) -> int | bool:
        if tensor is not self._tensor or tensor._version != self._version:
            self.remember(tensor, tensor.item())
        return self._value

    def remember(self, tensor: Tensor, value: int | bool) -> None:
        self._tensor, self._version, self._value = tensor, tensor._version, value

    def __deepcopy__(self, memo: dict) -> "_Known":
        return _Known()

    def __reduce__(self) -> tuple:
        return _Known, ()


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
