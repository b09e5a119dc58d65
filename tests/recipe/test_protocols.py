"""Parts of a user's own are asked for what they can do beyond the least, and have all, some or none of it."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny
from launcher import Recipe, Split, Splits, transforms
from launcher.assets.bundle import OwnPath, names_assets, needed
from launcher.backbones.plain_names import classifier_is_conv, classifier_name_of, plain_state_dict
from launcher.data.decoding import Decoder, encoded_image, read_pixels
from launcher.data.digests import content_digests
from launcher.data.image_check import on_bad_image_of
from launcher.data.prepared import need_of
from launcher.data.sources import Subset
from launcher.data.target_precision import as_taken
from launcher.metrics.task_formulas import formulas_of, shares_of
from launcher.planning.plan import weights_source
from launcher.recipe import heads, tasks
from launcher.recipe.protocols import Preprocessing
from launcher.training.closed_form import goals_of
from launcher.training.mixup import Mixing
from launcher.training.run_dir import data_summary

SIZES = Preprocessing(image_size=16, resize_size=20)
GREY = np.full((4, 6, 3), 7, dtype=np.uint8)


class Images:
    """The least that a source can do."""

    def __len__(self) -> int:
        return 2

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(GREY + index)

    def name(self, index: int) -> str:
        return f"image {index}"


class StoredImages(Images):
    copy_id = "a copy"

    def read(self, index: int) -> Image.Image:
        raise NotImplementedError

    def stored_pixels(self, index: int) -> Any:
        return GREY + index


class EncodedImages(Images):
    """The method stands in the instance alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for index in range(2):
            super().read(index).save(self.file(index))
        self.encoded = self._encoded

    def read(self, index: int) -> Image.Image:
        raise NotImplementedError

    def _encoded(self, index: int) -> bytes:
        return self.file(index).read_bytes()

    def file(self, index: int) -> Path:
        return self.folder / f"{index}.png"


class WordsAlone(Images):
    """Its attribute is something else than the method of that name."""

    encoded = (b"1", b"2")


def test_a_source_is_read_by_the_best_way_that_it_has(tmp_path: Path) -> None:
    for source in (Images(), StoredImages(), EncodedImages(tmp_path), WordsAlone()):
        decoder = pickle.loads(pickle.dumps(Decoder(source)))  # noqa: S301 - our own bytes
        for pixels in (
            read_pixels(source, 1),
            decoder.pixels(1),
            decoder.transformed(1, transforms.PixelSteps((), None)),  # type: ignore[arg-type]
        ):
            assert np.array_equal(pixels.permute(1, 2, 0), GREY + 1), source
    files = EncodedImages(tmp_path)
    last = Subset(files, np.array([1]))
    assert encoded_image(last, 0) == files.encoded(1)
    assert last.file(0) == files.file(1)
    for source in (Images(), StoredImages(), WordsAlone()):
        assert encoded_image(source, 0) is None
        assert Subset(source, np.array([1])).file(0) is None


def _digests(source: Any, memory: Path) -> bytes:
    steps = content_digests(source, memory, threads=1)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return bytes(stop.value)


def test_hashes_are_remembered_of_files_alone(tmp_path: Path) -> None:
    files, memory = EncodedImages(tmp_path), tmp_path / "memory"
    of_pixels = _digests(Images(), memory)
    assert not memory.exists()
    assert of_pixels != _digests(files, memory)
    assert memory.exists()


def test_a_copy_says_its_id() -> None:
    for source, expected in ((Images(), None), (StoredImages(), "a copy")):
        split = Split(source, np.zeros(2, dtype=np.int64))
        assert data_summary(Splits(split, split, ("a",))).get("prepared_copy") == expected


@dataclasses.dataclass(frozen=True)
class OnlyMixUp:
    mixup_alpha: float | None = 0.4

    def build(self, preprocessing: Preprocessing) -> Any:
        return transforms.Augment().build(preprocessing)


@dataclasses.dataclass(frozen=True)
class OnlyCutMix:
    cutmix_alpha: float | None = 0.5

    def build(self, preprocessing: Preprocessing) -> Any:
        return transforms.Augment().build(preprocessing)

    def short_side(self, preprocessing: Preprocessing) -> int:
        return 33


def recipe(**parts: Any) -> Recipe:
    return dataclasses.replace(tiny.recipe, **parts)


