"""The benches measure what they say: peers agree with the reference, and one that does not is named."""
# ruff: noqa: E402

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benches are no part of the package

from bench import features, launches, models
from bench.cases import Case, cases
from bench.measure import peak_bytes, prepare, session
from bench.peers import OURS, PEERS, Candidate, candidates, eager_kl
from mtkernels.testing import OPS
from mtkernels.testing._augment import BENCH

MISSING = ("ModuleNotFoundError", "ImportError", "RuntimeError: needs a GPU")
LOSSES = ("softmax_mse", "softmax_kl")


def _tiny(op):
    if op == "augment":
        return Case(op, "tiny", "cpu", ((5, 3, 12, 12), (2, 4), (12, 12)))
    if op != "ema_update":
        return Case(op, "tiny", "cpu", ((6, 11),))
    return Case(op, "tiny", "cpu", model=partial(models.listed, ((5, 3), (7,), ())))


def _small_network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


CASES = [_tiny(op) for op in PEERS]
CASES += [Case("ema_update", "module", "cpu", model=_small_network)]
CASES += [Case("ema_update", "shared module", "cpu", model=_small_network, shared=True)]
CASES += [
    Case("augment", name, "cpu", ((5, 3, 12, 12), (2, 4), (9, 9) if "to" in name else (12, 12)))
    for name in BENCH
]
CASES += [
    replace(case, model=partial(models.listed, ((5, 3), (7,), (33, 17))), _built={})
    for case in features.cases("cpu")
]
ROWS = [
    pytest.param(case, peer, id=f"{case.group}-{peer}{number}")
    for number, case in enumerate(CASES)
    for peer in candidates(case)
]


def test_each_op_has_peers_and_cases():
    assert PEERS.keys() == OURS.keys() == OPS.keys()
    for op in OPS:
        assert {case.name for case in cases(op, "cpu")} >= OPS[op].bench.keys()
        assert (ROOT / "bench" / f"bench_{op.rstrip('_')}.py").is_file()


@pytest.mark.parametrize(("case", "peer"), ROWS)
def test_candidate_agrees_with_the_reference(case, peer, monkeypatch):
    if peer == "torch.compile":  # the same graph, without a minute of C++
        monkeypatch.setattr(torch, "compile", _without_inductor(torch.compile))
    _, error = prepare(case, candidates(case)[peer])
    if error and error.startswith(MISSING):
        pytest.skip(error)
    assert error is None


def _without_inductor(compile_):
    return lambda function, **options: compile_(function, backend="aot_eager", **options)


@pytest.mark.parametrize(
    ("model", "parameters", "tensors", "buffers"),
    [
        (models.wrn28_2, 1_467_610, 80, 75),
        (models.resnet50, 25_557_032, 161, 159),
        (models.resnext152, 62_000_400, 469, 465),  # 155 batch norms
        (models.vit_b16, 86_567_656, 152, 0),
        (models.gpt_1b, 1_017_302_272, 292, 0),
    ],
)
def test_models_are_of_their_size(model, parameters, tensors, buffers):
    with torch.device("meta"):
        network = model()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert (len(list(network.parameters())), len(list(network.buffers()))) == (tensors, buffers)


def test_large_models_are_asked_for():
    def names(device, large):
        return [case.name for case in cases("ema_update", device, large)]

    assert names("cpu", False) == names("cuda", False)
    assert names("cpu", True) == [*names("cpu", False), "vit-b-16", "gpt-1b-bf16"]
    assert names("cuda", True) == [*names("cpu", True), "gpt-1b-bf16-to-fp32"]


def test_every_feature_at_every_size_has_ours_and_torchs():
    found = features.cases("cpu")
    assert len({case.name for case in found}) == len(found) == 8 * len(features.SIZES)
    for case in found:
        assert "mtkernels" in case.contenders and any("torch" in name for name in case.contenders)


def test_shared_case_starts_anew_for_each_candidate():
    case = Case("ema_update", "shared module", "cpu", model=_small_network, shared=True)
    first, second = (prepare(case, candidates(case)["mtkernels"])[0] for _ in range(2))
    assert first is not None and second is not None
    places = [[tensor.data_ptr() for tensor in candidate.outputs()] for candidate in (first, second)]
    assert places[0] == places[1] == [tensor.data_ptr() for tensor in case.inputs[0]]
    assert prepare(case, _does_nothing)[1].startswith("wrong result: output 0")


def test_floor_bytes():
    assert _tiny("ema_update").floor_bytes() == 12 * (15 + 7 + 1)
    assert _tiny("softmax_kl").floor_bytes() == 12 * 66
    two = next(case for case in CASES if case.name == "2 averages, 160x160000")
    assert two.floor_bytes() == 20 * (15 + 7 + 33 * 17)
    mixed = next(case for case in CASES if case.name == "fp32 average of bf16, 160x160000")
    assert mixed.floor_bytes() == 10 * (15 + 7 + 33 * 17)
    swap = next(case for case in CASES if case.name == "swap, 160x160000")
    assert swap.floor_bytes() == 16 * (15 + 7 + 33 * 17)


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
        loss = eager_kl(student, teacher, -1) * len(student)
        return Candidate(lambda: loss.backward(), lambda: [loss.detach(), student.grad])

    assert prepare(_tiny("softmax_kl"), summed)[1].startswith("wrong result: output 0")


def test_session_gives_series_of_one_length_and_errors():
    factories = {**candidates(_tiny("ema_update")), "broken": _raises, "wrong": _wrong_decay}
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
    # pytest-benchmark times nothing in a worker of pytest-xdist, nor where one is named.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=env)
    run = json.loads(out.read_text())
    found = {(row["group"], row["extra_info"]["peer"]) for row in run["benchmarks"]}
    assert found >= {("softmax_mse 100x10", "mtkernels"), ("softmax_kl 100x10", "eager torch")}
    assert all(len(row["stats"]["data"]) >= 7 and row["stats"]["median"] > 0 for row in run["benchmarks"])
    assert run["mtkernels"]["copy_bandwidth"] > 1e8
    if not torch.cuda.is_available():
        missing = {
            "op": "softmax_kl",
            "case": "100x10",
            "peer": "Liger",
            "error": "RuntimeError: needs a GPU",
        }
        assert missing in run["mtkernels"]["errors"]


def test_one_launch_of_ours_a_model():
    case = Case("ema_update", "module", "cpu", model=_small_network)
    table = launches.counted([case], lambda step: 1)
    assert table["module"]["mtkernels"] == table["module"]["torch _foreach_lerp_"] == 1
    assert launches.wrong(table) == []
    table["module"] |= {"mtkernels": 2, "mtkernels triton": "RuntimeError: no", "torch AveragedModel": 9}
    table["module"]["mtkernels native"] = "RuntimeError: this build has no CUDA kernels"
    assert launches.wrong(table) == ["mtkernels on module: 2", "mtkernels triton on module: RuntimeError: no"]
    assert "| module | 2 | 1 |" in launches.markdown(table)


def test_gpu_check_is_a_shell_script():
    subprocess.run(["bash", "-n", ROOT / "bench" / "gpu_check.sh"], check=True)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux's own count of pages")
def test_the_peak_is_what_a_call_allocates_at_most():
    kept = []

    def step():
        kept.append(torch.ones(8 << 20))
        kept[:] = [torch.ones(4 << 20)]

    candidate = Candidate(step, list, release=kept.clear)
    candidate.step()
    peak = peak_bytes(candidate, "cpu")
    assert 47 << 20 < peak < 52 << 20  # the system counts pages in batches
