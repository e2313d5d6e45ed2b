"""One word per op in every layer: the lists of ops agree, and the native core stays free of torch."""

import importlib.util
from pathlib import Path

import torch

import mtkernels
from mtkernels import _C
from mtkernels.backends import WITHOUT_CUDA, native, reference
from mtkernels.testing import OPS

ROOT = Path(__file__).resolve().parents[1]
NO_OPS = {
    "LossAndUtilization",
    "MeanTeacherLoss",
    "WeightEMA",
    "ema_multi_avg_fn",
    "multi_tensor_cosine",
    "multi_tensor_norm",
    "nn",
    "schedules",
}


def _peers():
    spec = importlib.util.spec_from_file_location("peers", ROOT / "bench" / "peers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PEERS


def test_every_op_is_everywhere():
    ops = set(OPS)
    assert set(mtkernels.__all__) - NO_OPS == ops
    assert {path.stem for path in (ROOT / "bench").glob("bench_*.py")} >= {
        f"bench_{op.rstrip('_')}" for op in ops
    }
    assert set(_peers()) == ops
    for op in ops:
        file = op.rstrip("_")
        for suffix in ("h", "cpp"):
            assert (ROOT / "csrc" / f"{file}.{suffix}").exists(), f"csrc/{file}.{suffix}"
        assert (ROOT / "csrc" / f"{file}.cu").exists() == (op not in WITHOUT_CUDA), f"csrc/{file}.cu"
        assert (ROOT / "mtkernels" / "backends" / "triton" / f"{file}.py").exists()
        for module in (_C, native, reference, mtkernels):
            assert callable(getattr(module, op)), (module.__name__, op)
        assert hasattr(torch.ops.mtkernels, op)


def test_every_docstring_has_its_parts():
    for op in OPS:
        text = getattr(mtkernels, op).__doc__
        assert text.splitlines()[0].endswith(".")
        for part in ("Args:", "Raises:", "Source:"):
            assert part in text, (op, part)


def test_native_core_includes_no_torch():
    for path in (ROOT / "csrc").iterdir():
        for line in path.read_text().splitlines():
            assert not (
                line.startswith("#include") and any(name in line for name in ("torch/", "ATen/", "c10/"))
            ), path
