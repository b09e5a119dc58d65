"""`evaluate`: the prediction for each image, other folders, flips, and what is kept with the model."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
from safetensors.torch import load_file

import launcher
import tiny
from commands import TINY, RunCli
from evaluation_runs import ENVIRON, evaluated, run
from launcher import data, optim, tasks
from launcher.errors import UserError
from launcher.inference.evaluation import write
from runs import train

ODD = ("cat", "狗", os.fsdecode(b"bird \xff"))
"""Classes are folders, whose names need not be text."""


def fill(folder: Path, classes: tuple[str, ...], count: int, seed: int) -> None:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = tiny.picture(tiny.Stripes(1000, seed), 3 * index + label)
            picture.save(folder / name / f"{index:03}.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on folders, evaluated by one process."""
    place = tmp_path_factory.mktemp("run")
    fill(place / "images/train", ODD, 20, 1)
    fill(place / "images/val", ODD, 7, 2)
    (place / "images/val/cat/000.png").rename(place / "images/val/cat" / os.fsdecode(b"odd \xe9.png"))
    train(dataclasses.replace(tiny.recipe, data=data.ImageFolder(root=str(place / "images"))), place / "tiny")
    run(place / "tiny", 1)
    return place / "tiny"


@pytest.mark.slow
def test_the_metrics_follow_from_the_rows(finished: Path) -> None:
    written = json.loads((finished / "evaluation.json").read_text())
    table = pq.read_table(finished / "evaluation.parquet")
    ordered = launcher.load(finished, tiny.__file__).classes
    texts = [name.encode("utf-8", "backslashreplace").decode() for name in ordered]
    probabilities = [f"probability/{text}" for text in texts]
    assert table.column_names == ["index", "name", "name_bytes", "target", "prediction", *probabilities, "loss"]
    rows = table.to_pydict()
    accuracy = sklearn.metrics.accuracy_score(rows["target"], rows["prediction"])
    assert accuracy == pytest.approx(written["metrics"]["accuracy"], abs=1e-6)
    assert np.mean(rows["loss"]) == pytest.approx(written["metrics"]["loss"], abs=1e-5)
    matrix = np.stack([rows[name] for name in probabilities], axis=1)
    assert matrix.sum(1) == pytest.approx(1, abs=1e-5)
    assert [texts[i] for i in matrix.argmax(1)] == rows["prediction"]
    matrix_reported = sklearn.metrics.confusion_matrix(rows["target"], rows["prediction"], labels=texts).tolist()
    assert written["confusion"]["matrix"] == matrix_reported
    paths = [os.fsdecode(b) if b else name for name, b in zip(rows["name"], rows["name_bytes"], strict=True)]
    assert all(Path(path).is_file() for path in paths)
    assert set(written["classes"]) == set(ordered)
    low, high = written["intervals"]["of"]["accuracy"]
    assert low <= written["metrics"]["accuracy"] <= high


@pytest.mark.long
def test_two_processes_predict_the_same(finished: Path) -> None:
    one = pq.read_table(finished / "evaluation.parquet")
    run(finished, 2)
    two = pq.read_table(finished / "evaluation.parquet")
    assert two.schema == one.schema
    for name in one.column_names:
        if name.startswith(("probability", "loss")):
            assert two[name].to_numpy() == pytest.approx(one[name].to_numpy(), abs=1e-6)
        else:
            assert two[name].equals(one[name]), name


@pytest.mark.slow
def test_the_temperature_is_kept_and_the_weights_are_not_touched(finished: Path, tmp_path: Path) -> None:
    before = load_file(finished / "final/model.safetensors")
    found = evaluated(finished)
    assert found.unlike_training() == {}
    write(found)
    after = load_file(finished / "final/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    stored = json.loads((finished / "final/calibration.json").read_text())
    assert stored["temperature"] == found.details["calibration"]["temperature"]
    assert (stored["fitted_on"], stored["samples"]) == ("val", 21)
    assert stored["after"]["nll"] <= stored["before"]["nll"] == pytest.approx(found.metrics["loss"], abs=1e-5)
    assert not [path for path in (finished / "final").iterdir() if path.name.startswith(".")]
    # What is fitted on the validation images is judged on others, not fitted again.
    train_images = evaluated(finished, split_name="train")
    assert train_images.details["calibration"]["temperature"] == stored["temperature"]
    assert train_images.details["calibration"]["fitted"] == "on the validation images"
    write(train_images)
    assert json.loads((finished / "final/calibration.json").read_text()) == stored


@pytest.mark.slow
def test_flips_are_the_mean_over_both_pictures(finished: Path) -> None:
    plain, found = evaluated(finished), evaluated(finished, flips=True)
    model = launcher.load(finished, tiny.__file__)
    images = [PIL.Image.open(found.split.images.name(index)) for index in range(len(found.split))]
    both = [images, [image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) for image in images]]
    with torch.no_grad():
        outputs = [model(torch.stack([model.preprocessing(image) for image in side])) for side in both]  # type: ignore[attr-defined]
    assert found.outputs == pytest.approx((outputs[0] + outputs[1]) / 2, abs=1e-5)
    assert found.outputs != pytest.approx(plain.outputs, abs=1e-3)
    assert (found.file.name, found.samples_file.name) == ("evaluation-flips.json", "evaluation-flips.parquet")
    assert found.unlike_training() == {}


