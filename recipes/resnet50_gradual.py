"""ResNet-50 on Oxford-IIIT Pets, unfrozen from the output to the input: a variant of recipes/resnet50.py.

    python -m launcher recipes/resnet50_gradual.py

First the head alone, then layer4 with it, then layer3, then layer2; conv1, bn1 and layer1 stay as they were. Each
deeper layer trains at half the rate of the one above it.

Cost: not measured; each epoch costs less than one of recipes/resnet50.py, as no gradient is computed below the first
layer that trains.
Expected: not measured (the weights and the data set have to be downloaded).
"""

import dataclasses

from launcher import phases
from recipes import resnet50

recipe = dataclasses.replace(
    resnet50.recipe,
    freeze_plan=phases.linear_probe(epochs=3)
    + phases.gradual_unfreeze(
        ["backbone.layer4", "backbone.layer3", "backbone.layer2"], epochs=4, backbone_lr_scale=0.1, depth_decay=0.5
    ),
)
