"""Images per second and core that the input makes, against torchvision's usual pipeline with Pillow.

    python benchmarks/input.py --root ../shared/data/hymenoptera

Everything that one core does for a batch of 32, from the files to normalised float32 with channels last on the CPU;
with torchvision: `default_loader`, `RandomResizedCrop` and `RandomHorizontalFlip` (or `Resize` and `CenterCrop`),
`ToTensor`, `Normalize`, `torch.stack`. All ways take turns, batch by batch, on the same images and the same crops; the
files are in the page cache. Prints the median over the rounds of each way's processor time, and how far the pixels are
from torchvision's, in levels of 256.

Seen on 1 core of an AMD EPYC, 500x375 photographs, 224 px (torch 2.14, torchvision 0.29, Pillow 13.0):

    training    torchvision              196 images/s  x 1.00
    training    launcher, Pillow         276 images/s  x 1.43 (1.33 to 1.45)  apart 0.027 levels, at most 1
    training    launcher, simplejpeg     326 images/s  x 1.68 (1.60 to 1.77)  apart 0.027 levels, at most 1
    training    launcher, prepared       982 images/s  x 5.06 (4.73 to 5.50)  other crops
    evaluation  torchvision              176 images/s  x 1.00
    evaluation  launcher, Pillow         275 images/s  x 1.56 (1.45 to 1.71)  apart 0.002 levels, at most 1
    evaluation  launcher, simplejpeg     332 images/s  x 1.86 (1.77 to 1.92)  apart 0.002 levels, at most 1
    evaluation  launcher, prepared      1755 images/s  x 10.10 (8.99 to 11.54)  apart 0.002 levels, at most 1

The copy took 113.7 MB, the files 47.4 MB. `--enlarge 8` takes every tenth of them, made 8 times as high and wide, with
noise as a camera's sensor adds it (4 levels), so that they are photographs of 12 million pixels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as usual
from torchvision.datasets.folder import default_loader

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import launcher.data.decoding as decoding  # noqa: E402
from launcher import Recipe, backbones, data, heads, phases, tasks  # noqa: E402
from launcher.data.prepare import make_copy  # noqa: E402
from launcher.data.prepared import with_copy  # noqa: E402
from launcher.recipe.protocols import Split  # noqa: E402
from launcher.recipe.transforms import evaluation  # noqa: E402
from launcher.training.data_order import seed_for  # noqa: E402
from launcher.training.images import EvaluationImages, TrainingImages, collate  # noqa: E402

BATCH = 32
CPU = torch.device("cpu")
Way = Callable[[list[int]], torch.Tensor]


def torchvisions(split: Split, transform: usual.Compose, seeded: bool) -> Way:
    def batch(indices: list[int]) -> torch.Tensor:
        images = []
        for index in indices:
            if seeded:
                torch.manual_seed(seed_for("sample", 0, 0, index))
            images.append(transform(default_loader(split.images.name(index))))
        return torch.stack(images).to(memory_format=torch.channels_last)

    return batch


def ours(images: TrainingImages | EvaluationImages, training: bool, with_simplejpeg: bool) -> Way:
    found = decoding._faster_decoder()

    def batch(indices: list[int]) -> torch.Tensor:
        decoding._faster_decoder = lambda: found if with_simplejpeg else None  # type: ignore[assignment]
        keys = [(0, index) if training else index for index in indices]
        samples = [images[key] for key in keys]
        return collate(samples, images.transform).to(CPU).images

    return batch


def enlarged(root: Path, folder: Path, times: int) -> Path:
    draw = np.random.Generator(np.random.PCG64(0))
    for path in sorted(root.rglob("*.jpg"))[::10]:
        image = Image.open(path).convert("RGB")
        image = image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)
        noisy = np.asarray(image, dtype=np.float32) + draw.normal(0, 4, (image.height, image.width, 1))
        to = folder / path.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(to, quality=90)
    return folder


def recipe_for(root: Path) -> Recipe:
    return Recipe(
        backbone=backbones.Torchvision(name="resnet50", weights="IMAGENET1K_V1"),
        head=heads.Linear(),
        task=tasks.Classification(),
        data=data.ImageFolder(root=str(root)),
        freeze_plan=phases.linear_probe(epochs=1),
    )


def ways_of(root: Path, folder: Path) -> dict[str, dict[str, Way]]:
    recipe = recipe_for(root)
    preprocessing = recipe.backbone.preprocessing()
    splits = recipe.data.build("class", 0)
    copy, _ = make_copy(recipe, splits, preprocessing, folder, workers=1)
    original = sum(Path(s.images.name(i)).stat().st_size for s in (splits.train, splits.val) for i in range(len(s)))
    print(f"prepared: {copy}; the files: {original / 1e6:.1f} MB", flush=True)
    prepared = with_copy(copy, recipe, splits)
    normalised = [usual.ToTensor(), usual.Normalize(preprocessing.mean, preprocessing.std)]
    crop = usual.RandomResizedCrop(preprocessing.image_size, scale=(recipe.augment.min_scale, 1.0))  # type: ignore[attr-defined]
    random = usual.Compose([crop, usual.RandomHorizontalFlip(), *normalised])
    centre = usual.Compose(
        [usual.Resize(preprocessing.resize_size), usual.CenterCrop(preprocessing.image_size), *normalised]
    )
    augment, plain = recipe.augment.build(preprocessing), evaluation(preprocessing)
    decoders = {"Pillow": False} | ({"simplejpeg": True} if decoding._faster_decoder() else {})
    train: dict[str, Way] = {"torchvision": torchvisions(splits.train, random, seeded=True)}
    val: dict[str, Way] = {"torchvision": torchvisions(splits.val, centre, seeded=False)}
    for name, faster in decoders.items():
        train[f"launcher, {name}"] = ours(TrainingImages(splits.train, augment, 0), True, faster)
        val[f"launcher, {name}"] = ours(EvaluationImages(splits.val, plain), False, faster)
    train["launcher, prepared"] = ours(TrainingImages(prepared.train, augment, 0), True, False)
    val["launcher, prepared"] = ours(EvaluationImages(prepared.val, plain), False, False)
    return {"training": train, "evaluation": val}


def measure(ways: dict[str, Way], batches: list[list[int]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds per image of each way in each round."""
    for way in ways.values():
        way(batches[0])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        spent = dict.fromkeys(ways, 0.0)
        for number, indices in enumerate(batches):
            names = list(ways)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                begin = time.process_time()
                ways[name](indices)
                spent[name] += time.process_time() - begin
        for name, total in spent.items():
            seconds[name].append(total / sum(map(len, batches)))
    return seconds


