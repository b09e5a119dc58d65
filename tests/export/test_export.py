"""`export`: what is written runs without the launcher, says what it is, and is the model; or there is no file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import sklearn.datasets  # noqa: F401 - sets environment variables when it is imported first; here, not in a test
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file

import launcher
import tiny
from benchmarks.exports import finished_without_training
from commands import ROOT, SUPPORT, TINY, RunCli
from exports import ONE, RunOf, exported, outputs_of, pictures, ready
from launcher import backbones, data, heads
from launcher.cli import main
from launcher.export import export
from launcher.export.graph import Exported, Pixels
from launcher.recipe.protocols import Preprocessing
from launcher.recipe.transforms import evaluation
from recipes import digits
from runs import train


def by_onnxruntime(file: Path, batch: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file))
    (outputs,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return torch.from_numpy(outputs)


@pytest.mark.slow
def test_onnx_runs_in_onnx_runtime_on_batches_of_any_size_and_says_what_it_is(
    trained: RunOf, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = trained("own")
    capsys.readouterr()
    assert main(["export", *TINY, str(run_dir), "--to", "onnx"]) == 0
    file = run_dir / "export/own.onnx"
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].startswith(f"{file}  {file.stat().st_size / 1e3:.1f} kB, ONNX opset ")
    assert lines[1:3] == ["  input   images float32 (N, 3, 16, 16)", "  output  logits float32 (N, 3)"]
    assert lines[3].startswith("  checked on 16 validation images in batches of 1, 2, 5 and 8, ONNX Runtime ")
    assert len(lines) == 4
    assert [path.name for path in file.parent.iterdir()] == ["own.onnx"]
    for count in (1, 3, 16):
        batch = pictures(count)
        assert by_onnxruntime(file, ready(run_dir, batch)) == pytest.approx(outputs_of(run_dir, batch), abs=1e-5)
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    (value,) = model.graph.input
    assert [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim] == ["N", 3, 16, 16]
    about = {entry.key: entry.value for entry in model.metadata_props}
    stored = json.loads((run_dir / "final/calibration.json").read_text())
    assert (about["task"], json.loads(about["class_names"])) == ("classification", ["across", "down", "diagonal"])
    assert json.loads(about["temperature"]) == stored["temperature"]
    assert re.match(
        r"logits; softmax (of logits / [0-9.]+, the temperature, )?gives ", json.loads(about["output"])["meaning"]
    )
    image = json.loads(about["input"])
    assert (image["mean"], image["std"], image["interpolation"]) == ([0.5] * 3, [0.25] * 3, "bilinear")
    assert (image["centre_crop_to"], image["resize_shorter_side_to"]) == (16, 16)
    versions = json.loads(about["versions"])
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert versions["vision-launcher"] == metadata.version("vision-launcher")
    assert "launcher" not in versions, "another project's name on PyPI"
    assert str(ROOT).encode() not in file.read_bytes()  # no path of this machine


@pytest.mark.long
@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_pictures_in_probabilities_out(form: str, trained: RunOf, tmp_path: Path) -> None:
    run_dir = trained("timm")
    file = exported(run_dir, form, tmp_path / "model", "--preprocess", "--probabilities")
    if form == "onnx":
        (output,) = (json.loads(entry.value) for entry in onnx.load(file).metadata_props if entry.key == "output")
        assert output["meaning"].startswith("probabilities of the classes, which sum to 1 (softmax is applied; ")
    batch = pictures(4)
    for shape in ((16, 16), (23, 31), (45, 45), (64, 50), (45, 90)):
        repeated = batch.repeat(1, 6, 6, 1)[:, : shape[0], : shape[1]].contiguous()
        for some in (repeated, repeated[:1].contiguous()):
            found = by_onnxruntime(file, some) if form == "onnx" else torch.export.load(file).module()(some)
            assert found.detach() == pytest.approx(outputs_of(run_dir, some, interpreted=True), abs=0.01)
            assert found.sum(1).detach() == pytest.approx(torch.ones(len(some)), abs=1e-5)


@pytest.mark.slow
def test_a_program_of_torch_export_carries_its_description(trained: RunOf, tmp_path: Path) -> None:
    run_dir = trained("labels")
    file = exported(run_dir, "torch-export", tmp_path / "labels.pt2", "--probabilities")
    extra = {"launcher.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    about = json.loads(extra["launcher.json"])
    assert about["thresholds"] == json.loads((run_dir / "final/calibration.json").read_text())["thresholds"]
    assert about["output"]["name"] == "probabilities"
    assert about["output"]["meaning"] == "the probability of each label (sigmoid is applied; not calibrated)"
    for count in (1, 7):
        found = program(ready(run_dir, pictures(count))).detach()
        assert found == pytest.approx(outputs_of(run_dir, pictures(count), interpreted=True), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_regression_gives_values_in_the_units_of_its_targets(form: str, trained: RunOf, tmp_path: Path) -> None:
    run_dir = trained("values")
    file = exported(run_dir, form, tmp_path / "model")
    batch = ready(run_dir, pictures(5))
    found = by_onnxruntime(file, batch) if form == "onnx" else torch.export.load(file).module()(batch).detach()
    expected = outputs_of(run_dir, pictures(5), interpreted=True)
    assert float((expected - outputs_of(run_dir, pictures(5))).abs().min()) > 0.1  # units matter here
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mlp", "timm", "own"])
def test_weights_in_one_file(name: str, trained: RunOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = trained(name)
    capsys.readouterr()
    file = exported(run_dir, "safetensors", tmp_path / "model.safetensors")
    library = {"own": "the run's own parts", "timm": "test_resnet of timm"}.get(name, "resnet18 of torchvision")
    output = capsys.readouterr().out
    assert f"loaded into {library}" in output
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert json.loads(about["class_names"]) == ["across", "down", "diagonal"]
    stored = load_file(file)
    own = load_file(run_dir / "final/model.safetensors")
    assert stored.keys() == own.keys()
    assert all(torch.equal(stored[tensor], own[tensor]) for tensor in own)
    if name == "resnet":
        network = torchvision.models.get_model("resnet18", num_classes=3)
        network.load_state_dict(stored)
        with torch.no_grad():
            found = network.eval()(ready(run_dir, pictures(3)))
        assert found == pytest.approx(outputs_of(run_dir, pictures(3)), abs=1e-5)


@pytest.mark.slow
def test_a_run_in_lower_precision_is_exported_in_float32(
    trained: RunOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported(trained("timm"), "onnx", tmp_path / "model.onnx")
    assert "computes in float32; the run itself computes in bf16" in capsys.readouterr().out
    assert by_onnxruntime(file, ready(trained("timm"), pictures(2))).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch-export"])
@pytest.mark.parametrize(
    "backbone",
    [
        backbones.Torchvision(name="squeezenet1_1", weights=None, image_size=64),
        backbones.Timm(name="test_vit", weights=None),
    ],
    ids=lambda backbone: backbone.name,
)
def test_families(form: str, backbone: Any, tmp_path: Path) -> None:
    """`benchmarks/exports.py` does all of torchvision's."""
    recipe = dataclasses.replace(digits.recipe, backbone=backbone, head=heads.Linear())
    finished_without_training(recipe, tmp_path / "run")
    file = exported(tmp_path / "run", form, tmp_path / "model", "--recipe", digits.__file__)
    model = launcher.load(tmp_path / "run", digits.__file__)
    for count in (1, 6):
        batch = torch.randn(count, 3, *[model.preprocessing.about.image_size] * 2)
        with torch.no_grad():
            expected = model(batch)
            found = by_onnxruntime(file, batch) if form == "onnx" else torch.export.load(file).module()(batch)
        assert float((found - expected).abs().max()) < 1e-3 < float(expected.std())


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("resize_size", "image_size"), [(32, 32), (37, 32), (40, 33)])
def test_pixels_in_the_graph_are_those_of_validation(interpolation: Any, resize_size: int, image_size: int) -> None:
    about = Preprocessing(image_size=image_size, resize_size=resize_size, interpolation=interpolation)
    generator = torch.Generator().manual_seed(0)
    for height, width in ((32, 32), (37, 37), (40, 77), (77, 40), (33, 90), (91, 34), (20, 21), (5, 300)):
        batch = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator)
        own = torch.stack([evaluation(about).pixels(one.permute(2, 0, 1)) for one in batch])
        assert torch.equal(Pixels(about)(batch), own), (height, width)


