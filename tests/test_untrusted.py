"""A run dir is data: whatever its files say, no command runs code because of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import tiny
from conftest import run_python
from test_run import train

import launcher
from launcher import Recipe, backbones, data, phases, transforms
from launcher.cli import main
from launcher.errors import UserError
from launcher.recipe.serialization import differences, from_json
from launcher.recipe.type_names import _OLD_NAMES, find_type, public_types

MARK = "import pathlib; pathlib.Path({mark!r}).touch()\n"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run all of whose parts are launcher's."""
    folder = tmp_path_factory.mktemp("plain")
    for split, count in (("train", 8), ("val", 4)):
        for index in range(count):
            file = folder / f"images/{split}/{index % 2}/{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (32, 32), ("red", "blue")[index % 2]).save(file)
    train(of_images(folder / "run"), folder / "run")
    return folder / "run"


def of_images(run_dir: Path) -> Recipe:
    return dataclasses.replace(
        tiny.recipe,
        backbone=backbones.Torchvision(name="mobilenet_v3_small", weights=None, image_size=32),
        data=data.ImageFolder(root=str(run_dir.parent / "images")),
        freeze_plan=phases.full_finetune(epochs=1),
        batch_size=4,
    )


@pytest.fixture
def hostile(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy with files that leave a mark when they are imported, in the current folder, as `python -m` has it."""
    shutil.copytree(plain, tmp_path / "evil", ignore=shutil.ignore_patterns("checkpoints"))
    for file in ("evil/__init__.py", "evil/payload.py", "payload.py", "evil/recipe.py"):
        (tmp_path / file).write_text(MARK.format(mark=str(tmp_path / "ran")) + "class X: ...\n")
    shutil.copy(plain.parent / "images/val/0/0.png", tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "evil"


COMMANDS = [
    ["predict", "evil", "0.png"],
    ["evaluate", "evil", "--workers", "0"],
    ["report", "evil", "--workers", "0"],
    ["export", "evil", "--to", "safetensors"],
    ["average", "evil", "--to", "mean", "--workers", "0"],
    ["compare", "evil"],
    ["status", "evil"],
]


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_the_command_that_a_run_dir_names_is_not_imported(hostile: Path, capsys: Any) -> None:
    words = ["evil/payload.py", "payload.py", "evil/recipe.py", "evil.payload", "payload"]
    change(hostile / "environment.json", command=words, folder=str(hostile.parent))
    for command in COMMANDS:
        assert main(command) == 0, (command, capsys.readouterr().err)
    launcher.load(hostile)
    assert not (hostile.parent / "ran").exists()


@pytest.mark.parametrize(
    "name", ["evil.payload.X", "payload.X", "evil.payload:X", "antigravity.X", "os.system", "subprocess.Popen", ["x"]]
)
def test_a_type_that_a_run_dir_names_is_not_imported(hostile: Path, capsys: Any, name: Any) -> None:
    before = set(sys.modules)
    change(hostile / "recipe.json", augment={"type": name})
    for command in COMMANDS:
        code, told = main(command), capsys.readouterr().err.splitlines()
        if command[0] not in ("report", "compare", "status"):  # these need no recipe that can be built
            assert code == 2, command
            assert len(told) == 1, told
            assert "--recipe FILE" in told[0]
            assert str(name) in told[0]
    with pytest.raises(UserError, match="is not a type of launcher"):
        launcher.load(hostile)
    assert main(["plan", "--help"]) == 0
    assert not (hostile.parent / "ran").exists()
    assert not {"evil", "payload", "antigravity", "evil.payload"} & (set(sys.modules) - before)


def test_training_into_a_run_dir_compares_its_recipe_and_imports_nothing(
    plain: Path, hostile: Path, capsys: Any
) -> None:
    change(hostile / "recipe.json", augment={"type": "payload.X"})
    recipe = dataclasses.replace(of_images(plain), augment=transforms.Augment(preset="none"))
    with pytest.raises(UserError, match=r"holds a run of another recipe \(augment: X\(\) there"):
        train(recipe, hostile)
    use = f"""import dataclasses, tiny
from launcher import backbones
recipe = dataclasses.replace(tiny.recipe, backbone=backbones.Torchvision(
    name="mobilenet_v3_small", weights={str(hostile)!r}, image_size=32))
"""
    (hostile.parent / "use.py").write_text(use)
    assert main(["plan", "use.py"]) == 0, capsys.readouterr().err
    assert not (hostile.parent / "ran").exists()


def test_arguments_of_the_network_are_not_taken_from_the_run_dir(hostile: Path, capsys: Any) -> None:
    """timm's create_model loads a file that `checkpoint_path` names."""
    described = json.loads((hostile / "final/model.json").read_text())
    change(hostile / "final/model.json", kwargs={"weights": "no such weights", "checkpoint_path": "x"})
    assert main(["export", "evil", "--to", "safetensors"]) == 0, capsys.readouterr().err
    change(hostile / "final/model.json", **(described | {"name": "hf-hub:owner/name"}))
    assert main(["predict", "evil", "0.png"]) == 2
    assert "describes a hf-hub:owner/name, but recipe.json names a mobilenet_v3_small" in capsys.readouterr().err


OWN = """import dataclasses
import tiny

@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(tiny.StripeData):
    pass

recipe = dataclasses.replace(tiny.recipe, data=Mine(), freeze_plan=tiny.recipe.freeze_plan[:1])
other = dataclasses.replace(recipe, seed=1)
"""


def test_parts_of_ones_own_come_from_the_recipe_that_is_named(tmp_path: Path) -> None:
    """In processes of their own: in this one, all of them would be imported already."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project, elsewhere):
        folder.mkdir()
    (project / "mine.py").write_text(OWN)
    tests = {"PYTHONPATH": f"{Path(launcher.__file__).parents[1]}:{Path(tiny.__file__).parent}"}
    run = project / "runs/mine"

    def command(*words: str, cwd: Path = elsewhere) -> tuple[int, str, str]:
        done = run_python("-m", "launcher", *words, cwd=cwd, env=tests)
        return done.code, done.out, done.err

    code, out, err = command("mine.py", "--workers", "0", cwd=project)
    assert code == 0, err
    assert "predict runs/mine IMAGES --recipe mine.py" in out
    code, out, err = command("evaluate", str(run), "--workers", "0")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {run}/recipe.json: tiny.TinyBackbone, mine.Mine are not types of launcher; ")
    code, out, err = command("evaluate", str(run), "--workers", "0", "--recipe", str(project / "mine.py"))
    assert (code, err) == (0, f"running the code of {project}/mine.py, for the parts that it defines\n"), err
    # The copy that the run keeps has another name, and a variant of the recipe the same parts.
    program = (
        f"import launcher; launcher.load({str(run)!r}, {str(run / 'recipe.py')!r}); import recipe; "
        f"launcher.load({str(run)!r}, recipe=recipe.recipe)"
    )
    done = run_python("-c", program, cwd=elsewhere, env=tests)
    assert (done.code, done.err) == (0, f"running the code of {run}/recipe.py, for the parts that it defines\n")
    # What is in that file, and nowhere else: a class of another file is not found by its name.
    (elsewhere / "other.py").write_text("import tiny\nfrom tiny import recipe\n")
    code, out, err = command("predict", str(run), "x.png", "--recipe", "other.py")
    assert code == 2
    assert "mine.Mine is not a type of launcher" in err


def test_old_names_are_read(plain: Path) -> None:
    public = public_types()
    assert {_OLD_NAMES[name] for name in _OLD_NAMES} <= set(public)
    for old, new in _OLD_NAMES.items():
        assert from_json_type(old) is public[new]
    for name in public:
        assert not name.startswith("launcher.recipe.")
    text = (plain / "recipe.json").read_text()
    old_text = text
    for old, new in _OLD_NAMES.items():
        old_text = old_text.replace(f'"{new}"', f'"{old}"')
    assert old_text != text
    assert from_json(json.loads(old_text)) == from_json(json.loads(text))
    recipe = from_json(json.loads(text))
    older = json.loads(old_text)
    del older["hang_limit_seconds"]  # a field that recipes did not have then
    assert differences(older, recipe) == []


def from_json_type(name: str) -> type | None:
    return find_type(name, {})
