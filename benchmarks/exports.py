"""Exports of the smallest network of each of torchvision's families, run and compared with the model.

    python benchmarks/exports.py                         # all, to ONNX and torch.export
    python benchmarks/exports.py resnet18 maxvit_t       # some
    python benchmarks/exports.py timm/convnext_atto      # of timm

Weights are random, so nothing is downloaded: BatchNorm's statistics are those of 16 images, and the head is scaled so
that logits have a standard deviation of 3, about as large as those of trained networks. The images are scikit-learn's
handwritten digits. Prints a line for each network: the size of its images, how far the model's own logits in float32
are from those in float64, and the largest difference of logits for each form, or why it cannot be written.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from launcher import Recipe, backbones, heads
from launcher.backbones.plain_names import classifier_name_of, plain_state_dict
from launcher.errors import UserError
from launcher.export.export import export
from launcher.export.output_check import rounding
from launcher.export.sample_images import sample_images
from launcher.export.target import ENDINGS, Form, Options
from launcher.inference.finished_run import read_finished
from launcher.inference.loaded_model import model_of
from launcher.recipe.serialization import to_json
from launcher.recipe.type_names import types_in
from launcher.training.model import build_model
from recipes import digits

FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)
FORMS: tuple[Form, ...] = ("onnx", "torch-export")


def finished_without_training(recipe: Recipe, run_dir: Path) -> None:
    """A run dir as a run leaves it, as far as results are read from it; with random weights."""
    splits = recipe.data.build(recipe.task.target_kind, recipe.seed)
    task, preprocessing = recipe.task.build(splits), recipe.backbone.preprocessing()
    model = build_model(recipe.backbone, recipe.head, task.num_outputs, recipe.seed)
    _look_trained(model, preprocessing, splits.val.images)
    final = run_dir / "final"
    final.mkdir(parents=True)
    plain = plain_state_dict(model.backbone, model.backbone.state_dict(), model.head.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in plain.items()}, final / "model.safetensors")
    described: dict[str, Any] = {
        **recipe.backbone.plain(),  # type: ignore[attr-defined]
        "head": to_json(recipe)["head"],
        "classifier_name": classifier_name_of(model.backbone),
        "num_outputs": task.num_outputs,
        "task": task.describe(),
        "step": 0,
    }
    image = to_json(preprocessing)
    image.pop("type", None)
    written = {"model": described, "classes": list(splits.names), "preprocess": image, "metrics": {"accuracy": 0.1}}
    for name, content in written.items():
        (final / f"{name}.json").write_text(json.dumps(content))
    (run_dir / "recipe.json").write_text(json.dumps(to_json(recipe)))
    (run_dir / "environment.json").write_text(json.dumps({"command": ["recipes/digits.py"], "folder": str(Path.cwd())}))


@torch.no_grad()
def _look_trained(model: nn.Module, preprocessing: Any, images: Any) -> None:
    from launcher.data.decoding import read_pixels
    from launcher.recipe.transforms import evaluation

    steps = evaluation(preprocessing)
    batch = steps.normalise(torch.stack([steps.pixels(read_pixels(images, index)) for index in range(16)]))
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what it sees
        norm.train()
    model(batch)
    model.eval()
    outputs = model(batch)
    head: Any = model.head
    for parameter in head.parameters():
        parameter *= 3 / outputs.std()


def main(names: list[str]) -> None:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"{'network':<22}{'pixels':>7}{'rounding':>10}" + "".join(f"{form:>14}{'seconds':>9}" for form in FORMS),
        flush=True,
    )
    for name in names or FAMILIES:
        library, _, bare = name.rpartition("/")
        backbone: Any = (
            backbones.Timm(name=bare, weights=None)
            if library == "timm"
            else backbones.Torchvision(name=bare, weights=None)
        )
        recipe = dataclasses.replace(digits.recipe, backbone=backbone, head=heads.Linear())
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            finished_without_training(recipe, run_dir)
            finished = read_finished(run_dir, types_in(recipe))
            model = model_of(finished)
            images = sample_images(finished, None)
            steps = model.preprocessing.steps
            ready = steps.normalise(torch.stack([steps.pixels(image) for image in images.pixels]))
            line, why = f"{name:<22}{finished.preprocessing.image_size:>7}{rounding(model, ready):>10.1e}", []
            for form in FORMS:
                begun = time.perf_counter()
                options = Options(form=form, out=run_dir / f"model{ENDINGS[form]}")
                try:
                    cell = f"{export(finished, model, options, images).difference.largest:.1e}"
                except UserError as error:
                    cell = "no"
                    why.append(str(error))
                line += f"{cell:>14}{time.perf_counter() - begun:>9.1f}"
            print("\n    ".join([line, *why]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
