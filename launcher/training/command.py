"""The command that started a run, and variations of it that messages suggest."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path

PYTHON = ("python", "-m", "launcher")

VALUED = frozenset({"--assets", "--micro-batch", "--prepared", "--resume", "--run-dir", "--stop-at", "--workers"})
"""Options of `train` that take a value, either as the next word or after "="."""
OF_ONE_START = frozenset({"--resume", "--stop-at"})
"""Options that concern a single start, and so do not belong in the command of another run."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as words; `str` quotes them for a shell."""

    words: tuple[str, ...]
    """The words after the starter: the recipe, overrides and options of `train`."""
    starter: tuple[str, ...] = PYTHON
    """The words that start the program: `python -m launcher`, or a program that starts several processes."""

    def __str__(self) -> str:
        return shlex.join([*self.starter, *self.words])

    def into(self, run_dir: str | Path, overrides: Mapping[str, object] | None = None) -> Command:
        """Return the command for another run: the same recipe, overrides and options, except for those given here."""
        changed = {name: str(value) for name, value in (overrides or {}).items()}
        words = [word for word in self._kept_words() if word.partition("=")[0].strip() not in changed]
        # New overrides go after the recipe and the overrides that stay, which may stand among options.
        last = max((place for place, word in enumerate(words) if _is_override(word)), default=_place_of_recipe(words))
        words[last + 1 : last + 1] = [f"{name}={value}" for name, value in changed.items()]
        return dataclasses.replace(self, words=(*words, "--run-dir", str(run_dir)))

    def _kept_words(self) -> list[str]:
        """Return the words without the run dir and the options of a single start."""
        dropped = OF_ONE_START | {"--run-dir"}
        kept, skips_value = [], False
        for word in self.words:
            name, has_value, _ = word.partition("=")
            if skips_value:
                skips_value = False
            elif name in dropped:
                skips_value = not has_value
            else:
                kept.append(word)
        return kept


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _place_of_recipe(words: list[str]) -> int:
    """Return the index of the recipe: the first word that is not an option, an option's value or an override.

    A leading "train" is skipped.
    """
    is_value = False
    for place, word in enumerate(words):
        if not (is_value or word.startswith("-") or _is_override(word) or (word == "train" and place == 0)):
            return place
        is_value = word in VALUED
    return len(words) - 1
