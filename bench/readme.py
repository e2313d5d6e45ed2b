"""The README's speed tables out of a run: what stands between `<!-- ema table -->` and `<!-- /ema table -->`, and
likewise `loss table`. A table of which the run has nothing stays."""

import re
from pathlib import Path

from report import BOUND, OURS, Row

BUSY = 0.05  # of the CPUs, by other processes: more is not to be quoted

# What a row says, the candidate that is ours, the peer.
EMA = (
    ("`ema_update` against `torch._foreach_lerp_` on prepared lists", OURS, "torch _foreach_lerp_"),
    ("`WeightEMA.update` against the same", BOUND, "torch _foreach_lerp_"),
    ("`WeightEMA.update` against torch `AveragedModel.update_parameters`", BOUND, "torch AveragedModel"),
    ("`WeightEMA.update` against ema-pytorch", BOUND, "ema-pytorch"),
    ("`WeightEMA.update` against timm `ModelEmaV3`", BOUND, "timm ModelEmaV3"),
    ("`WeightEMA.update` against torch_ema", BOUND, "torch_ema"),
    ("`WeightEMA.update` against diffusers `EMAModel`", BOUND, "diffusers EMAModel"),
)
LOSS_PEERS = ("eager torch", "torch.compile", "Liger")
LABELS = {
    "wrn-28-2": "WRN-28-2",
    "resnet-50": "ResNet-50",
    "resnext-152": "ResNeXt-152",
    "vit-b-16": "ViT-B/16",
    "gpt-1b-bf16": "GPT of 1 B, bf16",
    "gpt-1b-bf16-to-fp32": "GPT of 1 B, bf16 to fp32",
}


def rewrite(path: Path, facts: dict, rows: list[Row]) -> None:
    if (facts.get("others_cpu") or 0.0) > BUSY:
        raise SystemExit(
            f"{path}: other processes used {facts['others_cpu']:.0%} of the CPUs: not to be quoted"
        )
    text = path.read_text()
    for name, table in (("ema", ema_table(rows)), ("loss", loss_table(rows))):
        first, last = f"<!-- {name} table -->", f"<!-- /{name} table -->"
        if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
            raise SystemExit(f"{path}: must have one {first} and after it one {last}")
        if table:
            before, after = text.split(first)[0], text.split(last)[1]
            text = f"{before}{first}\n{table}\n{last}{after}"
    path.write_text(text)


def ema_table(rows: list[Row]) -> str:
    found = {(row.peer, row.case): row for row in rows if row.op == "ema_update"}
    lines = [
        (text, {case: _ratio(row, ours) for (name, case), row in found.items() if name == peer})
        for text, ours, peer in EMA
    ]
    return _table("weight average, tensors x floats", lines)


LOSSES = (
    "softmax_mse",
    "softmax_kl",
    "softmax_reverse_kl",
    "softmax_js",
    "softmax_cross_entropy",
    "logit_mse",
    "mean_teacher_loss",
)


def loss_table(rows: list[Row]) -> str:
    lines = []
    for op in LOSSES:
        for peer in LOSS_PEERS:
            ratios = {row.case: row.ratio for row in rows if (row.op, row.peer) == (op, peer)}
            lines.append((f"`{op}` against {peer}", ratios))
    return _table("loss, forward and backward, rows x classes", lines)


def _ratio(row: Row, ours: str) -> float | None:
    return row.ratio if ours == OURS else row.ratio_bound


def _table(what: str, lines: list[tuple[str, dict[str, float | None]]]) -> str:
    """Rows: peers; columns: cases; how many times as fast ours is. Peers without any time are left out."""
    lines = [(text, ratios) for text, ratios in lines if any(ratios.values())]
    cases = list(dict.fromkeys(case for _, ratios in lines for case in ratios))
    if not cases:
        return ""
    cells = [[what, *map(label, cases)]]
    cells += [[text, *(_number(ratios.get(case)) for case in cases)] for text, ratios in lines]
    head, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|---" * len(cells[0]) + "|", *body])


def _number(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}"


def label(case: str) -> str:
    """64x65536 -> 64 x 65,536; a model by its name."""
    if case in LABELS or not re.fullmatch(r"\d+x\d+M?", case):
        return LABELS.get(case, case)
    numbers = [int(part.replace("M", "000000")) for part in case.split("x")]
    return " x ".join(f"{number:,}" if number >= 10_000 else str(number) for number in numbers)
