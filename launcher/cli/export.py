"""The command `export`: a finished run's model in a form that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, OwnRecipe, use_assets
from launcher.errors import Problems
from launcher.export.target import GRAPHS, Options, default_path


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="of a run that has ended: runs/pets")],
    to: Annotated[
        Literal["onnx", "torch-export", "safetensors", "hub"],
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
    options = Options(
        form=to,
        out=out or default_path(run, to),
        preprocess=preprocess,
        probabilities=probabilities,
        opset=opset,
        tolerance=tolerance,
        overwrite=overwrite,
        with_images=with_images,
        license_name=license_name,
        upload_to=upload,
        private=private,
        check_on=check_on,
    )
    problems = Problems()
    with problems.collected():
        use_assets(assets)
    problems.found += _problems_of(options)
    from launcher.export.summary import export_and_show

    export_and_show(run, recipe, options, problems)


def _problems_of(options: Options) -> list[str]:
    """Return a line for each option that does not go with the others."""
    problems = []
    if options.form not in GRAPHS:
        graphs = {"--preprocess": options.preprocess, "--probabilities": options.probabilities}
        problems += [
            f"{name}: is for --to onnx and --to torch-export; {options.form} holds the weights alone"
            for name, is_given in graphs.items()
            if is_given
        ]
    if options.opset is not None and options.form != "onnx":
        problems.append(f"--opset {options.opset}: is for --to onnx")
    elif options.opset is not None and not 18 <= options.opset <= 26:
        problems.append(f"--opset {options.opset}: must be from 18 to 26")
    if options.form != "hub":
        texts = {"--license": options.license_name, "--upload": options.upload_to}
        problems += [f"{name} {value}: is for --to hub" for name, value in texts.items() if value is not None]
        problems += ["--with-images: is for --to hub"] * options.with_images
    if not options.tolerance > 0:
        problems.append(f"--tolerance {options.tolerance:g}: must be above 0")
    if options.private and options.upload_to is None:
        problems.append("--private: is for --upload OWNER/NAME")
    return problems
