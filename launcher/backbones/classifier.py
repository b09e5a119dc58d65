"""Location and removal of a network's last classifying layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# The class of a torchvision network -> the dotted name of its last classifying layer. A table, because "the last
# Linear" would be wrong: GoogLeNet and Inception have auxiliary classifiers, and SqueezeNet's classifier is a
# convolution that is not the last module.
TORCHVISION_CLASSIFIERS = {
    "AlexNet": "classifier.6",
    "ConvNeXt": "classifier.2",
    "DenseNet": "classifier",
    "EfficientNet": "classifier.1",
    "GoogLeNet": "fc",
    "Inception3": "fc",
    "MNASNet": "classifier.1",
    "MaxVit": "classifier.5",
    "MobileNetV2": "classifier.1",
    "MobileNetV3": "classifier.3",
    "RegNet": "fc",
    "ResNet": "fc",
    "ShuffleNetV2": "fc",
    "SqueezeNet": "classifier.1",
    "SwinTransformer": "head",
    "VGG": "classifier.6",
    "VisionTransformer": "heads.head",
}


def width_of(classifier: nn.Module) -> int:
    """Return the number of input features of a classifying layer.

    Raises TypeError for a layer that is neither linear nor a 1x1 convolution.
    """
    from torch import nn

    if isinstance(classifier, nn.Linear):
        return classifier.in_features
    if isinstance(classifier, nn.Conv2d) and classifier.kernel_size == (1, 1):
        return classifier.in_channels
    raise TypeError(f"a {type(classifier).__name__} is not a linear classifier")


def describe_classifier(network: nn.Module, name: str, classifier: nn.Module) -> None:
    """Record the properties of the classifier as attributes of `network`, so that a new one can later take its name.

    These are `num_features`, `classifier_name`, `classifier_has_bias`, and `classifier_is_conv`, which means a weight
    of shape (num_outputs, num_features, 1, 1); the mean of such a layer's outputs over the image equals a linear layer
    on the mean of its inputs.
    """
    from torch import nn

    facts: dict[str, Any] = {
        "num_features": width_of(classifier),
        "classifier_name": name,
        "classifier_has_bias": classifier.bias is not None,
        "classifier_is_conv": isinstance(classifier, nn.Conv2d),
    }
    for fact, value in facts.items():
        setattr(network, fact, value)


def cut_classifier(network: nn.Module, name: str) -> None:
    """Replace the classifying layer `name` by nn.Identity; all other names stay.

    Raises TypeError if the layer is neither linear nor a 1x1 convolution.
    """
    from torch import nn

    describe_classifier(network, name, network.get_submodule(name))
    parent_name, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent_name), child, nn.Identity())
