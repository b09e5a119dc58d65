"""A plain PyTorch loop, written as PyTorch's transfer-learning tutorial teaches it. Prints its seconds as JSON.

    python benchmarks/peers/plain.py --root hymenoptera_data --train head --epochs 20

`--best` is the same loop with what its author could turn on: channels last; and `--bf16`, autocast. Without them, the
tutorial's defaults (and a data worker that stays).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms


def loaders(root: Path, batch_size: int, workers: int, repeat: int) -> dict[str, DataLoader[Any]]:
    normalise = [transforms.ToTensor(), transforms.Normalize(common.MEAN, common.STD)]
    views = {
        "train": transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalise]),
        "val": transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *normalise]),
    }
    found = {}
    for split, view in views.items():
        images = datasets.ImageFolder(root / split, view)
        images.samples = images.samples * (repeat if split == "train" else 1)
        found[split] = DataLoader(
            images,
            batch_size=batch_size,
            shuffle=split == "train",
            num_workers=workers,
            persistent_workers=workers > 0,
        )
    return found


def build(name: str, trained: str, best: bool) -> nn.Module:
    model = models.get_model(name, weights=None)
    model.fc = nn.Linear(model.fc.in_features, 2)
    common.freeze(model, {"head": [model.fc], "last": [model.layer4, model.fc], "all": [model]}[trained])
    return model.to(memory_format=torch.channels_last) if best else model  # type: ignore[no-any-return]


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="each training image so many times an epoch")
    words = parser.parse_args()

    torch.manual_seed(0)
    batches = loaders(words.root, words.batch_size, words.workers, words.repeat)
    model = build(words.model, words.train, words.best)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    layout = torch.channels_last if words.best else torch.contiguous_format
    clock = common.Clock()
    for _ in range(words.epochs):
        clock.start()
        for split in ("train",) if words.no_validation else ("train", "val"):
            model.train(split == "train")
            correct = 0
            for images, labels in batches[split]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(split == "train"):
                    with common.autocast(words):
                        outputs = model(images.to(memory_format=layout))
                        loss = criterion(outputs, labels)
                    if split == "train":
                        loss.backward()
                        optimizer.step()
                correct += int((outputs.argmax(1) == labels).sum())
            if split == "train":
                clock.trained(len(batches["train"].dataset))  # type: ignore[arg-type]
        scheduler.step()
        clock.stop()
    clock.show()


if __name__ == "__main__":
    main()
