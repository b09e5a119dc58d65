"""`predict` and `launcher.load`: what a finished run's model says of images, whatever their files are like."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pickle
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch

import launcher
import tiny
from commands import ROOT, TINY, CliResult, RunCli
from evaluation_runs import ENVIRON, evaluated
from launcher import Recipe, optim, tasks
from launcher.errors import UserError
from launcher.inference.evaluation import write
from launcher.inference.inputs import find_images
from runs import train

NAMES = {'with "quotes", and commas': "quotes", "猫和狗": "chinese", "tab\tand\nbreak": "break"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "tiny"
    train(tiny.recipe, run_dir)
    write(evaluated(run_dir))
    return run_dir


def picture(index: int) -> PIL.Image.Image:
    return tiny.picture(tiny.Stripes(31, 1), index)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Good ones, and in `images/deeper` what is odd about a picture or wrong with it."""
    folder = tmp_path / "images"
    deeper = folder / "deeper"
    deeper.mkdir(parents=True)
    for index, name in enumerate(NAMES):
        picture(index).save(folder / f"{name}.png")
    picture(3).save(os.fsdecode(os.fsencode(folder) + b"/latin \xe9\xff.png"), format="PNG")
    picture(4).convert("CMYK").save(deeper / "cmyk.jpg")
    grey = np.asarray(picture(5).convert("L")).astype(np.uint16) * 257
    PIL.Image.fromarray(grey).save(deeper / "grey16.png")
    frames = [picture(6).convert("P"), picture(7).convert("P")]
    frames[0].save(deeper / "moving.gif", save_all=True, append_images=frames[1:])
    PIL.Image.new("RGB", (1, 1), "red").save(deeper / "one.png")
    PIL.Image.new("RGB", (4000, 2), "blue").save(deeper / "wide.png")
    content = (deeper / "cmyk.jpg").read_bytes()
    (deeper / "broken.jpg").write_bytes(content[: len(content) // 2])
    (deeper / "notes.txt").write_text("not an image")
    return folder


GOOD = 9
RUNNING = f"running the code of {TINY[1]}, for the parts that it defines\n"


def in_bytes(run_dir: Path, *words: str | bytes, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    environ = os.environ | ENVIRON | {"COLUMNS": "120"}
    command = [sys.executable, "-m", "launcher", "predict", str(run_dir), *TINY, *words]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, check=False, timeout=300)


@pytest.mark.slow
def test_a_folder_with_all_sorts_of_files(finished: Path, images: Path, tmp_path: Path) -> None:
    done = in_bytes(finished, "images", "--to", "told.csv", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, b"")
    output = done.stderr.decode().splitlines()[1:]  # the first says that the code of tiny.py is run
    temperature = json.loads((finished / "final/calibration.json").read_text())["temperature"]
    calibration = f"temperature {temperature:.4g} ({finished}/final/calibration.json)"
    assert output[0] == f"probabilities calibrated with {calibration}"
    assert output[1] == "left out (not an image): images/deeper/notes.txt"
    assert output[2].startswith("cannot be read: images/deeper/broken.jpg (")
    assert output[3:] == [f"{GOOD} images predicted, in told.csv; 1 could not be read"]

    with (tmp_path / "told.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    read = {row["name"] for row in rows}
    every = {str(path.relative_to(tmp_path)) for path in images.rglob("*") if path.is_file()}
    assert read == every - {"images/deeper/broken.jpg", "images/deeper/notes.txt"}
    assert len(rows) == len(read) == GOOD
    # The very pixels through the network by hand.
    model = launcher.load(finished, tiny.__file__)
    for row in rows:
        with PIL.Image.open(tmp_path / row["name"]) as image, torch.no_grad():
            probabilities = model.interpret(model(model.preprocessing(image)[None]))[0]
        assert row["class_1"] == model.classes[int(probabilities.argmax())]
        assert float(row["probability_1"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert sum(float(row[f"probability_{place}"]) for place in (1, 2, 3)) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_table_of_a_run_holds_the_probabilities_that_predict_gives(finished: Path) -> None:
    """Those that the report shows."""
    table = pq.read_table(finished / "evaluation.parquet")
    model = launcher.load(finished, tiny.__file__)
    assert model.calibrated
    batch = torch.stack([model.preprocessing(picture(index)) for index in range(31)])
    with torch.no_grad():
        given = model.interpret(model(batch))
    stored = np.array([table[f"probability/{name}"].to_numpy() for name in model.classes]).T
    assert stored == pytest.approx(given.numpy(), abs=1e-5)


@pytest.mark.slow
def test_the_formats_hold_the_same(finished: Path, images: Path, tmp_path: Path) -> None:
    rows_of = {}
    for form in ("csv", "jsonl", "parquet"):
        done = in_bytes(finished, "images", "--to", f"told.{form}", "--top", "2", "--batch", "2", cwd=tmp_path)
        assert done.returncode == 3, done.stderr
    with (tmp_path / "told.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows_of["csv"] = [
            row | {f"probability_{i}": float(row[f"probability_{i}"]) for i in (1, 2)} for row in csv.DictReader(file)
        ]
    rows_of["jsonl"] = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    rows = pq.read_table(tmp_path / "told.parquet").to_pylist()
    for row in rows:
        exact = row.pop("name_bytes")
        if exact is not None:
            assert row["name"] == os.fsdecode(exact).encode("utf-8", "backslashreplace").decode()
            row["name"] = os.fsdecode(exact)
    rows_of["parquet"] = rows
    assert rows_of["csv"] == rows_of["jsonl"]
    assert [row["name"] for row in rows] == [row["name"] for row in rows_of["csv"]]
    for row, other in zip(rows, rows_of["csv"], strict=True):
        assert row == {**other, **{key: pytest.approx(other[key], abs=1e-6) for key in other if "prob" in key}}
    assert b"latin \xe9\xff.png" in (tmp_path / "told.csv").read_bytes()


@pytest.mark.slow
def test_one_unread_image_among_none_and_a_name_that_is_no_text(finished: Path, images: Path, tmp_path: Path) -> None:
    name = b"images/latin \xe9\xff.png"
    done = in_bytes(finished, name, "--as", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(name + b",")
    assert done.stderr.decode().endswith("1 image predicted\n")
    done = in_bytes(finished, "images/deeper/notes.txt", "--as", "csv", cwd=tmp_path)  # named, so it is tried
    assert done.returncode == 3
    assert done.stdout == b"name,class_1,probability_1,class_2,probability_2,class_3,probability_3\n"
    assert b"cannot be read: images/deeper/notes.txt (not an image that Pillow can read)\n" in done.stderr


def test_the_table(finished: Path, images: Path, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("predict", str(finished), *TINY, "images/猫*", "images/*quotes*", "--top", "1", env=ENVIRON)
    assert done.code == 0, done.err
    header, *lines = [line.rstrip() for line in done.out.splitlines()]
    assert header.split() == ["image", "prediction"]
    assert len(lines) == 2
    assert lines[0].startswith("images/猫和狗.png")
    assert lines[1].startswith('images/with "quotes", and commas.png')
    assert all(line.endswith("%") for line in lines)


def test_mistakes_are_reported_at_once_and_nothing_is_done(finished: Path, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "empty").mkdir()

    def predicted(*words: str) -> CliResult:
        return run_cli("predict", *TINY, *words, env=ENVIRON)

    done = predicted(str(tmp_path / "none"), "empty", "no.png", "no*.png", "--device", "cuda:99")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[1:5] == [
        f"error: {tmp_path}/none: no such run dir",
        "error: empty: no images in it",
        "error: no.png: no such file or folder",
        "error: no*.png: no file matches it",
    ]
    assert done.err.splitlines()[5].startswith("error: --device cuda:99: no such device here; there is cpu")
    for words, line in {
        ("--as", "parquet"): "--as parquet: is not for the screen; give --to FILE",
        ("--to", "told.txt"): "--to told.txt: which format? say --as csv, --as jsonl or --as parquet",
        ("--as", "table", "--to", "a.csv"): "--as table: is for the screen; for a.csv say --as csv, --as jsonl or "
        "--as parquet",
    }.items():
        done = predicted(str(finished), "empty", *words)
        assert (done.code, done.out, done.err.removeprefix(RUNNING)) == (2, "", f"error: {line}\n")
    picture(0).save(tmp_path / "empty/now.png")
    done = predicted(str(finished), "empty", "--to", "no/such/folder/told.csv")
    assert (done.code, done.err) == (
        2,
        f"{RUNNING}error: --to no/such/folder/told.csv: cannot be written (No such file or directory)\n",
    )


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_full_disk_is_reported_and_nothing_is_left(
    form: str, finished: Path, full_disk: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    for index in range(120):
        picture(index % 30).save(folder / f"{index}{'name' * 30}.png")
    to = full_disk / f"table.{form}"
    refused = run_cli("predict", str(finished), *TINY, str(folder), "--to", str(to))
    assert refused.code == 2
    assert refused.err.splitlines()[-1] == f"error: --to {to}: cannot be written (No space left on device)"
    assert list(full_disk.iterdir()) == []


def test_which_files_a_word_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.JPG", "b/.hidden/3.png", "b/.4.png", "a.png", "b/x/5.webp", "[odd].png", "b/t.csv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("b/x/round").symlink_to(tmp_path / "b")
    found = find_images(["b", "a.png", "b/2.png", "[odd].png"])
    assert found.images == ["b/1.JPG", "b/2.png", "b/x/5.webp", "a.png", "[odd].png"]
    assert found.left_out == ["b/t.csv"]
    assert find_images(["**/*.png"]).images == ["[odd].png", "a.png", "b/2.png"]


@pytest.mark.slow
def test_a_reader_that_leaves(finished: Path, images: Path, tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -m launcher predict {finished} {shlex.join(TINY)} images/deeper/*.gif --as csv --batch 1"
    )
    done = subprocess.run(  # closed before anything is written
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=os.environ | ENVIRON,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 141
    assert "Traceback" not in done.stderr


def test_what_is_too_narrow_to_be_enlarged_is_not_read(finished: Path, tmp_path: Path, run_cli: RunCli) -> None:
    PIL.Image.new("L", (600_000, 1)).save(tmp_path / "line.png")
    done = run_cli("predict", str(finished), *TINY, "line.png", env=ENVIRON)
    assert done.code == 3
    assert "line.png (600000 x 1 pixels: too narrow to be enlarged to a shorter side of 16)" in done.err


@pytest.mark.slow
def test_pipes_and_devices_are_named_and_never_waited_for(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    picture(0).save(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    done = in_bytes(finished, "images/good.png", "images/pipe.png", "images/zero.png", "--as", "csv", cwd=tmp_path)
    output = done.stderr.decode()
    assert done.returncode == 3, output
    assert [row["name"] for row in csv.DictReader(done.stdout.decode().splitlines())] == ["images/good.png"]
    assert "cannot be read: images/pipe.png (a named pipe, not a file)\n" in output
    assert "cannot be read: images/zero.png (a device, not a file)\n" in output
    assert output.endswith("1 image predicted; 2 could not be read\n")


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        (
            {"task": tasks.MultiLabel()},
            [f"{what}/{name}" for name in ("across", "not_down", "wide") for what in ("prediction", "probability")],
        ),
        ({"task": tasks.Regression(), "optim": optim.SGD(lr=0.01)}, ["prediction/period", "prediction/phase"]),
    ],
    ids=["labels", "values"],
)
def test_labels_and_values(changes: dict[str, Any], columns: list[str], tmp_path: Path, run_cli: RunCli) -> None:
    recipe: Recipe = dataclasses.replace(tiny.recipe, **changes)
    train(recipe, tmp_path / "run")
    found = evaluated(tmp_path / "run")
    write(found)
    (tmp_path / "images").mkdir()
    for index in range(8):
        picture(index).save(tmp_path / f"images/{index}.png")
    done = run_cli("predict", "run", *TINY, "images", "--to", "told.jsonl", env=ENVIRON)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["name", *columns]] * 8
    model = launcher.load(tmp_path / "run", tiny.__file__)
    expected = model.interpret(found.outputs[:8])
    read = columns[1::2] if model.kind == "multi-label" else columns
    assert torch.tensor([[row[name] for name in read] for row in rows]) == pytest.approx(expected, abs=1e-4)
    if model.kind == "multi-label":
        stored = json.loads((tmp_path / "run/final/calibration.json").read_text())["thresholds"]
        assert list(model.thresholds) == stored
        for row in rows:
            for name, threshold in zip(model.classes, stored, strict=True):
                assert row[f"prediction/{name}"] == (row[f"probability/{name}"] >= threshold)
    done = run_cli("predict", "run", *TINY, "images", env=ENVIRON)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 9


@pytest.mark.slow
def test_load_gives_a_module_that_is_ready(finished: Path, tmp_path: Path) -> None:
    model = launcher.load(finished, tiny.__file__)
    assert isinstance(model, torch.nn.Module)
    assert not any(module.training for module in model.modules())
    assert model.classes == ("across", "down", "diagonal")
    assert model.temperature == json.loads((finished / "final/calibration.json").read_text())["temperature"]
    found = evaluated(finished)
    prepared = pickle.loads(pickle.dumps(model.preprocessing))  # noqa: S301 - our own, for data workers
    images = torch.stack([prepared(picture(index)) for index in range(31)])
    with torch.no_grad():
        assert model(images) == pytest.approx(found.outputs, abs=1e-5)
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "final/calibration.json").unlink()
    uncalibrated = launcher.load(copy, tiny.__file__)
    assert (uncalibrated.temperature, uncalibrated.calibrated) == (1.0, False)
    (copy / "final/calibration.json").write_text('{"temperature": 0}')
    with pytest.raises(UserError, match=r"calibration.json: temperature and thresholds must be positive numbers"):
        launcher.load(copy, tiny.__file__)


@pytest.mark.slow
def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, launcher; launcher.load; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | ENVIRON
    )
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_no_cell_is_a_formula_and_no_name_commands_a_terminal(finished: Path, tmp_path: Path) -> None:
    run_dir, folder = tmp_path / "run", tmp_path / "images"
    shutil.copytree(finished, run_dir)
    classes = ["=HYPERLINK(1)", "@SUM(1)", "\t=1"]
    (run_dir / "final/classes.json").write_text(json.dumps(classes))
    folder.mkdir()
    names = ["=1+1.png", "-2+3.png", "+a.png", "a\x1b[31m.png", "b\x9b31m\x07.png"]
    for index, name in enumerate(names):
        picture(index).save(folder / name)
    for form in ("csv", "jsonl"):
        master, terminal = pty.openpty()
        command = [sys.executable, "-m", "launcher", "predict", str(run_dir), *TINY, "*.png", "--as", form]
        environ = os.environ | ENVIRON
        done = subprocess.Popen(command, cwd=folder, env=environ, stdout=terminal, stderr=subprocess.PIPE)
        os.close(terminal)
        shown = b""
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the end of a terminal whose programs have ended
                break
            if not chunk:
                break
            shown += chunk
        os.close(master)
        output = done.communicate()[1]
        assert done.returncode == 0, output
        text = shown.decode() + output.decode()
        assert {letter for letter in text if not letter.isprintable()} <= {"\r", "\n"} | (
            {"\t"} if form == "csv" else set()
        )
        if form == "jsonl":
            assert [json.loads(line)["name"] for line in shown.decode().splitlines()] == sorted(names)
    done = in_bytes(run_dir, "*.png", "--to", "x.csv", cwd=folder)  # type: ignore[assignment]
    assert done.returncode == 0, done.stderr
    with (folder / "x.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert {row[0] for row in rows[1:]} == {"'=1+1.png", "'-2+3.png", "'+a.png", *names[3:]}
    for row in rows[1:]:
        assert sorted(row[1::2]) == sorted(f"'{name}" for name in classes)
        assert sum(map(float, row[2::2])) == pytest.approx(1, abs=1e-5)
