"""Errors that the user can correct: all problems are reported at once, one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from difflib import get_close_matches

DISTRIBUTION = "vision-launcher"
"""Name of this package for pip; "launcher" is another project's name on PyPI."""


class UserError(Exception):
    """Error that the user can correct; the command line prints one line per problem and exits with code 2.

    Each problem is one line that names the setting or file, its value, and what would be right.
    """

    def __init__(self, *problems: str) -> None:
        # The message of a library may span several lines; a problem never does.
        self.problems = tuple(" ".join(problem.split()) for problem in problems)
        super().__init__("\n".join(self.problems))


class Problems:
    """Collection of the problems of independent checks, so that all are reported at once.

    >>> problems = Problems()
    >>> with problems.collected():
    ...     raise UserError("data.root: no folder 'pets'")
    >>> problems.found
    ["data.root: no folder 'pets'"]
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Run one check: keep the problems of its UserError, and let any other exception pass."""
        try:
            yield
        except UserError as error:
            self.found.extend(problem for problem in error.problems if problem not in self.found)

    def raise_if_any(self) -> None:
        """Raise UserError with all problems found so far, if there are any."""
        if self.found:
            raise UserError(*self.found)


def pip_install(extra: str) -> str:
    """Return the command that installs an optional dependency."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def did_you_mean(name: str, choices: list[str] | tuple[str, ...]) -> str:
    """Return the end of an error line: "; did you mean 'lr'?", or a list of all choices, or "" if there are none."""
    close = get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(choices)}" if choices else ""
