"""The benches measure what they say: peers agree with the reference, and one that does not is named."""
# ruff: noqa: E402

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benches are no part of the package

from bench.cases import Case, cases, resnet50_like
from bench.measure import prepare, session
from bench.peers import OURS, PEERS, Candidate, candidates, eager_kl
from mtkernels.testing import OPS

TINY = {"ema_update": ((5, 3), (7,), ()), "softmax_mse": ((6, 11),), "softmax_kl": ((6, 11),)}
ROWS = [(op, peer) for op in PEERS for peer in candidates(op, "cpu")]


def _tiny(op):
    return Case(op, "tiny", "cpu", TINY[op])


def test_each_op_has_peers_and_cases():
    assert PEERS.keys() == OURS.keys() == OPS.keys()
    for op in OPS:
        assert {case.name for case in cases(op, "cpu")} >= OPS[op].bench.keys()
        assert (ROOT / "bench" / f"bench_{op}.py").is_file()


@pytest.mark.parametrize(("op", "peer"), ROWS)
def test_peer_agrees_with_the_reference(op, peer, monkeypatch):
    if peer == "torch.compile":  # the same graph, without a minute of C++
        monkeypatch.setattr(torch, "compile", _without_inductor(torch.compile))
    _, error = prepare(_tiny(op), candidates(op, "cpu")[peer])
    if error and error.startswith(("ModuleNotFoundError", "ImportError", "RuntimeError: needs a GPU")):
        pytest.skip(error)
    assert error is None


def _without_inductor(compile_):
    return lambda function, **options: compile_(function, backend="aot_eager", **options)


@pytest.mark.parametrize("peer", candidates("ema_update", "cpu"))
def test_peer_agrees_on_a_module_with_buffers(peer, monkeypatch):
    monkeypatch.setattr("bench.cases.resnet50_like", _small_network)
    _, error = prepare(Case("ema_update", "module", "cpu", None), candidates("ema_update", "cpu")[peer])
    if error and error.startswith(("ModuleNotFoundError", "ImportError")):
        pytest.skip(error)
    assert error is None


def _small_network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


def test_resnet50_like_is_of_its_size():
    network = resnet50_like()
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    assert len(list(network.parameters())) == 161
    assert len(list(network.buffers())) == 159


def test_floor_bytes():
    assert _tiny("ema_update").floor_bytes() == 12 * (15 + 7 + 1)
    assert _tiny("softmax_kl").floor_bytes() == 12 * 66


def _wrong_decay(work):
    return Candidate(lambda: torch._foreach_lerp_(work.teachers, work.students, 0.1), lambda: work.teachers)


def _does_nothing(work):
    return Candidate(lambda: None, lambda: work.teachers)


def _nan(work):
    return Candidate(lambda: None, lambda: [torch.full_like(teacher, torch.nan) for teacher in work.teachers])


def _raises(work):
    raise ModuleNotFoundError("No module named 'nobody'")


@pytest.mark.parametrize("peer", [_wrong_decay, _does_nothing, _nan])
def test_wrong_average_is_reported(peer):
    _, error = prepare(_tiny("ema_update"), peer)
    assert error.startswith("wrong result: output 0 is off by")


def test_wrong_loss_is_reported():
    def summed(work):
        (teacher,), (student,) = work.teachers, work.students
        loss = eager_kl(student, teacher) * len(student)
        return Candidate(lambda: loss.backward(), lambda: [loss.detach(), student.grad])

    assert prepare(_tiny("softmax_kl"), summed)[1].startswith("wrong result: output 0")


def test_session_gives_series_of_one_length_and_errors():
    factories = {**candidates("ema_update", "cpu"), "broken": _raises, "wrong": _wrong_decay}
    found = session(_tiny("ema_update"), factories, seconds=0.05)
    assert found["broken"].error == "ModuleNotFoundError: No module named 'nobody'"
    assert found["wrong"].error and not found["wrong"].times
    lengths = {len(series.times) for series in found.values() if series.error is None}
    assert len(lengths) == 1 and lengths.pop() >= 7
    assert all(time > 0 for series in found.values() for time in series.times)


def test_one_command_from_bench_to_report(tmp_path):
    out = tmp_path / "bench.json"
    chosen = ["-k", "100x10 and not compile", "--bench-seconds", "0.05", f"--benchmark-json={out}"]
    command = [sys.executable, "-m", "pytest", "bench", "-q", *chosen]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    run = json.loads(out.read_text())
    found = {(row["group"], row["extra_info"]["peer"]) for row in run["benchmarks"]}
    assert found >= {("softmax_mse 100x10", "mtkernels"), ("softmax_kl 100x10", "eager torch")}
    assert all(len(row["stats"]["data"]) >= 7 and row["stats"]["median"] > 0 for row in run["benchmarks"])
    assert run["mtkernels"]["copy_bandwidth"] > 1e8
    if not torch.cuda.is_available():
        assert {"group": "softmax_kl 100x10", "peer": "Liger", "error": "RuntimeError: needs a GPU"} in run[
            "mtkernels"
        ]["errors"]


def _benchmark(case, peer, times):
    info = {"op": "softmax_kl", "case": case, "peer": peer, "note": "", "host_seconds": None}
    info |= {"floor_bytes": 3_000_000, "resident_bytes": 3_000_000}
    return {"group": f"softmax_kl {case}", "extra_info": info, "stats": {"data": times, "iterations": 2}}


def _run(device_type):
    rows = [_benchmark(case, "mtkernels", [1e-4, 2e-4, 1e-4]) for case in ("256x1000", "64x65536")]
    rows += [_benchmark("256x1000", "eager torch", [4e-4, 8e-4, 4e-4])]
    errors = [{"group": "softmax_kl 64x65536", "peer": "eager torch", "error": "wrong result: output 0"}]
    facts = {"device_type": device_type, "device": "Some Device (R) 9", "threads": 2, "others_cpu": 0.3}
    facts |= {"cache_bytes": 0, "copy_bandwidth": 6e10, "command": "python -m pytest bench"}
    facts |= {"versions": {"torch": "2.13.0", "mtkernels": "0.1.0"}, "errors": errors}
    return {
        "benchmarks": rows,
        "mtkernels": facts,
        "datetime": "2026-01-01T00:00:00",
        "commit_info": {"id": "abc"},
    }


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_report_writes_its_three_files(tmp_path, device_type):
    (tmp_path / "bench.json").write_text(json.dumps(_run(device_type)))
    command = [
        sys.executable,
        ROOT / "bench" / "report.py",
        tmp_path / "bench.json",
        "--out",
        tmp_path / "out",
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| **mtkernels** | 100 us |" in table
    assert "4.00 (4.00 - 4.00)" in table  # within rounds, whatever the second round's clock did
    assert "50%" in table and "Some Device (R) 9" in table and "`python -m pytest bench`" in table
    assert "used 30% of the CPUs meanwhile. BUSY MACHINE" in table
    assert "| no time |" in table and "wrong result: output 0" in table
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [row["error"] for row in rows] == ["", "", "", "wrong result: output 0"]
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
