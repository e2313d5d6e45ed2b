"""The benches' report: a table, a CSV and a plot out of a run, and the README's tables."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EMA = {"mtkernels": 2, "mtkernels WeightEMA": 1, "torch _foreach_lerp_": 5, "torch AveragedModel": 30}


def _benchmark(case, peer, times, op="softmax_kl"):
    info = {"op": op, "case": case, "peer": peer, "note": "", "host_seconds": None, "tensors": 500}
    info |= {"floor_bytes": 3_000_000, "resident_bytes": 3_000_000}
    return {"extra_info": info, "stats": {"data": times, "iterations": 2}}


def _run(device_type):
    rows = [_benchmark(case, "mtkernels", [1e-4, 2e-4, 1e-4]) for case in ("256x1000", "64x65536")]
    rows += [_benchmark("256x1000", "eager torch", [4e-4, 8e-4, 4e-4])]
    rows += [_benchmark("500x16", peer, [1e-4 * at] * 3, "ema_update") for peer, at in EMA.items()]
    rows += [_benchmark("resnet-50", peer, [1e-3 * at] * 3, "ema_update") for peer, at in EMA.items()]
    rows += [_benchmark("drift, wrn-28-2", "mtkernels", [2e-4], "ema_update features")]
    errors = [
        {"op": "softmax_kl", "case": "64x65536", "peer": "eager torch", "error": "wrong result: output 0"}
    ]
    errors += [{"op": "ema_update", "case": "500x16", "peer": "timm ModelEmaV3", "error": "ImportError: no"}]
    facts = {"device_type": device_type, "device": "Some Device (R) 9", "threads": 2, "others_cpu": 0.3}
    facts |= {"cache_bytes": 0, "copy_bandwidth": 6e10, "command": "python -m pytest bench"}
    facts |= {"versions": {"torch": "2.13.0", "mtkernels": "0.1.0"}, "errors": errors}
    return {
        "benchmarks": rows,
        "mtkernels": facts,
        "datetime": "2026-01-01T00:00:00",
        "commit_info": {"id": "abc"},
    }


def _report(tmp_path, run, *options):
    (tmp_path / "bench.json").write_text(json.dumps(run))
    script, out = ROOT / "bench" / "report.py", tmp_path / "out"
    command = [sys.executable, script, tmp_path / "bench.json", "--out", out, *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_report_writes_its_three_files(tmp_path, device_type):
    assert _report(tmp_path, _run(device_type)).returncode == 0
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| **mtkernels** | 100 us |" in table
    assert "4.00 (4.00 - 4.00)" in table  # within rounds, whatever the second round's clock did
    assert "50%" in table and "Some Device (R) 9" in table and "`python -m pytest bench`" in table
    assert "used 30% of the CPUs meanwhile. BUSY MACHINE" in table
    assert "| no time |" in table and "wrong result: output 0" in table
    assert "## ema_update features" in table and "| drift, wrn-28-2 |" in table
    assert "| 15.00 (15.00 - 15.00) | 30.00 |" in table  # over ema_update's time, over WeightEMA's
    if device_type == "cpu":
        assert (
            "Time for each of the 500 tensors of 500x16: mtkernels 0.40 us, mtkernels WeightEMA 0.20 us"
            in table
        )
    lengths = {}
    for line in table.splitlines():
        lengths.setdefault(line.count("|") - line.count("\\|"), []).append(line) if line.startswith(
            "|"
        ) else None
    assert len(lengths) == 2  # with WeightEMA's column, and without
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [row["error"] for row in rows if row["op"] == "softmax_kl"] == [
        "",
        "",
        "",
        "wrong result: output 0",
    ]
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")


README = """# Speed
<!-- ema table -->
old
<!-- /ema table -->
between
<!-- loss table -->
<!-- /loss table -->
after
"""
TABLES = """# Speed
<!-- ema table -->
| weight average, tensors x floats | 500 x 16 | ResNet-50 |
|---|---|---|
| `ema_update` against `torch._foreach_lerp_` on prepared lists | 2.5 | 2.5 |
| `WeightEMA.update` against the same | 5.0 | 5.0 |
| `WeightEMA.update` against torch `AveragedModel.update_parameters` | 30.0 | 30.0 |
<!-- /ema table -->
between
<!-- loss table -->
| loss, forward and backward, rows x classes | 256 x 1000 | 64 x 65,536 |
|---|---|---|
| `softmax_kl` against eager torch | 4.0 |  |
<!-- /loss table -->
after
"""


def _quiet():
    run = _run("cpu")
    run["mtkernels"]["others_cpu"] = 0.01
    return run


def test_report_rewrites_the_tables_of_a_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    for _ in range(2):  # the second time there is nothing to change
        assert _report(tmp_path, _quiet(), "--readme", readme).returncode == 0
        assert readme.read_text() == TABLES


def test_report_keeps_a_table_of_which_the_run_has_nothing(tmp_path):
    run = _quiet()
    run["benchmarks"] = [row for row in run["benchmarks"] if row["extra_info"]["op"] == "softmax_kl"]
    run["mtkernels"]["errors"] = []
    readme = tmp_path / "README.md"
    readme.write_text(README)
    assert _report(tmp_path, run, "--readme", readme).returncode == 0
    assert "-->\nold\n<!--" in readme.read_text() and "| 256 x 1000 |" in readme.read_text()


@pytest.mark.parametrize(
    ("run", "text", "message"),
    [
        (_run("cpu"), README, "other processes used 30% of the CPUs: not to be quoted"),
        (_quiet(), "# Speed\n", "must have one <!-- ema table --> and after it one <!-- /ema table -->"),
    ],
)
def test_report_leaves_a_readme_as_it_is(tmp_path, run, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    done = _report(tmp_path, run, "--readme", readme)
    assert done.returncode != 0 and message in done.stderr
    assert readme.read_text() == text
