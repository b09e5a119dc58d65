"""The command `export`: a finished run's model in a form that runs elsewhere."""

from __future__ import annotations

import enum
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, OwnRecipe, own_types, recipe_words, use_assets
from launcher.errors import Problems

if TYPE_CHECKING:
    from launcher.export.export import Export
    from launcher.export.target import Wanted
    from launcher.inference.finished_run import FinishedRun
    from launcher.inference.loaded_model import LoadedModel


class To(str, enum.Enum):
    """The form of an export."""

    onnx = "onnx"
    torch_export = "torch-export"
    safetensors = "safetensors"
    hub = "hub"


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="of a run that has ended: runs/pets")],
    to: Annotated[
        To,
        typer.Option(
            help="onnx: for ONNX Runtime and others; torch-export: a program that torch alone runs; safetensors: "
            "weights for the plain torchvision or timm network; hub: a folder for the Hugging Face hub"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="where to; else RUN_DIR/export/NAME and the form's ending")
    ] = None,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess",
            help="resize, crop and normalise inside the graph: it takes uint8 pictures N x height x width x 3 (RGB)",
        ),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="calibrated probabilities come out of the graph, not logits")
    ] = False,
    opset: Annotated[int | None, typer.Option(metavar="N", help="of ONNX; else the exporter's own choice")] = None,
    check_on: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="a folder of images to compare on, or 'generated'; else the run's validation images"
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="largest difference of outputs, in float32, that is accepted")
    ] = 1e-3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is there")] = False,
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="of the model card: apache-2.0, mit, ...")
    ] = None,
    upload: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="with --to hub: upload the folder, as who is logged in")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="a new repository is not public")] = False,
    with_images: Annotated[
        bool,
        typer.Option(
            "--with-images", help="with --to hub: the report shows validation images, and paths of this machine stay"
        ),
    ] = False,
    assets: AssetsFolder = None,
    recipe: OwnRecipe = None,
) -> None:
    """Export the model of a finished run, and compare the export with the model on images before it gets its name.

    Each form is run: by ONNX Runtime, by torch, in the plain network, on a batch of one image and on larger ones.
    Outputs that differ by more than the tolerance are an error, and no file is left. Batches may have any size; a
    regression's outputs are in the units of its targets. Nothing leaves this machine without --upload.
    """
    problems = Problems()
    with problems.collected():
        use_assets(assets)
    graphs = {"--preprocess": preprocess, "--probabilities": probabilities}
    of_the_hub = {"--license": license_name, "--upload": upload, "--with-images": with_images or None}
    _check_words(problems, to, graphs, of_the_hub, opset, tolerance)
    if private and upload is None:
        problems.found.append("--private: is for --upload OWNER/NAME")

    from launcher.export.export import export as run_export
    from launcher.export.onnx import check_extra
    from launcher.export.sample_images import pictures_for
    from launcher.export.target import Wanted, check_fits, check_target, default_path
    from launcher.export.upload import check_upload
    from launcher.export.upload import upload as run_upload
    from launcher.inference.finished_run import read_finished
    from launcher.inference.loaded_model import model_of
    from launcher.text import one_line

    wanted = Wanted(
        form=to.value,
        out=out or default_path(run, to.value),
        preprocess=preprocess,
        probabilities=probabilities,
        opset=opset,
        tolerance=tolerance,
        overwrite=overwrite,
        with_images=with_images,
    )
    if to is To.onnx:
        with problems.collected():
            check_extra()
    with problems.collected():
        check_target(wanted.out, wanted.form, overwrite)
    if upload is not None and to is To.hub:
        with problems.collected():
            check_upload(upload)
    with problems.collected():
        finished = read_finished(run, own_types(recipe))
        model = model_of(finished)
        problems.found.extend(check_fits(model, wanted))
        with problems.collected():
            pictures = pictures_for(finished, check_on)
    problems.raise_if_any()

    from rich.console import Console

    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    with screen.status("exporting") as status:
        done = run_export(finished, model, wanted, pictures, license_name, lambda line: status.update(line))
    _show(done, model, wanted, f"{shlex.quote(one_line(str(run)))}{recipe_words(recipe)}", _precision(finished))
    if upload is not None:
        with screen.status("uploading"):
            address = run_upload(done.path, upload, private=private)
        print(f"uploaded: {address}")


def _check_words(
    problems: Problems,
    to: To,
    graphs: Mapping[str, bool],
    of_the_hub: Mapping[str, str | bool | None],
    opset: int | None,
    tolerance: float,
) -> None:
    """Collect problems with options that do not go together."""
    if to not in (To.onnx, To.torch_export):
        problems.found += [
            f"{name}: is for --to onnx and --to torch-export; {to.value} holds the weights alone"
            for name, given in graphs.items()
            if given
        ]
    if opset is not None and to is not To.onnx:
        problems.found.append(f"--opset {opset}: is for --to onnx")
    elif opset is not None and not 18 <= opset <= 26:
        problems.found.append(f"--opset {opset}: must be from 18 to 26")
    if to is not To.hub:
        problems.found += [
            f"{name}{'' if value is True else f' {value}'}: is for --to hub"
            for name, value in of_the_hub.items()
            if value is not None
        ]
    if not tolerance > 0:
        problems.found.append(f"--tolerance {tolerance:g}: must be above 0")


def _show(done: Export, model: LoadedModel, wanted: Wanted, run: str, precision: str | None) -> None:
    from launcher.export.target import GRAPHS, input_name, output_dtype, output_name
    from launcher.text import one_line

    opset = f", ONNX opset {done.opset}" if done.opset is not None else ""
    print(f"{one_line(str(done.path))}  {_size(done.size)}{opset}")
    if len(done.files) > 1:
        inside = [one_line(str(file.relative_to(done.path.parent))) for file in done.files]
        print(f"  files   {', '.join(inside)}")
    if wanted.form == "hub" and wanted.with_images:
        print("  shows   validation images in report.html; paths of this machine are kept")
    elif wanted.form == "hub":
        print("  shows   no images and no absolute paths of this machine (--with-images keeps both)")
    if wanted.form in GRAPHS:
        side = model.preprocessing.about.image_size
        shape = "uint8 (N, height, width, 3)" if wanted.preprocess else f"float32 (N, 3, {side}, {side})"
        print(f"  input   {input_name(wanted)} {shape}")
        print(f"  output  {output_name(model, wanted)} {str(output_dtype(model))[6:]} (N, {len(model.classes)})")
    if wanted.probabilities and model.kind == "classification" and not model.calibrated:
        why = model.not_calibrated or f"to calibrate: python -m launcher evaluate {run}"
        print(f"  not calibrated; {why}")
    if precision not in (None, "no", "auto"):
        print(f"  computes in float32; the run itself computes in {precision}")
    found = done.difference
    unit = " standard deviations" if model.std is not None else ""
    print(
        f"  checked on {one_line(found.on)}, {done.ran_by}: largest difference {found.largest:.1e}{unit} "
        f"(allowed {wanted.tolerance:g})"
    )
    if found.levels == 0:
        print("  its resized pixels are the model's own")
    elif found.levels is not None:
        print(
            f"  its resized pixels differ by at most {found.levels} of 256 levels from the model's own, which changes "
            f"outputs by at most {found.end_to_end:.1e}{unit}"
        )


def _precision(finished: FinishedRun) -> str | None:
    from launcher.training.accelerator import recorded_precision

    precision: str = finished.recipe.mixed_precision
    return recorded_precision(finished.rundir.path) if precision == "auto" else precision


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
