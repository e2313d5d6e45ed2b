"""One file that is enough to use a run's network elsewhere: safetensors for torch, or ONNX."""

import json
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mtkernels

from .checkpoint import save_tensors
from .config import Config, SettingError
from .data import Pixels
from .data.raw import Facts
from .data.whiten import Whitener, Zca
from .files import write_with
from .methods import METHODS
from .methods.method import heads_of
from .models import make_model
from .predict import Predictor, Reader, Role, load_run, read_run
from .state import below

_KEY = "mtkernels"  # of a file's metadata: JSON of all that is no tensor
_FORMAT = 1
_WEIGHTS, _ZCA = "model.", "zca."  # of tensors' names
_SETTINGS = ("arch", "heads", "width", "dropout", "normalize", "method", "dataset")
_ROWS = 3  # images that an ONNX network is tried on


def export_safetensors(folder: Path, path: Path, role: Role | None = None) -> None:
    """Write weights, the ZCA where images are whitened, and a description in the metadata; `load_exported` reads it."""
    predictor = load_run(folder, role)
    tensors = {_WEIGHTS + name: value.contiguous() for name, value in predictor.model.state_dict().items()}
    described = describe(folder, predictor, role)
    if described["facts"]["whitening"] is not None:
        zca = Zca.load(folder / "zca.npz")
        tensors |= {f"{_ZCA}mean": zca.mean, f"{_ZCA}matrix": zca.matrix}
    metadata = {_KEY: json.dumps(described)}
    write_with(path, lambda temporary: save_tensors(temporary, tensors, metadata))


def describe(folder: Path, predictor: Predictor, role: Role | None) -> dict[str, Any]:
    """What the metadata says: format, version, role, settings of the network, its dataset's facts, its reader."""
    config, facts = read_run(folder)
    return {
        "format": _FORMAT,
        "version": mtkernels.__version__,
        "role": role or METHODS[config.method].headline,
        "settings": {name: getattr(config, name) for name in _SETTINGS},
        "facts": {name: facts[name] for name in (*(field.name for field in fields(Facts)), "whitening")},
        "reader": asdict(predictor.reader),
    }


def load_exported(path: Path, device: torch.device | str = "cpu") -> Predictor:
    """The network that `export_safetensors` wrote, in eval mode: called with uint8 images it gives their logits.

    `.reader(path)` reads an image file, `.class_names` are the classes, `.model(.pixels(images))` is the call in two.
    A network of package.module:callable needs that package.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    except SafetensorError as error:
        raise SettingError(f"{path} cannot be read as safetensors: {error}") from error
    if described.get("format") != _FORMAT:
        raise SettingError(f"{path} must be a file of `mtkernels export` of format {_FORMAT}")
    settings, facts = described["settings"], dict(described["facts"])
    whitening = facts.pop("whitening")
    known = Facts(**facts)
    model = make_model(
        settings["arch"],
        len(known.class_names),
        channels=known.channels,
        **{name: settings[name] for name in ("heads", "width", "dropout")},
    )
    model.load_state_dict(below(tensors, _WEIGHTS))
    pixels: Callable[[Tensor], Tensor] = Pixels(known, Config(normalize=settings["normalize"]))
    if whitening is not None:
        pixels = Whitener(whitening, known.levels, Zca(**below(tensors, _ZCA)))
    reader = described["reader"] | {"size": tuple(described["reader"]["size"])}
    model = model.eval().to(device)
    return Predictor(model, pixels, Reader(**reader), tuple(known.class_names), torch.device(device))


class _Whole(nn.Module):
    """Images to logits, of one head."""

    def __init__(self, predictor: Predictor, *, raw: bool) -> None:
        super().__init__()
        self.model, self.pixels, self.raw = predictor.model, predictor.pixels, raw

    def forward(self, images: Tensor) -> Tensor:
        return heads_of(self.model(self.pixels(images) if self.raw else images))[0]


def export_onnx(folder: Path, path: Path, role: Role | None = None) -> str:
    """Write a network images [rows, channels, height, width] -> logits [rows, classes], any number of rows; tell of it.

    Images are uint8, and normalised within; where they are whitened, float32 and whitened already. Needs onnx and
    onnxscript. What ONNX Runtime makes of the file is held against torch where that is installed; else onnx checks it.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise SettingError(
            f"{' and '.join(missing)} must be installed for --format onnx: pip install {' '.join(missing)}"
        )
    predictor = load_run(folder, role)
    described = describe(folder, predictor, role)
    reader, whitening = predictor.reader, described["facts"]["whitening"]
    shape = (_ROWS, reader.channels, *reader.size)
    images = torch.randint(0, reader.levels + 1, shape, generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    if whitening is not None:
        images = predictor.pixels(images)
    takes = f"{whitening}-whitened float32" if whitening else f"uint8, 0 to {reader.levels},"
    about = f"{takes} images [rows, {', '.join(map(str, shape[1:]))}] -> logits [rows, {len(predictor.class_names)}]"
    network = _Whole(predictor, raw=whitening is None).eval()

    def write(temporary: Path) -> None:
        _write_onnx(network, images, temporary, about, described)
        _check_onnx(network, images, temporary)

    write_with(path, write)
    return about


@torch.no_grad()
def _write_onnx(
    network: nn.Module, images: Tensor, path: Path, about: str, described: dict[str, object]
) -> None:
    import onnx

    with warnings.catch_warnings():
        # Of the exporter's own parts, and of torchvision, which it can do without.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                network,
                (images,),
                str(path),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("rows")},),
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        finally:
            logging.disable(logging.NOTSET)
    model = onnx.load(path)
    model.doc_string = about
    model.metadata_props.add(key=_KEY, value=json.dumps(described))
    onnx.save(model, path)


@torch.no_grad()
def _check_onnx(network: nn.Module, images: Tensor, path: Path) -> None:
    """FloatingPointError where the file computes something else, also of another number of rows."""
    if find_spec("onnxruntime") is None:
        import onnx

        onnx.checker.check_model(str(path), full_check=True)
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (images, images[:1]):
        expected = network(rows)
        logits = torch.from_numpy(session.run(None, {"images": rows.numpy()})[0])
        off, allowed = (logits - expected).abs().max().item(), 1e-4 * max(1.0, expected.abs().max().item())
        if not off <= allowed or not math.isfinite(off):
            raise FloatingPointError(
                f"the ONNX network must give torch's logits up to {allowed:.1e}, got a difference of {off:.1e}"
            )
