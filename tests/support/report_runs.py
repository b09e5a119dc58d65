"""Runs that end with a report, in seconds, for the tests of reports."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import tiny
from launcher import Recipe, Split, Splits, data, phases, tasks
from launcher.inference.evaluation import Subject, judged, write
from launcher.inference.finished_run import read_finished
from launcher.recipe.built_tasks import BuiltClassification
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.type_names import types_in
from launcher.report.end_of_run import end
from launcher.report.facts import Facts, read_facts
from launcher.training import loop
from launcher.training.launch import Launch, World

HOSTILE_CLASSES = ("<script>alert(1)<", "\"quotes' & <b>", "汉字 🐜 {{ 7*7 }}")
"""Names that are folders: they cannot hold a slash."""
HOSTILE_FILE = "</script><img src=x onerror=alert(2)> 蜜蜂 🐝 \"'&{n}.png"


def train(recipe: Recipe, run_dir: Path, *, left: loop.Left = lambda _: [], **launch: Any) -> None:
    """As the command does, in this process."""
    loaded = LoadedRecipe(recipe, "recipe", Path(tiny.__file__))
    world = World(use_cpu=True, num_cpus=1)
    options: dict[str, Any] = {
        "num_workers": 0,
        "evaluate_final": True,
        "command": ("tiny.py", "--workers", "0"),
    } | launch
    loop.run(
        loaded,
        Launch(run_dir=run_dir, world=world, **options),
        lambda run, outputs: end(run, outputs, "tiny.py"),
        left,
    )


def hostile_folder(root: Path, of_each: int = 12) -> Path:
    """Pictures whose class is their colour, near enough for some mistakes, in folders and files with wild names."""
    draw = np.random.Generator(np.random.PCG64(0))
    for split in ("train", "val"):
        for place, name in enumerate(HOSTILE_CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(of_each):
                level = draw.normal(60 + 60 * place, 40, (20, 30, 3))
                file = folder / HOSTILE_FILE.replace("{n}", str(number)).replace("/", "∕")
                PIL.Image.fromarray(np.clip(level, 0, 255).astype(np.uint8)).save(file)
    return root


def of_hostile_names(root: Path) -> Recipe:
    return dataclasses.replace(tiny.recipe, data=data.ImageFolder(root=str(root)), batch_size=12)


short = dataclasses.replace(tiny.recipe, freeze_plan=phases.full_finetune(epochs=2))
of_labels = dataclasses.replace(short, task=tasks.MultiLabel())
of_values = dataclasses.replace(short, task=tasks.Regression())


class BuiltOwn(BuiltClassification):
    """Outputs that only its author can read."""

    monitor = "score"

    def metrics(self, outputs: Any, targets: Any) -> dict[str, float]:
        found = super().metrics(outputs, targets)
        return {"score": found["accuracy"] / 2, "loss": found["loss"]}

    def describe(self) -> dict[str, Any]:
        return {"kind": "of my own"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTask:
    target_kind: Any = "class"

    def build(self, splits: Splits) -> BuiltOwn:
        return BuiltOwn(splits)


of_a_task_of_ones_own = dataclasses.replace(short, task=OwnTask())


@dataclasses.dataclass(frozen=True)
class Noise:
    """Pictures that compress badly, made as they are read."""

    count: int
    classes: int

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> PIL.Image.Image:
        draw = np.random.Generator(np.random.PCG64(index))
        return PIL.Image.fromarray(draw.integers(0, 256, (160, 200, 3), dtype=np.uint8))

    def name(self, index: int) -> str:
        return f"noise/{index % self.classes}/{index:06d}.png"


def large(run_dir: Path, samples: int, classes: int, right: float) -> Facts:
    """Make a finished run of the tiny recipe one that has predicted so many validation images, `right` of them well."""
    import torch

    names = tuple(f"class {index}" for index in range(classes))
    (run_dir / "final/classes.json").write_text(json.dumps(names))
    model = run_dir / "final/model.json"
    model.write_text(json.dumps(json.loads(model.read_text()) | {"num_outputs": classes}))
    draw = np.random.Generator(np.random.PCG64(0))
    targets = draw.integers(0, classes, samples)
    outputs = draw.normal(0, 1, (samples, classes)).astype(np.float32)
    chosen = np.where(draw.random(samples) < right, targets, draw.integers(0, classes, samples))
    outputs[np.arange(samples), chosen] += 6
    split = Split(Noise(samples, classes), targets.astype(np.int64))
    splits = Splits(split, split, names)
    task, subject = tiny.recipe.task.build(splits), Subject(split_name="val")
    finished = read_finished(run_dir, types_in(tiny.recipe))
    write(judged(finished, subject, split, names, task, torch.tensor(outputs), 1, "cpu"))
    return read_facts(run_dir, splits)


class Parsed(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.text += " " if tag in ("td", "th") else ""
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]