@pytest.mark.slow
def test_another_folder_has_its_classes_by_name(finished: Path, tmp_path: Path) -> None:
    val = finished.parent / "images/val"
    again, here = evaluated(finished, data=val), evaluated(finished)
    assert again.metrics == here.metrics
    assert again.file.name == "evaluation-data-val.json"
    # Some of the classes, which would have other numbers by themselves; the images of the run are not needed.
    other = tmp_path / "other"
    fill(other, ODD[:2], 4, 2)
    (finished.parent / "images").rename(finished.parent / "gone")
    try:
        reported: list[str] = []
        (other / "cat/notes.txt").touch()
        found = evaluated(finished, data=other, report=reported.append)
    finally:
        (finished.parent / "gone").rename(finished.parent / "images")
    classes = launcher.load(finished, tiny.__file__).classes
    wanted = sorted([classes.index("cat")] * 4 + [classes.index("狗")] * 4)
    assert found.split.targets.tolist() == wanted
    assert reported[0] == f"--data: 1 file left out: {other}/cat/notes.txt (not an image)"
    assert found.details["calibration"]["fitted"] == "on the validation images"
    write(found)
    written = json.loads((finished / "evaluation-data-other.json").read_text())
    assert (written["data"], written["samples"]) == (str(other), 8)
    assert written["classes"][ODD[2]]["recall"] is None
    rows = pq.read_table(finished / "evaluation-data-other.parquet").to_pydict()
    assert rows["target"] == [Path(name).parent.name for name in rows["name"]]


def test_folders_that_cannot_be_compared(finished: Path, tmp_path: Path, run_cli: RunCli) -> None:
    fill(tmp_path / "unknown", ("cat", "horse", "zebra"), 1, 2)
    loose = tmp_path / "loose"
    loose.mkdir()
    PIL.Image.new("RGB", (16, 16)).save(loose / "1.png")
    classes = launcher.load(finished, tiny.__file__).classes
    known = ", ".join(map(repr, classes))
    lines = {
        tmp_path / "unknown": "{} has 2 class folder(s) that the model does not know: 'horse', 'zebra'; "
        f"it knows {known}",
        loose: "{} has no class folders, so no classes to compare with; for images without them: "
        "python -m launcher predict RUN_DIR FOLDER",
        tmp_path / "none": "{} does not exist; it should hold one folder of images per class",
    }
    with pytest.raises(UserError, match=r"1\.png: neither a folder nor a table; give a folder, or a \.csv, \.tsv or "):
        evaluated(finished, data=loose / "1.png")
    for place, line in lines.items():
        with pytest.raises(UserError) as error:
            evaluated(finished, data=place)
        assert error.value.problems == (f"--data: {line.format(place)}",)
    done = run_cli("evaluate", str(finished), *TINY, "--data", str(loose), "--workers", "0", env=ENVIRON)
    assert (done.code, done.out, done.err.split("\n", 1)[1]) == (
        2,
        "",
        f"error: --data: {lines[loose].format(loose)}\n",
    )
    done = run_cli("evaluate", str(finished), *TINY, "--data", "x", "--split", "train", env=ENVIRON)
    assert (done.code, done.err) == (2, "error: --data and --split: both say which images; give one of them\n")


@pytest.mark.slow
def test_broken_images_of_another_folder_are_named(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    fill(other, ("cat",), 2, 2)
    (other / "cat/001.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        evaluated(finished, data=other)
    assert error.value.problems == (
        f"--data: 1 of 2 images cannot be read: {other}/cat/001.png (not an image that Pillow can read); "
        "repair or remove them",
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", [tasks.MultiLabel(), tasks.Regression()], ids=["labels", "values"])
def test_labels_and_values_have_rows_as_well(
    task: tasks.MultiLabel | tasks.Regression, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(tiny.recipe, task=task, optim=optim.SGD(lr=0.01)), tmp_path / "run")
    found = evaluated(tmp_path / "run")
    write(found)
    rows = pq.read_table(tmp_path / "run/evaluation.parquet").to_pydict()
    assert rows["name"] == [f"stripes/1/{index}" for index in range(31)]
    targets, given = (
        np.stack([rows[f"{what}/{name}"] for name in found.names], 1) for what in ("target", "prediction")
    )
    assert targets == pytest.approx(found.split.targets)
    if isinstance(task, tasks.Regression):
        mae = sklearn.metrics.mean_absolute_error(targets, given)
        assert mae == pytest.approx(found.metrics["mae"], abs=1e-5)
        assert not (tmp_path / "run/final/calibration.json").exists()
        assert found.details["residuals"]["period"]["largest"][0]["name"].startswith("stripes/1/")
    else:
        f1 = sklearn.metrics.f1_score(targets, given, average="micro")
        assert f1 == pytest.approx(found.metrics["micro_f1"], abs=1e-6)
        stored = json.loads((tmp_path / "run/final/calibration.json").read_text())
        assert stored["thresholds"] == [label["threshold"] for label in found.details["labels"].values()]
    assert np.mean(rows["loss"]) == pytest.approx(found.metrics["loss"], abs=1e-5)
    with pytest.raises(UserError, match=r"^--data .*: holds no table, and class folders give one class per image"):
        evaluated(tmp_path / "run", data=tmp_path)
