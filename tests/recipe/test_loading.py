"""Recipes are imported by dotted name from any folder, and a broken one is told with file and line."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import UserError
from launcher.recipe.loading import load_recipe
from launcher.recipe.part import part


@part
class Whole:
    lr: float = 0.1
    epochs: int = 1


GOOD = f"from {__name__} import Whole\nrecipe = Whole(lr=0.5)\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package `my_recipes`, as the current folder; nothing imported from it stays."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    write("my_recipes/__init__.py", "")
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems(spec: str) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        load_recipe(spec, Whole)
    return raised.value.problems


@pytest.mark.parametrize("spec", ["my_recipes/deep/a.py", "my_recipes.deep.a", "my_recipes/deep/a.py:recipe"])
def test_a_path_and_a_dotted_name_give_the_same(spec: str, project: Path) -> None:
    write("my_recipes/deep/__init__.py", "")
    write("my_recipes/deep/a.py", GOOD)
    loaded = load_recipe(spec, Whole)
    assert loaded.recipe == Whole(lr=0.5)
    assert (loaded.module_name, loaded.path) == ("my_recipes.deep.a", project / "my_recipes/deep/a.py")


def test_two_recipes_of_one_file_have_runs_of_their_own() -> None:
    write("my_recipes/o2.py", f"{GOOD}lion = Whole(lr=0.01)\n")
    names = [load_recipe(f"my_recipes/o2.py{end}", Whole).run_name for end in ("", ":recipe", ":lion")]
    assert names == ["o2", "o2", "o2-lion"]


def test_from_another_folder_with_what_lies_beside_it(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("beside_me.py", "lr = 0.25")
    write("my_recipes/b.py", f"import beside_me\n{GOOD}variant = Whole(lr=beside_me.lr)\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_recipe(f"{project}/my_recipes/b.py:variant", Whole).recipe == Whole(lr=0.25)


def test_a_class_of_the_recipe_can_be_pickled(project: Path) -> None:
    write("lone-recipe.py", f"class Own:\n    pass\n{GOOD}")
    loaded = load_recipe("lone-recipe.py", Whole)
    own = sys.modules[loaded.module_name].Own()
    assert type(pickle.loads(pickle.dumps(own))) is type(own)  # noqa: S301


def test_a_missing_file_names_the_closest(project: Path) -> None:
    write("my_recipes/resnet50.py", GOOD)
    assert problems("my_recipes/resnet5.py") == (
        f"my_recipes/resnet5.py: no such recipe file in {project}; did you mean 'resnet50.py'?",
    )
    assert problems("my_recipes/resnet50")[0].endswith("did you mean 'resnet50.py'?")
    assert problems("my_recipe/x.py") == (
        f"my_recipe/x.py: no such recipe file; there is no folder 'my_recipe' in {project}",
    )
    assert problems("my_recipes") == ("my_recipes: a folder; give one of its recipe files; there are: resnet50.py",)
    write("my data/tags.csv", "path,label\n")
    for place in ("my data", "my data/tags.csv"):
        assert problems(place) == (
            f"{place}: no recipe; to write one for the data there: python -m launcher init '{place}'",
        )
    assert problems("my_recipes.resnet5") == (
        "my_recipes.resnet5: no such recipe; there is no module 'resnet5' in 'my_recipes'; did you mean "
        "'my_recipes.resnet50'?",
    )
    assert "there is no module 'nothing'" in problems("nothing.here")[0]
    assert "neither a recipe file" in problems("what is this")[0]
    assert "neither a recipe file" in problems("")[0]


def test_what_goes_wrong_inside_has_file_and_line() -> None:
    write("my_recipes/syntax.py", "a = 1\nb = (2\n")
    assert problems("my_recipes/syntax.py") == ("my_recipes/syntax.py:2: '(' was never closed: b = (2",)
    write("my_recipes/name.py", "thing = 1\n\nprint(thin)\n")
    # From Python 3.12 on it ends in "Did you mean: 'thing'?".
    assert problems("my_recipes/name.py")[0].startswith("my_recipes/name.py:3: NameError: name 'thin' is not defined")
    write("my_recipes/absent.py", "import no_such_library\n")
    assert problems("my_recipes/absent.py") == (
        "my_recipes/absent.py:1: ModuleNotFoundError: No module named 'no_such_library'",
    )
    write("my_recipes/leave.py", "import sys\nsys.exit(3)\n")
    assert problems("my_recipes/leave.py") == ("my_recipes/leave.py:2: SystemExit: 3",)
    write("helping.py", "def f():\n    return {}['x']\n")
    write("my_recipes/helped.py", "import helping\nhelping.f()\n")
    assert problems("my_recipes/helped.py") == ("helping.py:2: KeyError: 'x'",)


def test_every_wrong_field_gets_its_line() -> None:
    write("my_recipes/fields.py", f"from {__name__} import Whole\n\nrecipe = Whole(\n    epoch=3,\n    lr='fast')\n")
    lines = problems("my_recipes/fields.py")
    assert len(lines) == 2
    assert all(line.startswith("my_recipes/fields.py:3: Whole.") for line in lines)
    assert "Whole has no field 'epoch'; did you mean 'epochs'?" in " ".join(lines)
    assert "lr='fast': input should be a valid number" in " ".join(lines)
    write("my_recipes/told.py", "from launcher.errors import UserError\nraise UserError('a: wrong', 'b: wrong')\n")
    assert problems("my_recipes/told.py") == ("my_recipes/told.py:2: a: wrong", "my_recipes/told.py:2: b: wrong")


def test_a_name_that_another_module_has_is_refused(project: Path) -> None:
    write("random.py", GOOD)
    write("pydantic.py", GOOD)
    assert problems("random.py")[0].startswith("random.py: its module name 'random' is also that of ")
    assert "site-packages" in problems("pydantic.py")[0]
    for name in ("random.py", "pydantic.py"):
        Path(name).unlink()
    # In a package of its own it is another name.
    write("my_recipes/random.py", GOOD)
    assert load_recipe("my_recipes/random.py", Whole).module_name == "my_recipes.random"
    write("v2.1.py", GOOD)
    assert problems("v2.1.py")[0].endswith("cannot be imported: Python reads the dot in 'v2.1' as a folder; rename it")


def test_two_packages_of_one_name_are_not_mixed_up(project: Path) -> None:
    for project_name in ("one", "two"):
        write(f"{project_name}/same/__init__.py", "")
        write(f"{project_name}/same/a.py", GOOD)
    write("two/same/only_here.py", GOOD)
    load_recipe("one/same/a.py", Whole)
    for spec in ("two/same/a.py", "two/same/only_here.py"):
        line = problems(spec)[0]
        assert line.startswith(f"{spec}: its module name")
        assert str(project / "one/same") in line


def test_the_variable_must_be_a_recipe() -> None:
    write("my_recipes/c.py", f"{GOOD}big = Whole(lr=9)\ndef make(): ...\n")
    assert problems("my_recipes/c.py:bigg") == ("my_recipes/c.py: has no 'bigg'; did you mean 'big'?",)
    assert problems("my_recipes/c.py:make") == ("my_recipes/c.py: make must be a Whole, and is a function; call it",)
    write("my_recipes/d.py", "recipe = {'lr': 1}")
    assert problems("my_recipes/d.py") == ("my_recipes/d.py: recipe must be a Whole, and is a dict",)
    write("my_recipes/e.py", "")
    assert problems("my_recipes/e.py") == ("my_recipes/e.py: has no 'recipe'; write recipe = Whole(...)",)
