"""evaluate, predict and export give what the run reported: from its folder, from image files, from one file alone."""

import csv
import importlib.util
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mtkernels.train import export as module
from mtkernels.train.cli import main
from mtkernels.train.config import Config
from mtkernels.train.data.decode import DecodeError
from mtkernels.train.data.digits import digits
from mtkernels.train.export import load_exported
from mtkernels.train.predict import Reader, _grey, load_run
from mtkernels.train.run import run

from .data.images import write_digits

LEARNING = {"steps": 40, "eval_interval": 0, "labels": 200, "width": 8, "lr": 0.2, "dropout": 0.0}
LEARNING |= {"ema_decay": 0.8, "batch_size": 60, "labeled_batch_size": 40, "pictures": False}


def trained(out, **changes):
    """Folder and summary of a run that has learned something."""
    torch.set_num_threads(1)
    folder, summary = run(replace(Config(**LEARNING), out=out, **changes))
    assert summary["teacher_error"] < 70
    return folder, summary


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Of the digits, evaluated on images held out."""
    changes = {"normalize": "channels", "eval_split": "validation", "validation": 200}
    return trained(tmp_path_factory.mktemp("plain"), **changes)


@pytest.fixture(scope="module")
def whitened(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whitened"), normalize="gcn-zca")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The first test digits as image files, with their labels."""
    folder = tmp_path_factory.mktemp("files") / "digits"
    test = digits().test
    for at in range(100):
        (folder / f"{at % 3}").mkdir(parents=True, exist_ok=True)
        pixels = (test.images[at, 0].float() * 255 / 16).round().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{at % 3}" / f"{at:02}.png")
    return folder, test.images[:100], test.labels[:100]


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["plain", "whitened"])
def test_evaluate_gives_the_reported_errors(name, request, tmp_path, capsys):
    folder, summary = request.getfixturevalue(name)
    before = sorted(folder.iterdir())
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--out", str(tmp_path / "errors.json")]) == 0
    errors = json.loads((tmp_path / "errors.json").read_text())
    split, images = (summary["eval_split"], 200 if name == "plain" else 500)
    assert errors == {
        "student_error": summary["student_error"],
        "teacher_error": summary["teacher_error"],
        "eval_split": split,
        "images": images,
    }
    words = f"student {errors['student_error']:.2f}%, teacher {errors['teacher_error']:.2f}%"
    assert capsys.readouterr().out == f"error on {images} {split} images: {words}\n"
    assert sorted(folder.iterdir()) == before


def test_evaluate_on_other_images_of_the_same_classes(plain, tmp_path, capsys):
    """Normalised by the statistics of those that the run was trained on, and by no others."""
    folder, _ = plain
    assert main(["evaluate", str(folder), "--eval-split", "test", "--role", "teacher"]) == 0
    test = digits().test
    error = 100 * (load_run(folder, "teacher")(test.images).argmax(1) != test.labels).double().mean().item()
    assert capsys.readouterr().out == f"error on 500 test images: teacher {error:.2f}%\n"


def test_evaluate_by_a_checkpoint_and_by_the_best(plain, tmp_path, capsys):
    """A run that was killed has no other weights than those of a checkpoint."""
    copy, summary = tmp_path / "run", plain[1]
    shutil.copytree(plain[0], copy)
    for role in ("student", "teacher"):
        (copy / f"{role}.safetensors").unlink()
    for role in ("teacher", "best"):
        assert main(["evaluate", str(copy), "--role", role]) == 0
    errors = f"teacher {summary['teacher_error']:.2f}%", f"best {summary['best_teacher_error']:.2f}%"
    lines = [f"error on 200 validation images: {words}" for words in errors]
    assert capsys.readouterr().out.splitlines()[-2:] == lines


