"""`python -m mtkernels`: the first lines of a bug report."""

import importlib.util
import platform
import sys

import torch

import mtkernels
from mtkernels import _C
from mtkernels.backends import native


def _found(module: str) -> str | None:
    return importlib.util.find_spec(module) and getattr(__import__(module), "__version__", "yes")


def facts() -> dict[str, str]:
    """What a bug report needs, a line each."""
    build = _C.build_info()
    cuda = (
        f"CUDA {build['cuda']} for {', '.join(build['cuda_archs'])}" if build["cuda"] else "no CUDA kernels"
    )
    backends = ["reference", "native (CPU and CUDA)" if native.HAS_CUDA else "native (CPU)"]
    if triton := _found("triton"):
        backends.append(f"triton {triton}")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, sm_{properties.major}{properties.minor}, {torch.cuda.device_count()} found"
    else:
        gpu = "none"
    return {
        "mtkernels": mtkernels.__version__,
        "build": f"{build['compiler']}; {cuda}",
        "python": f"{sys.version.split()[0]} on {platform.platform()}",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda}, HIP {torch.version.hip})",
        "backends": ", ".join(backends),
        "cpu": f"{build['cpu']} kernels, {torch.get_num_threads()} threads",
        "gpu": gpu,
    }


if __name__ == "__main__":
    for name, value in facts().items():
        print(f"{name:>10}: {value}")
