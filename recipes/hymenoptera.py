"""EfficientNet-lite0 on ants and bees, the data of PyTorch's transfer-learning tutorial: 244 photographs to learn from.

    python -m launcher recipes/hymenoptera.py data.root=hymenoptera_data

The data: https://download.pytorch.org/tutorial/hymenoptera_data.zip, unpacked. The weights come with the extra `demo`.

Expected: 96.1 % validation accuracy (147 of 153; the head alone, on stored features; the fine-tuning that follows came
to 95.4 and 94.8 %, one image being 0.65 points), 63 s after the first phase began, on 2 cores of an AMD EPYC, no GPU;
one run.
"""

from __future__ import annotations

import dataclasses

from launcher import Phase, Recipe, data, heads, optim, phases, tasks, transforms
from recipes.digits import lite0

recipe = Recipe(
    backbone=dataclasses.replace(lite0, image_size=None),  # 224 px, as the weights were trained
    head=heads.Linear(),
    task=tasks.Classification(label_smoothing=0.1),
    data=data.ImageFolder(root="data/hymenoptera_data"),
    freeze_plan=(
        *phases.linear_probe(epochs=3),
        Phase(name="full_finetune", rules=(("head", 0.1), ("backbone", 0.004)), epochs=2),
    ),
    augment=transforms.Augment(min_scale=0.5),
    optim=optim.AdamW(lr=5e-3, weight_decay=0.01),
    batch_size=32,
)
