"""What the peers share: their options, which parts train, the clock of an epoch, and what they print."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RATE, MOMENTUM = 1e-7, 0.9  # random weights would not bear more, and the time is the same


def options(about: str | None) -> argparse.ArgumentParser:
    """The options that each peer takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", choices=["resnet18", "resnet50"], default="resnet50")
    parser.add_argument("--train", choices=["head", "last", "all"], default="head")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--no-validation", action="store_true")
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where autocast does")
    return parser


def autocast(words: argparse.Namespace) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=words.bf16)


def freeze(model: nn.Module, kept: Iterable[nn.Module]) -> None:
    """No gradients for any weights but those of the parts in `kept`."""
    model.requires_grad_(False)
    for part in kept:
        part.requires_grad_(True)


class Clock:
    """The seconds of each epoch, and the images a second of its training, without the validation after it.

    Some loops leave out the last batch where it is not full, so each says how many images it saw.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.rates: list[float] = []
        self.began = 0.0

    def start(self) -> None:
        self.began = time.perf_counter()

    def trained(self, images: int) -> None:
        self.rates.append(images / (time.perf_counter() - self.began))

    def stop(self) -> None:
        self.seconds.append(time.perf_counter() - self.began)

    def show(self) -> None:
        print(json.dumps({"epochs": self.seconds, "images_per_second": self.rates}))
