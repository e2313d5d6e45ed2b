"""A training from end to end: shake-shake 26 on real digits of CIFAR's size, stopped by SIGTERM, resumed, read back.

python bench/end_to_end.py [--device cuda] [--steps 600]: once in float32, once in bfloat16 with channels_last and, on a
GPU, a CUDA graph. Prints what a run prints. Fails where the teacher does not learn, or is another when it is read back.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))  # the benches are no part of the package

from mtkernels.train.config import Config
from mtkernels.train.data.digits import digits
from mtkernels.train.folder import load_model, load_pixels
from mtkernels.train.presets import PRESETS
from mtkernels.train.run import run

FAST = {"precision": "bf16", "channels_last": True}


def write_digits(path: Path) -> None:
    """scikit-learn's digits as 32 x 32 pixels in three equal channels, as the dataset `npz` reads them."""
    raw = digits()
    arrays = {}
    for part, images in (("train", raw.train), ("test", raw.test)):
        arrays[f"{part}_images"] = enlarged(images.images).permute(0, 2, 3, 1).numpy()
        arrays[f"{part}_labels"] = images.labels.numpy()
    np.savez(path, **arrays)


def enlarged(images: Tensor) -> Tensor:
    """uint8 [rows, 3, 32, 32] of levels 0 to 16 in [rows, 1, 8, 8]."""
    pixels = (images.double() * 255 / 16).round().to(torch.uint8)
    return pixels.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).contiguous()


def setting(data: Path, out: Path, options: argparse.Namespace) -> Config:
    """The published residual network's recipe, shortened."""
    base = PRESETS["cifar10-4000-shakeshake-1gpu"].config
    return replace(
        base,
        **{"dataset": "npz", "data": data, "out": out, "labels": 200, "device": options.device},
        **{
            "epochs": None,
            "steps": options.steps,
            "lr_rampdown": None,
            "consistency_rampup": options.steps // 3,
        },
        **{"eval_interval": max(options.steps // 3, 1), "eval_split": "test", "validation": 0, "flip": False},
        **{"ema_decay": 0.97, "arch": options.arch, "translate": 2, "checkpoint_interval": 0},
    )


def stopped_and_resumed(config: Config, after: float) -> tuple[Path, dict[str, object]]:
    """The run's folder and summary. SIGTERM stops it so many seconds after its first step; then it goes on."""
    ended = threading.Event()

    def stop() -> None:
        while not (config.out / config.name / "metrics.jsonl").exists():
            if ended.wait(0.05):
                return
        if not ended.wait(after):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    try:
        folder, summary = run(config)
    finally:
        ended.set()
    if not summary["interrupted"]:
        raise SystemExit(f"the run ended within {after} s, before it could be stopped: more --steps")
    print(f"stopped at step {summary['steps_done']:g}, resumed")
    return run(config, resume=folder)


def read_back(folder: Path, data: Path, device: str) -> float:
    """The teacher's error in percent, from the folder alone."""
    with np.load(data) as arrays:
        images = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(arrays["test_labels"])
    network, pixels = load_model(folder).to(device), load_pixels(folder)
    with torch.no_grad():
        output = network(pixels(images).to(device))
    logits = output[0] if isinstance(output, tuple) else output
    return 100 * (logits.argmax(1).cpu() != labels).double().mean().item()


def main() -> None:
    """Train, stop, resume, read back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arch", default="cifar_shakeshake26")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--stop-after", type=float, default=3.0, help="seconds of training")
    options = parser.parse_args()
    graph = {"cuda_graph": options.device.startswith("cuda")}
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "digits.npz"
        write_digits(data)
        config = setting(data, Path(temporary), options)
        for name, changes in {"fp32": {}, "fast": FAST | graph}.items():
            named = replace(config, name=name, **changes)
            folder, summary = stopped_and_resumed(named, options.stop_after)
            error, loaded = summary["teacher_error"], read_back(folder, data, options.device)
            print(f"{name}: teacher {error:.2f} %, read back {loaded:.2f} %")
            if not (error < 20 and abs(loaded - error) < 1):
                raise SystemExit("the teacher's error must be below 20 %, and the same when it is read back")


if __name__ == "__main__":
    main()
