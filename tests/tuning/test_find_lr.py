"""find-lr: what it suggests for curves whose answers are known, and that its steps are those of training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import tiny
from commands import SUPPORT, CliResult, run_python
from launcher import Recipe, heads, optim, phases, tasks
from launcher.cli import main
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.overrides import apply_overrides
from launcher.training.launch import Launch, World
from launcher.tuning.lr_finder.curve import as_svg, as_text
from launcher.tuning.lr_finder.range_test import Rates, range_test
from launcher.tuning.lr_finder.suggestions import Suggestions, rounded, slide, steepest, suggest, valley
from launcher.tuning.lr_finder.summary import lines_of, overrides, show
from launcher.tuning.lr_finder.trace import Average, Range, Trace, scales_of
from processes import alone, start

LRS = np.array(Range().lrs())


def trace(losses: Callable[[float], float], *, rates: Range | None = None, **more: Any) -> Trace:
    """A test that saw the loss of each rate's logarithm to base 10; not smoothed beforehand."""
    lrs = (rates or Range()).lrs()
    facts: dict[str, Any] = {"number": 0, "phase": "probe", "start": "recipe", "lr_scales": (1.0,), "least_loss": 0.0}
    facts |= {"steps": len(lrs), "diverged": True} | more
    return Trace(lrs=tuple(lrs), losses=tuple(losses(math.log10(lr)) for lr in lrs), **facts)


def fall_and_rise(log_lr: float) -> float:
    return 1.2 - math.tanh(3 * (log_lr + 3)) + (20 * (log_lr + 0.5) if log_lr > -0.5 else 0)


def test_rates_rise_by_the_same_factor() -> None:
    assert LRS[0] == 1e-6
    assert LRS[-1] == pytest.approx(10)
    assert np.diff(np.log(LRS)) == pytest.approx(np.log(1e7) / 99)


def test_the_average_has_no_bias_of_its_start() -> None:
    average = Average()
    assert average.add(5.0) == pytest.approx(5.0)
    assert average.add(1.0) == pytest.approx((0.98 * 5 + 1) / 1.98)


def test_steepest_is_where_the_loss_falls_fastest() -> None:
    found = steepest(LRS, np.array([-math.tanh(3 * (math.log10(lr) + 3)) for lr in LRS]))
    assert abs(math.log10(found) + 3) < 7 / 99


def test_valley_is_half_way_through_the_longest_fall() -> None:
    # 30 equal losses, 60 that fall, 10 that rise: the fall is 61 long and ends at 89; it would begin at 28.
    losses = np.concatenate([np.full(30, 9.0), 9 - np.arange(1, 61) / 10, 4 + np.arange(10)])
    assert valley(LRS, losses) == LRS[28 + 20 + 10]
    # Noise in the fall makes it shorter, and no more.
    losses[45] += 3
    assert valley(LRS, losses) == LRS[29 + 20 + 10]
    assert valley(LRS, np.arange(100.0)) == LRS[0]
    assert valley(LRS[:2], np.array([2.0, 1.0])) == LRS[0]


def test_the_longest_fall_is_that_of_its_definition() -> None:
    """Against all pairs, as fastai looks for it."""
    random = np.random.default_rng(0)
    for _ in range(30):
        losses = random.integers(0, 12, 40).astype(float)
        lengths = [1] * len(losses)
        for i in range(len(losses)):
            lengths[i] = 1 + max((lengths[j] for j in range(i) if losses[i] < losses[j]), default=0)
        length = max(lengths)
        first = lengths.index(length) - length
        assert valley(LRS[:40], losses) == LRS[max(0, first + int(length / 3) + int(length / 3 / 2))]


def test_slide_stops_where_the_slopes_at_the_ends_of_its_window_agree() -> None:
    # Flat up to 40, then ever steeper: the window's right end comes down to 40, where the slope is 0.25.
    losses = np.array([max(0, i - 40) ** 2 / 2 for i in range(60)])
    assert slide(LRS[:60], losses) == LRS[25]
    assert slide(LRS[:60], np.arange(60.0)) == LRS[44]  # as steep everywhere: it does not move
    assert slide(LRS[:15], losses[:15]) is None


def test_the_median_of_the_three_is_recommended() -> None:
    found = suggest(trace(fall_and_rise))
    assert None not in (found.steepest, found.valley, found.slide)
    middle = sorted(value for value in (found.steepest, found.valley, found.slide) if value is not None)[1]
    assert found.recommended == middle
    assert 1e-4 < middle < 1e-1
    assert not found.is_bound


