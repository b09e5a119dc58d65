"""Computation that is exported: the network with the requested steps around it, captured with free sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram

from launcher.errors import UserError
from launcher.export.quiet import quiet
from launcher.export.target import Options
from launcher.inference.loaded_model import LoadedModel
from launcher.recipe.protocols import Preprocessing


def output_dtype(model: LoadedModel) -> torch.dtype:
    """Return the type of the outputs of a graph.

    Values of which float32 would lose more than 0.01 % of a standard deviation of the targets are float64: in float32 a
    time in seconds since 1970 has steps of 128 s.
    """
    if model.mean is None or model.std is None:
        return torch.float32
    single = torch.finfo(torch.float32)
    rounding = single.eps * model.mean.abs() / model.std
    held = (rounding < 1e-4) & (model.mean.abs() + 100 * model.std < single.max) & (model.std > 1e6 * single.tiny)
    return torch.float32 if bool(held.all()) else torch.float64


class Pixels(nn.Module):
    """Preprocessing of raw images, uint8 (N, height, width, 3), all of one size, to uint8 (N, 3, S, S).

    As in validation, the shorter side is resized and the centre cropped. Sizes are computed with integers only, and
    equal those that torchvision computes in floating point.
    """

    def __init__(self, about: Preprocessing) -> None:
        super().__init__()
        self.resize_size, self.image_size, self.interpolation = about.resize_size, about.image_size, about.interpolation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2)
        height, width = pixels.shape[2], pixels.shape[3]
        shorter = torch.sym_min(height, width)
        size: Any = (self.resize_size * height // shorter, self.resize_size * width // shorter)
        if self.interpolation == "nearest":  # Pillow's nearest is torch's nearest-exact
            pixels = F.interpolate(pixels, size=size, mode="nearest-exact")
        else:
            pixels = F.interpolate(pixels, size=size, mode=self.interpolation, align_corners=False, antialias=True)
        # These are no views: whether a view is contiguous depends on the size, and torch.export would allow only one of
        # the two cases.
        pixels = pixels.index_select(2, self._middle(pixels.shape[2]))
        return pixels.index_select(3, self._middle(pixels.shape[3]))

    def _middle(self, side: int) -> torch.Tensor:
        left = side - self.image_size
        half = left // 2
        start = half + (half % 2) * (left % 2)  # torchvision rounds a half to the even number
        return torch.arange(self.image_size) + start


class Exported(nn.Module):
    """The network with the requested steps around it, which maps images to outputs (N, num_outputs).

    The input is images (N, 3, S, S) that are ready for the network, or raw images as for `Pixels`. The outputs of a
    regression are in the units of its targets.
    """

    image_mean: torch.Tensor
    image_std: torch.Tensor
    value_mean: torch.Tensor
    value_std: torch.Tensor

    def __init__(self, model: LoadedModel, options: Options) -> None:
        super().__init__()
        about = model.preprocessing.about
        self.network = model
        self.pixels = Pixels(about) if options.preprocess else None
        self.kind = model.kind if options.probabilities else ""
        self.temperature = model.temperature
        self.in_units = model.mean is not None
        for name, values in (("image_mean", about.mean), ("image_std", about.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        if model.mean is not None and model.std is not None:
            self.register_buffer("value_mean", model.mean.to(output_dtype(model)), persistent=False)
            self.register_buffer("value_std", model.std.to(output_dtype(model)), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.pixels is not None:
            images = (self.pixels(images).to(torch.float32) / 255.0 - self.image_mean) / self.image_std
        outputs: torch.Tensor = self.network(images)
        if self.kind == "classification":
            return (outputs / self.temperature).softmax(1)
        if self.kind == "multi-label":
            return outputs.sigmoid()
        return outputs.to(self.value_std.dtype) * self.value_std + self.value_mean if self.in_units else outputs


def capture(module: nn.Module, options: Options, about: Preprocessing) -> ExportedProgram:
    """Capture a `Pixels` or an `Exported` with torch.export, for batches (and raw images) of any size.

    Raises UserError if the network cannot be captured, or only for batches of one size.
    """
    if options.preprocess:
        # No other dimension in the network has one of these three sizes, so none is taken for a constant.
        example = torch.zeros(2, about.resize_size + 37, about.resize_size + 19, 3, dtype=torch.uint8)
        dims = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    else:
        example = torch.zeros(2, 3, about.image_size, about.image_size)
        dims = {0: Dim.DYNAMIC}
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=(dims,), strict=False)
    except Exception as error:  # a user's own network or the exporter may raise anything
        what = "with pictures of any size" if options.preprocess else "for batches of any size"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = " ".join(lines[:2])[:300] or type(error).__name__
        raise UserError(f"--to {options.form}: torch.export cannot capture this network {what}: {why}") from error
    for node in program.graph.nodes:  # these hold paths of this machine, and are half of the size of a small file
        node.meta.pop("stack_trace", None)
    return program
