"""A folder that can be uploaded to the Hugging Face hub: weights, configuration, model card, report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from launcher.errors import UserError
from launcher.export import safetensors, torch_export
from launcher.export.card import card
from launcher.export.graph import Exported, capture
from launcher.export.output_check import Runs
from launcher.export.plain_network import Plain
from launcher.export.quiet import quiet
from launcher.export.redaction import absolute_paths, page_without_paths, without_paths
from launcher.export.target import Options
from launcher.files import json_text, os_errors_of_safetensors, read_json
from launcher.inference.finished_run import FinishedRun
from launcher.inference.loaded_model import LoadedModel
from launcher.recipe.protocols import Preprocessing
from launcher.report.build import report
from launcher.report.facts import read_facts
from launcher.text import encodable

PROGRAM = "model.pt2"


def write(
    finished: FinishedRun,
    model: LoadedModel,
    options: Options,
    plain: Plain | None,
    folder: Path,
    described: dict[str, Any],
) -> None:
    """Write the folder.

    With `wanted.with_images`, the report and the recipe are those of the run dir; without it, they hold neither images
    nor absolute paths of this machine.

    A timm network with one classifying layer gets timm's own configuration. A network that no library builds is also
    written as a program; raises UserError if it cannot be captured.
    """
    folder.mkdir()
    if plain is not None and plain.is_timm:
        _write_timm(finished, plain, folder, described)
    else:
        safetensors.write(finished, folder / "model.safetensors", {})
        _write_json(folder / "config.json", described)
    shutil.copyfile(finished.rundir.final / "preprocess.json", folder / "preprocess.json")
    if plain is None:
        program = capture(Exported(model, options), options, model.preprocessing.about)
        torch_export.write(program, folder / PROGRAM, described)
    if (finished.rundir.path / "recipe.py").is_file():
        shutil.copyfile(finished.rundir.path / "recipe.py", folder / "recipe.py")
    has_report = _write_report(finished.rundir.path, folder / "report.html", options.with_images)
    text = card(finished, model, plain, described, options, has_report)
    (folder / "README.md").write_bytes(text.encode("utf-8", "backslashreplace"))
    if not options.with_images:
        _remove_paths(finished, folder)


def _write_report(run_dir: Path, to: Path, with_images: bool) -> bool:
    """Write the report, if the run has one, and return whether it has."""
    if not (run_dir / to.name).is_file():
        return False
    if with_images:
        shutil.copyfile(run_dir / to.name, to)
    else:
        facts = read_facts(run_dir, why_no_images="Images are left out of what is published.")
        to.write_text(report([dataclasses.replace(facts, shows_images=False)]), "utf-8", "backslashreplace")
    return True


def _remove_paths(finished: FinishedRun, folder: Path) -> None:
    """Remove the absolute paths of this machine from all texts in the folder."""
    run_dir = finished.rundir.path
    known = {str(run_dir.absolute()), str(run_dir.absolute().parent), str(Path.cwd()), str(Path.home())}
    for name in ("recipe.json", "environment.json"):
        with contextlib.suppress(UserError):
            known.update(absolute_paths(read_json(run_dir / name)))
    known |= {str(Path(path).resolve()) for path in known}
    for file in folder.iterdir():
        if file.suffix in (".md", ".json", ".py", ".html"):
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
            shorter = (page_without_paths if file.suffix == ".html" else without_paths)(text, known)
            file.write_text(shorter, encoding="utf-8", errors="surrogateescape")


def runs(finished: FinishedRun, model: LoadedModel, plain: Plain | None, folder: Path) -> Runs:
    """Return a function that runs the export as a user of the folder would.

    It uses timm with the folder, the plain network, or the program. Raises UserError if these cannot load it.
    """
    if plain is None:
        return torch_export.runs(folder / PROGRAM)
    if not plain.is_timm:
        return safetensors.runs(finished, model, plain, folder / "model.safetensors")
    import timm

    try:
        with quiet():
            network = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True).eval()
    except Exception as error:
        raise UserError(f"--to hub: timm cannot load the folder: {error}") from error
    _check_preprocessing(network, finished)
    return safetensors.in_units(network, model)


def _write_timm(finished: FinishedRun, plain: Plain, folder: Path, described: dict[str, Any]) -> None:
    from timm.models import save_for_hf

    about = finished.preprocessing
    preset = {
        "input_size": [3, about.image_size, about.image_size],
        "interpolation": about.interpolation,
        "crop_pct": _crop_share(about),
        "crop_mode": "center",
        "mean": list(about.mean),
        "std": list(about.std),
    }
    network = plain.build(load_file(finished.weights))
    with quiet(), os_errors_of_safetensors(folder):
        save_for_hf(
            network,
            str(folder),
            model_config={
                "label_names": [encodable(name) for name in described["class_names"]],
                "pretrained_cfg": preset,
                "launcher": json.loads(_json(described)),
            },
            model_args=plain.kwargs,
            safe_serialization=True,
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # The weights are no longer those from which the training began, so their tag, licence and address do not apply.
    for key in (
        *("tag", "url", "hf_hub_id", "license", "origin_url", "paper_name", "paper_ids", "notes", "description"),
        *("test_input_size", "test_crop_pct"),  # nor do the sizes at which they would be tested
    ):
        config["pretrained_cfg"].pop(key, None)
    _write_json(folder / "config.json", config)


def _crop_share(about: Preprocessing) -> float:
    """Return the share with which timm, which resizes to floor(size / share), arrives at the run's resize size."""
    share = about.image_size / about.resize_size
    while math.floor(about.image_size / share) < about.resize_size:
        share = math.nextafter(share, 0)
    return share


def _check_preprocessing(network: Any, finished: FinishedRun) -> None:
    """Raise UserError if timm would preprocess images in another way than the run did."""
    from timm.data import resolve_data_config

    config, about = resolve_data_config({}, model=network), finished.preprocessing
    size, mean, std = config["input_size"][-1], tuple(config["mean"]), tuple(config["std"])
    read = (size, math.floor(size / config["crop_pct"]), mean, std, config["interpolation"])
    own = (about.image_size, about.resize_size, tuple(about.mean), tuple(about.std), about.interpolation)
    if read != own:
        raise UserError(f"--to hub: timm would prepare pictures as {read}, the run as {own}")


def _json(content: Any) -> str:
    return encodable(json_text(content, indent=1)) + "\n"


def _write_json(file: Path, content: Any) -> None:
    file.write_text(_json(content), encoding="utf-8")
