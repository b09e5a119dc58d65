"""Sweep as a job array: one recipe, many overrides, and an array task for each."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import UserError
from launcher.text import plural

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
_COMMA = re.compile(r"(?<!\\),")


def tasks_of(words: Sequence[str]) -> list[list[str]]:
    r"""Return the words of every task, from the words of the sweep.

    "seed=0,1" gives a value for each task, and all such words together make a grid; "@FILE" names a file with the
    overrides of one task on each line, quoted as in a shell. A comma within a value is written "\,". All other words go
    to every task.

    Raises:
        UserError: A file is not there, or holds something else.
    """
    choices: list[list[list[str]]] = []
    for word in words:
        if word.startswith("@"):
            choices.append(_lines(Path(word[1:])))
        elif _OVERRIDE.match(word):
            name, _, value = word.partition("=")
            choices.append([[f"{name}={part.replace(chr(92) + ',', ',')}"] for part in _COMMA.split(value)])
        else:
            choices.append([[word]])
    return [list(itertools.chain.from_iterable(task)) for task in itertools.product(*choices)]


def task(words: Sequence[str], number: int, run_dir: Path) -> list[str]:
    """Return the words of one task, with a run dir of its own.

    Raises:
        UserError: The sweep has no task of this number.
    """
    tasks = tasks_of(words)
    if not 0 <= number < len(tasks):
        raise UserError(f"task {number}: the sweep has {len(tasks)}; submit it with --array=0-{len(tasks) - 1}")
    return [*tasks[number], "--run-dir", str(run_dir / f"{number:0{len(str(len(tasks) - 1))}d}")]


def array_of(text: str, count: int) -> str:
    """Return sbatch's --array for a sweep of `count` tasks.

    "%2" stands for all tasks, two at a time, and "all" for all of them at once.

    Raises:
        UserError: `text` names tasks that the sweep does not have.
    """
    if text == "all" or re.fullmatch(r"%[1-9]\d*", text):
        return f"0-{count - 1}{text if text != 'all' else ''}"
    numbers = [int(number) for number in re.findall(r"\d+", re.sub(r"[%:]\d+", "", text))]
    if not re.fullmatch(r"[\d,:-]+(%\d+)?", text) or not numbers:
        raise UserError(f"--array {text!r}: write 0-{count - 1}, 0-{count - 1}%2 (two at a time), %2, or all")
    if max(numbers) >= count:
        raise UserError(f"--array {text!r}: the sweep has {plural(count, 'task', spec='')}, 0-{count - 1}")
    return text


def _lines(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"@{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    tasks: list[list[str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error} ({line.strip()!r})") from error
        wrong = [word for word in words if not _OVERRIDE.match(word)]
        if wrong:
            raise UserError(f"{path}:{number}: {wrong[0]!r}: only overrides, name=value, stand in a sweep's file")
        if words:
            tasks.append(words)
    if not tasks:
        raise UserError(f"@{path}: holds no overrides; write a task's on each line: optim.lr=1e-3 seed=0")
    return tasks
