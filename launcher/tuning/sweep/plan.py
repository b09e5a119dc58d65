"""Subject of a study: recipe, what varies, and the metric that decides; written once, and the same for all workers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from launcher.assets.bundle import verify_assets
from launcher.errors import Problems, UserError
from launcher.files import refuse_endless, remove_drafts, write_new
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.overrides import apply_overrides
from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import differences, to_json
from launcher.training.best import mode_of
from launcher.tuning.sweep.space import Space, corners

FILE = "sweep.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Recipe with its fixed overrides, and the metric by which trials are judged."""

    loaded: LoadedRecipe
    spec: str
    """Recipe as the user named it."""
    space: Space
    metric: str
    mode: Literal["max", "min"]
    most_epochs: int
    """Largest number of epochs of any trial."""

    @property
    def seed(self) -> int:
        """Seed of the recipe."""
        return int(self.loaded.recipe.seed)


def open_plan(folder: Path, loaded: LoadedRecipe, spec: str, space: Space, report: Callable[[str], None]) -> SweepPlan:
    """Return the SweepPlan of the study in `folder`, which begins here if there is none yet.

    At the beginning, all that `plan` checks is checked for every choice and for the ends of every range. `loaded` has
    the fixed overrides already.

    Raises:
        UserError: The study is of something else, the folder cannot be one, or choices are wrong (all are named).
    """
    file = folder / FILE
    refuse_endless(folder)
    asked = {"recipe": to_json(loaded.recipe), "varied": dict(space.words)}
    if not file.exists():
        if folder.is_file() or (folder / "recipe.json").exists():
            what = "a file" if folder.is_file() else "the run dir of a single run"
            raise UserError(f"--study {folder}: is {what}; give a folder of its own")
        scope = ", with every choice and with the ends of every range" if space.dimensions else ""
        report(f"looking at the recipe{scope}")
        metric, mode = _examined(loaded.recipe, space)
        _write_once(file, json.dumps({**asked, "metric": metric, "mode": mode}, indent=1))
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        metric, mode = there["metric"], there["mode"]
        changes = differences(there["recipe"], asked["recipe"]) + _other_words(there["varied"], space)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); give another --study") from error
    if changes:
        raise UserError(
            f"--study {folder}: holds a sweep of something else ({'; '.join(changes[:6])}"
            f"{'; ...' if len(changes) > 6 else ''}); give another --study, or undo the change"
        )
    most = _most_epochs(loaded.recipe, space)
    return SweepPlan(loaded=loaded, spec=spec, space=space, metric=metric, mode=mode, most_epochs=most)


def _examined(recipe: Recipe, space: Space) -> tuple[str, Literal["max", "min"]]:
    """Return the metric that decides, and its direction.

    Raises:
        UserError: One of the choices is wrong; all problems are named.
    """
    import torch

    from launcher.training.preflight import examine

    problems = Problems()
    first: list[str] = []
    metric: tuple[str, Literal["max", "min"]] | None = None
    usual = corners(space)[0]
    for overrides in corners(space):
        varied = apply_overrides(recipe, overrides)
        verify_assets(varied, lambda _: None)
        findings = examine(varied, num_processes=1, micro_batch_size=None, on_cpu=not torch.cuda.is_available())
        choices = [word for word in overrides if word not in usual]
        # A problem that all of them have is reported once, without the choice.
        mine = [problem for problem in findings.problems.found if problem not in first]
        problems.found += [f"{' '.join(choices)}: {problem}" if choices else problem for problem in mine]
        first = first or list(findings.problems.found)
        if metric is None and findings.task is not None:
            name = varied.freeze_plan[-1].monitor or findings.task.monitor
            metric = name, mode_of(name, findings.task.monitor, findings.task.monitor_mode)
    problems.raise_if_any()
    assert metric is not None, "a recipe without problems has a task"
    return metric


def _most_epochs(recipe: Recipe, space: Space) -> int:
    plans = [apply_overrides(recipe, overrides).freeze_plan for overrides in corners(space)]
    return sum(max(plan[number].epochs for plan in plans) for number in range(len(recipe.freeze_plan)))


def _other_words(there: dict[str, Any], space: Space) -> list[str]:
    names = dict.fromkeys([*there, *space.words])
    return [
        f"{name}: {there.get(name, 'fixed')} there, {space.words.get(name, 'fixed')} now"
        for name in names
        if there.get(name) != space.words.get(name)
    ]


def _write_once(file: Path, text: str) -> None:
    """Write the file; of several workers that begin a study, the first one's is kept."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(file.parent, file.name)  # of workers that were killed
        write_new(file, text)
    except OSError as error:
        raise UserError(
            f"--study {file.parent}: cannot write there ({error.strerror}); choose a folder that is writable"
        ) from error
