"""`average`: greedy soups and interpolations, whose numbers must be those of the weights that are written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from commands import TINY, run_python
from launcher import data, optim, phases, tasks
from launcher.cli import main
from launcher.inference.soup import Ingredient, Judge, greedy_soup, mean_of
from report_runs import train

SHAKY = dataclasses.replace(
    tiny.recipe,
    freeze_plan=phases.linear_probe(epochs=8) + phases.full_finetune(epochs=2, backbone_lr_scale=1.0),
    optim=optim.SGD(lr=0.3),
    final_weights="last",
    cache="off",
)
"""It ends worse than it was."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    recipes = {
        "one": tiny.recipe,
        "two": dataclasses.replace(tiny.recipe, seed=1),
        "updating": dataclasses.replace(
            SHAKY, freeze_plan=phases.full_finetune(epochs=3, backbone_lr_scale=1.0, norm_statistics="update")
        ),
        "shaky": SHAKY,
    }
    for name, recipe in recipes.items():
        train(recipe, folder / name)
    return {name: folder / name for name in recipes}


def average(*words: str) -> int:
    return main(["average", *words, *TINY, "--workers", "0"])


def reported(to: Path) -> dict[str, Any]:
    return json.loads((to / "averaged.json").read_text())


def evaluated(run_dir: Path) -> dict[str, float]:
    assert main(["evaluate", str(run_dir), *TINY, "--workers", "0"]) == 0
    return json.loads((run_dir / "evaluation.json").read_text())["metrics"]


def final(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "final/model.safetensors")


