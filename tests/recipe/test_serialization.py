"""A recipe goes to JSON text and back to an equal value; what cannot is refused by name."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from launcher.errors import UserError
from launcher.recipe.part import part
from launcher.recipe.serialization import differences, from_json, to_json
from launcher.recipe.type_names import name_of, types_in


@part
class Adam:
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


@part
class Momentum:
    lr: float = 0.1


@dataclasses.dataclass(frozen=True)
class OwnPart:
    """A user's plain dataclass."""

    text: str = ""
    number: int | float | None = None
    flag: bool = False
    pairs: tuple[tuple[str, float], ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    where: Path = Path("data")
    computed: int = dataclasses.field(default=7, init=False)


@part
class Whole:
    optim: Any = Field(default_factory=Adam)
    own: OwnPart = Field(default_factory=OwnPart)
    plan: tuple[Any, ...] = ()
    extra: Any = None


numbers = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = numbers | st.booleans() | st.text()
own_parts = st.builds(
    OwnPart,
    text=st.text(),
    number=numbers,
    flag=st.booleans(),
    pairs=st.lists(st.tuples(st.text(), st.floats(allow_nan=False, allow_infinity=False))).map(tuple),
    options=st.dictionaries(st.text().filter(lambda key: key != "type"), scalars, max_size=3),
    where=st.sampled_from([Path("data"), Path("/a/b c")]),
)
adams = st.builds(Adam, lr=st.floats(min_value=1e-9, max_value=1e9), betas=st.tuples(st.floats(0, 1), st.floats(0, 1)))
anything = st.recursive(scalars | adams | own_parts, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
wholes = st.builds(Whole, optim=adams, own=own_parts, plan=st.lists(anything, max_size=3).map(tuple), extra=anything)


@pytest.mark.slow
@given(wholes)
def test_round_trip_gives_an_equal_value(whole: Whole) -> None:
    data = json.loads(json.dumps(to_json(whole)))
    back = from_json(data, types_in(whole))
    assert back == whole
    # 1 == 1.0 == True: the types are kept, too.
    assert repr(back) == repr(whole)
    assert differences(data, back) == []


def test_the_form_of_the_json() -> None:
    assert to_json(Whole(plan=(Momentum(),)))["plan"] == [{"type": f"{__name__}.Momentum", "lr": 0.1}]


def test_everything_that_json_cannot_hold_is_named() -> None:
    @dataclasses.dataclass(frozen=True)
    class Inside:
        pass

    @dataclasses.dataclass(frozen=True)
    class Typed:
        type: int = 1

    own = OwnPart(options={"a": float("inf"), "b": {1: 2}}, number=1)
    with pytest.raises(UserError) as raised:
        to_json(Whole(own=own, plan=(len, [1], Inside(), Typed(), 3j)))
    lines = dict(problem.split(":", 1) for problem in raised.value.problems)
    assert list(lines) == [
        "own.options.a=inf",
        "own.options.b={1",
        "plan.0=<built-in function len>",
        "plan.1=[1]",
        "plan.2",
        "plan.3.type",
        "plan.4=3j",
    ]
    assert lines["plan.0=<built-in function len>"].startswith(" a function cannot be saved as JSON")
    assert lines["plan.1=[1]"] == " a list can change; write a tuple: (a, b)"
    assert lines["plan.2"] == " Inside is made inside a function; move it to the top of its file"


def test_a_class_of_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Momentum", Adam)
    with pytest.raises(UserError, match="Momentum cannot be imported by that name"):
        to_json(Whole(optim=_momentum))


_momentum = Momentum()

OWN = {name_of(cls): cls for cls in (Adam, Momentum, OwnPart, Whole)}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"lrr": 1}, "optim.lrr: Adam has no field 'lrr'; did you mean 'lr'?"),
        ({"lr": -1}, "optim.lr=-1: input should be greater than 0"),
    ],
)
def test_json_that_makes_no_recipe_is_refused(change: dict[str, Any], line: str) -> None:
    data = to_json(Whole())
    data["optim"] |= change
    with pytest.raises(UserError) as raised:
        from_json(data, OWN)
    assert raised.value.problems == (line,)


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "no_such_module.Adam", 3, None, {"type": "x"}])
def test_types_that_nobody_has_brought_are_refused_and_not_imported(name: Any) -> None:
    data = to_json(Whole())
    data["optim"]["type"] = name
    modules = set(sys.modules)
    with pytest.raises(UserError, match="is not a type of launcher; name the recipe file that defines"):
        from_json(data, OWN)
    with pytest.raises(UserError, match="are not types of launcher"):
        from_json(data)
    assert set(sys.modules) == modules


def test_a_missing_field_and_a_thing_that_is_no_recipe() -> None:
    with pytest.raises(UserError, match="not a saved recipe"):
        from_json({"lr": 1})
    with pytest.raises(UserError, match="not a recipe"):
        to_json(3)


def test_differences_name_the_field_and_both_values() -> None:
    there = Whole(plan=(Adam(), Momentum()), extra=True)
    now = Whole(optim=Adam(lr=3e-4), plan=(Adam(betas=(0.9, 0.9)), Adam(), Adam()), extra=1, own=OwnPart(text="x"))
    assert differences(there, now) == [
        "optim.lr: 0.001 there, 0.0003 now",
        "own.text: '' there, 'x' now",
        "plan: 2 items there, 3 now",
        "plan.0.betas.1: 0.999 there, 0.9 now",
        "plan.1: Momentum(lr=0.1) there, Adam(lr=0.001, betas=(0.9, 0.999)) now",
        "extra: True there, 1 now",
    ]


def test_differences_need_no_class_of_the_saved_recipe() -> None:
    there = to_json(Whole())
    there["optim"] = {"type": "gone.Optimizer", "speed": 3}
    del there["extra"]
    assert differences(there, Whole()) == [
        "optim: Optimizer(speed=3) there, Adam(lr=0.001, betas=(0.9, 0.999)) now",
        "extra: nothing there, None now",
    ]
