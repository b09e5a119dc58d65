"""Mistakes that a user can make, each with the line that he or she is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import torch

RECIPE = """
import dataclasses

from tiny import StripeData, TinyBackbone
from tiny import recipe as tiny

from launcher import Phase, Recipe, backbones, data, heads, optim, phases, tasks, transforms

"""
VARIANT = RECIPE + "recipe = dataclasses.replace(tiny, {changes})\n"


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One mistake."""

    id: str
    lines: tuple[str, ...] | str
    """What is told. `{here}` is the current folder, `{tests}` that of the tests."""
    words: str = "wrong.py"
    """The command line."""
    changes: str | None = None
    """What wrong.py changes in the tiny recipe; "" for nothing."""
    source: str | None = None
    """All of wrong.py, instead of `changes`."""
    files: Callable[[], None] | None = None
    """Makes what lies in the current folder."""


def picture(path: str, size: tuple[int, int] = (20, 20), shade: int = 100) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (shade, 80, 60)).save(path)


def folders(*paths: str) -> Callable[[], None]:
    """Pictures in folders of classes; a path that ends in "/" is an empty folder."""

    def make() -> None:
        for path in paths:
            if path.endswith("/"):
                Path(path).mkdir(parents=True)
            else:
                picture(path)

    return make


GOOD = ("pets/cat/1.png", "pets/cat/2.png", "pets/dog/1.png", "pets/dog/2.png")
SPLIT = ("pets/train/cat/1.png", "pets/train/dog/1.png", "pets/val/cat/1.png", "pets/val/dog/1.png")


def and_file(make: Callable[[], None], path: str, content: str | bytes) -> Callable[[], None]:
    def make_both() -> None:
        make()
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return make_both


def text(path: str, content: str) -> Callable[[], None]:
    return and_file(lambda: None, path, content)


def saved(path: str, content: object) -> Callable[[], None]:
    return lambda: torch.save(content, path)


def truncated_weights() -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "half.pth")
    Path("half.pth").write_bytes(Path("half.pth").read_bytes()[:1000])


def other_weights() -> None:
    import torchvision

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), "squeezenet.pth")


def table(rows: str) -> Callable[[], None]:
    return and_file(folders(*GOOD), "pets.csv", rows)
