"""Reports in a real browser: nothing is loaded, nothing is complained of, cells open by mouse and by keyboard."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import report_runs
import tiny
from launcher.recipe.type_names import types_in
from launcher.report.build import FILE, write_report
from launcher.report.facts import read_facts
from launcher.report.refresh import facts_again
from launcher.training.launch import Launch, World
from report_runs import HOSTILE_CLASSES, train

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Chromium refuses its sandbox to root.
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports by what is in them."""
    folder = tmp_path_factory.mktemp("reports")
    root = report_runs.hostile_folder(folder / "data")
    recipes = {
        "tiny": tiny.recipe,
        "hostile": report_runs.of_hostile_names(root),
        "labels": report_runs.of_labels,
        "values": report_runs.of_values,
    }
    for name, recipe in recipes.items():
        train(recipe, folder / name)
    other = dataclasses.replace(report_runs.of_hostile_names(root), batch_size=18)
    train(other, folder / "other")
    launch = Launch(num_workers=0, world=World(use_cpu=True, num_cpus=1))
    both = facts_again([folder / "hostile", folder / "other"], launch, report=lambda _: None, own=types_in(tiny.recipe))
    write_report(both, folder / "compared.html")
    shutil.copytree(folder / "tiny", folder / "large")
    write_report([report_runs.large(folder / "large", 10_000, 12, 0.8)], folder / "large" / FILE)
    return {name: folder / name / FILE for name in (*recipes, "large")} | {"compared": folder / "compared.html"}


@dataclasses.dataclass
class Opened:
    page: Any
    reported: list[str]
    """Errors and all else that the browser's console says."""
    asked: list[str]
    """Requests for anything but the file itself and what lies in it."""


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    contexts = []

    def open_page(file: Path, size: dict[str, int] = DESKTOP, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        reported: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: reported.append(message.text))
        page.on("pageerror", lambda error: reported.append(str(error)))
        page.on("dialog", lambda dialog: (reported.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_load_state("load")
        asked[:] = [url for url in asked if url != file.as_uri() and not url.startswith("data:")]
        return Opened(page, reported, asked)

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["tiny", "hostile", "labels", "values", "compared", "large"])
def test_each_report_opens_without_a_complaint_or_a_request(opened: Any, reports: dict[str, Path], name: str) -> None:
    for size, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
        found = opened(reports[name], size, scheme)
        assert found.reported == []
        assert found.asked == []
        # Nothing is wider than the screen: a phone need not be pushed sideways.
        assert found.page.evaluate("document.documentElement.scrollWidth") == size["width"]
        for section in found.page.locator("section:visible").all():
            assert section.inner_text().strip()
        broken = "[...document.images].filter(image => !image.complete || image.naturalWidth === 0).length"
        assert found.page.evaluate(broken) == 0


def test_light_and_dark(opened: Any, reports: dict[str, Path]) -> None:
    colour = "getComputedStyle(document.body)[{!r}]"
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(16, 18, 23)")):
        page = opened(reports["tiny"], DESKTOP, scheme).page
        assert page.evaluate(colour.format("backgroundColor")) == ground
        assert page.evaluate(colour.format("color")) != ground


def test_a_click_on_a_cell_shows_its_images(opened: Any, reports: dict[str, Path]) -> None:
    samples = read_facts(reports["tiny"].parent).samples
    assert samples is not None
    page = opened(reports["tiny"]).page
    for target in range(3):
        for given in range(3):
            inside = [
                samples.names[i].rpartition("/")[2]
                for i in range(len(samples))
                if (samples.targets[i], samples.predictions[i]) == (target, given)
            ]
            cell = page.locator(f".matrix [data-cell='{target}-{given}']")
            assert cell.inner_text() == (str(len(inside)) if inside else "")
            cell.click()
            assert cell.get_attribute("aria-pressed") == "true"
            shown = page.locator(".cell-images .file").all_inner_texts()
            assert len(shown) == min(8, len(inside))
            assert set(shown) <= set(inside)
            assert page.locator(".cell-images img").count() == len(shown)
            if inside:
                assert f"{len(inside)} image" in page.locator(".cell-images h3").inner_text()
            else:
                assert "No images in this cell" in page.locator(".cell-images").inner_text()
    assert page.locator(".matrix [aria-pressed='true']").count() == 1


def test_cells_are_reached_by_keyboard(opened: Any, reports: dict[str, Path]) -> None:
    page = opened(reports["tiny"]).page
    assert page.locator(".matrix [tabindex='0']").count() == 1  # one stop for Tab, not one for each cell
    page.locator(".matrix [tabindex='0']").focus()
    focused = "document.activeElement.dataset.cell"
    for _ in range(3):
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == "0-0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "2-1"
    page.keyboard.press("Enter")
    assert page.locator(".matrix [aria-pressed='true']").get_attribute("data-cell") == "2-1"
    assert page.locator(".matrix [tabindex='0']").get_attribute("data-cell") == "2-1"


def test_hostile_names_are_shown_as_text(opened: Any, reports: dict[str, Path]) -> None:
    found = opened(reports["hostile"])
    page = found.page
    heads = page.locator(".matrix tbody th").all_inner_texts()
    assert sorted(heads) == sorted(HOSTILE_CLASSES)
    assert "<img src=x onerror=alert(2)> 蜜蜂 🐝" in page.locator(".gallery .file").first.inner_text()
    for cell in page.locator(".matrix button:not(.zero)").all():
        cell.click()
        assert "<img src=x onerror=alert(2)> 蜜蜂 🐝" in page.locator(".cell-images .file").first.inner_text()
        title = page.locator(".cell-images h3").inner_text()
        assert any(title.startswith(name) for name in HOSTILE_CLASSES)
    assert page.locator("script").count() == 2
    assert page.locator("img:not([src^='data:image/webp'])").count() == 0
    assert found.reported == []


def test_runs_that_are_compared_open_one_by_one(opened: Any, reports: dict[str, Path]) -> None:
    page = opened(reports["compared"]).page
    assert page.locator("details.run[open]").count() == 0
    assert page.locator(".range-row .at").count() == 2
    page.locator("nav a").nth(1).click()
    assert page.locator("details.run[open]").get_attribute("id") == "run-2"
    page.locator("#run-2 .matrix button:not(.zero)").first.click()
    assert page.locator("#run-2 .cell-images img").count() > 0


def test_on_paper_all_is_there(opened: Any, reports: dict[str, Path], tmp_path: Path) -> None:
    page = opened(reports["compared"]).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.run[open]").count() == 0
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