def test_what_is_recommended_is_well_below_the_lowest_loss() -> None:
    """All the fall is just before the rise, and so are the three."""
    seen = trace(lambda log_lr: 5.0 if log_lr < -1.3 else -30.0 if log_lr < -1 else 500.0)
    found = suggest(seen)
    lowest = seen.lrs[int(np.argmin(seen.smoothed))]
    assert 0.05 < lowest < 0.1
    assert found.recommended == pytest.approx(lowest / 3)
    assert found.why == "a third of the rate of the lowest loss"


def test_a_loss_that_cannot_fall_gives_a_third_of_where_it_rises() -> None:
    """From a head that fits the training images already."""
    found = suggest(
        trace(lambda log_lr: 0.01 if log_lr < -3 else 10 ** (log_lr + 3), start="closed form", least_loss=0.15)
    )
    assert (found.steepest, found.valley, found.slide) == (None, None, None)
    assert found.recommended is not None
    assert 1e-3 / 3 <= found.recommended < 3e-3 / 3
    assert "does not fall" in found.why


@pytest.mark.parametrize(
    ("seen", "advice"),
    [
        (trace(lambda _: 1.0, diverged=False), "give a higher --to"),
        (trace(lambda log_lr: 10 ** (log_lr + 7)), "rises from the start (5.1e-06); give a lower --from"),
        (dataclasses.replace(trace(fall_and_rise), lrs=(0.5, 0.7), losses=(3.0, 40.0)), "at once (0.7); give a lower"),
        (dataclasses.replace(trace(fall_and_rise), lrs=(), losses=()), "at once (in the first step); give a lower"),
    ],
    ids=["flat", "rising", "at once", "nothing"],
)
def test_a_curve_that_tells_nothing_gives_advice(seen: Trace, advice: str) -> None:
    found = suggest(seen)
    assert found.recommended is None
    assert advice in found.why
    for plain in (True, False):
        as_text(seen, found, plain=plain)
    ElementTree.fromstring(as_svg([(seen, found)], "x"))  # noqa: S314 - our own
    assert f"nothing to recommend: {found.why}" in lines_of(seen, found, tiny.recipe)
    assert overrides([(seen, found)], tiny.recipe) == []


def test_a_loss_that_still_falls_says_so() -> None:
    seen = trace(lambda log_lr: 2 - 0.3 * (log_lr + 6), rates=Range(last=1e-3), diverged=False)
    found = suggest(seen)
    assert found.is_bound
    assert found.recommended is not None
    assert "a higher --to" in lines_of(seen, found, tiny.recipe)[-1]


def test_without_slide_the_lower_of_the_two_is_recommended() -> None:
    found = suggest(trace(lambda log_lr: 1.2 - math.tanh(3 * (log_lr + 3)), rates=Range(steps=20)))
    assert found.slide is None
    assert found.steepest is not None
    assert found.valley is not None
    assert (found.recommended, found.why) == (min(found.steepest, found.valley), "the lower of the two")


def test_rates_are_written_as_overrides() -> None:
    assert [rounded(lr) for lr in (3e-3, 3.44e-3, 1.0, 12.0, 9.99e-5)] == ["3e-3", "3.4e-3", "1e0", "1.2e1", "1e-4"]
    assert apply_overrides(tiny.recipe, [f"optim.lr={rounded(3e-3)}"]).optim.lr == 3e-3  # type: ignore[attr-defined]


def test_each_phase_can_have_its_own_rate() -> None:
    found = [
        (trace(fall_and_rise, number=number), Suggestions(recommended=lr, why=""))
        for number, lr in enumerate((2e-2, 1e-3))
    ]
    one, own = overrides(found, tiny.recipe)
    assert one.endswith(": optim.lr=1e-3")
    recipe = apply_overrides(tiny.recipe, own.rpartition(": ")[2].split())
    assert recipe.optim.lr == 2e-2  # type: ignore[attr-defined]
    assert recipe.freeze_plan[0] == tiny.recipe.freeze_plan[0]
    assert recipe.freeze_plan[1].rules == (("head", 0.05), ("backbone", 0.025))
    assert overrides(found[:1], tiny.recipe) == ["use optim.lr=2e-2"]


