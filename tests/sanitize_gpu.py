"""Every CUDA kernel once, on small and awkward sizes: what `make gpu-check` runs under compute-sanitizer."""

import torch

from mtkernels.backends import native
from mtkernels.testing import FLOATS, OPS


def main() -> None:
    for op in OPS.values():
        for dtype in FLOATS:
            for shapes in op.cases.values():
                if max(torch.Size(shape).numel() for shape in shapes) > 20_000:
                    continue
                op.call(native, op.make(shapes, dtype, "cuda"), **op.options[0])
    for dtype in FLOATS:
        scale = torch.tensor(
            0.5, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="cuda"
        )
        native.scale_(torch.ones(1001, dtype=dtype).to("cuda")[1:], scale)
    native.ema_update(
        [torch.zeros(9, dtype=torch.int64, device="cuda")],
        [torch.ones(9, dtype=torch.int64, device="cuda")],
        0.9,
    )
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
