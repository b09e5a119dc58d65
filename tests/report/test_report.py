"""Reports: what a run leaves at its end, and what `report` makes of runs that have ended before."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import report_runs
import tiny
from commands import ROOT, SUPPORT, TINY
from launcher.cli import main
from launcher.inference.finished_run import FinishedRun
from launcher.recipe.type_names import types_in
from launcher.report import end_of_run, refresh, thumbnails
from launcher.report.build import FILE, titles_of, write_report
from launcher.report.charts import number, ticks
from launcher.report.facts import Epoch, read_facts
from launcher.report.samples import common_folder
from launcher.report.sections import summary
from launcher.report.sections.side_by_side import _sign_test
from launcher.report.thumbnails import Thumbnails, size_of, small
from launcher.training import final
from launcher.training.launch import Launch, World
from report_runs import HOSTILE_CLASSES, Parsed, train

SECTIONS = ["summary", "curves", "gallery", "phases", "data", "speed", "environment"]
OF_CLASSES = {"confusion", "classes", "calibration"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "tiny"
    train(tiny.recipe, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    train(report_runs.of_hostile_names(report_runs.hostile_folder(folder / "data")), folder / "run")
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A run dir that may be changed."""
    target = tmp_path / "copy"
    shutil.copytree(finished, target)
    return target


def parsed(run_dir: Path) -> Parsed:
    return Parsed((run_dir / FILE).read_text())


def sections_of(page: Parsed) -> list[str]:
    return [attributes["id"] for attributes in page.of("section")]


@pytest.mark.slow
def test_a_run_ends_with_its_evaluation_and_a_report(finished: Path) -> None:
    page = parsed(finished)
    assert set(sections_of(page)) == {*SECTIONS, *OF_CLASSES}
    metrics = json.loads((finished / "final/metrics.json").read_text())
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["metrics"] == metrics
    low, high = evaluation["intervals"]["of"]["accuracy"]
    assert f"{100 * metrics['accuracy']:.1f}" in page.text
    assert f"95 % interval {100 * low:.1f} to {100 * high:.1f} %" in page.text
    assert (finished / "final/calibration.json").is_file()
    assert not list(finished.glob(".*writing*"))


@pytest.mark.slow
def test_the_end_of_a_run_is_reported_in_plain_lines(finished: Path) -> None:
    lines = [line[21:] for line in (finished / "log.txt").read_text().splitlines()]
    last = lines[next(i for i, line in enumerate(lines) if line.startswith("done: ")) + 1 :]
    assert last[0].split() == ["phase", "epochs", "time", "best", "accuracy"]
    assert [line.split()[:2] for line in last[1:3]] == [["linear_probe", "2"], ["full_finetune", "2"]]
    assert sum(line.endswith("kept") for line in last[1:3]) == 1
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in last[3:] if not line.startswith(" ")}
    interval = json.loads((finished / "evaluation.json").read_text())["intervals"]["of"]["accuracy"]
    assert rows["result"].endswith(f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}")
    assert rows["weakest"].count("(F1 ") == 1  # at most half of three
    assert rows["report"] == str(finished / FILE)
    assert rows["model"] == str(finished / "final")
    assert rows["next"] == f"python -m launcher predict {finished} IMAGES --recipe tiny.py"
    assert [line.split()[3] for line in last if "python -m" in line and not line.startswith("next")] == [
        "evaluate",
        "report",
    ]


@pytest.mark.slow
def test_nothing_is_evaluated_again_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(final, "outputs_of", refuse)
    averaged = dataclasses.replace(tiny.resumable, final_weights="best")
    train(averaged, tmp_path / "averaged")
    metrics = json.loads((tmp_path / "averaged/evaluation.json").read_text())["metrics"]
    assert metrics == json.loads((tmp_path / "averaged/final/metrics.json").read_text())


@pytest.mark.slow
def test_a_run_that_was_evaluated_by_an_earlier_start_is_evaluated_once(finished: Path, copy: Path) -> None:
    """As after a kill between the last checkpoint and the end."""
    before = (copy / "evaluation.json").read_text()
    shutil.rmtree(copy / "final")
    for name in (FILE, "evaluation.json", "evaluation.parquet"):
        (copy / name).unlink()
    train(tiny.recipe, copy)
    assert (copy / "evaluation.json").read_text() == before
    assert set(sections_of(parsed(copy))) == {*SECTIONS, *OF_CLASSES}


