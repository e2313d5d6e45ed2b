"""Every CUDA kernel once, on small and awkward sizes: what `make gpu-check` runs under compute-sanitizer."""

import torch

from mtkernels import schedules
from mtkernels.backends import WITHOUT_CUDA, native
from mtkernels.ops.ema import EmaOptions
from mtkernels.testing import FLOATS, OPS

SIZES = (1, 7, 1000, 4099)


def placed(dtype: torch.dtype, offset: int) -> list[torch.Tensor]:
    """Written by torch, `offset` elements past an aligned address, up to the end of their memory."""
    return [torch.ones(offset + size, device="cuda").to(dtype)[offset:] for size in SIZES]


def options_of_ema_update(dtype: torch.dtype, offset: int, averages: int) -> None:
    teachers = [tensor for k in range(averages) for tensor in placed(dtype, offset * k)]
    low = None
    if dtype in (torch.float16, torch.bfloat16):
        low = [t.to(torch.int16) if i % 2 else None for i, t in enumerate(teachers)]
    for part in (low, None):
        options = EmaOptions(
            step=torch.tensor(0, device="cuda"),
            low=part,
            stochastic=True,
            found_inf=torch.zeros((), device="cuda"),
            drift=torch.zeros(averages, dtype=torch.float64, device="cuda"),
            advance=True,
        )
        decays = [schedules.cosine(0.99, steps=10), torch.tensor(0.9, device="cuda"), 0.5][:averages]
        native.ema_update(teachers, placed(torch.float32, offset), decays, 1, None, options)
    if averages > 1:
        native.ema_update(teachers, placed(dtype, 0), [0.9] * averages)


def main() -> None:
    for op in OPS.values():
        if op.name in WITHOUT_CUDA:
            continue
        for dtype in FLOATS:
            for shapes in op.cases.values():
                if max(torch.Size(shape).numel() for shape in shapes) > 20_000:
                    continue
                for options in op.options if dtype in (torch.float32, torch.bfloat16) else op.options[:1]:
                    op.call(native, op.make(shapes, dtype, "cuda"), **options)
    for dtype in FLOATS:
        scale = torch.tensor(
            0.5, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="cuda"
        )
        native.scale_(torch.ones(1001, dtype=dtype).to("cuda")[1:], scale)
    for dtype in FLOATS:
        for offset in (0, 1):
            for averages in (1, 3):
                options_of_ema_update(dtype, offset, averages)
            native.swap_(placed(dtype, 0), placed(dtype, offset))
            native.nonfinite_(torch.zeros((), device="cuda"), placed(dtype, offset))
    native.ema_update(
        [torch.zeros(9, dtype=torch.int64, device="cuda")],
        [torch.ones(9, dtype=torch.int64, device="cuda")],
        0.9,
    )
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
