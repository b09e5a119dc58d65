"""The output of `init` on the screen: what was found, what was decided, and the commands that follow."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher import data as parts
from launcher.inference.labelled_data import test_line
from launcher.init.decision import Decision
from launcher.init.findings import DataFindings
from launcher.init.images import ImageFindings
from launcher.init.machine import Machine
from launcher.init.recipe_text import in_python
from launcher.init.rules import counts_of_classes
from launcher.text import listed, one_line, plural


def show(
    data: DataFindings, images: ImageFindings, machine: Machine, decisions: list[Decision], file: str, console: Console
) -> None:
    """Show what was found, what was decided, and the commands that follow; `file` is the recipe."""
    source = data.validation or "a random part"
    sizes = f"{images.width}x{images.height} pixels ({'all' if images.same_size else 'median'} of "
    sizes += f"{images.looked_at:,} looked at), "
    sizes += f"{len(images.broken):,} cannot be read: {listed(images.broken)}" if images.broken else "all readable"
    rows = [
        ("data", data.title),
        ("images", f"{len(data.splits.train):,} training, {len(data.splits.val):,} validation ({source})"),
        ("", sizes),
        *(("", test) for test in [_test(data)] if test),
        ("targets", targets_shown(data)),
        ("machine", str(machine)),
        *(("note", remark) for remark in data.remarks),
    ]
    console.print(Text("found", style="bold"))
    console.print(_table([(name, one_line(text), "") for name, text in rows]))
    console.print(Text("decided", style="bold"))
    decided = [(d.field, d.brief or in_python(d.value), one_line(d.why)) for d in decisions if d.field != "data"]
    console.print(_table(decided))
    console.print(Text(f"written: {one_line(file)}; next:", style="bold"))
    for words in (["python", "-m", "launcher", "plan", file], [*machine.start(), file]):
        console.print(Text(f"  {shlex.join(words)}"), soft_wrap=True)


def targets_shown(data: DataFindings, most: int = 6) -> str:
    """Describe the outputs, with the number of training images of each: "2 classes (ants: 124, bees: 121)"."""
    names = [one_line(name) for name in data.splits.names]
    what = {"class": ("class", "classes"), "labels": ("label",), "values": ("number",)}[data.target_kind]
    if data.target_kind != "values":
        names = [f"{name}: {count:,}" for name, count in zip(names, counts_of_classes(data), strict=True)]
    return f"{plural(len(names), *what)} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"


def _test(data: DataFindings) -> str | None:
    """Describe the test images, which are kept for the end; return None if there are none."""
    return test_line(getattr(parts, data.part)(**data.fields), data.target_kind, data.splits)


def _table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, value, why in rows:
        table.add_row(Text(f"  {name}"), Text(value))
        if why:
            table.add_row(Text(""), Text(why, style="dim"))
    return table
