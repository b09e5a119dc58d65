"""The command `export`: the export of a run dir, and its output on the screen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launcher.errors import Problems
from launcher.export.export import Export, export
from launcher.export.graph import output_dtype
from launcher.export.onnx import check_extra
from launcher.export.sample_images import sample_images
from launcher.export.target import GRAPHS, Options, check_fits, check_target, input_name, output_name
from launcher.export.upload import check_upload, upload
from launcher.inference.finished_run import FinishedRun, read_finished
from launcher.inference.loaded_model import LoadedModel, model_of
from launcher.recipe.loading import recipe_words, types_of_files
from launcher.text import one_line, readable_size
from launcher.training.accelerator import recorded_precision


def export_and_show(run_dir: Path, recipes: Sequence[str] | None, options: Options, problems: Problems) -> None:
    """Export the model of a finished run, print what was written, and upload it if that is asked for.

    `recipes` are recipe files that define parts of the user's own, and `problems` those of the options. Raises
    UserError with these and all others, before anything is written.
    """
    if options.form == "onnx":
        with problems.collected():
            check_extra()
    with problems.collected():
        check_target(options.out, options.form, options.overwrite)
    if options.upload_to is not None and options.form == "hub":
        with problems.collected():
            check_upload(options.upload_to)
    with problems.collected():
        finished = read_finished(run_dir, types_of_files(recipes))
        model = model_of(finished)
        problems.found.extend(check_fits(model, options))
        with problems.collected():
            images = sample_images(finished, options.check_on)
    problems.raise_if_any()
    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    with screen.status("exporting") as status:
        done = export(finished, model, options, images, status.update)
    run = f"{shlex.quote(one_line(str(run_dir)))}{recipe_words(recipes)}"
    _show(done, model, options, run, _precision(finished))
    if options.upload_to is not None:
        with screen.status("uploading"):
            address = upload(done.path, options.upload_to, private=options.private)
        print(f"uploaded: {address}")


def _show(done: Export, model: LoadedModel, options: Options, run: str, precision: str | None) -> None:
    opset = f", ONNX opset {done.opset}" if done.opset is not None else ""
    print(f"{one_line(str(done.path))}  {readable_size(done.size)}{opset}")
    if len(done.files) > 1:
        inside = [one_line(str(file.relative_to(done.path.parent))) for file in done.files]
        print(f"  files   {', '.join(inside)}")
    if options.form == "hub" and options.with_images:
        print("  shows   validation images in report.html; paths of this machine are kept")
    elif options.form == "hub":
        print("  shows   no images and no absolute paths of this machine (--with-images keeps both)")
    if options.form in GRAPHS:
        side = model.preprocessing.about.image_size
        shape = "uint8 (N, height, width, 3)" if options.preprocess else f"float32 (N, 3, {side}, {side})"
        print(f"  input   {input_name(options)} {shape}")
        print(f"  output  {output_name(model, options)} {str(output_dtype(model))[6:]} (N, {len(model.classes)})")
    if options.probabilities and model.kind == "classification" and not model.calibrated:
        why = model.not_calibrated or f"to calibrate: python -m launcher evaluate {run}"
        print(f"  not calibrated; {why}")
    if precision not in (None, "no", "auto"):
        print(f"  computes in float32; the run itself computes in {precision}")
    result = done.difference
    unit = " standard deviations" if model.std is not None else ""
    allowed = f"(allowed {options.tolerance:g})"
    print(f"  checked on {one_line(result.on)}, {done.ran_by}: largest difference {result.largest:.1e}{unit} {allowed}")
    if result.levels == 0:
        print("  its resized pixels are the model's own")
    elif result.levels is not None:
        print(
            f"  its resized pixels differ by at most {result.levels} of 256 levels from the model's own, which changes "
            f"outputs by at most {result.end_to_end:.1e}{unit}"
        )


def _precision(finished: FinishedRun) -> str | None:
    precision: str = finished.recipe.mixed_precision
    return recorded_precision(finished.rundir.path) if precision == "auto" else precision
