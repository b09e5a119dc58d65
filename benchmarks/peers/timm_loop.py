"""timm's training loop: its model, dataset, loader, optimizer, schedule and meters, put together as its train.py does.

    python benchmarks/peers/timm_loop.py --root hymenoptera_data --train all --epochs 2

timm's own are the loader (the last batch of training is left out where it is not full), its prefetcher, which takes
whole bytes from the workers and normalises batches, label smoothing, weight decay and the order of a step. Given are
the pictures (a random crop and a flip, no colour jitter), the batch, and the small learning rate.

Without `--best`: what train.py takes by itself, four data workers, and a crop scaled bilinearly or bicubically by
chance. `--best`: channels last, one data worker, and always bilinearly. `--bf16`: autocast, as its `--amp` does.
"""

from __future__ import annotations

import common
import timm
import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy, random_seed


def main() -> None:
    words = common.options(__doc__).parse_args()
    random_seed(42)
    layout = torch.channels_last if words.best else torch.contiguous_format
    model = timm.create_model(words.model, pretrained=False, num_classes=2)
    head = model.get_classifier()
    common.freeze(model, {"head": [head], "last": [model.layer4, head], "all": [model]}[words.train])
    model.to(memory_format=layout)

    batches = {}
    for split, training in {"train": True, "val": False}.items():
        batches[split] = create_loader(
            create_dataset("", root=words.root, split=split, is_training=training),
            input_size=(3, 224, 224),
            batch_size=words.batch_size,
            is_training=training,
            color_jitter=0.0,
            interpolation="random" if training and not words.best else "bilinear",
            num_workers=1 if words.best else 4,
            device=torch.device("cpu"),
        )
    smoothed, plain = LabelSmoothingCrossEntropy(0.1), torch.nn.CrossEntropyLoss()
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=common.RATE, momentum=common.MOMENTUM, weight_decay=2e-5, filter_bias_and_bn=True
    )
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=words.epochs, updates_per_epoch=len(batches["train"])
    )

    clock = common.Clock()
    for epoch in range(words.epochs):
        clock.start()
        model.train()
        losses = AverageMeter()
        for number, (images, labels) in enumerate(batches["train"]):
            if words.best:
                images = images.contiguous(memory_format=layout)
            with common.autocast(words):
                loss = smoothed(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(loss.item(), len(images))
            scheduler.step_update(epoch * len(batches["train"]) + number + 1, metric=losses.avg)
        clock.trained(losses.count)
        if not words.no_validation:
            validate(model, batches["val"], plain, layout, common.autocast(words))
        scheduler.step(epoch + 1)
        clock.stop()
    clock.show()


def validate(
    model: torch.nn.Module, batches: object, loss: torch.nn.Module, layout: torch.memory_format, cast: torch.autocast
) -> float:
    model.eval()
    losses, right = AverageMeter(), AverageMeter()
    with torch.inference_mode():
        for images, labels in batches:  # type: ignore[attr-defined]
            with cast:
                outputs = model(images.contiguous(memory_format=layout))
            losses.update(loss(outputs, labels).item(), len(images))
            right.update(accuracy(outputs, labels)[0].item(), len(images))
    return right.avg  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
