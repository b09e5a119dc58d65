"""The application to which the commands are added."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from launcher.errors import UserError

GROUPS = {
    "Begin": ("init", "plan", "train", "verify", "prepare", "fetch"),
    "Choose settings": ("find-lr", "advise", "sweep"),
    "Look at what came out": ("report", "compare", "evaluate"),
    "Use the model": ("predict", "export", "average"),
    "On a cluster": ("submit", "status", "logs", "cancel", "rehearse"),
    "Clean up": ("cache",),
}
"""The commands in the groups in which --help shows them."""


class Commands(TyperGroup):
    """The commands, shown by --help in groups, each with its whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self._first_sentence(name)) for name in names])

    def _first_sentence(self, name: str) -> str:
        text = inspect.cleandoc(self.commands[name].help or "").partition("\n\n")[0]
        return f"{' '.join(text.split()).partition('. ')[0].rstrip('.')}."


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune a vision model as a recipe says. 'python -m launcher RECIPE ...' is short for 'train RECIPE ...'.",
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from launcher import __version__

        typer.echo(f"launcher {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        raise UserError("no recipe given; e.g. python -m launcher recipes/digits.py (or --help)")


def command_names() -> list[str]:
    """Return the words that may come first on the command line; any other one is a recipe."""
    commands = [info.name or info.callback.__name__ for info in app.registered_commands if info.callback]
    return commands + [info.name for info in app.registered_groups if isinstance(info.name, str)]
