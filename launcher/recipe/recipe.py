"""The recipe: a frozen value that fixes what is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.recipe.optim import AdamW, WarmupCosine
from launcher.recipe.part import part
from launcher.recipe.phases import Phase
from launcher.recipe.protocols import Augmentation, Backbone, Data, Head, Optimizer, Schedule, Task
from launcher.recipe.transforms import Augment


@part
class Recipe:
    """Everything that decides the weights; nothing that decides where it runs.

    Raises pydantic.ValidationError for a field that is unknown, missing or of the wrong type.
    """

    backbone: Backbone
    head: Head
    task: Task
    data: Data
    freeze_plan: tuple[Phase, ...] = Field(min_length=1)
    """Phases in order; plans join with `+`."""
    optim: Optimizer = AdamW(lr=1e-3)
    schedule: Schedule = WarmupCosine()
    """Shape of the learning rate over each phase."""
    augment: Augmentation = Augment()
    batch_size: int = Field(default=64, ge=1)
    """Global number of samples per optimizer step, over all processes."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; None does not clip."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights. With it, the averaged weights are evaluated
    beside the raw ones, decide what is best, and are what `final/` holds."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Accelerate's word: "no" is float32. "fp16" needs a GPU."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all processes, for phases with norm_statistics="update". Needs GPUs."""
    final_weights: Literal["best", "last"] = "best"
    """Which weights `final/` holds: those with the best monitored metric over the run, or the last."""
    seed: int = Field(default=0, ge=0)
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Also save between the ends of epochs, every so many optimizer steps."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