def apart(way: Way, usual_way: Way, batches: list[list[int]]) -> tuple[float, float]:
    """Mean and largest difference in levels."""
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    found = [((way(indices) - usual_way(indices)) * std * 255).abs() for indices in batches]
    return statistics.fmean(float(each.mean()) for each in found), max(float(each.max()) for each in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder with train/ and val/")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--enlarge", type=int, default=1, metavar="TIMES")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = options.root
        if options.enlarge > 1:
            root = enlarged(root, Path(folder) / "large", options.enlarge)
        for what, ways in ways_of(root, Path(folder) / "copy").items():
            count = len(list((root / ("val" if what == "evaluation" else "train")).rglob("*.jpg")))
            order = np.random.Generator(np.random.PCG64(0)).permutation(count)
            batches = [order[at : at + BATCH].tolist() for at in range(0, min(4 * BATCH, count), BATCH)]
            seconds = measure(ways, batches, options.rounds)
            base = seconds["torchvision"]
            for name, found in seconds.items():
                ratios = [theirs / ours for theirs, ours in zip(base, found, strict=True)]
                mean, most = apart(ways[name], ways["torchvision"], batches)
                # Of another size, a picture is cropped elsewhere.
                same_crops = what == "evaluation" or "prepared" not in name
                pixels = f"apart {mean:.3f} levels, at most {most:.0f}" if same_crops else "other crops"
                print(
                    f"{what:10}  {name:20}  {1 / statistics.median(found):6.0f} images/s  "
                    f"x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {pixels}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
