"""Mistakes in what a recipe refers to: data, weights, the run dir."""

from __future__ import annotations

import torch

from mistakes import GOOD, SPLIT, Mistake, and_file, folders, other_weights, saved, table, text, truncated_weights

FOLDER = "data=data.ImageFolder(root='pets')"
CSV = "data=data.CsvImages(path='pets.csv'{})"
RESNET = "backbone=backbones.Torchvision(name='resnet18', weights={!r}, image_size=32)"
MISTAKES = [
    # the command line
    Mistake("empty recipe", "an argument is empty; is a variable of the shell not set?", words="plan ''"),
    Mistake(
        "empty run dir",
        "--run-dir: its value is empty; is a variable of the shell not set?",
        words="wrong.py --run-dir ''",
        changes="",
    ),
    Mistake(
        "empty values",
        (
            "--assets: its value is empty; is a variable of the shell not set?",
            "--prepared: its value is empty; is a variable of the shell not set?",
        ),
        words="wrong.py --assets= --prepared ''",
        changes="",
    ),
    # data
    Mistake("no path of data", "data.root='': is empty; give a path", words="wrong.py data.root=", changes=FOLDER),
    Mistake(
        "no path of weights",
        "backbone.weights='': string should have at least 1 character",
        words="wrong.py backbone.weights=",
        changes=RESNET.format(None),
    ),
    Mistake(
        "no data folder",
        "data.root: {here}/pets does not exist; it should hold one folder of images per class",
        changes=FOLDER,
    ),
    Mistake(
        "data is a file",
        "data.root: {here}/pets is a file, not a folder; it should hold one folder of images per class",
        changes=FOLDER,
        files=text("pets", ""),
    ),
    Mistake(
        "no class folders",
        "data.root: {here}/pets has 1 image but no class folders; expected pets/<class>/<image>",
        changes=FOLDER,
        files=folders("pets/1.png"),
    ),
    Mistake(
        "empty class",
        "data.root: 1 class folder(s) of {here}/pets without an image: 'fish'; fill or remove them",
        changes=FOLDER,
        files=folders(*GOOD, "pets/fish/"),
    ),
    Mistake(
        "empty folder",
        "data.root: {here}/pets has no class folders; expected pets/<class>/<image>",
        changes=FOLDER,
        files=folders("pets/"),
    ),
    Mistake(
        "one class",
        "task: classification needs at least two classes, the data has ['cat']",
        changes=FOLDER,
        files=folders(*GOOD[:2]),
    ),
    Mistake(
        "unknown class in val",
        (
            "data.root: {here}/pets/val has 1 class folder(s) that {here}/pets/train lacks: 'fish'; classes "
            "are fixed by the training images"
        ),
        changes=FOLDER,
        files=folders(*SPLIT, "pets/val/fish/1.png"),
    ),
    Mistake(
        "broken image",
        (
            "data: 1 of 5 images cannot be read: {here}/pets/cat/0.png (not an image that Pillow can read); "
            "repair or remove them, or leave them out with data.on_bad_image=skip"
        ),
        changes=FOLDER,
        files=and_file(folders(*GOOD), "pets/cat/0.png", b"no image"),
    ),
    Mistake(
        "all images broken",
        (
            "data: no training image can be read: {here}/pets/train/cat/1.png (empty file), "
            "{here}/pets/train/dog/1.png (not an image that Pillow can read)"
        ),
        changes="data=data.ImageFolder(root='pets', on_bad_image='skip')",
        files=and_file(and_file(folders(*SPLIT), "pets/train/cat/1.png", b""), "pets/train/dog/1.png", b"x"),
    ),
    Mistake(
        "too few images",
        ("data: 2 images in 2 classes are too few to set some aside for validation; at least one class needs 2 images"),
        changes=FOLDER,
        files=folders("pets/cat/1.png", "pets/dog/1.png"),
    ),
    Mistake(
        "task of another kind",
        (
            "data: ImageFolder gives one class per image, but the task reads numbers per image; use "
            "data.CsvImages or data.HuggingFace with label_column naming the target columns"
        ),
        changes=FOLDER + ", task=tasks.Regression()",
        files=folders(*GOOD),
    ),
    Mistake(
        "csv missing",
        "data.path: no file {here}/pets.csv",
        changes=CSV.format(""),
    ),
    Mistake(
        "csv column",
        "data.path: {here}/pets.csv has no column 'label'; did you mean 'labels'?",
        changes=CSV.format(""),
        files=table("path,labels\npets/cat/1.png,cat\n"),
    ),
    Mistake(
        "csv image",
        (
            "data.path: 1 of 2 images named in {here}/pets.csv is missing: pets/cat/9.png (line 3); looked "
            "in {here}; data.root says where the paths start from"
        ),
        changes=CSV.format(""),
        files=table("path,label\npets/cat/1.png,cat\npets/cat/9.png,cat\n"),
    ),
    Mistake(
        "csv number",
        "data.path: {here}/pets.csv: column 'age' has 1 cell that should be a finite number: line 3: 'old'",
        changes=CSV.format(", label_column='age'") + ", task=tasks.Regression()",
        files=table("path,age\npets/cat/1.png,3\npets/cat/2.png,old\n"),
    ),
    Mistake(
        "csv label",
        "data.path: {here}/pets.csv: column 'dog' has 1 cell that should be 0 or 1: line 3: '2'",
        changes=CSV.format(", label_column=('cat', 'dog')") + ", task=tasks.MultiLabel()",
        files=table("path,cat,dog\npets/cat/1.png,1,0\npets/dog/1.png,0,2\n"),
    ),
    Mistake(
        "csv cells",
        "data.path: {here}/pets.csv, line 2: 1 cell, but the header has 2",
        changes=CSV.format(""),
        files=table("path,label\npets/cat/1.png\n"),
    ),
    Mistake(
        "csv quote",
        "data.path: {here}/pets.csv, up to line 3: unexpected end of data; a cell that begins with a quote must end "
        "with one (write a quote as two)",
        changes=CSV.format(""),
        files=table('path,label\npets/cat/1.png,"cat\npets/dog/1.png,dog\n'),
    ),
    Mistake(
        "constant targets",
        "task: the training targets ['age'] are all the same value; there is nothing to learn",
        changes=CSV.format(", label_column='age'") + ", task=tasks.Regression()",
        files=table("path,age\npets/cat/1.png,3\npets/cat/2.png,3\npets/dog/1.png,3\n"),
    ),
    Mistake(
        "no such file of data",
        "data.path: no folder or file {here}/data/pets.parquet",
        changes="data=data.HuggingFace(path='data/pets.parquet')",
    ),
    Mistake(
        "unknown data set",
        ("data.name: 'Flower102' is no torchvision data set that can be used here; did you mean 'Flowers102'?"),
        changes="data=data.Torchvision(name='Flower102', root='.')",
    ),
    Mistake(
        "data set not there",
        (
            "data.root: no complete Flowers102 (split 'train') in {here}: …; train with data.download=true where "
            "there is network, or copy the folder from a machine that has it"
        ),
        changes="data=data.Torchvision(name='Flowers102', root='.')",
    ),
    # weights
    Mistake(
        "no weights file",
        (
            "backbone.weights='weights/resnet18.pth': no such file (looked for {here}/weights/resnet18.pth); "
            "wanted: a weights file (.safetensors, .pth, .pt, .bin, .ckpt, .tar) or the run dir of an earlier run"
        ),
        changes=RESNET.format("weights/resnet18.pth"),
    ),
    Mistake(
        "truncated weights",
        "backbone.weights: half.pth is broken or no weights file (…)",
        changes=RESNET.format("./half.pth"),
        files=truncated_weights,
    ),
    Mistake(
        "truncated safetensors",
        "backbone.weights: half.safetensors is broken or no safetensors file (…)",
        changes=RESNET.format("./half.safetensors"),
        files=text("half.safetensors", "xxxxxxxxxxxx"),
    ),
    Mistake(
        "weights of another network",
        (
            "backbone.weights: squeezenet.pth does not fit the network: of its 120 tensors 100 missing "
            "(conv1.weight, bn1.weight, bn1.bias, ...); 52 unexpected (features.0.weight, features.0.bias, "
            "features.3.squeeze.weight, ...)"
        ),
        changes=RESNET.format("./squeezenet.pth"),
        files=other_weights,
    ),
    Mistake(
        "pickled objects",
        (
            "backbone.weights: model.pth holds Python objects, which may run code when they are read; save "
            "its tensors alone: torch.save(model.state_dict(), PATH)"
        ),
        changes=RESNET.format("./model.pth"),
        files=saved("model.pth", {"model": torch.nn.Linear(2, 2)}),
    ),
    Mistake(
        "no state dict",
        "backbone.weights: list.pth holds no state dict but a list",
        changes=RESNET.format("./list.pth"),
        files=saved("list.pth", [1, 2]),
    ),
    Mistake(
        "folder without weights",
        (
            "backbone.weights='pets': the folder has no final/model.safetensors; wanted: a weights file or "
            "the run dir of a finished run"
        ),
        changes=RESNET.format("./pets"),
        files=folders(*GOOD),
    ),
    Mistake(
        "unknown network",
        ("backbone.name='resnet51': torchvision has no such classification network; did you mean 'resnet50'?"),
        changes="backbone=backbones.Torchvision(name='resnet51', weights=None)",
    ),
    Mistake(
        "unknown weights",
        (
            "backbone.weights='IMAGENET1K_V3': resnet18 has no such weights; there are: DEFAULT, "
            "IMAGENET1K_V1, or a path of a file or of an earlier run, or none"
        ),
        changes=RESNET.format("IMAGENET1K_V3"),
    ),
    Mistake(
        "unknown timm network",
        ("backbone.name='tf_efficientnet_lite9': timm has no such network; did you mean 'tf_efficientnet_lite4'?"),
        changes="backbone=backbones.Timm(name='tf_efficientnet_lite9', weights=None)",
    ),
    Mistake(
        "image size of patches",
        "backbone.image_size=100: vit_b_32 needs a multiple of 32 pixels, such as 96 or 128",
        changes="backbone=backbones.Torchvision(name='vit_b_32', weights=None, image_size=100)",
    ),
    Mistake(
        "image size too small",
        "backbone.image_size=32: inception_v3 needs at least 75 pixels",
        changes="backbone=backbones.Torchvision(name='inception_v3', weights=None, image_size=32)",
    ),
    # the run dir
    Mistake(
        "run dir below a file",
        "--run-dir taken/run: cannot write there (Not a directory); choose a folder that is writable",
        words="wrong.py --run-dir taken/run",
        changes="",
        files=text("taken", ""),
    ),
    Mistake(
        "run dir is no text",
        "--run-dir runs/x\\udcff: is no text in UTF-8, and weights can only be written to paths that are; give another "
        "name",
        words="wrong.py --run-dir 'runs/x\udcff'",
        changes="",
    ),
    Mistake(
        "run dir is a file",
        "--run-dir taken: is a file; give a folder, or a name that is free",
        words="wrong.py --run-dir taken",
        changes="",
        files=text("taken", ""),
    ),
    Mistake(
        "run dir that cannot be made",
        ("--run-dir /proc/run: cannot write there (No such file or directory); choose a folder that is writable"),
        words="wrong.py --run-dir /proc/run",
        changes="",
    ),
    Mistake(
        "resume without a run",
        "--resume must: runs/wrong holds no checkpoint to continue from",
        words="wrong.py --resume must",
        changes="",
    ),
    # all at once
    Mistake(
        "several at once",
        (
            (
                "mixed_precision='fp16': there is no GPU, and on a CPU fp16 would silently be float32; use "
                "mixed_precision=bf16 or mixed_precision=no"
            ),
            "--micro-batch 5 does not divide batch_size=32; 1, 2, 4, 8, 16, 32 would work",
            "data.root: {here}/pets does not exist; it should hold one folder of images per class",
            (
                "backbone.weights='x/y.pth': no such file (looked for {here}/x/y.pth); wanted: a weights file "
                "(.safetensors, .pth, .pt, .bin, .ckpt, .tar) or the run dir of an earlier run"
            ),
        ),
        words="wrong.py mixed_precision=fp16 --micro-batch 5",
        changes=FOLDER
        + ", backbone=backbones.Torchvision(name='resnet18', weights='x/y.pth')"
        + ", freeze_plan=phases.gradual_unfreeze(['backbone.layer5'], epochs=1)",
    ),
    Mistake(
        "several at once, network fine",
        (
            ("--run-dir /proc/run: cannot write there (No such file or directory); choose a folder that is writable"),
            (
                "mixed_precision='fp16': there is no GPU, and on a CPU fp16 would silently be float32; use "
                "mixed_precision=bf16 or mixed_precision=no"
            ),
            "--micro-batch 5 does not divide batch_size=32; 1, 2, 4, 8, 16, 32 would work",
            "data.root: {here}/pets does not exist; it should hold one folder of images per class",
            ("freeze_plan.0.rules.1: pattern 'backbone.block3' matches no parameter; did you mean 'backbone.block2'?"),
        ),
        words="wrong.py mixed_precision=fp16 --micro-batch 5 --run-dir /proc/run",
        changes=FOLDER + ", freeze_plan=phases.gradual_unfreeze(['backbone.block3'], epochs=1)",
    ),
]
