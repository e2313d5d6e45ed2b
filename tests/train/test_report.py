"""Reading runs back: groups, means and deviations, and a sentence for each run that is left out."""

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from mtkernels.train.cli import main
from mtkernels.train.config import Config
from mtkernels.train.plots import _plot_group
from mtkernels.train.report import group_runs, mean_and_deviation, read_runs, table


def write_run(
    folder: Path, config: Config, *, student: float, teacher: float, interrupted: bool = False
) -> Path:
    folder.mkdir(parents=True)
    summary = {"student_error": student, "teacher_error": teacher, "eval_split": config.eval_split}
    summary |= {"steps_done": 9, "interrupted": interrupted, "seconds": 2.0}
    (folder / "config.json").write_text(json.dumps(config.as_dict()))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text(
        json.dumps({"step": 9, "student_error": student, "teacher_error": teacher})
    )
    return folder


def seeds(path: Path, name: str, errors: list[float], **changes) -> None:
    for seed, error in enumerate(errors):
        config = replace(Config(**changes), seed=seed, name=f"{name}{seed}", out=path)
        write_run(path / f"{name}{seed}", config, student=error + 1, teacher=error)


def test_groups_are_everything_but_the_seed(tmp_path):
    seeds(tmp_path, "mt", [5.0, 7.0, 6.0])
    seeds(tmp_path, "sup", [12.0, 14.0], method="supervised")
    seeds(tmp_path / "deep" / "er", "more", [4.0], labels=100)
    runs, notes = read_runs([tmp_path])
    groups, more = group_runs(runs)
    assert notes == more == []
    rows = {row[0]: row[1:] for row in table(groups)[1:]}
    assert rows == {
        "mean-teacher, labels 100": ["100", "1", "5.00", "4.00", "2"],
        "mean-teacher, labels 20": ["20", "3", "7.00 ± 1.00", "6.00 ± 1.00", "2"],
        "supervised, labels 20": ["20", "2", "14.00 ± 1.41", "13.00 ± 1.41", "2"],
    }


def test_the_headline_is_the_model_that_the_method_is_known_by(tmp_path):
    seeds(tmp_path, "mt", [5.0])
    seeds(tmp_path, "sup", [12.0], method="supervised")
    groups, _ = group_runs(read_runs([tmp_path])[0])
    assert groups["mean-teacher"][0].error == 5 and groups["supervised"][0].error == 13


def test_deviation_is_the_samples():
    values = [1.0, 2.0, 4.0]
    assert mean_and_deviation(values) == f"2.33 ± {statistics.stdev(values):.2f}"
    assert mean_and_deviation([3.0]) == "3.00"


def test_left_out_runs_are_named(tmp_path):
    seeds(tmp_path, "mt", [5.0])
    write_run(tmp_path / "cut", Config(seed=1), student=50, teacher=50, interrupted=True)
    (write_run(tmp_path / "dead", Config(seed=2), student=5, teacher=5) / "summary.json").unlink()
    (write_run(tmp_path / "torn", Config(seed=3), student=5, teacher=5) / "metrics.jsonl").write_text(
        '{"step"'
    )
    (write_run(tmp_path / "old", Config(seed=4), student=5, teacher=5) / "summary.json").write_text("{}")
    write_run(tmp_path / "zagain", Config(seed=0), student=5, teacher=5.5)
    runs, notes = read_runs([tmp_path])
    groups, repeats = group_runs(runs)
    assert [run.folder.name for run in groups["mean-teacher"]] == ["zagain"]
    assert repeats == [f"{tmp_path / 'mt0'} left out: {tmp_path / 'zagain'} repeats it"]
    assert notes[0] == f"{tmp_path / 'cut'} left out: interrupted at step 9"
    assert notes[1] == f"{tmp_path / 'dead'} left out: it has no summary.json (still running, or it died)"
    assert notes[2] == f"{tmp_path / 'old'} left out: it has no 'interrupted'"
    assert notes[3].startswith(f"{tmp_path / 'torn'} left out: a file of it cannot be read (")


