"""The HTML page: a single file with all that it shows, from the sections of one run or of several."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from launcher.report.charts import Chart
from launcher.text import plural


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a report, whose `values` fill the template `templates/NAME.html.j2`."""

    name: str
    title: str
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunPage:
    """The sections on one run, under its title."""

    title: str
    sections: Sequence[Section]


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("launcher.report"), jinja2.PackageLoader("launcher.tuning.sweep")]
        ),
        autoescape=True,  # names of files and classes may hold any text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["n"] = lambda value: f"{value:,}"
    environment.filters["plural"] = plural
    return environment


def _asset(name: str) -> str:
    return resources.files("launcher.report").joinpath(name).read_text(encoding="utf-8")


def page(title: str, runs: Sequence[RunPage], above: Sequence[Section] = ()) -> str:
    """Render the HTML page; `above` are the sections on several runs, which come before the runs."""
    environment = _environment()
    script = _asset("script.js")
    # The page's content security policy lets the browser load nothing, and run no script but the one with this hash.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    render: Callable[[Section, str], Markup] = lambda section, prefix: Markup(  # noqa: E731, S704 - rendered with autoescape
        environment.get_template(f"{section.name}.html.j2").render(
            section=section, prefix=prefix, several=len(runs) > 1, **section.values
        )
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        runs=runs,
        above=above,
        render=render,
        style=Markup(_asset("style.css")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704
        script_hash=digest,
    )


def svg(title: str, charts: Sequence[Chart]) -> str:
    """Render charts of one size below each other, as an SVG file of its own."""
    return _environment().get_template("charts.svg.j2").render(title=title, charts=charts)