@pytest.mark.slow
@pytest.mark.parametrize("off", [0.01, float("nan")])
@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_what_is_not_the_model_gets_no_file(
    form: str,
    off: float,
    trained: RunOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Wrong(Exported):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) + off

    run_dir = trained("own")
    monkeypatch.setattr(export, "Exported", Wrong)
    capsys.readouterr()
    assert main(["export", *TINY, str(run_dir), "--to", form, "--out", str(tmp_path / "new/model")]) == 2
    output = capsys.readouterr()
    assert f"error: --to {form}: its outputs differ by {off if off < 1 else 'inf'}" in output.err
    assert "allowed are 0.001, so nothing is left" in output.err
    assert len(output.err.splitlines()) == 2  # the first says that the code of tiny.py is run
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model").write_text("what was there")
    assert main(["export", *TINY, str(run_dir), "--to", form, "--out", str(tmp_path / "model"), "--overwrite"]) == 2
    assert (tmp_path / "model").read_text() == "what was there"
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    exported(run_dir, form, tmp_path / "model", "--overwrite")
    assert (tmp_path / "model").stat().st_size > 1000


@pytest.mark.parametrize("form", ["torch-export", "onnx", "safetensors", "hub"])
def test_a_full_disk_is_named_and_nothing_is_left(form: str, trained: RunOf, full_disk: Path, run_cli: RunCli) -> None:
    """In a process of its own: torch's writer of files would end it."""
    out = full_disk / "file"
    refused = run_cli("export", *TINY, str(trained("own")), "--to", form, "--out", str(out))
    assert (refused.code, refused.err.splitlines()[1:]) == (
        2,
        [f"error: --out {out}: cannot be written (No space left on device)"],
    )
    assert list(full_disk.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["Choosy", "Pairs"])
