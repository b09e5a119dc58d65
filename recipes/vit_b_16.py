"""ViT-B/16 on Oxford-IIIT Pets with layer-wise decay of the learning rate: the closer to the pixels, the smaller.

    python -m launcher recipes/vit_b_16.py

Downloads the weights (330 MB) and the data set (about 0.8 GB). Each layer trains at 0.75 of the rate of the one above
it (BEiT, arXiv 2106.08254): the head at 1, the last norm at 0.75, the last encoder layer at 0.56, the patch embedding
at 0.018.

Cost: not measured. Made for one GPU with 24 GB; on a smaller one add --micro-batch 16.
Expected: not measured (the weights and the data set have to be downloaded).
"""

from launcher import Recipe, backbones, data, heads, optim, phases, tasks, transforms

encoder_layers = [f"backbone.encoder.layers.encoder_layer_{number}" for number in range(12)]

recipe = Recipe(
    backbone=backbones.Torchvision(name="vit_b_16", weights="IMAGENET1K_V1"),
    head=heads.Linear(),
    task=tasks.Classification(label_smoothing=0.1),
    data=data.HuggingFace(path="timm/oxford-iiit-pet", label_column="label"),
    freeze_plan=phases.linear_probe(epochs=3)
    + phases.layer_decay([*encoder_layers, "backbone.encoder.ln"], epochs=12, decay=0.75),
    optim=optim.AdamW(lr=5e-4, weight_decay=0.05),
    augment=transforms.Augment(preset="randaugment"),
    batch_size=64,
    clip_norm=1.0,
    mixed_precision="bf16",
)
