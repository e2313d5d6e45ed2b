"""Networks from elsewhere, with one or two heads: timm's by name, and any callable by its import path."""

import difflib
import inspect
from functools import partial
from importlib import import_module

from torch import nn

from ..config import SettingError
from .network import Network, TwoHeads


def timm_model(name: str, classes: int, *, channels: int, heads: int, pretrained: bool) -> nn.Module:
    """timm's model `name`; with two heads, they are new and linear, on the features that it pools."""
    try:
        import timm
    except ImportError as error:
        raise SettingError(f"model 'timm:{name}' needs timm: pip install timm ({error})") from error
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean 'timm:{close[0]}'?" if close else ""
        raise SettingError(f"model must be one that timm {timm.__version__} has, got 'timm:{name}'{hint}")
    create = partial(timm.create_model, name, pretrained=pretrained, in_chans=channels)
    if heads == 1:
        return create(num_classes=classes)
    features = create(num_classes=0)
    width = getattr(features, "head_hidden_size", features.num_features)
    return Network(features, partial(nn.Linear, width, classes), heads)


def imported_model(path: str, classes: int, *, heads: int) -> nn.Module:
    """What `path`, package.module:callable, makes when called with num_classes=classes.

    It must map images to logits; for two heads its last nn.Linear must be what gives those.
    """
    module, _, name = path.partition(":")
    try:
        build = import_module(module)
        for attribute in name.split("."):
            build = getattr(build, attribute)
    except (ImportError, AttributeError) as error:
        reason = f"{error} (is its folder on PYTHONPATH?)" if isinstance(error, ImportError) else error
        raise SettingError(f"model must name what can be imported, got {path!r}: {reason}") from error
    if not callable(build):
        raise SettingError(f"model must name a callable, got {path!r}, a {type(build).__name__}")
    try:
        inspect.signature(build).bind(num_classes=classes)
    except TypeError as error:
        raise SettingError(f"model {path!r} must take num_classes={classes} and no more: {error}") from error
    model = build(num_classes=classes)
    if not isinstance(model, nn.Module):
        raise SettingError(f"model {path!r} must return an nn.Module, got a {type(model).__name__}")
    if heads == 2:
        _add_head(model, path, classes)
    return model


def _add_head(model: nn.Module, path: str, classes: int) -> None:
    """Put a second head beside the last linear layer, which stays as it is."""
    layers = [(name, layer) for name, layer in model.named_modules() if name and isinstance(layer, nn.Linear)]
    name, last = layers[-1] if layers else ("", None)
    if last is None or last.out_features != classes:
        found = f"{name!r} with {last.out_features}" if last else "none"
        raise SettingError(
            f"model {path!r} must end in an nn.Linear of {classes} outputs to get two heads, got {found}"
        )
    second = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, TwoHeads(last, second.to(last.weight)))
