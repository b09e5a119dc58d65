"""Small networks of every family, with random weights."""

from __future__ import annotations

from typing import Any

from launcher import backbones, heads
from launcher.recipe.phases import matches
from launcher.training.model import TransferModel, build_model, freeze

# Name, image size, the modules that train beside the head, what crosses.
FAMILIES = {
    "alexnet": (63, ("classifier",), [(9216,)]),
    "convnext_tiny": (32, ("features.7",), [(768, 1, 1)]),
    "densenet121": (32, ("features.denseblock4", "features.norm5"), [(512, 1, 1)]),
    "efficientnet_b0": (32, ("features.7", "features.8"), [(192, 1, 1)]),
    "googlenet": (32, ("inception5b",), [(832, 1, 1)]),
    "inception_v3": (75, ("Mixed_7c",), [(2048, 1, 1)]),
    "maxvit_t": (224, ("blocks.3",), [(256, 14, 14)]),
    "mnasnet0_5": (32, ("layers.14",), [(160, 1, 1)]),
    "mobilenet_v2": (32, ("features.18",), [(320, 1, 1)]),
    "mobilenet_v3_small": (32, ("features.12",), [(96, 1, 1)]),
    "regnet_y_400mf": (32, ("trunk_output.block4",), [(208, 2, 2)]),
    "resnet18": (32, ("layer4",), [(256, 2, 2)]),
    "resnext50_32x4d": (32, ("layer4",), [(1024, 2, 2)]),
    "shufflenet_v2_x0_5": (32, ("conv5",), [(192, 1, 1)]),
    "squeezenet1_1": (32, ("features.12",), [(512, 1, 1)]),
    "swin_t": (224, ("features.7",), [(7, 7, 768)]),
    "swin_v2_t": (256, ("features.7",), [(8, 8, 768)]),
    "vgg11_bn": (32, ("classifier",), [(25088,)]),
    "vit_b_16": (32, ("encoder.layers.encoder_layer_11", "encoder.ln"), [(5, 768)]),
}


def built(name: str, image_size: int, trainable: tuple[str, ...], **head: Any) -> TransferModel:
    backbone = backbones.Torchvision(name=name, weights=None, image_size=image_size)
    model = build_model(backbone, heads.Linear(**head), 5, 0)
    patterns = ("head", *(f"backbone.{module}" for module in trainable))
    freeze(model, {n: float(any(matches(p, n) for p in patterns)) for n, _ in model.named_parameters()})
    return model