def test_a_terminal_gets_braille_and_a_file_plain_characters() -> None:
    seen = trace(fall_and_rise)
    found = suggest(seen)
    for terminal in (True, False):
        console = Console(file=StringIO(), force_terminal=terminal, width=100, color_system=None)
        assert show([(seen, found)], tiny.recipe, console)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert any("\u2800" < letter <= "\u28ff" for letter in text) == terminal == (not text.isascii())
    lines = as_text(seen, found, plain=True)
    assert found.recommended is not None
    place = round((math.log10(found.recommended) + 6) / 7 * 63)
    assert lines[-2] == " " * (11 + place) + "^"
    curve = [line[11:] for line in lines[:12]]
    # It begins high, and is at its lowest where the smoothed loss is.
    assert next(row for row, line in enumerate(curve) if line.startswith("*")) < 6
    lowest = LRS[int(np.argmin(seen.smoothed))]
    assert curve[-1][round((math.log10(lowest) + 6) / 7 * 63)] == "*"


def test_svg_escapes_what_a_name_may_hold() -> None:
    seen = trace(fall_and_rise, phase="<script>&\x00\udcff")
    text = as_svg([(seen, suggest(seen)), (seen, suggest(seen))], 'a "<title>"')
    text.encode()
    root = ElementTree.fromstring(text)  # noqa: S314 - our own
    told = [text for element in root.iter("{http://www.w3.org/2000/svg}text") for text in element.itertext()]
    assert told.count("phase 1: <script>&??") == 2
    assert sum(text.startswith("recommended ") for text in told) == 2
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    # A loss beyond the frame has no dot.
    assert 2 * 70 < len(circles) == 2 * sum(loss < 2.8 for loss in seen.losses)


def range_of(recipe: Recipe, rates: Range, *numbers: int, **launch: Any) -> list[Trace]:
    world = World(use_cpu=True, num_cpus=1)
    loaded = LoadedRecipe(recipe, "tiny", Path(tiny.__file__))
    traces = range_test(loaded, Launch(world=world, num_workers=0, **launch), rates, numbers)
    assert traces is not None
    return traces


def in_training(recipe: Recipe, rates: Range, run_dir: Path) -> list[tuple[float, float]]:
    """(rate, loss) of each step of a run of its first phase whose schedule gives the rates."""
    schedule = Rates(scales=scales_of(recipe, rates.lrs()))
    (run,) = [dataclasses.replace(recipe, schedule=schedule, freeze_plan=recipe.freeze_plan[:1])]
    alone(run, run_dir, num_workers=0)
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(row["lr"], row["loss"]) for row in rows if row["event"] == "step"]


