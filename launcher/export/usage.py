"""Python code for the model card of a hub folder, which uses the folder without launcher."""

from __future__ import annotations

from typing import Any

from launcher.export.plain_network import Plain
from launcher.inference.loaded_model import LoadedModel

_TRANSFORM = """\
image = json.loads((folder / "preprocess.json").read_text())
transform = v2.Compose(
    [
        v2.Resize(image["resize_size"], interpolation=InterpolationMode(image["interpolation"])),
        v2.CenterCrop(image["image_size"]),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(image["mean"], image["std"]),
    ]
)"""


def usage(model: LoadedModel, plain: Plain | None, described: dict[str, Any]) -> str:
    """Return a program that reads `picture.jpg` and prints the model's prediction."""
    imports = {"import json", "from pathlib import Path", "import torch", "from PIL import Image"}
    imports |= {"from huggingface_hub import snapshot_download", "from torchvision.transforms import v2"}
    imports.add("from torchvision.transforms import InterpolationMode")
    about = 'about = json.loads((folder / "config.json").read_text())'
    if plain is None:
        build = 'network = torch.export.load(folder / "model.pt2").module()'
    elif plain.is_timm:
        about += '["launcher"]'
        imports.add("import timm")
        build = 'network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()'
    else:
        imports |= set(plain.imports())
        build = plain.code()
    return "\n".join(
        [
            *sorted(imports, key=lambda line: (line.startswith("from"), line.lower())),  # plain ones first
            "",
            'folder = Path(snapshot_download("OWNER/NAME"))  # or the folder itself',
            about,
            build,
            _TRANSFORM,
            "with torch.no_grad():",
            '    outputs = network(transform(Image.open("picture.jpg").convert("RGB"))[None])[0]',
            *_reading(model, in_units=plain is None and "units" in described),
            "",
        ]
    )


def _reading(model: LoadedModel, in_units: bool) -> list[str]:
    names = 'about["class_names"]'
    if model.kind == "classification":
        return [
            'probabilities = (outputs / about["temperature"]).softmax(0)',
            f"print({names}[probabilities.argmax()], float(probabilities.max()))",
        ]
    if model.kind == "multi-label":
        return [
            "probabilities = outputs.sigmoid().tolist()",
            f'given = zip({names}, probabilities, about["thresholds"])',
            "print([name for name, probability, threshold in given if probability >= threshold])",
        ]
    lines = []
    if model.mean is not None and not in_units:
        lines = [
            'std, mean = (torch.tensor(about["units"][name], dtype=torch.float64) for name in ("std", "mean"))',
            "outputs = outputs * std + mean",
        ]
    return [*lines, f"print(dict(zip({names}, outputs.tolist())))"]
