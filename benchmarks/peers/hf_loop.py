"""Hugging Face's loop, as its example of image classification without a Trainer has it: accelerate, datasets and
transformers with torchvision's transforms.

    python benchmarks/peers/hf_loop.py --root hymenoptera_data --train all --epochs 2

Its own are the dataset of an image folder, whose transforms work on lists of examples, the way they are put together,
the network (ResNetForImageClassification, with the layers and widths of torchvision's), the loss that the network
computes, the linear schedule and what accelerate prepares. Given are the batch, SGD and its small learning rate.

Without `--best`: as the example, the process that trains reads, too. `--best`: channels last, and one data worker that
stays. `--bf16`: accelerate's mixed precision. The network's ReLUs are not in place, as transformers has them, which
costs a part of what its forward pass takes longer than torchvision's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the imports: nothing is looked up

import common
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import disable_progress_bars, load_dataset
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import ResNetConfig, ResNetForImageClassification, get_scheduler

NETWORKS = {
    "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
}


def together(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["label"] for example in examples]),
    }


def loaders(words: argparse.Namespace, cache: str) -> dict[str, DataLoader[Any]]:
    last = [transforms.ToTensor(), transforms.Normalize(common.MEAN, common.STD)]
    views = {
        "train": transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *last]),
        "val": transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *last]),
    }
    files = {split: str(words.root / split / "**") for split in views}
    images = load_dataset("imagefolder", data_files=files, cache_dir=cache)

    def seen(examples: dict[str, list[Any]], view: transforms.Compose) -> dict[str, list[Any]]:
        examples["pixel_values"] = [view(image.convert("RGB")) for image in examples["image"]]
        return examples

    return {
        split: DataLoader(
            images[split].with_transform(lambda examples, view=view: seen(examples, view)),
            shuffle=split == "train",
            collate_fn=together,
            batch_size=words.batch_size,
            num_workers=1 if words.best else 0,
            persistent_workers=words.best,
        )
        for split, view in views.items()
    }


def train(words: argparse.Namespace, cache: str) -> common.Clock:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if words.bf16 else "no")
    set_seed(42)
    layout = torch.channels_last if words.best else torch.contiguous_format
    batches = loaders(words, cache)
    model = ResNetForImageClassification(ResNetConfig(num_labels=2, **NETWORKS[words.model])).to(memory_format=layout)
    head, block = model.classifier, model.resnet.encoder.stages[-1]
    common.freeze(model, {"head": [head], "last": [block, head], "all": [model]}[words.train])
    optimizer = torch.optim.SGD(
        [weight for weight in model.parameters() if weight.requires_grad], lr=common.RATE, momentum=common.MOMENTUM
    )
    steps = words.epochs * len(batches["train"])
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    model, optimizer, reading, checking, scheduler = accelerator.prepare(
        model, optimizer, batches["train"], batches["val"], scheduler
    )

    clock = common.Clock()
    for _ in range(words.epochs):
        clock.start()
        model.train()
        images = 0
        for batch in reading:
            with accelerator.accumulate(model):
                batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=layout)
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            images += len(batch["labels"])
        clock.trained(images)
        if not words.no_validation:
            model.eval()
            right = 0
            for batch in checking:
                batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=layout)
                with torch.no_grad():
                    answers = model(**batch).logits.argmax(dim=-1)
                answers, labels = accelerator.gather_for_metrics((answers, batch["labels"]))
                right += int((answers == labels).sum())
        clock.stop()
    return clock


def main() -> None:
    words = common.options(__doc__).parse_args()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        clock = train(words, cache)
    clock.show()


if __name__ == "__main__":
    main()
