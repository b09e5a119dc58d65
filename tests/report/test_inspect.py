"""`report --explain`: wrong labels, validation images among the training images, what the network looks at."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from sklearn.datasets import load_sample_images
from sklearn.linear_model import Ridge
from torch import nn

import report_runs
import swapped_labels
import tiny
from commands import TINY
from launcher.cli import main
from launcher.report.inspect.grad_cam import heat_maps, last_place
from launcher.report.inspect.label_issues import RELATIVE_L2S, left_out
from launcher.report.inspect.near_duplicates import near_duplicates
from launcher.report.inspect.pca_map import plane
from launcher.training.model import TransferModel
from report_runs import Parsed, train


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "width"), [(40, 12), (12, 40)])
def test_leave_one_out_is_that_of_refits(count: int, width: int) -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(2, 1, (count, width))
    y = x[:, :2] @ draw.normal(0, 1, (2, 3)) + draw.normal(0, 0.5, (count, 3))
    centred = x - x.mean(axis=0)
    by_l2 = []
    for l2 in (RELATIVE_L2S.numpy() * np.trace(centred.T @ centred) / width).tolist():
        refits = [
            Ridge(alpha=l2).fit(np.delete(x, i, 0), np.delete(y, i, 0)).predict(x[i : i + 1])[0] for i in range(count)
        ]
        by_l2.append(np.stack(refits))
    best = min(by_l2, key=lambda predicted: float(np.square(predicted - y).mean()))
    ours = left_out(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(ours, best, atol=1e-6)


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("explained") / "run"
    train(swapped_labels.recipe, run_dir)
    assert main(["report", *TINY, str(run_dir), "--explain", "--workers", "0"]) == 0
    return run_dir


@pytest.mark.long
def test_swapped_labels_stand_at_the_top(explained: Path) -> None:
    """At least half of those 5 % are in the first tenth of the list."""
    listed = rows(explained / "explanation/suspicious_labels.csv")
    wrong = set(swapped_labels.recipe.data.wrong(swapped_labels.recipe.seed).tolist())  # type: ignore[attr-defined]
    assert (len(listed), len(wrong)) == (600, 30)
    assert [int(row["rank"]) for row in listed] == list(range(1, 601))
    assert {int(row["index"]) for row in listed} == set(range(600))
    found = {int(row["index"]) for row in listed[: len(listed) // 10]} & wrong
    assert len(found) >= len(wrong) / 2
    targets = swapped_labels.recipe.data.build("class", swapped_labels.recipe.seed).train.targets
    assert [row["label"] for row in listed] == [str(targets[int(row["index"])]) for row in listed]
    assert all(row["suggested"] != row["label"] for row in listed)


@pytest.mark.slow
def test_the_report_shows_it(explained: Path) -> None:
    page = Parsed((explained / "report.html").read_text())
    sections = [attributes["id"] for attributes in page.of("section")]
    assert {"grad_cam", "image_map", "label_issues"} <= set(sections)
    assert "Each of 600 training images was predicted from all the others, by the weights before training" in page.text
    summary = json.loads((explained / "explanation/explanation.json").read_text())
    assert summary["attention"] == len(json.loads((explained / "explanation/attention.json").read_text())) > 0
    assert len(rows(explained / "explanation/map.csv")) == summary["val"] == 359


@pytest.mark.slow
def test_an_explanation_of_other_weights_is_not_shown(explained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(explained, copy)
    model = json.loads((copy / "final/model.json").read_text())
    (copy / "final/model.json").write_text(json.dumps(model | {"step": model["step"] + 1}))
    assert main(["report", *TINY, str(copy), "--workers", "0"]) == 0
    sections = [attributes["id"] for attributes in Parsed((copy / "report.html").read_text()).of("section")]
    assert not {"grad_cam", "image_map", "label_issues"} & set(sections)
    assert "gallery" in sections


class Photos:
    """Pieces of two photographs, each also as other hands would pass it on."""

    def __init__(self, changed: bool) -> None:
        self.pictures: list[PIL.Image.Image] = []
        for photo in load_sample_images().images:
            for top in range(75, 300, 75):  # above is sky, which is alike everywhere
                for left in range(0, 500, 100):
                    piece = PIL.Image.fromarray(photo[top : top + 120, left : left + 130])
                    self.pictures.append(self.change(piece, len(self.pictures)) if changed else piece)

    @staticmethod
    def change(piece: PIL.Image.Image, number: int) -> PIL.Image.Image:
        if number % 4 == 0:  # saved again
            stream = io.BytesIO()
            piece.save(stream, "JPEG", quality=30)
            return PIL.Image.open(io.BytesIO(stream.getvalue()))
        if number % 4 == 1:
            return piece.resize((70, 66))
        if number % 4 == 2:
            return piece.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return piece.crop((2, 2, 128, 118))

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> PIL.Image.Image:
        return self.pictures[index]

    def name(self, index: int) -> str:
        return str(index)


def test_near_duplicates() -> None:
    """Whatever was done to them, and no others: here the features are colours of a picture's parts."""
    train_images, val_images = Photos(changed=False), Photos(changed=True)

    def features(photos: Photos, indices: range) -> torch.Tensor:
        small = [np.asarray(photos.read(index).convert("RGB").resize((4, 2)), dtype=np.float32) for index in indices]
        return torch.from_numpy(np.stack([picture + picture[:, ::-1] for picture in small])).flatten(1)

    known = range(10, len(train_images))  # the first ten pictures were not trained on
    pairs = near_duplicates(
        features(train_images, known),
        features(val_images, range(len(val_images))),
        train_images,
        val_images,
        list(known),
    )
    found = {(pair.val, known[pair.train]) for pair in pairs}
    assert {(index, index) for index in known} <= found
    assert found == {(index, index) for index in known}
    assert all(pair.mirrored == (pair.val % 4 == 2) for pair in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 512), ("mobilenet_v3_small", 576), ("swin_t", 768), ("vit_b_32", 768)]
)
def test_where_a_network_looks(name: str, channels: int) -> None:
    network = torchvision.models.get_model(name, weights=None).eval()
    if name == "vit_b_32":
        nn.init.normal_(network.heads.head.weight)  # zeros, which nothing speaks for
    model = TransferModel(network, nn.Identity()).eval()
    images = torch.randn(2, 3, 224, 224)
    found = last_place(model, images[:1])
    assert found is not None
    made: list[torch.Tensor] = []
    hook = found[0].register_forward_hook(lambda _, __, output: made.append(found[1](output)))
    model(images)
    hook.remove()
    assert made[0].shape[:2] == (2, channels)
    assert made[0].shape[2] == made[0].shape[3] == 7
    maps = heat_maps(model, images, [0, 1])
    assert maps is not None
    assert maps.shape == (2, 224, 224)
    assert 0 <= maps.min() <= maps.max() <= 1
    assert maps.std() > 0


