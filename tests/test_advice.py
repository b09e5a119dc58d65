"""Commands that messages print: they name commands and options that there are, and those of a run do what they say."""

from __future__ import annotations

import ast
import dataclasses
import html
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import typer.main

from commands import ROOT, SUPPORT, RunCli, run_python
from launcher.cli.app import app

pytestmark = pytest.mark.slow

SOURCES = sorted((ROOT / "launcher").rglob("*.py"))
HOLE = "\N{REPLACEMENT CHARACTER}"
"""Stands for what an f-string puts in."""


def texts_of(tree: ast.AST) -> Iterator[str]:
    """All string constants and f-strings but docstrings."""
    docstrings = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in node.values}
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else HOLE for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            yield node.value


def commands_in_sources() -> Iterator[tuple[str, list[str]]]:
    for file in SOURCES:
        for text in texts_of(ast.parse(file.read_text())):
            for rest in re.findall(r"python -m launcher ([^;,()\n]+)", text):
                yield f"{file.relative_to(ROOT)}: {rest}", rest.split()


def test_commands_and_options_that_messages_name_are_there() -> None:
    group: Any = typer.main.get_command(app)
    found = list(commands_in_sources())
    assert len(found) > 10
    wrong = []
    for where, words in found:
        name = words[0].strip("'`.:")
        if not name.isalpha() or not name.islower():
            continue  # a recipe, or a hole that tests of whole messages fill
        if name not in group.commands:
            if name not in ("for",):  # "start one python -m launcher for each GPU"
                wrong.append(f"{where}: no command {name!r}")
            continue
        known = {option for one in group.commands[name].params for option in (*one.opts, *one.secondary_opts)}
        wrong += [
            f"{where}: {name} has no {word}"
            for word in (word.partition("=")[0].rstrip(".:'`") for word in words[1:])
            if word.startswith("--") and word not in known
        ]
    assert wrong == []


