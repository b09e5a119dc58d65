"""The assembly of a report from run dirs: facts, sections, page and file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.errors import UserError
from launcher.files import write_atomic
from launcher.report.facts import Facts
from launcher.report.page import RunPage, Section, page
from launcher.report.sections import (
    calibration,
    classes,
    confusion,
    curves,
    data,
    environment,
    gallery,
    grad_cam,
    image_map,
    label_issues,
    phases,
    residuals,
    side_by_side,
    speed,
    summary,
)

FILE = "report.html"

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    curves.section,
    gallery.section,
    grad_cam.section,
    confusion.section,
    classes.section,
    residuals.section,
    calibration.section,
    image_map.section,
    label_issues.section,
    phases.section,
    data.section,
    speed.section,
    environment.section,
)
"""The sections below the summary, in the order of the page; each returns None for a run that has nothing for it."""


def report(runs: Sequence[Facts]) -> str:
    """Return the HTML of a report on one run, or on several side by side."""
    titles = titles_of([run.path for run in runs])
    pages = [RunPage(title, _sections(run)) for title, run in zip(titles, runs, strict=True)]
    above = [side_by_side.section(runs, titles)] if len(runs) > 1 else []
    return page(titles[0] if len(runs) == 1 else " · ".join(titles), pages, above)


def _sections(run: Facts) -> list[Section]:
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    return [summary.section(run), *sections]


def titles_of(paths: Sequence[Path]) -> list[str]:
    """Return the names of the run dirs, with as many parent folders as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def write_report(runs: Sequence[Facts], to: Path) -> None:
    """Write the report so that a reader finds either the old file or the new one, never half of it.

    Raises UserError if the file cannot be written.
    """
    text = report(runs)
    try:
        write_atomic(to, text)
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror or error})") from error
