"""Results and errors that all processes share, so that none waits for another that has left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from launcher.errors import Problems

_T = TypeVar("_T")


@contextlib.contextmanager
def raised_on_all(accelerator: Accelerator) -> Iterator[None]:
    """Raise a UserError that any process raises inside this context on all processes, with the problems of all."""
    problems = Problems()
    with problems.collected():
        yield
    everyones: list[str] = gather_object(problems.found)
    problems.found.extend(problem for problem in everyones if problem not in problems.found)
    problems.raise_if_any()


@contextlib.contextmanager
def one_at_a_time(accelerator: Accelerator) -> Iterator[None]:
    """Run a block that may download on the first process of each machine before its others.

    All processes raise the UserError of any of them.
    """
    problems = Problems()
    with raised_on_all(accelerator):
        with accelerator.local_main_process_first(), problems.collected():
            yield
        problems.raise_if_any()


def from_main(accelerator: Accelerator, compute: Callable[[], _T]) -> _T:
    """Return on all processes what `compute` returns on the main process; a UserError is raised on all."""
    values: list[Any] = [None]
    with raised_on_all(accelerator):
        if accelerator.is_main_process:
            values = [compute()]
    broadcast_object_list(values)
    value: _T = values[0]
    return value