@pytest.mark.long
def test_two_processes_end_with_one_report_also_where_they_must_evaluate(tmp_path: Path) -> None:
    path = f"{ROOT}:{SUPPORT}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "launcher"]
    command += [str(SUPPORT / "tiny.py"), "--workers", "0", "--run-dir", "run"]
    records = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report   run/report.html") == 1
        records.append(json.loads((tmp_path / "run/evaluation.json").read_text()))
        assert "2 processes" in parsed(tmp_path / "run").text
        shutil.rmtree(tmp_path / "run/final")
    assert records[0] == records[1]
    assert records[0]["processes"] == 2


@pytest.mark.slow
def test_what_fails_in_drawing_fails_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no more\nink")

    monkeypatch.setattr(end_of_run, "write_report", broken)
    train(report_runs.short, tmp_path / "run")
    log = (tmp_path / "run/log.txt").read_text()
    again = f"to try again: python -m launcher report {tmp_path}/run --recipe tiny.py"
    assert f"no report (ValueError: no more ink); {again}\n" in log
    assert (tmp_path / "run/final/metrics.json").is_file()
    assert (tmp_path / "run/evaluation.json").is_file()


@pytest.mark.slow
def test_a_run_without_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main([str(SUPPORT / "tiny.py"), "--workers", "0", "--no-report", "--run-dir", "run"]) == 0
    assert not {FILE, "evaluation.json", "evaluation.parquet"} & {path.name for path in (tmp_path / "run").iterdir()}
    assert capsys.readouterr().out.rstrip().endswith(f"python -m launcher report run --recipe {SUPPORT}/tiny.py")
    # ... until it is asked for, with all that it would have had.
    assert main(["report", *TINY, "run", "--workers", "0"]) == 0
    assert capsys.readouterr().out.startswith("written to run/report.html (")
    page = parsed(tmp_path / "run")
    assert set(sections_of(page)) == {*SECTIONS, *OF_CLASSES}
    assert page.of("img")


@pytest.mark.slow
def test_the_wildest_names_are_text(hostile: Path) -> None:
    page = parsed(hostile)
    assert len(page.scripts) == 2  # ours, and the data of the cells
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert {image["src"][:16] for image in page.of("img")} == {"data:image/webp;"}
    for name in HOSTILE_CLASSES:
        assert name in page.text
    file = report_runs.HOSTILE_FILE.replace("/", "∕").partition("{n}")[0]
    assert file in page.text
    assert "49" not in page.text.partition("汉字 🐜 ")[2][:12]
    shown = json.loads(page.scripts[0])
    assert any(file in image[0] for image in shown["images"].values())
    assert {
        cell["title"].partition(" taken for ")[0].partition(", right")[0] for cell in shown["cells"].values()
    } <= set(HOSTILE_CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "own", "says"),
    [
        (report_runs.of_labels, {"classes"}, ["Labels and thresholds", "with 0.5 for all", "mean average precision"]),
        (
            report_runs.of_values,
            {"residuals"},
            ["Largest of period", "Half of the predictions of phase", "mean absolute"],
        ),
        (report_runs.of_a_task_of_ones_own, set(), ["Largest losses", "score on 31 validation images"]),
    ],
    ids=["labels", "values", "own"],
)
def test_other_tasks_have_reports_of_their_own(tmp_path: Path, recipe: Any, own: set[str], says: list[str]) -> None:
    train(recipe, tmp_path / "run")
    page = parsed(tmp_path / "run")
    assert set(sections_of(page)) == {*SECTIONS, *own}
    assert [words for words in says if words not in page.text] == []
    assert page.of("img")
    assert "nan" not in " ".join(value for _, attributes in page.elements for value in attributes.values())