VARIANTS = {
    "head": dataclasses.replace(tiny.recipe, freeze_plan=phases.linear_probe(epochs=4)),
    "all, dropout, clipped": dataclasses.replace(
        tiny.recipe,
        backbone=tiny.TinyBackbone(dropout=0.3),
        freeze_plan=phases.full_finetune(epochs=4, norm_statistics="update"),
        clip_norm=1.0,
        ema_decay=0.9,
    ),
    "class weights": dataclasses.replace(
        tiny.recipe,
        task=tasks.Classification(class_weights=(1.0, 2.0, 5.0)),
        freeze_plan=phases.linear_probe(epochs=4),
        optim=optim.AdamW(lr=1e-3, lr_batch_size=8),
    ),
    "regression": dataclasses.replace(
        tiny.recipe, task=tasks.Regression(), freeze_plan=phases.linear_probe(epochs=4), head=heads.Linear(init="ridge")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_its_steps_are_those_of_training(name: str, tmp_path: Path) -> None:
    recipe, rates = VARIANTS[name], Range(first=1e-4, last=1e-1, steps=12)
    (seen,) = range_of(recipe, rates, 0)
    assert seen.start == "recipe"
    trained = in_training(recipe, rates, tmp_path / "run")
    assert [loss for _, loss in trained] == list(seen.losses)
    factor = 4 if name == "class weights" else 1  # batches of 32, a rate for 8
    assert [lr for lr, _ in trained] == pytest.approx([lr * factor for lr in seen.lrs])
    assert ("x 4 (batch_size 32 makes 4 of it)" in lines_of(seen, suggest(seen), recipe)[0]) == (factor == 4)


@pytest.mark.slow
def test_each_phase_starts_from_the_same_backbone() -> None:
    """However far the phase before has diverged."""
    rates = Range(first=1e-3, last=1e3, steps=20)
    both = range_of(tiny.recipe, rates, 0, 1)
    (second,) = range_of(tiny.recipe, rates, 1)
    assert both[1] == second
    assert second.start == "closed form"
    assert second.least_loss > 0
    assert second.losses[0] < both[0].losses[0]
    (new,) = range_of(dataclasses.replace(tiny.recipe, head=heads.MLP(hidden=8)), rates, 1)
    assert new.start == "new head"


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_ends_the_test() -> None:
    recipe = dataclasses.replace(tiny.recipe, freeze_plan=phases.full_finetune(epochs=1))
    (seen,) = range_of(recipe, Range(first=1e30, last=1e38, steps=20), 0)
    assert seen.diverged
    assert len(seen.losses) < 5


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[CliResult, Path, dict[Path, str]]:
    """find-lr where a run of the recipe is already: what it said, the folder, and its files before."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "tmp").mkdir()
    alone(dataclasses.replace(tiny.recipe, freeze_plan=phases.linear_probe(epochs=1)), folder / "runs/tiny")
    before = hashes(folder)
    arguments = ["find-lr", str(SUPPORT / "tiny.py"), "--from", "1e-3", "--to", "100", "--steps", "60"]
    done = run_python("-m", "launcher", *arguments, cwd=folder, env={"TMPDIR": str(folder / "tmp")})
    return done, folder, before


def hashes(folder: Path) -> dict[Path, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_it_touches_nothing_and_reports_the_override(one_process: tuple[CliResult, Path, dict[Path, str]]) -> None:
    done, folder, before = one_process
    assert done.code == 0, done.err
    assert hashes(folder) == before
    assert not any((folder / "tmp").iterdir())
    assert "head in closed form, as the phases before it are not trained here; it fits" in done.out
    assert re.search(r"^  steepest \S+  valley \S+  slide \S+$", done.out, re.M)
    words = [line.rpartition(": ")[2] for line in done.out.splitlines() if line.startswith("one rate for all")]
    (word,) = words
    lr = apply_overrides(tiny.recipe, [word]).optim.lr  # type: ignore[attr-defined]
    assert 1e-3 <= lr <= 100
    assert "curves:" not in done.out
    assert done.out[done.out.index("\nphase 1 linear_probe") :].isascii()


@pytest.mark.long
def test_two_processes_suggest_the_same(one_process: tuple[CliResult, Path, dict[Path, str]], tmp_path: Path) -> None:
    arguments = [
        "tests/support/tiny.py",
        "--from",
        "1e-3",
        "--to",
        "100",
        "--steps",
        "60",
        "--svg",
        str(tmp_path / "two.svg"),
    ]
    done = start("torchrun", *arguments, recipe="find-lr")
    assert done.returncode == 0, done.stderr
    assert "2 processes x 16 per micro-batch" in done.stdout

    def results(out: str) -> list[str]:
        return out[out.index("\nphase 1 linear_probe") :].partition("curves: ")[0].splitlines()

    assert results(done.stdout) == results(one_process[0].out)
    assert done.stdout.count("curves: ") == 1
    ElementTree.parse(tmp_path / "two.svg")  # noqa: S314 - our own


@pytest.mark.slow
def test_what_is_wrong_is_reported_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = str(SUPPORT / "tiny.py")
    arguments = ["--phase", "3", "--from", "1", "--to", "1e-3", "--steps", "9", "--svg", str(tmp_path / "no/x.svg")]
    assert main(["find-lr", recipe, *arguments]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: --svg {tmp_path}/no/x.svg: there is no folder {tmp_path}/no",
        "error: --from 1 --to 0.001: the rate rises, so --from must be below --to",
        "error: --steps 9: too few to see a curve; give 10 or more (100 is usual)",
        "error: --phase 3: no such phase; the freeze plan has 1 (linear_probe), 2 (full_finetune)",
    ]
    assert main(["find-lr", recipe, "--phase", "0", "--from", "0", "--to", "inf", "--svg", "curves.png"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --svg curves.png: curves are drawn as SVG; give a name that ends in .svg",
        "error: --from 0: a learning rate is a number above 0",
        "error: --to inf: a learning rate is a number above 0",
        "error: --phase 0: no such phase; the freeze plan has 1 (linear_probe), 2 (full_finetune)",
    ]
    assert main(["find-lr", recipe, "--from", "1", "--to", "1"]) == 2
    assert "must be below --to" in capsys.readouterr().err
