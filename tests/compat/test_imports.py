"""Optional dependencies stay optional."""

import subprocess
import sys
from pathlib import Path

import mtkernels.compat

HIDE = """
import importlib, sys
for name in ("timm", "ema_pytorch", "torch_ema", "diffusers", "transformers", "lightning", "pytorch_lightning"):
    sys.modules[name] = None
for name in {names}:
    try:
        importlib.import_module("mtkernels.compat." + name)
    except ImportError as error:
        print(error)
"""


def _without_libraries(*names: str) -> list[str]:
    code = HIDE.format(names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_classes_are_imported_without_the_libraries_and_callbacks_say_what_they_need():
    said = _without_libraries(
        "averaged_model", "timm", "ema_pytorch", "torch_ema", "diffusers", "transformers", "lightning"
    )
    assert len(said) == 2, said
    for line, name in zip(said, ("transformers", "lightning"), strict=True):
        assert line.startswith(f"mtkernels.compat.{name}: {name} ")
        assert f"must be installed (pip install {name}), got: " in line


def test_the_package_lists_its_modules():
    files = {path.stem for path in Path(mtkernels.compat.__file__).parent.glob("[a-z]*.py")}
    listed = {line.split()[0] for line in mtkernels.compat.__doc__.splitlines() if "  " in line}
    assert files == listed