@pytest.mark.slow
def test_several_runs_are_compared(finished: Path, hostile: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(dataclasses.replace(tiny.recipe, batch_size=16), other)
    write_report([read_facts(path) for path in (finished, other, hostile)], tmp_path / "all.html")
    page = Parsed((tmp_path / "all.html").read_text())
    assert sections_of(page)[0] == "side_by_side"
    assert len(page.of("details")) >= 3
    assert "batch_size" in page.text
    first, second = (read_facts(path).samples for path in (finished, other))
    assert first is not None
    assert second is not None
    ours, theirs = first.targets == first.predictions, second.targets == second.predictions
    counts = [int(n.sum()) for n in (ours & theirs, ours & ~theirs, ~ours & theirs, ~ours & ~theirs)]
    # The run on other images is not set against the first one.
    assert re.findall(r"both wrong\s*p\s*other" + r"\s*(\d+)" * 4, page.text) == [tuple(map(str, counts))]


def test_how_likely_a_difference_is() -> None:
    from scipy.stats import binomtest

    for one, other in ((6, 12), (0, 5), (40, 41), (3, 3)):
        expected = binomtest(min(one, other), one + other).pvalue
        assert float(_sign_test(one, other)) == pytest.approx(expected, rel=2e-3)
    assert _sign_test(0, 0) == "1"
    assert float(_sign_test(700, 800)) == pytest.approx(binomtest(700, 1500).pvalue, rel=0.02)


def made_again(run_dir: Path) -> Parsed:
    """What `report` makes of a run."""
    launch = Launch(num_workers=0, world=World(use_cpu=True, num_cpus=1))
    facts = refresh.facts_again([run_dir], launch, report=lambda _: None, own=types_in(tiny.recipe))
    write_report(facts, run_dir / FILE)
    return parsed(run_dir)


@pytest.mark.slow
def test_data_that_have_moved_leave_a_report_without_pictures(hostile: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(hostile, run_dir)
    recipe = json.loads((run_dir / "recipe.json").read_text())
    recipe["data"]["root"] = str(tmp_path / "gone")
    (run_dir / "recipe.json").write_text(json.dumps(recipe))
    page = made_again(run_dir)
    assert page.of("img") == []
    assert re.search(rf"Without pictures: data\.root.*{tmp_path}/gone", page.text)
    assert set(sections_of(page)) == {*SECTIONS, *OF_CLASSES}
    # Nor can it be evaluated then: what is known of the training is still shown.
    (run_dir / "evaluation.parquet").unlink()
    (run_dir / "evaluation.json").unlink()
    page = made_again(run_dir)
    assert "The run could not be evaluated: " in page.text
    assert set(sections_of(page)) == set(SECTIONS) - {"gallery"}


@pytest.mark.slow
def test_a_picture_that_is_gone_is_reported(hostile: Path, tmp_path: Path) -> None:
    class Gone:
        def __len__(self) -> int:
            return 3

        def name(self, index: int) -> str:
            return f"picture {index}"

        def read(self, index: int) -> PIL.Image.Image:
            raise OSError("moved")

    samples = read_facts(hostile).samples
    assert samples is not None
    found = Thumbnails(Gone(), dataclasses.replace(samples, exact=["picture 2", "picture 0", "other"]))
    assert [found.of(i) for i in range(3)] == [None] * 3
    assert found.unread == ["picture 2", "picture 0", "other"]


@pytest.mark.slow
def test_pictures_are_found_by_name_where_others_were_left_out(finished: Path) -> None:
    samples = read_facts(finished).samples
    source = tiny.Stripes(31, 1)
    assert samples is not None
    moved = dataclasses.replace(samples, exact=[source.name(index + 4) for index in range(5)])
    picture = Thumbnails(source, moved).of(1)
    assert picture is not None
    assert picture == small(source, 5)
    assert picture.is_small  # 16 pixels: kept without loss


@pytest.mark.slow
def test_few_pictures_and_small_ones(monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    source = report_runs.Noise(100, 10)
    picture = small(source, 0)
    assert (picture.width, picture.height) == (144, 115)
    assert len(picture.uri) < 25_000
    samples = read_facts(finished).samples
    assert samples is not None
    monkeypatch.setattr(thumbnails, "MOST_BYTES", 40_000)
    found = Thumbnails(source, dataclasses.replace(samples, exact=[source.name(index) for index in range(31)]))
    made = [found.of(index) for index in range(31)]
    assert 1 < sum(picture is not None for picture in made) < 31
    assert found.left_out == {index for index, picture in enumerate(made) if picture is None}


@pytest.mark.slow
def test_a_report_says_how_many_pictures_are_left_out(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    monkeypatch.setattr(thumbnails, "MOST_BYTES", 1000)
    facts = read_facts(copy, tiny.recipe.data.build("class", 0))
    write_report([facts], copy / FILE)
    assert len(facts.thumbnails.left_out) > 1
    assert f"{len(facts.thumbnails.left_out)} pictures are left out" in parsed(copy).text


def test_sizes_are_read_without_decoding() -> None:
    class Header:
        """The beginning of a file alone: enough for its size, too little for its pixels."""

        def __len__(self) -> int:
            return 1

        def name(self, index: int) -> str:
            return "header"

        def read(self, index: int) -> PIL.Image.Image:
            raise AssertionError("decoded")

        def encoded(self, index: int) -> bytes:
            import io

            stream = io.BytesIO()
            report_runs.Noise(1, 1).read(0).save(stream, "JPEG")
            return stream.getvalue()[:1000]

    assert size_of(Header(), 0) == (200, 160)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "right"), [(10, 0.8), (60, 0.5)])
def test_ten_thousand_images_make_a_small_file(copy: Path, classes: int, right: float) -> None:
    facts = report_runs.large(copy, 10_000, classes, right)
    write_report([facts], copy / FILE)
    assert 100_000 < (copy / FILE).stat().st_size < 10_000_000
    page = parsed(copy)
    wrong = int((facts.samples.targets != facts.samples.predictions).sum()) if facts.samples else 0
    assert f"24 of {wrong:,} mistakes" in page.text
    shown = json.loads(page.scripts[0])
    assert len(shown["images"]) <= 360
    assert (len(shown["cells"]) > 24) == (classes == 10)  # the whole matrix, or the pairs that are confused most
    assert ("Confusion matrix" in str(page.of("table"))) == (classes == 10)
    if classes == 10:
        assert all(len(cell["images"]) < cell["total"] for cell in shown["cells"].values())


@pytest.mark.slow
def test_a_run_is_evaluated_again_only_where_its_weights_are_newer(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    asked: list[Path] = []
    original = refresh.evaluate  # type: ignore[attr-defined]

    def counted(finished: FinishedRun, *words: Any, **named: Any) -> Any:
        asked.append(finished.rundir.path)
        return original(finished, *words, **named)

    monkeypatch.setattr(refresh, "evaluate", counted)
    assert made_again(copy).of("img")
    assert asked == []
    # Weights that have been replaced since.
    weights = load_file(copy / "final/model.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, copy / "final/model.safetensors")
    now = time.time() + 1
    os.utime(copy / "final/model.safetensors", (now, now))
    before = (copy / "evaluation.json").read_text()
    made_again(copy)
    assert asked == [copy]
    assert (copy / "evaluation.json").read_text() != before


@pytest.mark.slow
def test_mistakes_are_reported_at_once(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path) -> None:
    here = str(finished)
    for words, wanted in (
        ([str(tmp_path / "none")], [f"{tmp_path}/none: no such run dir"]),
        ([str(tmp_path)], [f"{tmp_path}: no run dir (it has no recipe.json)"]),
        (
            [here, here],
            [
                "2 runs: where should their report go? Give --to FILE, --to comparison.html",
                f"{here}: given more than once",
            ],
        ),
        ([here, "--to", str(tmp_path)], [f"--to {tmp_path}: is a folder; give a file, {tmp_path}/report.html"]),
        ([here, "--to", "no/x.html"], ["--to no/x.html: there is no folder no; make it first"]),
    ):
        assert main(["report", *TINY, *words]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert [line for line in output.err.splitlines() if not line.startswith("running")] == [
            f"error: {line}" for line in wanted
        ]


def test_frozen_weights_are_proved_to_have_stood_still(finished: Path, copy: Path) -> None:
    rows = [json.loads(line) for line in (finished / "proofs.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["when"] for row in rows[:3]] == ["begins", "checkpoint", "checkpoint"]
    assert len({row["digest"] for row in rows if row["number"] == 0}) == 1
    assert rows[0]["tensors"] > rows[3]["tensors"] > 0  # the running statistics stand still in both
    assert "14 tensors that must stand still, hashed at the beginning and at 2 checkpoints: not one bit moved" in (
        parsed(finished).text
    )
    rows[2]["digest"] = "0" * 32
    (copy / "proofs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([read_facts(copy)], copy / FILE)
    assert "14 tensors that must stand still: the hashes of 2 checkpoints are not all the same" in parsed(copy).text


def test_files_that_are_missing_or_broken_leave_a_report(copy: Path) -> None:
    for name in ("plan.json", "proofs.jsonl", "timing.jsonl", "cache.json", "environment.json"):
        (copy / name).unlink()
    (copy / "metrics.jsonl").write_text("{")
    (copy / "evaluation.json").write_text("")
    (copy / "evaluation.parquet").write_bytes(b"PAR1")
    write_report([read_facts(copy)], copy / FILE)
    page = parsed(copy)
    assert set(sections_of(page)) == {"summary", "data", "environment"}
    assert "evaluation.parquet cannot be read" in page.text


def test_ticks_are_round_and_tell_values_apart() -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    for _ in range(500):
        low = float(draw.normal(0, 10 ** draw.uniform(-4, 4)))
        high = low + float(10 ** draw.uniform(-4, 5))
        found = ticks(low, high, 4)
        values = [value for value, _ in found]
        assert 2 <= len(found) <= 6, (low, high, found)
        assert values == sorted(values)
        assert low - 1e-6 * (high - low) <= values[0] <= values[-1] <= high + 1e-6 * (high - low)
        assert len({label for _, label in found}) == len(found), (low, high, found)


def test_numbers_as_people_write_them() -> None:
    assert [number(value) for value in (0, 0.00012345, 0.5, 12.3456, 1234.5, 1e7, -3.14159)] == [
        "0",
        "0.000123",
        "0.5000",
        "12.35",
        "1,234",
        "1.00e+07",
        "-3.142",
    ]


def test_names_that_tell_runs_and_files_apart() -> None:
    assert titles_of([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert titles_of([Path("/a/x"), Path("/b/x")]) == ["a/x", "b/x"]
    assert common_folder(["pets/val/cat/1.jpg", "pets/val/dog/1.jpg"]) == "pets/val/"
    assert common_folder(["digits/1", "digits/12"]) == "digits/"
    assert common_folder(["one"]) == ""


PROBE_THEN_FULL = ("probe", "probe", "full", "full")


@pytest.mark.parametrize(
    ("accuracies", "losses", "sentence"),
    [
        # The probe is the best, by the metric.
        ((0.9, 0.95, 0.9, 0.93), (1, 1, 1, 1), "one of probe (accuracy 95.0 %); what was trained after it came to 93."),
        # Equal accuracies: the loss tells, for the later phase or for the earlier one.
        ((0.9, 1.0, 1.0, 1.0), (1, 0.4, 0.2, 0.3), None),
        ((0.9, 1.0, 1.0, 1.0), (1, 0.1, 0.2, 0.3), "one of probe; full reached the same accuracy with a higher loss"),
        ((0.9, 1.0, 1.0, 1.0), (1, 0.4, 0.3, 0.2), None),  # the last is the best by its loss alone
        ((0.7, 0.8, 0.85, 0.9), (1, 0.4, 0.3, 0.2), "The best epoch is the last one: longer training may help."),
        ((0.7, float("nan"), float("nan"), float("nan")), (1, 1, 1, 1), None),
    ],
)
@pytest.mark.parametrize("kept", [1, 4])
def test_what_is_said_of_the_best_epoch_follows_from_the_values(
    finished: Path, accuracies: tuple[float, ...], losses: tuple[float, ...], sentence: str | None, kept: int
) -> None:
    """Whichever epoch `final/` holds: with final_weights="last" the last one is no best one."""
    facts = read_facts(finished)
    epochs = tuple(
        Epoch(i + 1, int(i > 1), PROBE_THEN_FULL[i], i % 2 + 1, 3 * (i + 1), 0.5, {"accuracy": a, "loss": loss}, False)
        for i, (a, loss) in enumerate(zip(accuracies, losses, strict=True))
    )
    facts = dataclasses.replace(facts, epochs=epochs, model=facts.model | {"step": 3 * kept})
    said = summary._of_the_best_epoch(facts)
    assert (said is None) if sentence is None else (said is not None and sentence in said)
