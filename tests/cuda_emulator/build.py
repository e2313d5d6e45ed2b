"""Builds the CUDA kernels of the losses for the CPU, as a Python module whose functions are _C's, with CUDA kernels for
CPU tensors: g++ compiles the .cu files against the headers in this folder."""

import importlib.util
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
OPS = [f"softmax_{name}" for name in ("mse", "kl", "reverse_kl", "js", "cross_entropy")]
OPS += ["logit_mse", "mean_teacher_loss"]
# gnu-unique symbols would be shared by the module's copies, each of which is another device.
OPTIONS = ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra"]


def build(folder: Path) -> Path:
    """The module's path."""
    import pybind11

    includes = [HERE, CSRC, pybind11.get_include(), sysconfig.get_paths()["include"]]
    options = [
        *OPTIONS,
        "-DMTK_CUDA",
        '-DMTK_CUDA_ARCHS="emulated"',
        *(f"-D{op}_cpu={op}_cuda" for op in OPS),
        *(f"-I{path}" for path in includes),
    ]
    sources = [CSRC / f"{op}.cu" for op in OPS]
    sources += [CSRC / f"{name}.cpp" for name in ("loss_bindings", "logits", "tensor")] + [
        HERE / "emulator.cpp"
    ]
    objects = [folder / f"{source.name}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        command = ["g++", *options, "-x", "c++", "-Wno-unknown-pragmas", "-c", source, "-o", target]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources, objects))
    module = folder / "cuda_emulator.so"
    subprocess.run(["g++", "-shared", "-o", module, *objects], check=True)
    return module


def load(module: Path, multiprocessors: int, shared: int, major: int) -> ModuleType:
    """A device of its own: what a launch needs to know of it is asked once."""
    copy = module.parent / f"{multiprocessors}_{shared}_{major}" / module.name
    copy.parent.mkdir()
    shutil.copy(module, copy)
    spec = importlib.util.spec_from_file_location("cuda_emulator", copy)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.set_device(multiprocessors, shared, major)
    return loaded
