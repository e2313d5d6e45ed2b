"""Every CUDA kernel, on small and awkward sizes: what `make gpu-check` runs under compute-sanitizer.

About 200 launches of losses, 40 of weight averages. tests/test_ops.py runs the same on a CPU.
"""

import torch

from mtkernels import schedules
from mtkernels.backends import WITHOUT_CUDA, native
from mtkernels.ops.ema import EmaOptions
from mtkernels.testing import FLOATS, OPS, refuses

SIZES = (1, 7, 1000, 4099)
# A thread for a row; packs that begin and end within a vector; whole blocks; strided classes; nothing at all.
CASES = {"few classes", "tile edge", "1000 classes", "dense map", "empty", "network"}


def placed(dtype: torch.dtype, offset: int, device: str) -> list[torch.Tensor]:
    """Written by torch, `offset` elements past an aligned address, up to the end of their memory."""
    return [torch.ones(offset + size, device=device).to(dtype)[offset:] for size in SIZES]


def options_of_ema_update(dtype: torch.dtype, offset: int, averages: int, device: str) -> None:
    teachers = [tensor for k in range(averages) for tensor in placed(dtype, offset * k, device)]
    low = None
    if dtype in (torch.float16, torch.bfloat16):
        low = [t.to(torch.int16) if i % len(SIZES) == 1 else None for i, t in enumerate(teachers)]
    for part in (low, None):
        options = EmaOptions(
            step=torch.tensor(0, device=device),
            low=part,
            stochastic=True,
            found_inf=torch.zeros((), device=device),
            drift=torch.zeros(averages, dtype=torch.float64, device=device),
            advance=True,
        )
        decays = [schedules.cosine(0.99, steps=10), torch.tensor(0.9, device=device), 0.5][:averages]
        native.ema_update(teachers, placed(torch.float32, offset, device), decays, 1, None, options)
    if averages > 1:
        native.ema_update(teachers, placed(dtype, 0, device), [0.9] * averages)


def cases_of_ops(device: str) -> None:
    """Of each op the plain options, and in fp32 and bf16 those that ask for most."""
    for op in OPS.values():
        if op.name in WITHOUT_CUDA:
            continue
        for dtype in FLOATS:
            most = max(reversed(op.options), key=len)
            chosen = (op.options[0], most) if dtype in (torch.float32, torch.bfloat16) else op.options[:1]
            for case in op.cases.keys() & CASES:
                for options in chosen:
                    if not refuses(op, op.cases[case], options):
                        op.call(native, op.make(op.cases[case], dtype, device), **options)


def main(device: str = "cuda") -> None:
    cases_of_ops(device)
    for dtype in FLOATS:
        scale = torch.tensor(
            0.5, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device
        )
        native.scale_(torch.ones(1001, dtype=dtype).to(device)[1:], scale)
    for dtype in FLOATS:
        for offset in (0, 1):
            for averages in (1, 3):
                options_of_ema_update(dtype, offset, averages, device)
            native.swap_(placed(dtype, 0, device), placed(dtype, offset, device))
            native.nonfinite_(torch.zeros((), device=device), placed(dtype, offset, device))
    native.ema_update(
        [torch.zeros(9, dtype=torch.int64, device=device)],
        [torch.ones(9, dtype=torch.int64, device=device)],
        0.9,
    )
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
