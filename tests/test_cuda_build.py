"""A build with CUDA kernels on a machine without a GPU: free of torch, of the driver and of shared cudart."""

import shutil
import struct
import subprocess

import pytest

from mtkernels import _C

pytestmark = pytest.mark.skipif(
    _C.build_info()["cuda"] is None, reason="a build without CUDA kernels (no nvcc)"
)


def needed_libraries(path: str) -> list[str]:
    """The DT_NEEDED names of a 64-bit little-endian ELF file."""
    with open(path, "rb") as file:
        elf = file.read()
    assert elf[:6] == b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file"
    (sections_at,) = struct.unpack_from("<Q", elf, 40)
    entry_size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + i * entry_size) for i in range(count)]
    dynamic = next(section for section in sections if section[1] == 6)  # SHT_DYNAMIC
    strings_at = sections[dynamic[6]][4]
    entries = struct.iter_unpack("<QQ", elf[dynamic[4] : dynamic[4] + dynamic[5]])
    starts = [strings_at + value for tag, value in entries if tag == 1]  # DT_NEEDED
    return [elf[start : elf.index(b"\0", start)].decode() for start in starts]


def cuobjdump() -> str | None:
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="no cuobjdump on PATH, and no Triton, which brings one")
        found = shutil.which("cuobjdump", path=f"{triton.__path__[0]}/backends/nvidia/bin")
    return found


def test_needs_no_torch_and_no_cuda_library():
    names = needed_libraries(_C.__file__)
    assert any(name.startswith("libc.so") for name in names)
    forbidden = ("torch", "c10", "cudart", "libcuda", "nvrtc", "cublas")
    assert [name for name in names if any(word in name for word in forbidden)] == []


def test_holds_machine_code_for_every_architecture():
    archs = _C.build_info()["cuda_archs"]
    assert archs
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump on PATH or in Triton")
    elf = subprocess.run([tool, "--list-elf", _C.__file__], capture_output=True, text=True, check=True).stdout
    ptx = subprocess.run([tool, "--list-ptx", _C.__file__], capture_output=True, text=True, check=True).stdout
    assert [arch for arch in archs if f"sm_{arch}.cubin" not in elf] == []
    assert f"sm_{archs[-1]}.ptx" in ptx
