"""Model card of a hub folder: the model, its results, its use, its limits, and its training."""

from __future__ import annotations

import contextlib
import functools
import html
import math
import shlex
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from launcher import data
from launcher.errors import UserError
from launcher.export.plain_network import Plain
from launcher.export.target import Options
from launcher.export.usage import usage
from launcher.files import expanded, metrics_from_json, read_json
from launcher.inference.finished_run import FinishedRun
from launcher.inference.loaded_model import LoadedModel
from launcher.inference.run_records import read_evaluation, sound_environment
from launcher.metrics.calibration import few_positives
from launcher.text import encodable, listed, number, one_line, plural


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701 - a card is Markdown, as which `finalize` escapes every value
        loader=jinja2.PackageLoader("launcher.export"),
        finalize=lambda value: value if isinstance(value, Markup) else _text(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"listed": listed, "number": number, "plural": plural}
    return environment.get_template("card.md.j2")


def card(
    finished: FinishedRun,
    model: LoadedModel,
    plain: Plain | None,
    described: dict[str, Any],
    options: Options,
    has_report: bool,
) -> str:
    """Return the card as Markdown that begins with the metadata for the hub; all names in it are escaped."""
    title = finished.rundir.path.absolute().name
    evaluation = _evaluation(finished)
    environment = _environment(finished)
    measured = metrics_from_json(evaluation["metrics"]) if evaluation else finished.metrics
    metrics = {name: value for name, value in measured.items() if "/" not in name}
    classes = evaluation.get("classes", {})
    labels = {} if classes else evaluation.get("labels", {})
    recalls = {name: row["recall"] for name, row in classes.items() if row["recall"] is not None}
    command = shlex.join(["python", "-m", "launcher", *map(str, environment.get("command", []))])
    return _template().render(
        finished=finished,
        model=model,
        about=model.preprocessing.about,
        title=title,
        license_name=options.license_name,
        metadata=_metadata(finished, model, plain, metrics, options.license_name),
        network=described["network"].get("name"),
        evaluation=evaluation,
        metrics=metrics,
        intervals={"of": {}, "level": 0.95} | evaluation.get("intervals", {}),
        scores=classes or {name: row["at_threshold"] | {"support": row["support"]} for name, row in labels.items()},
        thresholds={name: row["threshold"] for name, row in labels.items()},
        weakest=min(recalls, key=recalls.__getitem__) if len(set(recalls.values())) > 1 else None,
        rare=[name for name, row in classes.items() if row["support"] < 10],
        few=few_positives(dict(zip(model.classes, model.positives, strict=False))),
        usage=usage(model, plain, described),
        counts=environment.get("data", {}),
        command=encodable(command).replace("`", "'"),
        packages=environment.get("packages", {}),
        has_report=has_report,
        with_images=options.with_images,
    )


def _metadata(
    finished: FinishedRun, model: LoadedModel, plain: Plain | None, metrics: Mapping[str, float], license_id: str | None
) -> str:
    """Return the metadata in YAML, with the metrics that are finite."""
    from huggingface_hub import EvalResult, ModelCardData

    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    task = "image-regression" if model.kind == "regression" else "image-classification"
    hub_name = _hub_name(finished)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=hub_name or "images",
            dataset_name=hub_name or "the run's own images",
            dataset_split="validation",
            metric_type=name,
            metric_name=name,
            metric_value=float(f"{value:.6g}"),
        )
        for name, value in finite.items()
    ]
    metadata = ModelCardData(
        license=license_id,
        library_name=plain.library if plain is not None else "pytorch",
        pipeline_tag=task if task == "image-classification" else None,
        tags=[task, *(["multi-label"] if model.kind == "multi-label" else []), "fine-tuned"],
        datasets=[hub_name] if hub_name else None,
        metrics=list(finite) or None,
        model_name=encodable(finished.rundir.path.absolute().name),
        eval_results=results or None,
    )
    return metadata.to_yaml().strip()


def _evaluation(finished: FinishedRun) -> dict[str, Any]:
    """Return the evaluation of the validation images with these weights, or nothing if there is none."""
    file = finished.rundir.path / "evaluation.json"
    if not file.exists():
        return {}
    try:
        evaluation = read_evaluation(file)
        of_these = evaluation["weights"]["step"] == finished.step and evaluation["split"] == "val"
    except UserError as error:
        raise UserError(f"{error.problems[0]}; remove it, and evaluate again") from error
    except KeyError as error:
        raise UserError(f"{file}: is damaged (it lacks {error}); remove it, and evaluate again") from error
    return evaluation if of_these else {}


def _environment(finished: FinishedRun) -> dict[str, Any]:
    with contextlib.suppress(UserError):
        return sound_environment(read_json(finished.rundir.environment_json))
    return {}


def _hub_name(finished: FinishedRun) -> str | None:
    """Return the name of the run's data set on the hub, or None if it is not from there."""
    part = finished.recipe.data
    if isinstance(part, data.HuggingFace) and not expanded(part.path).exists() and part.path.count("/") <= 1:
        return str(part.path)
    return None


def _text(name: str) -> str:
    """Escape a name as plain text on one line of Markdown, also in a table, so that none of it is markup or HTML."""
    escaped = html.escape(encodable(one_line(name)), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#~$!" else letter for letter in escaped)
