"""fastai's training loop: ImageDataLoaders.from_folder, and vision_learner on torchvision's network without weights.

    python benchmarks/peers/fastai_loop.py --root hymenoptera_data --train all --epochs 2

fastai's own are the loaders (workers that start anew in each epoch; the last batch of training is left out where it is
not full), the head (both poolings, two linear layers, dropout), the optimizer and the callbacks. Given are the pictures
(a random crop and a flip), the batch, and the small learning rate. What is frozen is so with its normalisation layers,
which fastai would train by itself: their gradients would have to pass through the whole network. Its splitter of a
ResNet has layers 3 and 4 in one group, this one has layer 4 alone.

Without `--best`: as many data workers as cores, flips of whole batches on the training device as fastai's own
augmentations do, and a progress bar. `--best`: channels last by fastai's callback, one data worker that flips each
picture before it is a tensor, no progress bar, no lines. `--bf16`: autocast by a callback of five lines; fastai's own
casts on CUDA alone.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial

import common
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.torch_core import params, set_seed
from fastai.vision.augment import Flip, FlipItem, Normalize, RandomResizedCrop
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from fastcore.foundation import L
from torch import nn
from torchvision import models


class Timing(Callback):  # type: ignore[misc]
    """The clock of each epoch, and no validation if there is to be none."""

    order = -100

    def __init__(self, clock: common.Clock, validate: bool) -> None:
        self.clock, self.validate, self.images = clock, validate, 0

    def before_epoch(self) -> None:
        self.images = 0
        self.clock.start()

    def after_batch(self) -> None:
        self.images += len(self.learn.yb[0]) if self.learn.training else 0

    def before_validate(self) -> None:
        self.clock.trained(self.images)
        if not self.validate:
            raise CancelValidException

    def after_epoch(self) -> None:
        self.clock.stop()


class AutocastOnCpu(Callback):  # type: ignore[misc]
    def __init__(self, words: argparse.Namespace) -> None:
        self.cast = common.autocast(words)

    def before_batch(self) -> None:
        self.cast.__enter__()

    def after_loss(self) -> None:
        self.cast.__exit__(None, None, None)


def groups(model: nn.Sequential) -> L:
    """What is before layer 4, layer 4, the head."""
    body, head = model
    return L(body[:-1], body[-1], head).map(params)  # type: ignore[index]


def loaders(words: argparse.Namespace) -> DataLoaders:
    crop = RandomResizedCrop(224)
    normalise = Normalize.from_stats(common.MEAN, common.STD)
    return ImageDataLoaders.from_folder(
        words.root,
        valid="val",
        item_tfms=[crop, FlipItem()] if words.best else [crop],
        batch_tfms=[normalise] if words.best else [Flip(), normalise],
        bs=words.batch_size,
        device="cpu",
        **({"num_workers": 1} if words.best else {}),
    )


def main() -> None:
    words = common.options(__doc__).parse_args()
    set_seed(42)
    clock = common.Clock()
    learn = vision_learner(
        loaders(words),
        getattr(models, words.model),
        pretrained=False,
        opt_func=partial(SGD, mom=common.MOMENTUM),
        splitter=groups,
        train_bn=False,
        metrics=accuracy,
        cbs=[
            Timing(clock, not words.no_validation),
            *([ChannelsLast()] if words.best else []),
            *([AutocastOnCpu(words)] if words.bf16 else []),
        ],
    )
    learn.freeze_to({"head": -1, "last": -2, "all": 0}[words.train])
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if words.best:
            stack.enter_context(learn.no_bar())
            stack.enter_context(learn.no_logging())
        learn.fit(words.epochs, lr=common.RATE)
    clock.show()


if __name__ == "__main__":
    main()