@pytest.mark.slow
def test_the_way_from_the_head_alone(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """The end of the phase that trained the head is kept for it."""
    to = tmp_path / "averaged"
    assert average(str(runs["shaky"]), "--to", str(to), "--points", "4") == 0
    out = capsys.readouterr().err
    assert [line.split()[0] for line in out.splitlines() if " of the way from " in line] == ["0.25", "0.50", "0.75"]
    found = reported(to)
    assert found["tried"][0]["metrics"]["accuracy"] >= found["before"]["accuracy"]
    best = next(row for row in found["tried"] if row["name"] == found["best"])
    assert best["metrics"]["accuracy"] > found["before"]["accuracy"]
    assert evaluated(to) == pytest.approx(best["metrics"], abs=1e-6)
    assert json.loads((to / "final/metrics.json").read_text()) == best["metrics"]


@pytest.mark.slow
def test_several_runs(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    to = tmp_path / "soup"
    code = average(str(runs["two"]), str(runs["one"]), str(runs["shaky"]), "--to", str(to))  # the worst first
    assert code == 0, capsys.readouterr().err
    found = reported(to)
    assert len(found["tried"]) >= 3
    alone = {row["name"]: row["metrics"]["accuracy"] for row in found["tried"][:3]}
    for name in ("shaky", "one", "two"):
        metrics = json.loads((runs[name] / "final/metrics.json").read_text())
        assert alone[f"{runs[name]} final"] == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert evaluated(to) == pytest.approx(json.loads((to / "final/metrics.json").read_text()), abs=1e-6)
    if len(found["of"]) > 1:
        parts = [final(Path(name.removesuffix(" final"))) for name in found["of"]]
        for name, tensor in final(to).items():
            if tensor.is_floating_point():
                mean = torch.stack([part[name].double() for part in parts]).mean(dim=0)
                torch.testing.assert_close(tensor.double(), mean, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_statistics_are_computed_again(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """Where BatchNorm has seen other data; what is reported is of the network that is written."""
    to = tmp_path / "updating"
    assert average(str(runs["updating"]), "--to", str(to)) == 0
    assert "holds no weights of a head alone" in capsys.readouterr().err
    if to.exists():
        assert reported(to)["statistics_recomputed"] is True
        assert evaluated(to) == pytest.approx(json.loads((to / "final/metrics.json").read_text()), abs=1e-6)


def test_a_soup_takes_what_makes_it_no_worse() -> None:
    """A metric whose best is at 2.5: the mean of 1 and 4 is; that with 9 is not."""
    tried = [Ingredient(str(value), {"w": torch.tensor([float(value)])}) for value in (9, 1, 4)]
    judge = Judge(lambda weights: {"loss": abs(float(weights["w"]) - 2.5)}, "loss", "min")
    found = greedy_soup(tried, judge, lambda _: None)
    assert [candidate.name for candidate in found] == ["1", "4", "9", "soup of 2"]
    assert found[-1].metrics == {"loss": 0.0}
    assert found[-1].of == ("1", "4")


def test_of_equal_accuracies_the_lower_loss_decides() -> None:
    """As above, by a metric that is the same for all of them."""
    tried = [Ingredient(str(value), {"w": torch.tensor([float(value)])}) for value in (9, 1, 4)]
    judge = Judge(lambda weights: {"accuracy": 1.0, "loss": abs(float(weights["w"]) - 2.5)}, "accuracy", "max")
    reported: list[str] = []
    found = greedy_soup(tried, judge, reported.append)
    assert [candidate.name for candidate in found] == ["1", "4", "9", "soup of 2"]
    assert reported[-1].endswith("accuracy 1.0000, loss 2.1667, left out")


@pytest.mark.slow
def test_an_average_of_equal_accuracy_and_lower_loss_is_better_than_final(tmp_path: Path) -> None:
    """The one validation image is told right by both runs, and by their mean."""
    to, recipe = tmp_path / "averaged", dataclasses.replace(SHAKY, data=tiny.StripeData(val=1))
    train(dataclasses.replace(recipe, freeze_plan=recipe.freeze_plan[:1]), tmp_path / "less")
    train(recipe, tmp_path / "more")
    assert average(str(tmp_path / "less"), str(tmp_path / "more"), "--to", str(to)) == 0
    found = reported(to)
    assert {row["metrics"]["accuracy"] for row in found["tried"]} == {found["before"]["accuracy"]} == {1.0}
    best = min(found["tried"], key=lambda row: row["metrics"]["loss"])
    assert found["best"] == best["name"]
    assert best["metrics"]["loss"] < found["before"]["loss"]


def test_means() -> None:
    parts = [{"w": torch.tensor([value]), "n": torch.tensor(count)} for value, count in ((1.0, 3), (5.0, 9))]
    assert mean_of(parts, [0.75, 0.25]) == {"w": torch.tensor([2.0]), "n": torch.tensor(3)}


@pytest.mark.slow
def test_a_full_disk_is_reported_and_nothing_is_left(runs: dict[str, Path], full_disk: Path, capsys: Any) -> None:
    to = full_disk / "average"
    assert average(str(runs["one"]), "--to", str(to)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert line == f"error: --to {to}: cannot be written (No space left on device)"
    assert list(full_disk.iterdir()) == []


@pytest.mark.slow
def test_mistakes(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    assert average(str(tmp_path / "nothing"), str(runs["one"]), "--to", str(runs["one"])) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"error: {tmp_path / 'nothing'}: no such run dir",
        f"error: --to {runs['one']}: is there already; give another folder, or --overwrite",
        f"error: --to {runs['one']}: is one of the runs; give another folder",
    ]
    (tmp_path / "mine").mkdir()
    assert average(str(runs["one"]), "--to", str(tmp_path / "mine"), "--overwrite") == 2
    assert "is no average, and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "mine").is_dir()
    train(dataclasses.replace(tiny.recipe, backbone=tiny.TinyBackbone(width=4)), tmp_path / "narrow")
    capsys.readouterr()
    assert average(str(runs["one"]), str(tmp_path / "narrow"), "--to", str(tmp_path / "new")) == 2
    assert "another network than" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def striped(folder: Path) -> str:
    """Return a CSV file of 24 pictures with the direction and the period of their stripes."""
    rows = ["path,direction,period"]
    for index in range(24):
        tiny.picture(tiny.Stripes(24, 0), index).save(folder / f"{index}.png")
        direction, period, _ = tiny.Stripes(24, 0).parameters(index)
        rows.append(f"{index}.png,{direction},{period}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    return str(folder / "rows.csv")


@pytest.mark.slow
def test_a_run_that_trained_on_the_judge_is_refused(tmp_path: Path, capsys: Any) -> None:
    """The fraction that is set aside goes by the seed: another seed's run has learned what the first is judged by."""
    table = data.CsvImages(path=striped(tmp_path), label_column="direction")
    recipe = dataclasses.replace(tiny.recipe, data=table, batch_size=8)
    for seed in (0, 1):
        train(dataclasses.replace(recipe, seed=seed), tmp_path / f"seed {seed}")
    capsys.readouterr()
    assert average(str(tmp_path / "seed 0"), str(tmp_path / "seed 1"), "--to", str(tmp_path / "soup")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"error: {tmp_path}/seed 1: was trained on [1-6] of the images that {tmp_path}/seed 0 was validated on "
        r"\(6 in all\), which would judge it; average runs of the same split \(the same seed\)",
        line,
    )
    assert not (tmp_path / "soup").exists()


@pytest.mark.slow
def test_runs_in_other_units_are_refused(tmp_path: Path, capsys: Any) -> None:
    file = Path(striped(tmp_path))
    for name, unit in (("whole", 1), ("thousandths", 1000)):
        header, *rows = (line.split(",") for line in file.read_text().splitlines())
        scaled = [",".join([path, direction, str(unit * float(period))]) for path, direction, period in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join([",".join(header), *scaled]) + "\n")
        table = data.CsvImages(path=str(tmp_path / f"{name}.csv"), label_column="period")
        train(dataclasses.replace(tiny.recipe, data=table, task=tasks.Regression(), batch_size=8), tmp_path / name)
    capsys.readouterr()
    assert average(str(tmp_path / "whole"), str(tmp_path / "thousandths"), "--to", str(tmp_path / "soup")) == 2
    assert f"{tmp_path}/thousandths: its outputs are in other units than those of" in capsys.readouterr().err


@pytest.mark.long
def test_an_average_that_is_killed_while_it_replaces_another(runs: dict[str, Path], tmp_path: Path) -> None:
    """At each of its renames and removals: the same command then ends with one, and nothing else."""
    to, words = tmp_path / "averaged", (str(runs["shaky"]), "--points", "2", "--overwrite", "--to")
    assert average(*words, str(to)) == 0
    before = (to / "averaged.json").read_text()
    killed = """
import os, shutil, signal, sys
from pathlib import Path
left = int(sys.argv.pop(1))
def strike(original):
    def called(*words, **named):
        global left
        if "averaged" in str(words[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(*words, **named)
    return called
Path.rename, shutil.rmtree = strike(Path.rename), strike(shutil.rmtree)
from launcher.cli import main
sys.exit(main(sys.argv[1:]))
"""
    command = ("average", *words, str(to), *TINY, "--workers", "0")
    codes = []
    for event in range(4):
        done = run_python("-c", killed, str(event), *command, cwd=tmp_path)
        codes.append(done.code)
        assert average(*words, str(to)) == 0
        assert (to / "averaged.json").read_text() == before
        assert [path.name for path in tmp_path.iterdir()] == ["averaged"]
    assert codes == [-9, -9, -9, 0]
