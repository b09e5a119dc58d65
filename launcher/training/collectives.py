"""Agreement on errors: all processes raise what is wrong on one, so that none waits for another that has left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.utils import gather_object

from launcher.errors import Problems


@contextlib.contextmanager
def raised_on_all(accelerator: Accelerator) -> Iterator[None]:
    """Raise a UserError that any process raises inside this context on all processes, with the problems of all."""
    problems = Problems()
    with problems.collected():
        yield
    everyones: list[str] = gather_object(problems.found)
    problems.found.extend(problem for problem in everyones if problem not in problems.found)
    problems.raise_if_any()
