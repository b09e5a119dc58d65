"""Mistakes in freeze plans, in parts of one's own, and in what the machine can do."""

from __future__ import annotations

from mistakes import RECIPE, Mistake


def own(part: str, changes: str) -> str:
    return f"{RECIPE}{part}\n\n\nrecipe = dataclasses.replace(tiny, {changes})\n"


WRONG_WIDTH = """
@dataclasses.dataclass(frozen=True)
class Mine(TinyBackbone):
    def build(self):
        network = super().build()
        network.num_features = 3
        return network
"""

WRONG_HEAD = """
@dataclasses.dataclass(frozen=True)
class Mine:
    def build(self, backbone, num_outputs):
        return tiny.head.build(backbone, num_outputs + 1)
"""

WRONG_SIZE = """
@dataclasses.dataclass(frozen=True)
class Mine:
    def build(self, preprocessing):
        return tiny.augment.build(dataclasses.replace(preprocessing, image_size=20))
"""

TASK = """
from launcher.recipe.part import part


@part
class Mine(tasks.Classification):
    def build(self, splits):
        task = super().build(splits)
        own = task.loss
        task.loss = lambda outputs, targets: {}
        return task
"""

MISTAKES = [
    # freeze plan
    Mistake(
        "nothing trains",
        "freeze_plan.0 (all_frozen): every rule has lr_scale 0, so nothing would train",
        changes="freeze_plan=(Phase(name='all_frozen', rules=(('*', 0.0),), epochs=1),)",
    ),
    Mistake(
        "pattern without match",
        ("freeze_plan.0.rules.1: pattern 'backbone.block3' matches no parameter; did you mean 'backbone.block2'?"),
        changes="freeze_plan=phases.gradual_unfreeze(['backbone.block3'], epochs=1)",
    ),
    Mistake(
        "uncovered parameter",
        (
            "freeze_plan.0 (only): no rule covers 4 parameters: backbone.block2.0.weight, "
            "backbone.block2.0.bias, backbone.block2.1.weight, ...; end with ('*', 0.0)"
        ),
        changes="freeze_plan=(Phase(name='only', rules=(('head', 1.0), ('backbone.block1', 1.0)), epochs=1),)",
    ),
    Mistake(
        "rule without effect",
        (
            "freeze_plan.0.rules.1: pattern 'backbone.block1' decides nothing: the rules before it cover all "
            "that it matches (the first match wins); remove it or move it up"
        ),
        changes="freeze_plan=(Phase(name='all', rules=(('*', 1.0), ('backbone.block1', 0.0)), epochs=1),)",
    ),
    Mistake(
        "negative scale",
        "wrong.py:9: Phase.rules.0.1=-1.0: input should be greater than or equal to 0",
        changes="freeze_plan=(Phase(name='all', rules=(('*', -1.0),), epochs=1),)",
    ),
    Mistake(
        "unknown monitor",
        "freeze_plan.0.monitor='acuracy': no such metric; did you mean 'accuracy'?",
        changes="freeze_plan=(Phase(name='all', rules=(('*', 1.0),), epochs=1, monitor='acuracy'),)",
    ),
    Mistake(
        "class weights",
        "task.class_weights: 2 values for 3 names: across, down, diagonal",
        changes="task=tasks.Classification(class_weights=(1.0, 2.0))",
    ),
    Mistake(
        "negative class weights",
        "task.class_weights=(1.0, 2.0, -1.0): values must be at least 0, and one above 0",
        changes="task=tasks.Classification(class_weights=(1.0, 2.0, -1.0))",
    ),
    Mistake(
        "tracker not installed",
        "trackers: 'wandb' is not installed; pip install 'vision-launcher[wandb]'",
        changes="trackers=('wandb',)",
    ),
    Mistake(
        "unknown tracker",
        "wrong.py:9: Recipe.trackers.0='tensorbord': input should be 'tensorboard', 'wandb' or 'mlflow'",
        changes="trackers=('tensorbord',)",
    ),
    # own parts
    Mistake(
        "own backbone without build",
        "wrong.py:…: Recipe.backbone=<wrong.Mine object at …>: should be backbones.Torchvision(...), "
        "backbones.Timm(...) or a part of your own; a Mine lacks build, preprocessing",
        source=own("class Mine:\n    pass", "backbone=Mine()"),
    ),
    Mistake(
        "own backbone with the wrong width",
        "backbone: gives (2, 16) for 2 images, and says num_features=3; should be (2, num_features)",
        source=own(WRONG_WIDTH, "backbone=Mine()"),
    ),
    Mistake(
        "own head with the wrong width",
        "head: gives (2, 4) for 2 images; should be (2, 3)",
        source=own(WRONG_HEAD, "head=Mine()"),
    ),
    Mistake(
        "own augmentation of the wrong size",
        "augment: gives images of (3, 20, 20); the backbone's are (3, 16, 16)",
        source=own(WRONG_SIZE, "augment=Mine()"),
    ),
    Mistake(
        "own task with a bug",
        "a trial batch failed: RuntimeError: … (at {here}/wrong.py:…)",
        source=own(TASK.format("(outputs - targets).mean()"), "task=Mine()"),
    ),
    Mistake(
        "own loss that is a mean",
        "task: its loss gives () for 2 images; it should be one number per image, (2,), not their mean",
        source=own(TASK.format("own(outputs, targets).mean()"), "task=Mine()"),
    ),
    Mistake(
        "part that cannot be stored",
        "head=<wrong.Mine object at …>: a Mine cannot be saved as JSON; use numbers, text, tuples, or a frozen "
        "dataclass of these (@part)",
        source=own("class Mine:\n    def build(self, backbone, num_outputs): ...", "head=Mine()"),
    ),
    Mistake(
        "list in a part",
        "backbone.sizes=[1, 2]: a list can change; write a tuple: (a, b)",
        source=own(
            "@dataclasses.dataclass(frozen=True)\nclass Mine(TinyBackbone):\n    sizes: list = None",
            "backbone=Mine(sizes=[1, 2])",
        ),
    ),
    Mistake(
        "subclass that is no part",
        "task.label_smoothing=FieldInfo(…: the default was lost: a class that inherits from a part must be made a part,"
        " too; write @part (from launcher.recipe.part) above it in place of @dataclass",
        source=own("@dataclasses.dataclass(frozen=True)\nclass Mine(tasks.Classification):\n    pass", "task=Mine()"),
    ),
    # arithmetic and machine
    Mistake(
        "micro-batch that does not divide",
        "--micro-batch 5 does not divide batch_size=32; 1, 2, 4, 8, 16, 32 would work",
        words="wrong.py --micro-batch 5",
        changes="",
    ),
    Mistake(
        "processes that do not divide",
        (
            "batch_size=32 cannot be shared by 3 processes evenly; batch_size=30 or 33 would work, or 1, 2, "
            "4, 8, 16, 32 processes"
        ),
        words="plan wrong.py --processes 3",
        changes="",
    ),
    Mistake(
        "micro-batch for processes",
        (
            "--micro-batch 16 does not divide the 8 samples that each of 4 processes takes of batch_size=32; "
            "1, 2, 4, 8 would work"
        ),
        words="plan wrong.py --processes 4 --micro-batch 16",
        changes="",
    ),
    Mistake(
        "odd micro-batch with mixup",
        (
            "augment: MixUp and CutMix mix neighbours, so a micro-batch must be even, not 1; give an even "
            "--micro-batch that divides batch_size / processes"
        ),
        words="wrong.py --micro-batch 1",
        changes="augment=transforms.Augment(mixup_alpha=0.2)",
    ),
    Mistake(
        "fp16 on CPU",
        (
            "mixed_precision='fp16': there is no GPU, and on a CPU fp16 would silently be float32; use "
            "mixed_precision=bf16 or mixed_precision=no"
        ),
        words="wrong.py mixed_precision=fp16",
        changes="",
    ),
    Mistake(
        "sync_batchnorm on CPU",
        "sync_batchnorm=True: PyTorch's SyncBatchNorm needs GPUs; use sync_batchnorm=false",
        words="wrong.py sync_batchnorm=true",
        changes="",
    ),
    Mistake(
        "one value for BatchNorm",
        "freeze_plan.0.norm_statistics='update': batch 32 = 1 process x 32 per micro-batch x 1 accumulation leaves "
        "micro-batches of one image (33 images per epoch), and at this image size BatchNorm has no statistics of one; "
        "use norm_statistics=keep, another batch_size, or a larger backbone.image_size",
        changes="backbone=backbones.Torchvision(name='resnet18', weights=None, image_size=32)"
        + ", data=StripeData(train=33), freeze_plan=phases.full_finetune(epochs=1, norm_statistics='update')",
    ),
    Mistake(
        "betas",
        "wrong.py:9: AdamW.betas.1=1.5: input should be less than 1",
        changes="optim=optim.AdamW(betas=(0.9, 1.5))",
    ),
    Mistake("not a finite number", "optim.lr=nan: should be a number", words="wrong.py optim.lr=nan", changes=""),
]
