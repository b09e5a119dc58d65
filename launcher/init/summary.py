"""The output of `init` on the screen: what was found, what was decided, and the commands that follow."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher import data
from launcher.inference.labelled_data import test_line
from launcher.init.draft import Made, targets_shown
from launcher.init.findings import Found
from launcher.init.recipe_text import in_python
from launcher.text import listed, one_line


def show(made: Made, console: Console) -> None:
    """Show what was found, what was decided, and the commands that follow."""
    found, pictures = made.found, made.pictures
    source = found.validation or "a random part"
    images = f"{pictures.width}x{pictures.height} pixels ({'all' if pictures.same_size else 'median'} of "
    images += f"{pictures.looked_at:,} looked at), "
    images += (
        f"{len(pictures.broken):,} cannot be read: {listed(pictures.broken)}" if pictures.broken else "all readable"
    )
    rows = [
        ("data", found.title),
        ("images", f"{len(found.splits.train):,} training, {len(found.splits.val):,} validation ({source})"),
        ("", images),
        *(("", test) for test in [_test(found)] if test),
        ("targets", targets_shown(found)),
        ("machine", str(made.machine)),
        *(("note", remark) for remark in found.remarks),
    ]
    console.print(Text("found", style="bold"))
    console.print(_table([(name, one_line(text), "") for name, text in rows]))
    console.print(Text("decided", style="bold"))
    decided = [(d.field, d.brief or in_python(d.value), one_line(d.why)) for d in made.decisions if d.field != "data"]
    console.print(_table(decided))
    file = str(made.path)
    console.print(Text(f"written: {one_line(file)}; next:", style="bold"))
    for words in (
        ["python", "-m", "launcher", "plan", file],
        [*made.machine.start(), file],
    ):
        console.print(Text(f"  {shlex.join(words)}"), soft_wrap=True)


def _test(found: Found) -> str | None:
    """Describe the test images, which are kept for the end; return None if there are none."""
    return test_line(getattr(data, found.part)(**found.fields), found.target_kind, found.splits)


def _table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, value, why in rows:
        table.add_row(Text(f"  {name}"), Text(value))
        if why:
            table.add_row(Text(""), Text(why, style="dim"))
    return table