RECIPE = """
import dataclasses
from launcher import Recipe, backbones, data, heads, optim, phases, tasks
import tiny

recipe = Recipe(
    backbone=backbones.Torchvision(name="squeezenet1_1", weights=None, image_size=32),
    head=heads.Linear(),
    task=tasks.Classification(),
    data=data.ImageFolder(root="photos"),
    freeze_plan=phases.full_finetune(epochs=1),
    optim=optim.SGD(lr=0.1),
    batch_size=8,
)
wide = dataclasses.replace(recipe, backbone=tiny.TinyBackbone(width=4))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place of a user")
    draw = np.random.default_rng(0)
    for root in ("photos", "other photos"):
        for split, count in (("train", 6), ("val", 3), ("test", 2)):
            for level, label in ((60, "dark"), (190, "bright")):
                inner = folder / root / split / label
                inner.mkdir(parents=True)
                for number in range(count):
                    pixels = np.clip(draw.normal(level, 40, (24, 24, 3)), 0, 255).astype(np.uint8)
                    PIL.Image.fromarray(pixels).save(inner / f"{number}.png")
    shutil.copy(SUPPORT / "tiny.py", folder)
    (folder / "own.py").write_text(RECIPE)
    return folder


def commands_in(text: str) -> list[str]:
    """Whole commands, as they are printed: to the end of a line or a semicolon."""
    return re.findall(r"((?:python|accelerate launch|torchrun)\b[^;\n]*?-m launcher [^;\n]+)", text)


def test_every_command_that_a_run_prints_works(place: Path, run_cli: RunCli) -> None:
    """With overrides, a recipe's variable, an option, parts of the user's own, and a path that a shell must quote."""
    words = ["own.py:wide", "data.root=other photos", "optim.lr=0.05", "--workers", "0", "--run-dir", "runs/the first"]
    done = run_cli(*words, cwd=place)
    assert done.code == 0, done.err
    page = html.unescape((place / "runs/the first/report.html").read_text())
    printed = list(dict.fromkeys(commands_in(done.out) + re.findall(r"(python -m launcher own\.py[^<\n]+)", page)))
    kinds = {
        next((k for k in ("longer", "again", "predict", "evaluate", "report") if k in line), line): line
        for line in printed
    }
    assert {"longer", "again", "predict", "evaluate", "report"} <= set(kinds), printed

    before = json.loads((place / "runs/the first/recipe.json").read_text())
    for kind, line in kinds.items():
        line = line.replace(" IMAGES", " 'other photos/val/dark'").replace(" FOLDER", " 'photos/val'")
        line = line.replace(" OTHER_RUN", " 'runs/the first-again'" if kind == "report" else " OTHER_RUN")
        kinds[kind] = shlex.split(line)
        assert kinds[kind][0] == "python"
    for kind in ("again", "longer", "predict", "evaluate", "report"):
        ran = run_python(*kinds[kind][1:], cwd=place)
        assert ran.code == 0, (kind, kinds[kind], ran.out[-2000:], ran.err[-2000:])
    again = json.loads((place / "runs/the first-again/recipe.json").read_text())
    longer = json.loads((place / "runs/the first-longer/recipe.json").read_text())
    assert again == before
    assert longer["freeze_plan"][0]["epochs"] == 2
    longer["freeze_plan"][0]["epochs"] = 1
    assert longer == before, "the overrides, the variable and the data are those of the run"
    assert (place / "comparison.html").is_file()
    assert (place / "runs/the first/evaluation-test.json").is_file(), "the data have a test folder"


@dataclasses.dataclass(frozen=True)
class Advised:
    """A command whose message advises another one, which leaves a file, or lets the first one pass."""

    words: str
    advice: str
    """The advised command, where `RUN_DIR` and the like stand for what the user knows."""
    leaves: str | None = None
    then_passes: str | None = None


FINISHED = "'runs/one more'"
ADVISED = {
    "launcher/training/setup.py: report": Advised(
        f"own.py --workers 0 --run-dir {FINISHED}", f"report {FINISHED}", leaves="runs/one more/report.html"
    ),
    "launcher/inference/predict.py: evaluate": Advised(
        f"predict {FINISHED} photos/val/dark", f"evaluate {FINISHED}", leaves="runs/one more/final/calibration.json"
    ),
    "launcher/export/summary.py: evaluate": Advised(
        f"export {FINISHED} --to onnx --probabilities --out m.onnx",
        f"evaluate {FINISHED}",
        leaves="runs/one more/final/calibration.json",
    ),
    "launcher/data/folder.py: predict": Advised(
        f"evaluate {FINISHED} --data photos/val/dark --workers 0", "predict RUN_DIR FOLDER"
    ),
    "launcher/inference/labelled_data.py: evaluate": Advised(
        "plan own.py", "evaluate RUN_DIR --split test", leaves="runs/one more/evaluation-test.json"
    ),
    "launcher/data/prepared.py: prepare": Advised(
        "plan own.py --prepared copy", "prepare RECIPE --to DIR", then_passes="plan own.py --prepared copy"
    ),
    "launcher/recipe/location.py: init": Advised("plan photos", "init photos", leaves="recipe.py"),
    "launcher/assets/bundle.py: fetch": Advised(
        "plan own.py --assets fetched", "fetch RECIPE --to DIR", then_passes="plan own.py --assets fetched"
    ),
}
ELSEWHERE = {
    "launcher/assets/timm_hub.py: fetch": "assets/test_fetch.py",
    "launcher/assets/torch_hub.py: fetch": "assets/test_fetch.py",
    "launcher/data/hub.py: fetch": "assets/test_fetch.py",
    "launcher/cli/submit.py: status": "slurm/test_jobs.py",
    "launcher/cli/submit.py: logs": "slurm/test_jobs.py",
    "launcher/cli/submit.py: cancel": "slurm/test_jobs.py",
    "launcher/report/end_of_run.py: report": "report/test_report.py",
    "launcher/cluster/processes.py: for": "cluster/test_processes.py",
    "launcher/cli/sweep.py: sweep": "tuning/test_sweep_study.py",
}
"""Advice for surroundings that these tests set up: no network, Slurm, several processes."""


def test_every_command_that_a_message_names_is_tried() -> None:
    named = {f"{where.partition(': ')[0]}: {words[0].strip(chr(39))}" for where, words in commands_in_sources()}
    named = {one for one in named if one.rpartition(": ")[2].isalpha() and one.islower()}
    assert named == {*ADVISED, *ELSEWHERE}
    assert all((ROOT / "tests" / file).is_file() for file in ELSEWHERE.values())


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A run that has ended, without what follows the end of training."""
    run_dir = place / "runs/one"
    words = ["own.py", "--workers", "0", "--no-report", "--run-dir", str(run_dir)]
    assert run_python("-m", "launcher", *words, cwd=place).code == 0
    shutil.rmtree(run_dir / "checkpoints")  # without which a start cannot do what is left
    return run_dir


ONE_BY_ONE = """
import shlex, sys
from launcher.cli import main
for words in sys.argv[1:]:
    print("code", main(shlex.split(words)))
"""


@pytest.mark.parametrize("where", ADVISED)
def test_advice_is_taken(where: str, place: Path, finished: Path) -> None:
    shutil.rmtree(place / "runs/one more", ignore_errors=True)
    shutil.copytree(finished, place / "runs/one more")
    advised = ADVISED[where]
    words = advised.advice
    for hole, known in (("RUN_DIR", FINISHED), ("RECIPE", "own.py"), ("FOLDER", "photos/val")):
        words = re.sub(rf"\b{hole}\b", known, words)
    words = words.replace(" DIR", f" {shlex.split(advised.words)[-1]}")
    if advised.leaves:
        assert not (place / advised.leaves).exists()
    done = run_python("-c", ONE_BY_ONE, advised.words, words, *filter(None, [advised.then_passes]), cwd=place)
    reported = " ".join(f"{done.out} {done.err}".split())
    assert f"python -m launcher {advised.advice}" in reported, reported
    first, *then = map(int, re.findall(r"^code (\d)$", done.out, re.MULTILINE))
    assert then == [0] * (1 + bool(advised.then_passes)), reported
    if advised.leaves:
        assert (place / advised.leaves).is_file()
    if advised.then_passes:
        assert first == 2
