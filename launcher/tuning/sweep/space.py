"""Search space: `optim.lr=1e-4..1e-2 (log)`, `freeze_plan.0.epochs=1..5`, `backbone.name=resnet50,resnet18`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.errors import Problems, UserError
from launcher.recipe.overrides import apply_overrides

FORM = "low..high, low..high (log) or low..high (step 2)"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})\s*(?:\((.*)\))?\s*")
_LIKE_A_RANGE = re.compile(r"\s*[-+]?(\d|\.\d).*\.\.")
_COMMA = re.compile(r"(?<!\\),")


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of numbers from `low` to `high`, both included."""

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_integer(self) -> bool:
        """True if the field takes whole numbers."""
        return isinstance(self.low, int)

    def text(self, value: Any) -> str:
        """Return a number that was drawn as the text of an override."""
        return str(int(value)) if self.is_integer else repr(float(value))

    def short(self, value: Any) -> str:
        """Return a number as people read it."""
        return str(int(value)) if self.is_integer else f"{float(value):.4g}"


@dataclasses.dataclass(frozen=True)
class Choices:
    """Set of values, as texts of overrides."""

    name: str
    values: tuple[str, ...]

    def text(self, value: Any) -> str:
        """Return a value as the text of an override."""
        return str(value)

    def short(self, value: Any) -> str:
        """Return a value as people read it."""
        return str(value)


Dimension = Range | Choices


@dataclasses.dataclass(frozen=True)
class Space:
    """Words of a sweep, as fixed overrides and dimensions."""

    fixed: tuple[str, ...]
    """Overrides that all trials have."""
    dimensions: tuple[Dimension, ...]
    words: Mapping[str, str]
    """Text that was written for each dimension."""

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial: the fixed ones, and its own values."""
        return [*self.fixed, *(f"{one.name}={one.text(values[one.name])}" for one in self.dimensions)]

    def short(self, values: Mapping[str, Any]) -> str:
        """Return a trial's own values, as people read them."""
        return " ".join(f"{one.name}={one.short(values[one.name])}" for one in self.dimensions if one.name in values)


def read_space(recipe: Any, words: Sequence[str]) -> Space:
    """Return the search space that words describe.

    Raises:
        UserError: A word is malformed, repeated, names no field of `recipe`, or has an end or a choice that the field
            does not take; there is one line for each.
    """
    problems = Problems()
    fixed: list[str] = []
    varied: dict[str, tuple[str, list[str]]] = {}
    named: set[str] = set()
    for word in words:
        name, equals, text = word.partition("=")
        with problems.collected():
            if not equals or not name.strip():
                raise UserError(f"{word}: neither a range nor choices; write optim.lr=1e-4..1e-2 or seed=0,1,2")
            name = name.strip()
            if name in named:
                raise UserError(f"{name}: given twice; its values belong into one word")
            named.add(name)
            if _LIKE_A_RANGE.match(text):
                varied[name] = (text, _ends(word, text))
            elif len(choices := _COMMA.split(text)) > 1:
                varied[name] = (text, _choices(word, choices))
            else:
                fixed.append(f"{name}={text.replace(chr(92) + ',', ',')}")
    with problems.collected():
        apply_overrides(recipe, fixed)
    _check_values(recipe, fixed, {name: values for name, (_, values) in varied.items()}, problems)
    problems.raise_if_any()
    dimensions: list[Dimension] = []
    for name, (text, values) in varied.items():
        with problems.collected():
            is_range = _LIKE_A_RANGE.match(text)
            dimensions.append(_range(recipe, name, text) if is_range else Choices(name, tuple(values)))
    problems.raise_if_any()
    return Space(tuple(fixed), tuple(dimensions), {name: text for name, (text, _) in varied.items()})


def corners(space: Space) -> list[list[str]]:
    """Return overrides that together hold every choice and every end of a range.

    Each appears beside the first values of all others.
    """
    values: dict[str, list[str]] = {}
    for one in space.dimensions:
        values[one.name] = list(one.values) if isinstance(one, Choices) else [one.text(one.low), one.text(one.high)]
    first = {name: texts[0] for name, texts in values.items()}
    trials = [first, *({**first, name: text} for name, texts in values.items() for text in texts[1:])]
    return [[*space.fixed, *(f"{name}={text}" for name, text in trial.items())] for trial in trials]


def _ends(word: str, text: str) -> list[str]:
    """Return the two ends of a range, as texts.

    Raises:
        UserError: The text is not a range.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise UserError(f"{word}: not a range; write {FORM}, with numbers for both ends")
    low, high, how = match[1], match[2], (match[3] or "").strip()
    if not (how in ("", "log") or re.fullmatch(rf"step\s+{_NUMBER}", how)):
        raise UserError(f"{word}: ({how}) says nothing here; write {FORM}")
    if float(low) >= float(high):
        raise UserError(f"{word}: the low end comes first, and is below the high one; write {FORM}")
    if how == "log" and float(low) <= 0:
        raise UserError(f"{word}: a log range begins above 0: a logarithm has no value at {low}")
    if how.startswith("step") and not 0 < float(how.removeprefix("step")) <= float(high) - float(low):
        raise UserError(f"{word}: a step is above 0, and no longer than the range")
    return [low, high]


def _choices(word: str, parts: Sequence[str]) -> list[str]:
    texts = [part.strip().replace("\\,", ",") for part in parts]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if "" in texts:
        raise UserError(f"{word}: an empty choice; write values between commas (a comma in a value is written '\\,')")
    if twice:
        raise UserError(f"{word}: {', '.join(twice)} given twice")
    return texts


def _check_values(recipe: Any, fixed: Sequence[str], values: Mapping[str, Sequence[str]], problems: Problems) -> None:
    """Check each value in its field, beside the fixed overrides and the first values of the others."""
    first = {name: texts[0] for name, texts in values.items()}
    before = len(problems.found)
    for name, texts in values.items():
        texts_of: dict[str, str] = {}
        for text in texts:
            with problems.collected():
                value = repr(_value_at(apply_overrides(recipe, [f"{name}={text}"]), name))
                if (other := texts_of.setdefault(value, text)) != text:
                    raise UserError(f"{name}: {other} and {text} are the same value")
    if len(problems.found) > before:
        return
    for name, texts in values.items():
        for text in texts:
            with problems.collected():
                beside = {**first, name: text}
                apply_overrides(recipe, [*fixed, *(f"{key}={value}" for key, value in beside.items())])


def _range(recipe: Any, name: str, text: str) -> Range:
    """Return the range that `text` describes.

    Raises:
        UserError: The field takes no numbers, or only whole ones and the step is not whole.
    """
    match = _RANGE.fullmatch(text)
    assert match is not None
    low, high = (_value_at(apply_overrides(recipe, [f"{name}={end}"]), name) for end in (match[1], match[2]))
    how = (match[3] or "").strip()
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high)):
        raise UserError(f"{name}={text}: a range is of numbers, and this field takes none; write choices: a,b,c")
    step = float(how.removeprefix("step")) if how.startswith("step") else None
    if isinstance(low, int) and isinstance(high, int):
        if step is not None and step != int(step):
            raise UserError(f"{name}={text}: the field takes whole numbers, so the step is one, too")
        return Range(name, low, high, how == "log", None if step is None else int(step))
    return Range(name, float(low), float(high), how == "log", step)


def _value_at(recipe: Any, name: str) -> Any:
    for piece in name.split("."):
        recipe = recipe[int(piece)] if isinstance(recipe, tuple) else getattr(recipe, piece)
    return recipe
