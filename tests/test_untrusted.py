"""A run dir is data: whatever its files say, no command runs code because of them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

import launcher
import tiny
from commands import run_python
from launcher import Recipe, backbones, data, phases, transforms
from launcher.cli import main
from launcher.errors import UserError
from launcher.recipe.serialization import differences, from_json
from launcher.recipe.type_names import _OLD_NAMES, find_type, public_types
from runs import train

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


@pytest.mark.slow
def test_the_command_that_a_run_dir_names_is_not_imported(hostile: Path, capsys: Any) -> None:
    words = ["evil/payload.py", "payload.py", "evil/recipe.py", "evil.payload", "payload"]
    change(hostile / "environment.json", command=words, folder=str(hostile.parent))
    for command in COMMANDS:
        assert main(command) == 0, (command, capsys.readouterr().err)
    launcher.load(hostile)
    assert not (hostile.parent / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["evil.payload.X", "payload.X", "evil.payload:X", "antigravity.X", "os.system", "subprocess.Popen", ["x"]]
)
def test_a_type_that_a_run_dir_names_is_not_imported(hostile: Path, capsys: Any, name: Any) -> None:
    before = set(sys.modules)
    change(hostile / "recipe.json", augment={"type": name})
    for command in COMMANDS:
        code, reported = main(command), capsys.readouterr().err.splitlines()
        if command[0] not in ("report", "compare", "status"):  # these need no recipe that can be built
            assert code == 2, command
            assert len(reported) == 1, reported
            assert "--recipe FILE" in reported[0]
            assert str(name) in reported[0]
    with pytest.raises(UserError, match="is not a type of launcher"):
        launcher.load(hostile)
    assert main(["plan", "--help"]) == 0
    assert not (hostile.parent / "ran").exists()
    assert not {"evil", "payload", "antigravity", "evil.payload"} & (set(sys.modules) - before)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.long
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("recipe.json", ["status evil", "compare evil", "predict evil 0.png"]),
        ("final/model.json", ["predict evil 0.png", "report evil --workers 0", "export evil --to safetensors"]),
        ("log.txt", ["status evil"]),
        ("LOCK", ["status evil"]),
        ("checkpoints/step-000002/progress.json", ["compare evil"]),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_refused(
    hostile: Path, name: str, commands: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be read for ever."""
    place = hostile / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    for command in commands:
        capsys.readouterr()
        assert main(command.split()) == 2
        reported = capsys.readouterr().err.splitlines()[-1]
        assert reported in (f"error: evil/{name}: a named pipe, not a file; remove it", _NO_RUN_DIR)


_NO_RUN_DIR = "error: evil: no run dir (it has no recipe.json)"


@pytest.mark.slow
def test_training_does_not_write_through_links(plain: Path, tmp_path: Path) -> None:
    """They may lead to any file of the user's."""
    run_dir = tmp_path / "run"
    shutil.copytree(plain, run_dir)
    for name in ("log.txt", "metrics.jsonl"):
        victim = tmp_path / f"{name} of the user"
        victim.write_text("mine\n")
        (run_dir / name).unlink()
        (run_dir / name).symlink_to(victim)
    with pytest.raises(UserError) as error:
        train(of_images(plain), run_dir)
    assert sorted(error.value.problems) == [
        f"{run_dir}/{name}: is a link, where the run keeps a file; remove it" for name in ("log.txt", "metrics.jsonl")
    ]
    assert {file.read_text() for file in tmp_path.glob("*of the user")} == {"mine\n"}


@pytest.mark.slow
def test_a_folder_of_results_is_no_link(plain: Path, tmp_path: Path) -> None:
    """It is replaced at the end, which a link cannot be."""
    run_dir = tmp_path / "run"
    shutil.copytree(plain, run_dir)
    (run_dir / "final").rename(tmp_path / "elsewhere")
    (run_dir / "final").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="final: is a link, where the run keeps a folder; remove it"):
        train(of_images(plain), run_dir)


