"""The READMEs: what they name exists, their Python runs, and both say the same."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import pytest
import sklearn.datasets  # noqa: F401 - sets environment variables when it is imported first; here, not in a test

from commands import ROOT
from launcher.cli import main
from launcher.recipe.loading import load_recipe
from launcher.tuning.sweep.space import read_space

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
BOTH = pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["english", "chinese"])
MADE_BY_THE_READER = {"my_recipe.py", "recipes/probe_only.py", "recipes/parity.py"}
SHORT = ("data.val_fraction=0.9", "backbone.image_size=32", "freeze_plan.0.epochs=1")


class Block(NamedTuple):
    language: str
    text: str


def blocks(readme: Path) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", readme.read_text(), re.M | re.S)]


def python(start: str) -> str:
    """The Python block that begins with `start`."""
    (found,) = (block.text for block in blocks(ENGLISH) if block.language == "python" and block.text.startswith(start))
    return found


TAKES_A_RECIPE = ("plan", "verify", "fetch", "prepare", "submit", "rehearse", "find-lr", "sweep", "advise")
TAKES_NO_RECIPE = (
    "status",
    "logs",
    "cancel",
    "compare",
    "evaluate",
    "predict",
    "report",
    "cache",
    "init",
    "average",
    "export",
)


def commands() -> list[list[str]]:
    """The words after `-m launcher` of each command, without the options."""
    lines = [line for block in blocks(ENGLISH) if block.language == "bash" for line in block.text.splitlines()]
    found = []
    for line in lines:
        if "-m launcher" in line:
            words = shlex.split(line.rpartition("-m launcher")[2])
            if words[0] not in TAKES_NO_RECIPE:
                found.append(words[words[0] in TAKES_A_RECIPE :])
    return found


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Set by torch's compiler, which optimizers import.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def test_the_two_commands_are_there() -> None:
    first, second = (block.text.strip() for block in blocks(ENGLISH)[1:3])
    assert first == (
        "python -m venv .venv && .venv/bin/pip install -e '.[demo]' && .venv/bin/python -m launcher recipes/digits.py"
    )
    assert second == ".venv/bin/pip install -e '.[dev]' && .venv/bin/pytest -n 2"


def test_the_translation_is_in_step() -> None:
    assert blocks(CHINESE) == blocks(ENGLISH)
    shapes = [
        [line.split()[0] for line in readme.read_text().splitlines() if re.match(r"#+ ", line)]
        for readme in (ENGLISH, CHINESE)
    ]
    tables = [
        [line.count("|") for line in readme.read_text().splitlines() if line.startswith("|")]
        for readme in (ENGLISH, CHINESE)
    ]
    assert shapes[0] == shapes[1]
    assert tables[0] == tables[1]


@BOTH
def test_what_is_linked_or_named_exists(readme: Path) -> None:
    text = readme.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    named = re.findall(r"\b(?:recipes|launcher|slurm|tests|benchmarks)/[\w./]+\.\w+\b", text)
    assert {"recipes/digits.py", "launcher/recipe/protocols.py"} <= set(named)
    assert [name for name in {*links, *named} - MADE_BY_THE_READER if not (ROOT / name).exists()] == []


@BOTH
def test_accelerate_launch_is_for_several_processes_alone(readme: Path) -> None:
    text = readme.read_text()
    starts = re.findall(r"^(?!\|).*accelerate launch .*-m launcher.*$", text, re.M)  # not those of Troubleshooting
    assert len(starts) == 3
    assert [line for line in starts if "--multi_gpu --num_" not in line] == []
    assert len(re.findall(r"^\| .*Ctrl-C.*`KeyboardInterrupt`.* \| .*`accelerate launch`.* \|$", text, re.M)) == 1


def test_the_package_is_installed_by_its_own_name() -> None:
    """ "launcher" is another project on PyPI."""
    files = [*ROOT.glob("README*"), *(p for name in ("launcher", "slurm", "docs") for p in (ROOT / name).rglob("*"))]
    texts = {p: p.read_text() for p in files if p.suffix in (".py", ".md", ".sbatch", ".sh", ".toml", ".txt", ".html")}
    assert len(texts) > 250
    wrong = re.compile(r"""pip install (-\S+ )*["']?launcher\b|["'`]launcher\[""")
    assert [str(path) for path, text in texts.items() if wrong.search(text)] == []


def test_commands_name_recipes_and_fields_that_exist() -> None:
    found = commands()
    assert len(found) > 10
    for words in found:
        name, *rest = words
        if name in MADE_BY_THE_READER or "optim.lrr=1" in rest:
            continue
        overrides = [word for word in rest if re.match(r"[\w.]+=", word)]
        read_space(load_recipe(str(ROOT / name)).recipe, overrides)  # a value is a sweep of one


def test_the_recipe_that_is_explained_is_the_one_that_is_shipped() -> None:
    code = (ROOT / "recipes" / "resnet50.py").read_text().rpartition('"""\n\n')[2]
    assert python("from launcher import Recipe, backbones") == code


@pytest.mark.slow
def test_the_recipe_with_parts_of_its_own_trains() -> None:
    text = ENGLISH.read_text()
    section = text[text.index("## Parts of your own") : text.index("## What a run leaves")]
    parts = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    assert len(parts) == 9
    Path("my_recipe.py").write_text("\n\n".join(parts))
    try:
        assert main(["my_recipe.py", "--workers", "0"]) == 0
    finally:
        sys.modules.pop("my_recipe", None)
    metrics = json.loads(Path("runs/my_recipe/final/metrics.json").read_text())
    assert metrics["accuracy"] > 0.8
    assert metrics["confidence"] > 0.5
    recipe = json.loads(Path("runs/my_recipe/recipe.json").read_text())
    assert {"Upended", "NAdam", "Polynomial", "FocalAndConfidence"} <= set(
        re.findall(r"my_recipe[.:](\w+)", str(recipe))
    )


@pytest.mark.long
def test_python_of_the_guarantees_and_of_final_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """On short runs of the digits: of each variant that the README has."""
    sys.path.insert(0, str(ROOT))
    for name in ("probe_only", "parity"):
        Path(f"{name}.py").write_text(python(f"# recipes/{name}.py"))
        try:
            assert main([f"{name}.py", *SHORT, "--workers", "0"]) == 0
        finally:
            sys.modules.pop(name, None)
    exec(python("# frozen.py"), {})  # noqa: S102 - our own README

    for name, other in (("digits", "parity"), ("one", "parity"), ("two", "parity")):
        Path("runs", name).symlink_to(Path("runs", other).absolute())
    capsys.readouterr()
    exec(python("# compare.py"), {})  # noqa: S102
    assert float(capsys.readouterr().out) == 0

    PIL.Image.new("L", (8, 8)).save("digit.png")
    exec(python("# predict.py"), {})  # noqa: S102
    assert capsys.readouterr().out.strip() in {str(digit) for digit in range(10)}

    Path("recipes").symlink_to(ROOT / "recipes")
    exec(python("import launcher"), {})  # noqa: S102
    digit, probability = capsys.readouterr().out.split()
    assert digit in {str(digit) for digit in range(10)}
    assert 0.1 < float(probability) <= 1

    (line,) = (block.text for block in blocks(ENGLISH) if block.text.startswith("python -c"))
    program = shlex.split(line)[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "180"  # a tenth of 1,797
