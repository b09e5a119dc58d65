"""The application that commands are added to."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.errors import UserError

app = typer.Typer(
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
    """The words that may come first on the command line; any other is a recipe."""
    commands = [info.name or info.callback.__name__ for info in app.registered_commands if info.callback]
    return commands + [info.name for info in app.registered_groups if isinstance(info.name, str)]
