"""ResNet-50 on Oxford-IIIT Pets (37 breeds): probe the head, then fine-tune everything.

    python -m launcher recipes/resnet50.py

Downloads the weights (98 MB, to ~/.cache/torch/hub) and the data set (about 0.8 GB, to ~/.cache/huggingface). On images
of your own, one folder for each class:

    python -m launcher recipes/resnet50.py data.path=FOLDER

Cost: not measured. Made for one GPU with 16 GB; on a smaller one add --micro-batch 16.
Expected: not measured (the weights and the data set have to be downloaded).
"""

from launcher import Recipe, backbones, data, heads, optim, phases, tasks

recipe = Recipe(
    backbone=backbones.Torchvision(name="resnet50", weights="IMAGENET1K_V2"),
    head=heads.Linear(dropout=0.2),
    task=tasks.Classification(label_smoothing=0.1),
    data=data.HuggingFace(path="timm/oxford-iiit-pet", label_column="label"),
    freeze_plan=phases.linear_probe(epochs=3) + phases.full_finetune(epochs=12, backbone_lr_scale=0.1),
    optim=optim.AdamW(lr=1e-3, weight_decay=0.05),
    batch_size=64,
    mixed_precision="bf16",
)