@pytest.mark.parametrize("dataset", ["folder", "imagenet"])
def test_image_files_give_the_reported_error(tmp_path, dataset, capsys):
    """Held in memory or read from the disk: files are read as the evaluation read them."""
    data = write_digits(tmp_path / "data", train=30, test=20, classes=3)
    changes = {
        "labels": "all",
        "augment": "translate",
        "translate": 1,
        "flip": False,
        "steps": 25,
        "workers": 0,
    }
    changes |= {"normalize": "channels", "method": "supervised", "image_size": 12, "dataset": dataset}
    folder, summary = trained(tmp_path, data=data, **changes)
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(folder), str(data / "val"), "--out", str(out), "--role", "teacher"]) == 0
    rows = rows_of(out)
    wrong = [row["class"] != row["file"].split("/")[-2] for row in rows]
    assert len(wrong) == 60 and 100 * np.mean(wrong) == pytest.approx(summary["teacher_error"])
    assert main(["evaluate", str(folder), "--role", "teacher"]) == 0
    assert f"teacher {summary['teacher_error']:.2f}%" in capsys.readouterr().out


def test_predictions_are_those_of_the_pixels(plain, files, tmp_path, capsys):
    folder, _ = plain
    images, pixels, _ = files
    (images / ".hidden.png").write_bytes(b"")
    out = tmp_path / "predictions.csv"
    line = ["predict", str(folder), str(images), str(images / "0" / "00.png"), "--batch-size", "7"]
    assert main([*line, "--all", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"100 images: {out}\n"
    assert list(tmp_path.iterdir()) == [out]
    rows = rows_of(out)
    assert list(rows[0]) == ["file", "class", "probability", *map(str, range(10))]
    names = [row["file"] for row in rows]
    assert names == sorted(map(str, images.rglob("[0-9][0-9].png")))
    expected = load_run(folder, "teacher")(pixels).softmax(1)
    for row in rows:
        probs = expected[int(row["file"][-6:-4])]
        assert [float(row[str(at)]) for at in range(10)] == pytest.approx(probs.tolist(), abs=2e-6)
        assert row["class"] == str(int(probs.argmax())) and row["probability"] == row[row["class"]]


def test_broken_files_are_named_and_left_out(plain, files, tmp_path, capsys):
    folder, _ = plain
    shutil.copy(files[0] / "0" / "00.png", tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert main(["predict", str(folder), str(tmp_path), "--out", "-"]) == 1
    out, err = capsys.readouterr()
    header, row = out.splitlines()
    assert header == "file,class,probability" and row.startswith(f"{tmp_path / 'b.png'},")
    assert err == f"{tmp_path / 'a.png'} left out: not an image that Pillow knows\n"


@pytest.mark.parametrize("name", ["plain", "whitened"])
def test_an_exported_file_is_enough(name, request, files, tmp_path):
    folder, _ = request.getfixturevalue(name)
    expected = load_run(folder, "student")(files[1])
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    out = tmp_path / "network.safetensors"
    assert main(["export", str(copy), "--role", "student", "--out", str(out)]) == 0
    assert main(["export", str(copy)]) == 0 and (copy / "exported.safetensors").exists()
    shutil.rmtree(copy)
    network = load_exported(out)
    assert torch.equal(network(files[1]), expected) and not network.model.training
    assert torch.equal(network.reader(files[0] / "0" / "00.png"), files[1][0])
    assert network.class_names == tuple(map(str, range(10)))
    table = tmp_path / "predictions.csv"
    assert main(["predict", str(out), str(files[0]), "--out", str(table)]) == 0
    classes = {int(row["file"][-6:-4]): int(row["class"]) for row in rows_of(table)}
    assert [classes[at] for at in range(100)] == expected.argmax(1).tolist()


@pytest.mark.parametrize("name", ["plain", "whitened"])
def test_onnx_takes_images_and_gives_torchs_logits(name, request, files, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    folder, _ = request.getfixturevalue(name)
    out = tmp_path / "network.onnx"
    assert main(["export", str(folder), "--format", "onnx", "--out", str(out)]) == 0
    takes = "uint8, 0 to 16," if name == "plain" else "gcn-zca-whitened float32"
    about = f"{takes} images [rows, 1, 8, 8] -> logits [rows, 10]"
    assert capsys.readouterr().out.endswith(f"{out}: {about}\n")
    model = onnx.load(out)
    described = {entry.key: entry.value for entry in model.metadata_props}["mtkernels"]
    assert model.doc_string == about and json.loads(described)["role"] == "teacher"
    predictor = load_run(folder, "teacher")
    images = files[1] if name == "plain" else predictor.pixels(files[1])
    session = pytest.importorskip("onnxruntime").InferenceSession(str(out))
    (logits,) = session.run(None, {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(logits), predictor(files[1]), atol=1e-4)


def test_a_wrong_onnx_file_is_no_file(plain, tmp_path, monkeypatch, capsys):
    """What ONNX Runtime computes is held against torch before the file gets its name."""
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto, helper

    def write(network, images, path, about, described):
        shape = [None, 1, 8, 8]
        inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 64])]
        nodes = [helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)]
        nodes += [helper.make_node("Flatten", ["floats"], ["all"])]
        nodes += [helper.make_node("ReduceMean", ["all"], ["logits"], keepdims=1)]
        graph = helper.make_graph(nodes, "wrong", inputs, outputs)
        opset = helper.make_opsetid("", 18)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)

    monkeypatch.setattr(module, "_write_onnx", write)
    out = tmp_path / "network.onnx"
    assert main(["export", str(plain[0]), "--format", "onnx", "--out", str(out)]) == 1
    assert "the ONNX network must give torch's logits up to " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_one_sentence(plain, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if "onnx" in name else found(name))
    assert main(["export", str(plain[0]), "--format", "onnx"]) == 2
    sentence = "onnx and onnxscript must be installed for --format onnx: pip install onnx onnxscript"
    assert capsys.readouterr().err == f"mtkernels: {sentence}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("evaluate", "{empty}"), 2, "mtkernels: {empty} must be a run's folder: it has no config.json\n"),
        (("evaluate", "{test}", "--role", "best"), 1, "best.safetensors"),
        (
            ("evaluate", "{run}", "--device", "gpu"),
            2,
            "device must be one that this torch can use, got 'gpu'",
        ),
        (("predict", "{run}", "{empty}"), 2, "mtkernels: {empty} has no images (.jpg, "),
        (("predict", "{run}", "nowhere.png"), 1, "mtkernels: nowhere.png does not exist\n"),
        (("predict", "{run}"), 2, "mtkernels: images must be files or folders, got none\n"),
        (("predict", "{run}", "{empty}", "--batch-size", "0"), 2, "batch_size must be 1 or more, got 0"),
        (
            ("predict", "{run}/teacher.safetensors", "{run}/curves.png"),
            2,
            "must be a file of `mtkernels export`",
        ),
        (
            ("predict", "{run}/metrics.csv", "{run}/curves.png"),
            2,
            "metrics.csv cannot be read as safetensors: ",
        ),
        (("export", "{run}", "--format", "pickle"), 2, "onnx"),
    ],
)
def test_mistakes_are_one_sentence(plain, whitened, tmp_path, capsys, arguments, code, words):
    places = {"run": plain[0], "test": whitened[0], "empty": tmp_path}
    assert main([word.format(**places) for word in arguments]) == code
    err = capsys.readouterr().err
    assert words.format(**places) in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_other_classes_are_refused(tmp_path, capsys):
    data = write_digits(tmp_path / "data", train=12, test=2, classes=2)
    other = write_digits(tmp_path / "other", train=2, test=2, classes=3)
    config = Config(dataset="folder", data=data, image_size=8, labels="all", method="supervised")
    folder, _ = run(replace(config, steps=1, eval_interval=0, batch_size=8, width=2, out=tmp_path))
    assert main(["evaluate", str(folder), "--data", str(other)]) == 2
    sentence = "data must have the run's 2 classes, got 3, of which digit2 differ"
    assert sentence in capsys.readouterr().err


def test_images_that_are_not_square_must_have_their_size(tmp_path):
    read = Reader(3, 255, (4, 6), None)
    pixels = np.random.RandomState(0).randint(0, 256, (4, 6, 3), dtype=np.uint8)
    for name, image in {"right.png": pixels, "wrong.png": pixels[:3]}.items():
        Image.fromarray(image).save(tmp_path / name)
    assert (read(tmp_path / "right.png").permute(1, 2, 0).numpy() == pixels).all()
    with pytest.raises(DecodeError, match=r"wrong.png: must have 4 x 6 pixels, got 3 x 6$"):
        read(tmp_path / "wrong.png")


def test_grey_is_pillows():
    pixels = np.random.RandomState(0).randint(0, 256, (9, 7, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    assert (_grey(torch.from_numpy(pixels).permute(2, 0, 1))[0].numpy() == expected).all()