def test_a_terminal_obeys_nothing_that_status_shows(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(hostile / "final")
    (hostile / "STOPPED.json").write_text(json.dumps({"reason": "x\x1b[31m\nerror: forged"}))
    row = {"event": "begin", "why": "\x1b]0;title\x07", "time": "now"}
    (hostile / "LIVES.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["status", "evil"]) == 0
    reported = capsys.readouterr().out
    assert "stopped (x\\x1b[31m\\nerror: forged)" in reported
    assert "\x1b" not in reported
    assert "\x07" not in reported


def test_a_run_dir_downloads_nothing_to_this_disk(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = hostile.parent / "downloads"
    images = {"type": "launcher.data.Torchvision", "name": "MNIST", "root": str(root), "download": True}
    change(hostile / "recipe.json", data=images)
    assert main(["evaluate", "evil", "--workers", "0"]) == 2
    assert "no complete MNIST (split 'train')" in capsys.readouterr().err
    assert not root.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("evaluation.json", ("calibration", "before", "bins", 0, "samples"), None),
        ("evaluation.json", ("calibration", "before", "bins", 0, "to"), "\x1b"),
        ("plan.json", ("phases", 0, "trains"), True),
        ("plan.json", ("phases", 0, "trains", 0), 2.5),
        ("plan.json", ("data", "val"), "x"),
        ("environment.json", ("data", "val_samples"), "x"),
        ("environment.json", ("data", "train_samples"), float("nan")),
        ("final/model.json", ("task",), 1.5),
        ("recipe.json", ("freeze_plan",), True),
        ("recipe.json", ("freeze_plan", 0, "rules"), [["head", 1.0], {}]),
        ("cache.json", ("0",), "x"),
        ("precision.json", ("seconds_of_a_micro_step",), [1]),
        ("evaluation-test.json", ("metrics",), [1]),
        ("timing.jsonl", ("seconds",), float("nan")),
        ("timing.jsonl", ("waited_share",), [1]),
        ("proofs.jsonl", ("digest",), [[]]),
        ("metrics.jsonl", ("loss",), []),
    ],
)
def test_a_value_of_another_kind_is_no_traceback(
    hostile: Path, name: str, at: tuple[Any, ...], value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    step = json.loads((hostile / "final/model.json").read_text())["step"]
    for other, content in (("cache", {}), ("precision", {}), ("evaluation-test", {"weights": {"step": step}})):
        if not (hostile / f"{other}.json").exists():
            (hostile / f"{other}.json").write_text(json.dumps(content))
    if name == "evaluation.json":
        assert main(["evaluate", "evil", "--workers", "0"]) == 0
    file = hostile / name
    rows = [json.loads(line) for line in (file.read_text().splitlines() if name.endswith("l") else [file.read_text()])]
    *before, last = at
    place = rows[0]
    for key in before:
        place = place[key]
    place[last] = value
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", "evil"]) in (0, 2)
    assert main(["compare", "evil"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_numbers_of_a_lock_may_be_too_large(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(hostile / "final")
    lock = f'{{"host": "{socket.gethostname()}", "pid": 1e400, "process_started": 1}}'
    (hostile / "LOCK").write_text(lock)
    assert main(["status", "evil"]) == 0
    (hostile / "checkpoints/step-000002").mkdir(parents=True)
    (hostile / "checkpoints/step-000002/progress.json").write_text('{"run_best": "x"}')
    assert main(["compare", "evil"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "reported"),
    [
        ("final/calibration.json", '{"temperature": 1, "positives": 5}', "positives must be whole numbers"),
        ("final/calibration.json", f'{{"temperature": {"9" * 400}}}', "must be positive numbers"),
        ("final/calibration.json", "[" * 100_000, "cannot be read"),
        ("final/preprocess.json", {"std": [1e-320] * 3}, "std must be at least 1e-06"),
        (
            "final/model.json",
            {"task": {"kind": "regression"}},
            "task.kind is 'regression', but the recipe's task gives",
        ),
        ("final/model.json", {"task": {"kind": "classification", "mean": [[0, 1]], "std": [[1]]}}, "numbers each"),
        ("environment.json", '{"command": 5}', None),
        ("environment.json", '{"packages": 5}', None),
        ("environment.json", "[" * 100_000, None),
    ],
)
def test_a_model_of_a_damaged_file_is_no_traceback(
    hostile: Path, name: str, content: Any, reported: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(content, dict):
        change(hostile / name, **content)
    else:
        (hostile / name).write_text(content)
    picture = hostile.parent / "one.png"
    tiny.picture(tiny.Stripes(31, 1), 0).save(picture)
    capsys.readouterr()
    if reported is None:
        assert main(["export", "evil", "--to", "hub", "--out", "folder"]) == 0
        return
    assert main(["predict", "evil", str(picture)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert reported in line