def test_the_map_is_that_of_the_principal_components() -> None:
    draw = np.random.default_rng(2)
    features = draw.normal(5, 1, (50, 9)) * np.array([9, 5, 1, 1, 1, 1, 1, 1, 1])
    places, share = plane(torch.from_numpy(features))
    values = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    np.testing.assert_allclose(np.cov(places.numpy().T), np.diag(values[:2]), atol=1e-8)
    assert share == pytest.approx(values[:2].sum() / values.sum())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["labels", "values"])
def test_other_tasks(task: str, tmp_path: Path) -> None:
    train({"labels": report_runs.of_labels, "values": report_runs.of_values}[task], tmp_path / "run")
    assert main(["report", *TINY, str(tmp_path / "run"), "--explain", "--workers", "0"]) == 0
    summary = json.loads((tmp_path / "run/explanation/explanation.json").read_text())
    assert summary["attention"] is None
    listed = tmp_path / "run/explanation/suspicious_labels.csv"
    assert listed.exists() == (task == "labels")
    if task == "labels":
        assert len(rows(listed)) == 90 * 3
        assert all(("not " in row["label"]) != ("not " in row["suggested"]) for row in rows(listed))


@pytest.mark.slow
def test_names_are_text(tmp_path: Path) -> None:
    train(report_runs.of_hostile_names(report_runs.hostile_folder(tmp_path / "data")), tmp_path / "run")
    assert main(["report", *TINY, str(tmp_path / "run"), "--explain", "--workers", "0"]) == 0
    text = (tmp_path / "run/report.html").read_text()
    page = Parsed(text)
    assert [attributes.get("type") for attributes in page.of("script")] == ["application/json", None]
    assert "onerror" not in {name for attributes in page.of("img") for name in attributes}


@pytest.mark.slow
def test_without_grad_cam(explained: Path, monkeypatch: Any, capsys: Any) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytorch_grad_cam" else found(name))
    assert main(["report", *TINY, str(explained), "--explain"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "error: --explain: grad-cam is not installed; pip install 'vision-launcher[explain]'"
    ]


@pytest.mark.slow
def test_moved_data(explained: Path, tmp_path: Path, capsys: Any) -> None:
    root = report_runs.hostile_folder(tmp_path / "data")
    recipe = dataclasses.replace(report_runs.of_hostile_names(root), freeze_plan=tiny.recipe.freeze_plan[:1])
    train(recipe, tmp_path / "run")
    shutil.rmtree(root)
    capsys.readouterr()
    assert main(["report", *TINY, str(tmp_path / "run"), "--explain", "--workers", "0"]) == 2
    assert str(root) in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "run").glob("*explanation*"))
