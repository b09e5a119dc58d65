"""Host lists in Slurm's notation: "n[1-3,7],gpu01" -> n1 n2 n3 n7 gpu01."""

from __future__ import annotations

import itertools
import re

from launcher.errors import UserError

# A comma within brackets does not separate items.
_ITEM = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")


def expand_hostlist(text: str) -> list[str]:
    """Return all names of a host list, in its order, as `scontrol show hostnames` prints them.

    It needs no scontrol, which is missing in containers.

    Raises:
        UserError: The list cannot be read.
    """
    if not re.fullmatch(r"(?:[^\[\]]|\[[\d,-]+\])+", text):
        raise UserError(f"host list {text!r}: cannot be read; wanted: names and ranges such as n[1-3,7],gpu01")
    return [name for item in _ITEM.findall(text) for name in _names(item)]


def _names(item: str) -> list[str]:
    pieces = [_numbers(numbers) if numbers else [fixed] for numbers, fixed in _PIECE.findall(item)]
    return ["".join(parts) for parts in itertools.product(*pieces)]


def _numbers(text: str) -> list[str]:
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        # Leading zeros are kept: gpu[08-10] is gpu08, gpu09, gpu10.
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return numbers


def tasks_of_nodes(text: str) -> list[int]:
    """Return the number of tasks on each node, from "2(x3),1" (SLURM_TASKS_PER_NODE) -> [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_TASKS_PER_NODE={text}: cannot be read; wanted: 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