def test_files_among_the_folders_are_passed_over(tmp_path):
    """`mtkernels report runs/*` names the last report's figure too."""
    seeds(tmp_path, "mt", [5.0])
    (tmp_path / "report.png").write_bytes(b"")
    runs, notes = read_runs(sorted(tmp_path.iterdir()))
    assert len(runs) == 1 and notes == []


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        read_runs([tmp_path / "nowhere"])


def test_a_run_without_an_end_is_named_with_how_far_it_is(tmp_path):
    for name, changes in {"steps": {"steps": 40}, "epochs": {"steps": None, "epochs": 3}}.items():
        folder = write_run(tmp_path / name, Config(**changes), student=5, teacher=5)
        (folder / "summary.json").unlink()
        (folder / "metrics.jsonl").write_text('{"step": 9}\n{"step": 18}\n{"st')
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(json.dumps(Config().as_dict()))
    begun, epochs, steps = read_runs([tmp_path])[1]
    why = "left out: it has no summary.json (still running, or it died"
    assert begun == f"{tmp_path / 'begun'} {why})"
    assert epochs == f"{tmp_path / 'epochs'} {why}, evaluated up to step 18 of 3 epochs)"
    assert steps == f"{tmp_path / 'steps'} {why}, evaluated up to step 18 of 40)"


def test_how_it_was_shown_and_sped_up_makes_no_other_experiment(tmp_path):
    """Nor does a setting that an older version had not."""
    write_run(tmp_path / "a", Config(seed=0), student=5, teacher=5)
    changes = {"print_interval": 10, "tensorboard": True, "compile": True, "keep_checkpoints": 9}
    write_run(tmp_path / "b", Config(seed=1, **changes), student=5, teacher=5)
    old = write_run(tmp_path / "c", Config(seed=2), student=5, teacher=5)
    settings = {name: value for name, value in Config(seed=2).as_dict().items() if name != "precision"}
    (old / "config.json").write_text(json.dumps(settings))
    groups, _ = group_runs(read_runs([tmp_path])[0])
    assert list(groups) == ["mean-teacher"] and len(groups["mean-teacher"]) == 3


def test_the_report_is_saved_as_figure_table_and_rows(tmp_path, capsys):
    seeds(tmp_path / "runs", "mt", [5.0, 7.0])
    seeds(tmp_path / "runs", "sup", [12.0], method="supervised")
    out = tmp_path / "report" / "all.png"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    lines = out.with_suffix(".md").read_text().splitlines()
    assert lines[1] == "|---|---|---|---|---|---|"
    assert lines[2] == "| mean-teacher | 20 | 2 | 7.00 ± 1.41 | 6.00 ± 1.41 | 2 |" and len(lines) == 4
    with open(out.with_suffix(".csv")) as file:
        rows = list(csv.DictReader(file))
    assert [(row["runs"], row["seed"], float(row["teacher_error"])) for row in rows] == [
        ("mean-teacher", "0", 5.0),
        ("mean-teacher", "1", 7.0),
        ("supervised", "0", 12.0),
    ]
    assert rows[0]["folder"] == str(tmp_path / "runs" / "mt0")


@pytest.mark.parametrize("alike", [True, False])
def test_seeds_evaluated_at_the_same_steps_are_a_mean_in_a_band(tmp_path, alike):
    from matplotlib.figure import Figure

    seeds(tmp_path, "mt", [4.0, 9.0, 5.0])
    step = 9 if alike else 8
    line = json.dumps({"step": step, "student_error": 9, "teacher_error": 9})
    (tmp_path / "mt1" / "metrics.jsonl").write_text(line)
    axes = Figure().add_subplot()
    _plot_group(axes, "mt", read_runs([tmp_path])[0], "C0")
    values = [line.get_ydata().tolist() for line in axes.get_lines()]
    assert values == ([[6.0]] if alike else [[4.0], [9.0], [5.0]])
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert [(band.ymin, band.ymax) for band in bands] == ([(4.0, 9.0)] if alike else [])
    assert axes.get_lines()[0].get_label() == "mt (teacher, 3 seeds)"
