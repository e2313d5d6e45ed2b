"""What a WeightEMA refuses before it does anything."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDINGS = ("nearest", "stochastic", "compensated")


def check_settings(model: Any, decay: Any, rounding: Any, dtype: Any, teacher: Any) -> None:
    """The constructor's arguments that no later check names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"WeightEMA: model must be a torch.nn.Module, got {type(model).__name__}")
    if rounding not in _ROUNDINGS:
        raise ValueError(
            f"WeightEMA: rounding must be 'nearest', 'stochastic' or 'compensated', got {rounding!r}"
        )
    _check_decay(decay)
    _check_dtype(dtype, model)
    teachers = [] if teacher is None else [teacher] if isinstance(teacher, nn.Module) else teacher
    if not isinstance(teachers, (list, tuple)) or not all(isinstance(one, nn.Module) for one in teachers):
        raise TypeError(
            f"WeightEMA: teacher must be a torch.nn.Module, a list of them or None, got {type(teacher).__name__}"
        )


def check_state(state: Any, averages: Sequence[nn.Module]) -> None:
    """That a saved state has the steps and, for each average, a tensor of the same shape under each name."""
    where = "WeightEMA.load_state_dict: state"
    if not isinstance(state, Mapping) or not {"step", "averages"} <= state.keys():
        got = f"keys {list(state)[:4]}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"{where} must be one that state_dict() gave, with 'step' and 'averages', got {got}")
    if len(state["averages"]) != len(averages):
        raise ValueError(f"{where} must hold {len(averages)} averages, got {len(state['averages'])}")
    for average, saved in zip(averages, state["averages"], strict=True):
        own = average.state_dict()
        if own.keys() != saved.keys():
            missing = next((name for name in own if name not in saved), None)
            extra = next((name for name in saved if name not in own), None)
            got = f"none named {missing!r}" if missing is not None else f"also one named {extra!r}"
            raise ValueError(f"{where} must have the tensors of its average, got {got}")
        for name, tensor in own.items():
            if isinstance(tensor, Tensor) and tensor.shape != saved[name].shape:
                raise ValueError(
                    f"{where} must have {name!r} in the shape {list(tensor.shape)}, got {list(saved[name].shape)}"
                )


def _check_dtype(dtype: Any, model: nn.Module) -> None:
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"WeightEMA: dtype must be a torch.dtype or None, got {type(dtype).__name__}")
    if not dtype.is_floating_point:
        raise ValueError(f"WeightEMA: dtype must be a floating one, got {dtype}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_complex():
            raise ValueError(
                f"WeightEMA: dtype must be None for a model with complex weights ({name!r}), got {dtype}"
            )


def check_counts(**counts: tuple[int, int]) -> None:
    """Whole numbers, each with the least that it may be."""
    for name, (value, least) in counts.items():
        if not isinstance(value, int):
            raise TypeError(f"WeightEMA: {name} must be an int, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"WeightEMA: {name} must be at least {least}, got {value}")


def _check_decay(decay: Any) -> None:
    if isinstance(decay, (list, tuple)):
        if not 1 <= len(decay) <= 8:
            raise ValueError(f"WeightEMA: decay must be one, or a list of 1 to 8, got {len(decay)}")
        for one in decay:
            _check_decay(one)
    elif isinstance(decay, Real):
        if not 0 <= decay <= 1:
            raise ValueError(f"WeightEMA: decay must be between 0 and 1, got {decay}")
    elif not (isinstance(decay, Tensor) or callable(decay)):
        raise TypeError(
            "WeightEMA: decay must be a number, a tensor, a schedule or a function of the step, "
            f"got {type(decay).__name__}"
        )
