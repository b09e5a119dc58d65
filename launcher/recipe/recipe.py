"""The recipe: a frozen value that fixes what is learned."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from launcher.recipe.optim import AdamW, WarmupCosine
from launcher.recipe.part import part
from launcher.recipe.phases import Phase
from launcher.recipe.protocols import Augmentation, Backbone, Data, Head, Optimizer, Schedule, Task
from launcher.recipe.transforms import Augment

_PARTS: dict[str, tuple[type, str]] = {
    "backbone": (Backbone, "backbones.Torchvision(...), backbones.Timm(...)"),
    "head": (Head, "heads.Linear(...), heads.MLP(...)"),
    "task": (Task, "tasks.Classification(...), tasks.MultiLabel(...), tasks.Regression(...)"),
    "data": (Data, "data.ImageFolder(...), data.HuggingFace(...), data.CsvImages(...), data.Torchvision(...)"),
    "optim": (Optimizer, "optim.AdamW(...), optim.SGD(...)"),
    "schedule": (Schedule, "optim.WarmupCosine(...), optim.Constant(...), optim.Step(...), optim.OneCycle(...)"),
    "augment": (Augmentation, "transforms.Augment(...)"),
}
"""Protocol of each part, and the parts that launcher has for it."""


_LR = "'lr: float = 1e-3', 'def base_lr(self, batch_size): return self.lr'"
_WRAPPERS: dict[type, str] = {
    Optimizer: f"{_LR} and 'def build(self, groups): return {{name}}(groups, lr=self.lr)'",
    Augmentation: "'def build(self, preprocessing): return {name}(...)'",
    Schedule: "'def scale(self, step, steps, steps_per_epoch): return ...', the factor on the rate",
}
"""Body of a part that wraps a class of torch or torchvision."""


def _lacking(value: object, protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_") and not hasattr(value, name)]


def _wrapper(cls: type, protocol: type) -> str:
    """Return how a class of a library can be wrapped as a part, or "" if it cannot."""
    if cls.__module__ == "builtins" or protocol not in _WRAPPERS:
        return ""
    body = _WRAPPERS[protocol].format(name=cls.__name__)
    return f"; wrap it in a frozen dataclass of your own with {body} (see launcher/recipe/protocols.py)"


@part
class Recipe:
    """Everything that decides the weights, and nothing about where the training runs.

    Raises pydantic.ValidationError for a field that is unknown, missing or of the wrong type.
    """

    backbone: Backbone
    head: Head
    task: Task
    data: Data
    freeze_plan: tuple[Phase, ...] = Field(min_length=1)
    """Phases in their order; freeze plans are joined with `+`."""
    optim: Optimizer = AdamW(lr=1e-3)
    schedule: Schedule = WarmupCosine()
    """Shape of the learning rate over each phase."""
    augment: Augmentation = Augment()
    batch_size: int = Field(default=64, ge=1, lt=2**31)
    """Global number of samples per optimizer step, over all processes."""
    clip_norm: float | None = Field(default=None, gt=0, le=1e30)
    """Norm to which a larger gradient is clipped. None: no clipping."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights. With it, the averaged weights are evaluated
    beside the raw ones, decide which are best, and are saved in `final/`."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Precision, in Accelerate's terms: "no" is float32, "fp16" needs a GPU. "auto": float32 or bf16, whichever is
    faster on the machine where the run begins; the run keeps the choice, which may differ on other machines."""
    memory_format: Literal["auto", "channels_last", "contiguous"] = "channels_last"
    """Memory layout of the network's images and weights, which changes nothing but rounding and speed. "auto":
    whichever is faster on the machine where the run begins; the run keeps the choice."""
    compile: bool = False
    """Compilation of the network with torch.compile, again for each phase, which takes a while. Needs a C++ compiler on
    CPUs. A run that is stopped and resumed is then equal only up to rounding."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all processes, for phases with norm_statistics="update". Needs GPUs."""
    cache: Literal["auto", "off", "memory", "disk"] = "auto"
    """Storage of the outputs of the network's frozen layers, which are then read in place of the images. A phase that
    uses it trains on the evaluation view of each image, or on `cache_views`, instead of on newly augmented images in
    each epoch. "auto": used if nothing of the backbone trains, or if it changes nothing (augment.preset="none");
    whether disk, memory or computing is fastest is measured. "memory", "disk": used in each phase that freezes
    something. "off": never used."""
    cache_views: int | None = Field(default=None, ge=1, le=100_000)
    """Number of augmented views of each training image that are stored; epoch e uses view e mod cache_views."""
    cache_precision: Literal["float32", "bf16", "fp16"] | None = None
    """Precision of the stored features. None: that in which they are computed, so that storing changes no bit."""
    final_weights: Literal["best", "last"] = "best"
    """Weights in `final/`: those with the best monitored metric over the run, or the last."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of all randomness: new weights, the order of the samples, augmentation. torch's generators take 63 bits."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps after which a checkpoint is also saved between the ends of epochs."""
    checkpoint_every_minutes: float | None = Field(default=None, gt=0)
    """Minutes since the last save after which a checkpoint is also saved between the ends of epochs."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Reaction to a gradient that is not finite. "stop": the run stops before anything of the update is evaluated or
    saved. "skip": the step is skipped and counted, for which each step waits for the device."""
    max_skipped_steps: int = Field(default=10, ge=1)
    """Number of steps that may be skipped over the run with on_nonfinite="skip"."""
    hang_limit_seconds: float = Field(default=300.0, gt=0)
    """Time without progress after which a process counts as stuck and ends the run."""
    deterministic: bool = False
    """Use of torch's deterministic algorithms: on CUDA a resumed run is then equal bit for bit, but slower. On CPUs it
    is equal anyway."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()

    @field_validator(*_PARTS, mode="before")
    @classmethod
    def _is_part(cls, value: Any, info: ValidationInfo) -> Any:
        """Check that a value can serve as the part, and say what it lacks if it cannot.

        Without this check, pydantic would only say "should be an instance of Head", and a class would pass as an
        instance.
        """
        protocol, example = _PARTS[str(info.field_name)]
        if isinstance(value, type):
            if not _lacking(value, protocol):
                raise ValueError(f"a class; write {value.__name__}(...)")
            raise ValueError(f"a class that is no part{_wrapper(value, protocol)}")
        if lacking := _lacking(value, protocol):
            raise ValueError(
                f"should be {example} or a part of your own; a {type(value).__name__} lacks {', '.join(lacking)}"
                f"{_wrapper(type(value), protocol)}"
            )
        return value

    @field_validator("freeze_plan", mode="before")
    @classmethod
    def _is_plan(cls, value: Any) -> Any:
        if isinstance(value, Phase):
            raise ValueError("one phase; a plan is a tuple of phases: (Phase(...),) with the comma")
        if value in ((), []):
            raise ValueError("no phase; a plan needs at least one, such as phases.full_finetune(epochs=10)")
        return value
