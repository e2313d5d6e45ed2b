"""The build as installed: what `_C` links, what its stub says, what a bug report prints, what an import brings in."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mtkernels
from mtkernels import _C
from mtkernels.__main__ import facts

SYSTEM = {
    "libc",
    "libm",
    "libstdc++",
    "libgcc_s",
    "libgomp",
    "libdl",
    "libpthread",
    "librt",
    "ld-linux-x86-64",
}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf here")
def test_native_module_needs_system_libraries_only():
    listing = subprocess.run(
        ["readelf", "-d", _C.__file__], check=True, capture_output=True, text=True
    ).stdout
    needed = {line.split("[")[1].split(".so")[0] for line in listing.splitlines() if "(NEEDED)" in line}
    assert needed <= SYSTEM, needed - SYSTEM


def test_native_module_imports_without_torch():
    folder = str(Path(_C.__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import _C; print('torch' in sys.modules)"
    assert run(code) == "False"


def test_import_brings_in_neither_triton_nor_the_trainer():
    code = (
        "import sys, torch; before = set(sys.modules); import mtkernels; "
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('mtkernels')"
        " and name.split('.')[0] in ('triton', 'tyro', 'rich', 'matplotlib', 'sklearn', 'safetensors'))"
        " + [name for name in sys.modules if name.startswith('mtkernels.train')])"
    )
    assert run(code) == "[]"


def test_one_openmp_pool():
    code = (
        "import torch, mtkernels; "
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}))"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc here")
    assert run(code) == "1"


def test_stub_names_what_the_module_has():
    stub = Path(mtkernels.__file__).with_name("_C.pyi")
    named = {
        node.name
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.ClassDef) and "TypedDict" not in map(ast.unparse, node.bases))
    }
    assert named == {name for name in vars(_C) if not name.startswith("_")}


def test_bug_report():
    printed = subprocess.run(
        [sys.executable, "-m", "mtkernels"], check=True, capture_output=True, text=True
    ).stdout
    for name in ("mtkernels", "build", "python", "torch", "backends", "cpu", "gpu"):
        assert f"{name}: " in printed
    assert mtkernels.__version__ == facts()["mtkernels"]


def test_version_is_that_of_the_package():
    from importlib.metadata import version

    assert version("mtkernels") == mtkernels.__version__
