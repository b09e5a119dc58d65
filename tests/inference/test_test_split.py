"""Images for the very end: found by init and plan, looked at by nothing but `evaluate --split test` and `--data`."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny
from evaluation_runs import evaluated
from launcher import Split, Splits, data, optim, phases, tasks
from launcher.errors import UserError
from launcher.inference.evaluation import write
from launcher.inference.labelled_data import read_other
from launcher.inference.labelled_data import test_line as line_of
from launcher.inference.labelled_data import test_split as split_of
from launcher.init.folders import folder
from launcher.recipe.protocols import TargetKind
from launcher.report.facts import read_facts
from launcher.report.sections.summary import section
from runs import train

COUNTS = {"train": 12, "val": 6, "test": 4}
NEW = 5


def write_picture(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tiny.picture(tiny.Stripes(1000, 0), number).save(file)


def rows_of(kind: str, count: int, first: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(first, first + count):
        targets: dict[str, Any] = {"seconds": 1.7e9 + 40 * number}
        if kind != "values":
            targets = {"even": number % 2, "third": int(number % 3 == 0)}
        rows.append({"path": f"img/{number}.png", **targets})
    return rows


def write_csv(file: Path, rows: list[dict[str, Any]]) -> Path:
    for row in rows:
        write_picture(file.parent / row["path"], int(Path(row["path"]).stem))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    for row in rows:
        write_picture(file.parent / row["path"], int(Path(row["path"]).stem))
    table = {name: [row[name] for row in rows] for name in rows[0] if name != "path"}
    table["path"] = [(file.parent / row["path"]).read_bytes() for row in rows]
    pq.write_table(pa.table(table), file)
    return file


def short(**changes: Any) -> Any:
    plan = phases.linear_probe(epochs=1)
    return dataclasses.replace(tiny.recipe, freeze_plan=plan, batch_size=4, optim=optim.SGD(lr=0.01), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["values", "labels", "one label"])
def test_tables(kind: str, tmp_path: Path) -> None:
    """A test split of a CSV file, another CSV file, and a parquet file: each sample once, by the run's own statistics,
    and nothing is fitted on them."""
    rows, first = [], 0
    for split, count in COUNTS.items():
        rows += [{**row, "split": split} for row in rows_of(kind, count, first)]
        first += count
    table = write_csv(tmp_path / "all.csv", rows)
    names = {"values": ("seconds",), "labels": ("even", "third"), "one label": ("even",)}[kind]
    part = data.CsvImages(path=str(table), label_column=names, split_column="split")
    task: Any = tasks.Regression() if kind == "values" else tasks.MultiLabel()
    splits = part.build(task.target_kind, 0)
    assert line_of(part, task.target_kind, splits) == (
        "4 test images, untouched; at the end: python -m launcher evaluate RUN_DIR --split test"
    )
    run_dir = tmp_path / "run"
    train(short(data=part, task=task), run_dir)
    files = ("final/calibration.json", "final/metrics.json", "evaluation.json")
    before = {name: (run_dir / name).read_bytes() for name in files if (run_dir / name).exists()}

    found = evaluated(run_dir, split_name="test")
    assert [found.split.images.name(i)[-10:] for i in range(4)] == [f"img/{i}.png" for i in range(18, 22)]
    if kind == "values":
        assert found.split.targets.ravel().tolist() == [1.7e9 + 40 * i for i in range(18, 22)]
        values = found.task.values(found.outputs).numpy()  # type: ignore[attr-defined]
        assert found.metrics["mae"] == pytest.approx(np.abs(values - found.split.targets).mean(), rel=1e-6)
        assert found.task.describe() == json.loads((run_dir / "final/model.json").read_text())["task"]
    write(found)
    written = json.loads((run_dir / "evaluation-test.json").read_text())
    assert (written["split"], written["samples"]) == ("test", 4)

    new = rows_of(kind, NEW, 30)
    (tmp_path / "new").mkdir()
    of_csv = evaluated(run_dir, data=write_csv(tmp_path / "new/new.csv", new))
    of_folder = evaluated(run_dir, data=tmp_path / "new")  # which holds this one table
    of_parquet = evaluated(run_dir, data=write_parquet(tmp_path / "new.parquet", new))
    assert len(of_csv.split) == NEW
    for other in (of_folder, of_parquet):
        assert (other.split.targets == of_csv.split.targets).all()
        assert other.metrics == pytest.approx(of_csv.metrics, rel=1e-5)
    write(of_csv)
    assert (run_dir / "evaluation-data-new.csv.json").is_file()
    assert {name: (run_dir / name).read_bytes() for name in before} == before

    facts = read_facts(run_dir)
    tiles = {tile["label"]: tile for tile in section(facts).values["tiles"]}
    shown = tiles[f"{'mean absolute error' if kind == 'values' else 'mean average precision'} on test"]
    assert shown["note"].endswith("4 images")


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = 0
    for split, count in COUNTS.items():
        for name in ("a", "b"):
            for _ in range(count):
                write_picture(tmp_path / "d" / split / name / f"{number}.png", number)
                number += 1
    monkeypatch.chdir(tmp_path)
    part = data.ImageFolder(root="d")
    splits = part.build("class", 0)
    test = split_of(part, "class", splits)
    assert test is not None
    assert test.targets.tolist() == [0] * 4 + [1] * 4
    assert folder(tmp_path / "d").part == "ImageFolder"
    assert (line_of(part, "class", splits) or "").startswith("8 test images, untouched")
    (tmp_path / "d/test/c").mkdir()
    write_picture(tmp_path / "d/test/c/0.png", 0)
    assert "does not know: 'c'" in (line_of(part, "class", splits) or "")


@pytest.mark.slow
def test_a_data_set_has_its_split_by_name(tmp_path: Path) -> None:
    for split, count in COUNTS.items():
        rows = rows_of("values", count, 0)
        write_parquet(tmp_path / f"{split}.parquet", rows)
    part = data.HuggingFace(path=str(tmp_path), label_column="seconds")
    splits = part.build("values", 0)
    test = split_of(part, "values", splits)
    assert test is not None
    assert test.targets.dtype == np.float64
    assert test.targets.ravel().tolist() == [1.7e9 + 40 * i for i in range(4)]
    used = dataclasses.replace(part, val_split="test")
    assert split_of(used, "values", used.build("values", 0)) is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithTest(tiny.StripeData):
    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        splits = super().build(target_kind, seed)
        return dataclasses.replace(splits, test=Split(tiny.Stripes(3, 9), splits.val.targets[:3]))


def test_a_part_of_ones_own_says_its_test_split() -> None:
    splits = WithTest().build("class", 0)
    assert split_of(WithTest(), "class", splits) is splits.test
    plain = tiny.StripeData()
    assert split_of(plain, "class", plain.build("class", 0)) is None


@pytest.mark.slow
def test_what_is_not_there_is_reported_in_a_line(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(short(data=tiny.StripeData(), task=tasks.Regression()), run_dir)
    loose = tmp_path / "new.txt"
    loose.write_text("x")
    for options, said in (
        ({"split_name": "test"}, "have no test split; give the images with --data"),
        ({"data": tmp_path / "none.csv"}, "does not exist"),
        ({"data": loose}, "neither a folder nor a table"),
        ({"data": tmp_path}, "holds no table, and class folders give one class per image"),
    ):
        with pytest.raises(UserError, match=said) as error:
            evaluated(run_dir, **options)
        assert len(error.value.problems) == 1


def test_a_folder_that_is_named(tmp_path: Path) -> None:
    for number, place in enumerate(("d/train/a", "d/train/b", "d/val/a", "d/val/b", "d/exam/b", "other/a")):
        write_picture(tmp_path / place / f"{number}.png", number)
    plain = data.ImageFolder(root=str(tmp_path / "d"))
    assert plain.build("class", 0).notes == (f"not used: exam/ beside train/ in {tmp_path}/d",)
    assert split_of(plain, "class", plain.build("class", 0)) is None
    for named, target in (("d/exam", 1), ("other", 0)):
        part = dataclasses.replace(plain, test=tmp_path / named)  # type: ignore[arg-type]
        splits = part.build("class", 0)
        assert splits.notes == (() if named == "d/exam" else plain.build("class", 0).notes)
        test = split_of(part, "class", splits)
        assert test is not None
        assert test.targets.tolist() == [target]
    lost = dataclasses.replace(plain, test=str(tmp_path / "lost"))
    assert f"data.test: {tmp_path}/lost does not exist" in (line_of(lost, "class", splits) or "")
    named_in_it = data.HuggingFace(path=str(tmp_path / "d"), test_split="exam")
    splits = named_in_it.build("class", 0)
    assert splits.notes == ()
    test = split_of(named_in_it, "class", splits)
    assert test is not None
    assert test.targets.tolist() == [1]


def test_lists_of_another_file_are_read_as_those_of_training(tmp_path: Path) -> None:
    """[1, 0] alone may be ids, or a 0 or 1 for each label: the training images say which."""
    made = {"train": ["[1, 0]", "[1, 1]", "[0, 1]", "[0, 0]"], "exam": ["[0, 1]", "[1, 0]"]}
    for name, lists in made.items():
        rows = [{"path": f"{number}.png", "label": cell} for number, cell in enumerate(lists)]
        write_csv(tmp_path / f"{name}.csv", rows)
        for row in rows:
            row["label"] = json.loads(row["label"])
        write_parquet(tmp_path / f"{name}.parquet", rows)
    tables = {name: datasets.Dataset.from_parquet(str(tmp_path / f"{name}.parquet")) for name in made}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "set"))
    wanted = [[0, 1], [1, 0]]
    of_csv = data.CsvImages(path=str(tmp_path / "train.csv"), test_path=str(tmp_path / "exam.csv"))
    of_set = data.HuggingFace(path=str(tmp_path / "set"), test_split="exam", val_split="train")
    for part, file in ((of_csv, tmp_path / "exam.csv"), (of_set, tmp_path / "exam.parquet")):
        splits = part.build("labels", 0)
        test = split_of(part, "labels", splits)
        assert test is not None
        assert test.targets.tolist() == wanted
        other, _ = read_other(part, "labels", splits.names, file)
        assert other.targets.tolist() == wanted


def test_a_split_that_is_not_there_is_reported(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows_of("values", 4, 0))
    write_parquet(tmp_path / "exam.parquet", rows_of("values", 4, 0))
    part = data.HuggingFace(path=str(tmp_path), label_column="seconds", test_split="exam")
    splits = part.build("values", 0)
    assert "has no split 'exam'; there are: train" in (line_of(part, "values", splits) or "")
    assert splits.notes == (f"not used: exam.parquet in {tmp_path} (only files named after splits are read)",)


def test_labels_of_another_file_mean_what_those_of_training_mean(tmp_path: Path) -> None:
    """Images without a label are read as such, and zeros and ones are no words."""
    rows = [{"path": f"{number}.png", "label": cell} for number, cell in enumerate(["red|dark", "blue", "", "red"])]
    part = data.CsvImages(path=str(write_csv(tmp_path / "train.csv", rows)))
    names = part.build("labels", 0).names
    assert names == ("blue", "dark", "red")
    none = write_csv(tmp_path / "none.csv", [{"path": "0.png", "label": ""}, {"path": "1.png", "label": ""}])
    assert read_other(part, "labels", names, none)[0].targets.tolist() == [[0, 0, 0], [0, 0, 0]]
    for cells in (["[1, 0, 1]", "[1, 1, 0]"], ["1", "0"]):
        rows = [{"path": f"{number}.png", "label": cell} for number, cell in enumerate(cells)]
        with pytest.raises(UserError) as error:
            read_other(part, "labels", names, write_csv(tmp_path / "other.csv", rows))
        assert len(error.value.problems) == 1


@pytest.mark.slow
def test_data_of_one_name_are_evaluated_beside_each_other(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(short(data=tiny.StripeData()), run_dir)
    for number, place in enumerate(("one/new/across", "two/new/across")):
        write_picture(tmp_path / place / f"{number}.png", number)
    for folder_ in ("one", "two", "one"):
        write(evaluated(run_dir, data=tmp_path / folder_ / "new"))
    written = {file.name: json.loads(file.read_text())["data"] for file in run_dir.glob("evaluation-data-*.json")}
    assert written == {
        "evaluation-data-new.json": str(tmp_path / "one/new"),
        "evaluation-data-new-2.json": str(tmp_path / "two/new"),
    }


def test_test_images_that_are_used_otherwise_are_refused(tmp_path: Path) -> None:
    """Judged on them, a run would be judged on what it was trained or chosen by."""
    for number, place in enumerate(("d/train/a", "d/train/b", "d/val/a", "d/val/b", "flat/a", "flat/b", "flat/new/a")):
        write_picture(tmp_path / place / f"{number}.png", number)
    table = write_csv(tmp_path / "t.csv", rows_of("values", 4, 0))
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"set/{split}.parquet", rows_of("values", 4, 0))
    folder_, flat, csv_, set_ = str(tmp_path / "d"), str(tmp_path / "flat"), str(table), str(tmp_path / "set")
    parts: list[tuple[Any, TargetKind, str]] = [
        (data.ImageFolder(root=folder_, test=f"{folder_}/val"), "class", "are validated on, too"),
        (data.ImageFolder(root=folder_, test=f"{folder_}/train"), "class", "are trained on, too"),
        (
            data.ImageFolder(root=flat, test=f"{flat}/new"),
            "class",
            "'new' in it would be a class; put the class folders",
        ),
        (data.HuggingFace(path=folder_, test_split="val"), "class", "are validated on, too"),
        (data.CsvImages(path=csv_, label_column="seconds", test_path=csv_), "values", "is the file of data.path, too"),
        (
            data.HuggingFace(path=set_, label_column="seconds", test_split="validation"),
            "values",
            "is validated on, too",
        ),
    ]
    for part, kind, said in parts:
        with pytest.raises(UserError) as error:
            part.build(kind, 0)
        assert said in " ".join(error.value.problems)


def test_tables_that_are_links_are_not_reported_as_unused(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "set").mkdir()
    for number, name in enumerate(("train.parquet", "validation.parquet")):
        write_parquet(tmp_path / f"blobs/{number}", rows_of("values", 4, 0))
        (tmp_path / "set" / name).symlink_to(tmp_path / f"blobs/{number}")
    assert data.HuggingFace(path=str(tmp_path / "set"), label_column="seconds").build("values", 0).notes == ()


def test_a_parquet_file_has_the_columns_of_a_csv_file(tmp_path: Path) -> None:
    rows = [{"path": f"{number}.png", "small": f"{number}.png", "seconds": float(number)} for number in range(4)]
    part = data.CsvImages(path=str(write_csv(tmp_path / "t.csv", rows)), label_column="seconds")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "new.parquet")
    other, _ = read_other(part, "values", ("seconds",), tmp_path / "new.parquet")
    assert other.targets.ravel().tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.slow
def test_images_that_the_run_has_seen_are_reported(tmp_path: Path) -> None:
    for number, place in enumerate(("d/train/a", "d/train/b", "d/val/a", "d/val/b", "d/test/a")):
        write_picture(tmp_path / place / f"{number}.png", number)
    run_dir, reported = tmp_path / "run", list[str]()
    train(short(data=data.ImageFolder(root=str(tmp_path / "d"))), run_dir)
    evaluated(run_dir, split_name="test", report=reported.append)
    assert not [line for line in reported if "the same content" in line]
    (tmp_path / "d/test/b").mkdir()
    for number, place in ((1, "train"), (3, "val")):
        shutil.copy(tmp_path / f"d/{place}/b/{number}.png", tmp_path / f"d/test/b/copy of {number}.png")
    evaluated(run_dir, data=tmp_path / "d/test", report=reported.append)
    assert "--data: the run has trained on 1 and validated on 1 of these 3 images (the same content)" in reported