@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_network_that_cannot_be_captured_is_refused(
    form: str, backbone: str, trained: RunOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained("own"), tmp_path / "run")
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    recipe["backbone"]["type"] = f"unexportable.{backbone}"
    (tmp_path / "run/recipe.json").write_text(json.dumps(recipe))
    capsys.readouterr()
    words = ["--recipe", str(SUPPORT / "unexportable.py"), str(tmp_path / "run"), "--to", form]
    assert main(["export", *TINY, *words, "--out", str(tmp_path / "new/model")]) == 2
    output = capsys.readouterr().err
    if backbone == "Choosy":
        assert f"error: --to {form}: torch.export cannot capture this network for batches of any size: " in output
    else:
        assert f"\nerror: --to {form}: " in output
        assert "cannot run it on a batch (1, 3, 16, 16): " in output
    assert len(output.splitlines()) == 3  # the first two say whose code is run
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_without_the_data_one_says_what_to_compare_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(8):
        file = tmp_path / f"images/{'ab'[index % 2]}/{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        tiny.picture(tiny.Stripes(31, 1), index).resize((20 + index, 30)).save(file)
    recipe = dataclasses.replace(tiny.recipe, data=data.ImageFolder(root=str(tmp_path / "images")), batch_size=4)
    train(dataclasses.replace(recipe, freeze_plan=ONE), tmp_path / "run")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    words = ["export", *TINY, str(tmp_path / "run"), "--to", "onnx"]
    capsys.readouterr()
    assert main([*words, "--probabilities", "--opset", "3"]) == 2
    output = capsys.readouterr().err.splitlines()[1:]
    assert output[0] == "error: --opset 3: must be from 18 to 26"
    assert output[1].startswith("error: the run's validation images cannot be had: data.root")
    assert output[2].startswith("error: give --check-on FOLDER")
    assert len(output) == 3
    assert main([*words, "--preprocess", "--check-on", str(tmp_path / "elsewhere")]) == 0
    assert "checked on pictures of 6 sizes out of 8 images of" in capsys.readouterr().out
    assert main([*words, "--overwrite", "--check-on", "generated"]) == 0
    assert "checked on 16 generated pictures (no real images were read)" in capsys.readouterr().out


@pytest.mark.slow
def test_mistakes_are_reported_at_once(
    trained: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, there = trained("values"), tmp_path / "there"
    there.mkdir()
    (there / "letter.txt").touch()

    def output(*words: str) -> list[str]:
        capsys.readouterr()
        assert main(["export", *words, *TINY]) == 2
        found = capsys.readouterr()
        assert found.out == ""
        return [
            line.removeprefix("error: ")
            for line in found.err.splitlines()
            if not line.startswith("running the code of ")
        ]

    assert output(str(tmp_path), "--to", "hub", "--preprocess", "--probabilities", "--opset", "20", "--private") == [
        "--preprocess: is for --to onnx and --to torch-export; hub holds the weights alone",
        "--probabilities: is for --to onnx and --to torch-export; hub holds the weights alone",
        "--opset 20: is for --to onnx",
        "--private: is for --upload OWNER/NAME",
        f"{tmp_path}: no run dir (it has no recipe.json)",
    ]
    words = ("--to", "torch-export", "--upload", "a/b", "--license", "mit", "--tolerance", "0", "--probabilities")
    assert output(str(run_dir), *words, "--check-on", "no/such", "--out", str(there)) == [
        "--license mit: is for --to hub",
        "--upload a/b: is for --to hub",
        "--tolerance 0: must be above 0",
        f"--out {there}: is there already; give another path, or --overwrite",
        "--probabilities: a model for regression has none; leave it out",
        "no/such: no such file or folder",
    ]
    assert output(str(run_dir), "--to", "onnx", "--out", str(there), "--overwrite") == [
        f"--out {there}: is a folder; --to onnx writes a file, so give the path of one"
    ]
    assert output(str(run_dir), "--to", "hub", "--out", str(there), "--overwrite") == [
        f"--out {there}: --overwrite replaces what an export wrote, and this folder also has letter.txt; "
        "give another path"
    ]
    assert (there / "letter.txt").exists()
    assert output(str(run_dir), "--to", "hub", "--upload", "me") == [
        "--upload me: must be OWNER/NAME, of letters, digits and . _ -"
    ]
    assert output(str(run_dir), "--to", "onnx", "--out", str(there / "letter.txt/model.onnx")) == [
        f"--out {there}/letter.txt/model.onnx: {there}/letter.txt is a file, not a folder"
    ]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else find(name, *rest))
    assert output(str(run_dir), "--to", "onnx") == [
        "--to onnx: needs onnx, onnxscript, onnxruntime: pip install 'vision-launcher[onnx]'"
    ]
