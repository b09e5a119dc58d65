"""A study without training: which trials it gives to whom, and the page of what came of them."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

import tiny

pytest.importorskip("optuna", reason="needs optuna: pip install -e '.[dev]'")

import sklearn.ensemble  # noqa: F401 - sets an environment variable when it is imported first; here, not in a test
from optuna.trial import TrialState

from launcher.recipe.loading import LoadedRecipe
from launcher.training.run_lock import RunLock
from launcher.tuning.sweep.child import Epochs, final_value
from launcher.tuning.sweep.page import page_of
from launcher.tuning.sweep.plan import SweepPlan
from launcher.tuning.sweep.space import read_space
from launcher.tuning.sweep.study import LEASE, Study
from launcher.tuning.sweep.table import Row, Table, table_of

HOSTILE = "</td><script>alert(1)</script>"
WORDS = ("optim.lr=1e-3..1 (log)", "backbone.width=4..8 (step 2)", f"backbone.norm=batch,{HOSTILE}", "batch_size=16")


def plan_of(words: tuple[str, ...] = WORDS) -> SweepPlan:
    loaded = LoadedRecipe(tiny.recipe, "tiny", Path(tiny.__file__))
    space = read_space(tiny.recipe, words)
    return SweepPlan(loaded=loaded, spec="tiny.py", space=space, metric="accuracy", mode="max", most_epochs=9)


def study_of(folder: Path, total: int, **more: Any) -> Study:
    folder.mkdir(exist_ok=True)
    plan = plan_of()
    return Study(folder, plan, kind="trial", dimensions=plan.space.dimensions, total=total, **more)


def searched(folder: Path) -> Study:
    """Thirty trials whose accuracy follows the learning rate."""
    study, noise = study_of(folder, 30, pruner="median"), random.Random(0)
    while (claim := study.claim()) is not None:
        reached = 0.95 - 0.1 * abs(math.log10(claim.values["optim.lr"] / 0.1)) + noise.gauss(0, 0.005)
        for epoch in range(1, 5):
            study.report(claim, epoch, reached - 0.3 / epoch**2)
            if study.should_prune(claim):
                study.prune(claim, "not among the better half")
                break
        else:
            study.fail(claim, HOSTILE) if claim.number == 3 else study.finish(claim, reached)
        claim.lease.release()
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return searched(tmp_path_factory.mktemp("searched"))


@pytest.mark.slow
def test_a_search_finds_the_peak(study: Study, tmp_path: Path) -> None:
    best = study.best()
    assert best is not None
    assert abs(math.log10(best.params["optim.lr"] / 0.1)) < 0.3
    assert next(iter(study.importances())) == "optim.lr"
    states = {trial.state for trial in study.trials()}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    again = searched(tmp_path / "again")
    assert [trial.params for trial in again.trials()] == [trial.params for trial in study.trials()]


def test_each_trial_has_one_worker(tmp_path: Path) -> None:
    one, other = study_of(tmp_path, 3), study_of(tmp_path, 3)
    claims = [one.claim(), other.claim(), one.claim()]
    assert [claim.number for claim in claims if claim] == [0, 1, 2]
    assert other.claim() is None
    assert other.at_work() == [0, 1, 2]
    assert not one.is_over
    first = claims[0]
    assert first is not None
    first.lease.release()
    taken = other.claim()
    assert taken is not None
    assert (taken.number, taken.values, taken.is_new) == (0, first.values, False)
    one.finish(first, 0.9)  # by a worker that has lost it
    assert one.trials()[0].state == TrialState.RUNNING
    other.finish(taken, 0.8)
    assert one.trials()[0].value == 0.8
    for claim in (taken, *claims[1:]):
        assert claim is not None
        claim.lease.release()


def test_the_lease_of_a_dead_worker_is_taken_over(tmp_path: Path) -> None:
    study = study_of(tmp_path, 1)
    claim = study.claim()
    assert claim is not None
    claim.lease.release()
    dead = f'{{"host": "{socket.gethostname()}", "pid": 1, "process_started": 0, "token": "x"}}'
    (claim.folder / LEASE).write_text(dead)
    assert not RunLock(claim.folder, LEASE).has_owner()
    taken = study.claim()
    assert taken is not None
    assert taken.number == 0
    taken.lease.release()


def test_a_worker_that_dies_while_it_draws_leaves_a_trial_to_finish(tmp_path: Path) -> None:
    study = study_of(tmp_path, 1)
    inner = study._study
    inner._storage.create_new_trial(inner._study_id)
    claim = study.claim()
    assert claim is not None
    assert set(claim.values) == {"optim.lr", "backbone.width", "backbone.norm"}
    assert study.trials()[0].params == claim.values
    assert study.claim() is None
    claim.lease.release()


def test_equal_trials_are_told_apart_by_their_loss(tmp_path: Path) -> None:
    """With few validation images many trials reach the same accuracy."""
    study = study_of(tmp_path / "study", 5)
    results = [(1.0, math.nan), (1.0, 0.3), (1.0, 0.1), (0.9, 0.05), (1.0, 0.1)]
    for value, loss in results:
        claim = study.claim()
        assert claim is not None
        study.finish(claim, value, loss)
        claim.lease.release()
    best = study.best()
    assert best is not None
    assert best.number == 2, "the lowest loss; of two equal trials the earlier"
    rows = table_of(study, None, 0, best, study).rows
    assert [row.run for row in rows] == [f"trial-{number:04d}" for number in (2, 4, 1, 0, 3)]


@pytest.mark.parametrize("value", ["null", "NaN", "absent"])
def test_a_metric_that_is_not_defined_ends_a_trial(tmp_path: Path, value: str) -> None:
    """As null, which is what strict JSON has for NaN, it is no sign of a run that has not ended."""
    (tmp_path / "final").mkdir()
    (tmp_path / "final/metrics.json").write_text("{}" if value == "absent" else f'{{"accuracy": {value}}}')
    (tmp_path / "metrics.jsonl").write_text('{"event": "epoch", "val": {"accuracy": null, "ema_accuracy": null}}\n')
    reached = final_value(tmp_path, "accuracy")
    assert reached is not None
    assert math.isnan(reached)
    assert [(epoch, math.isnan(value)) for epoch, value in Epochs(tmp_path, "accuracy").new()] == [(1, True)]


def test_hyperband_and_random(tmp_path: Path) -> None:
    study = study_of(tmp_path, 2, sampler="random", pruner="hyperband")
    for value in (0.9, 0.1):
        claim = study.claim()
        assert claim is not None
        assert claim.values["backbone.width"] in (4, 6, 8)
        study.report(claim, 1, value)
        study.should_prune(claim)
        study.finish(claim, value)
        claim.lease.release()
    assert study.is_over


def test_how_sure_the_best_is() -> None:
    rows = [Row(f"trial-{i}", "finished", right / 16, {}, None, 3, "") for i, right in enumerate((15, 14, 2))]
    table = Table("accuracy", "max", (), tuple(rows), ())
    # scipy.stats.binomtest(15, 16).proportion_ci(0.95, "exact")
    reported = table.certainty(16)
    assert reported is not None
    assert reported.startswith("95% interval 0.6977 to 0.9984 on 16 images, which cannot tell it from the next trial (")
    assert dataclasses.replace(table, rows=(rows[0], rows[2])).certainty(16) == (
        "95% interval 0.6977 to 0.9984 on 16 images"
    )
    assert dataclasses.replace(table, metric="loss").certainty(16) is None


def html_of(study: Study) -> str:
    table = table_of(study, None, 0, study.best(), study)
    return page_of(study.plan, table, study.trials(), study.importances(), "accelerate launch <b>", 16)


@pytest.mark.slow
def test_the_page_escapes_what_is_others(study: Study) -> None:
    text = html_of(study)
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "launch &lt;b&gt;" in text


@pytest.mark.slow
def test_the_page_in_a_browser(study: Study, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    file = tmp_path / "sweep.html"
    file.write_text(html_of(study))
    asked, reported = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        page.on("console", lambda message: reported.append(message.text))
        page.on("pageerror", lambda error: reported.append(str(error)))
        page.on("dialog", lambda dialog: reported.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert page.locator("#sweep_trials tbody tr").count() == 30
        assert page.locator("#sweep_coordinates path").count() == 29
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert reported == []
    assert asked == [file.as_uri()]