def test_an_augmentation_may_have_one_of_both_mixings() -> None:
    assert Mixing.of(OnlyMixUp()) == Mixing(mixup_alpha=0.4, cutmix_alpha=None)
    assert Mixing.of(OnlyCutMix()) == Mixing(mixup_alpha=None, cutmix_alpha=0.5)
    assert Mixing.of(OnlyMixUp())
    assert Mixing.of(OnlyCutMix())
    assert not Mixing.of(OnlyMixUp(mixup_alpha=None))
    assert not Mixing.of(transforms.Augment())
    assert need_of(recipe(augment=OnlyMixUp()), SIZES).train == 20
    assert need_of(recipe(augment=OnlyCutMix()), SIZES).train == 33


class Module(nn.Module):
    num_features = 3

    def __init__(self, **about: Any) -> None:
        super().__init__()
        for name, value in about.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("module", "name", "is_conv", "has_bias"),
    [
        (Module(), None, False, True),
        (Module(classifier_name="fc"), "fc", False, True),
        (Module(classifier_name=None, classifier_has_bias=False), None, False, False),
        (Module(classifier_name="last.1", classifier_is_conv=True), "last.1", True, True),
    ],
)
def test_a_module_says_of_its_classifier_what_it_knows(module: Any, name: Any, is_conv: bool, has_bias: bool) -> None:
    assert classifier_name_of(module) == name
    assert classifier_is_conv(module) == is_conv
    head = heads.Linear().build(module, 2)
    assert set(head.state_dict()) == ({"weight", "bias"} if has_bias else {"weight"})
    state = plain_state_dict(module, {}, head.state_dict())
    assert state[f"{name or 'head'}.weight"].shape == ((2, 3, 1, 1) if is_conv else (2, 3))


@dataclasses.dataclass(frozen=True)
class Careful:
    """A part of each kind, with what is optional."""

    on_bad_image: str = "skip"
    exact_targets: bool = False

    def build(self, *about: Any) -> Any:
        raise NotImplementedError

    def preprocessing(self) -> Preprocessing:
        return SIZES

    def weights_source(self) -> str:
        return "drawn by hand"

    def assets(self) -> list[OwnPath]:
        return [OwnPath(field="backbone.file", path=Path("drawing"))]


@dataclasses.dataclass(frozen=True)
class Plain:
    """The least, and a field that bears the name of an ability."""

    assets: str = "a folder"

    def build(self, *about: Any) -> Any:
        raise NotImplementedError

    def preprocessing(self) -> Preprocessing:
        return SIZES


def test_parts_without_an_ability_are_taken_as_they_are() -> None:
    careful, plain = recipe(backbone=Careful()), recipe(backbone=Plain())
    assert [weights_source(one) for one in (careful, plain)] == ["drawn by hand", "as Plain.build() makes them"]
    assert names_assets(Careful())
    assert not names_assets(Plain())
    assert set(needed(careful)) - set(needed(plain)) == set(Careful().assets())
    parts: list[Any] = [Careful(), Plain()]
    assert [on_bad_image_of(part) for part in parts] == ["skip", "stop"]
    split = Split(Images(), np.zeros((2, 1)))
    kinds: list[tuple[Any, Any]] = [(Careful(), np.float32), (Plain(), np.float32), (tasks.Regression(), np.float64)]
    for task, kind in kinds:
        assert as_taken(task, split).targets.dtype == kind


class OwnBuilt:
    """A built task of a user's own."""

    def __init__(self, kind: str, **about: Any) -> None:
        self.kind = kind
        vars(self).update(about)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(targets))

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind}


def test_a_built_task_of_ones_own_has_formulas_where_it_has_the_names_for_them() -> None:
    outputs, classes, values = torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), torch.randn(4, 2)
    named: Any = OwnBuilt("classification", names=("a", "b"))
    assert formulas_of(named, outputs, classes)
    assert set(shares_of(named, outputs, classes)) >= {"accuracy"}
    nameless: Any = OwnBuilt("classification")
    assert not formulas_of(nameless, outputs, classes)
    assert not shares_of(nameless, outputs, classes)
    for about, has_formulas in (
        ({}, False),
        ({"mean": torch.zeros(2)}, False),
        ({"mean": None, "std": None}, False),
        ({"mean": torch.zeros(2), "std": torch.ones(2)}, True),
    ):
        task: Any = OwnBuilt("regression", **about)
        assert bool(formulas_of(task, outputs, values)) == has_formulas, about


def test_targets_are_normalised_by_tasks_that_do_so() -> None:
    targets = torch.tensor([[1.0], [2.0]])
    task: Any = OwnBuilt("regression")
    assert goals_of(task, "values", targets) is targets
    task = OwnBuilt("regression", normalised=lambda values: values / 2)
    assert torch.equal(goals_of(task, "values", targets), targets / 2)
