"""Model card of a hub folder: the model, its results, its use, its limits, and its training."""

from __future__ import annotations

import contextlib
import html
import math
import shlex
from collections.abc import Sequence
from typing import Any

from launcher import data
from launcher.errors import UserError
from launcher.export.plain_network import Plain
from launcher.export.usage import usage
from launcher.files import expanded, metrics_from_json, read_json
from launcher.inference.finished_run import FinishedRun
from launcher.inference.loaded_model import LoadedModel
from launcher.inference.run_records import read_evaluation, sound_environment
from launcher.metrics.calibration import few_positives
from launcher.text import number, one_line, plural

MOST_OPEN = 20
"""Most classes whose table is shown unfolded."""
NO_LICENSE = "# license: say here under which licence you publish these weights, e.g. apache-2.0"


def card(
    finished: FinishedRun,
    model: LoadedModel,
    plain: Plain | None,
    described: dict[str, Any],
    license_name: str | None,
    *,
    has_report: bool,
    with_images: bool,
) -> str:
    """Return the card as Markdown that begins with the metadata for the hub; all names in it are escaped."""
    title = finished.rundir.path.absolute().name
    evaluation = _evaluation(finished)
    about = model.preprocessing.about
    network = _text(described["network"].get("name") or "a network of its author's own")
    task = "multi-label classification" if model.kind == "multi-label" else model.kind
    parts = [
        _front_matter(finished, model, plain, evaluation, title, license_name),
        f"# {_text(title)}",
        f"{network}, fine-tuned for {_text(task)} with {plural(len(model.classes), 'output', spec='')}: "
        f"{_listed(model.classes)}.",
        "## Results",
        _results(finished, evaluation),
        _classes(evaluation),
        "## Use",
        f"Images are RGB: the shorter side resized to {about.resize_size} pixels ({about.interpolation}), the centre "
        f"{about.image_size} x {about.image_size} cropped, divided by 255, normalised with mean {list(about.mean)} and "
        f"standard deviation {list(about.std)}.",
        f"```python\n{usage(model, plain, described)}```",
        "## Limits",
        _limits(finished, model, evaluation),
        "## Training",
        _training(finished, has_report, with_images),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(
    finished: FinishedRun,
    model: LoadedModel,
    plain: Plain | None,
    evaluation: dict[str, Any] | None,
    title: str,
    license_name: str | None,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    metrics = {
        name: value
        for name, value in _metrics(finished, evaluation).items()
        if "/" not in name and math.isfinite(value)
    }
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
        for name, value in metrics.items()
    ]
    metadata = ModelCardData(
        license=license_name,
        library_name=plain.library if plain is not None else "pytorch",
        pipeline_tag=task if task == "image-classification" else None,
        tags=[task, *(["multi-label"] if model.kind == "multi-label" else []), "fine-tuned"],
        datasets=[hub_name] if hub_name else None,
        metrics=list(metrics) or None,
        model_name=_valid(title),
        eval_results=results or None,
    ).to_yaml()
    lines = [metadata.strip()] if license_name else [NO_LICENSE, metadata.strip()]
    return "\n".join(["---", *lines, "---"])


def _results(finished: FinishedRun, evaluation: dict[str, Any] | None) -> str:
    rows = [(name, value) for name, value in _metrics(finished, evaluation).items() if "/" not in name]
    if evaluation is None:
        table = _table(("metric", "validation images"), [(_text(name), number(value)) for name, value in rows])
        return f"{table}\n\nMeasured while it trained, without intervals."
    of = evaluation.get("intervals", {}).get("of", {})
    cells = [(_text(name), number(value), _interval(of.get(name))) for name, value in rows]
    level = evaluation.get("intervals", {}).get("level", 0.95)
    table = _table(("metric", plural(evaluation["samples"], "validation image"), f"{level:.0%} interval"), cells)
    how = "Clopper-Pearson for shares, else percentile bootstrap over the images"
    return f"{table}\n\nIntervals: {how}; another training may differ by more."


def _classes(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return ""
    if "classes" in evaluation:
        rows = [(name, scores, "") for name, scores in evaluation["classes"].items()]
        header: tuple[str, ...] = ("class", "precision", "recall", "F1", "images")
    elif "labels" in evaluation:
        rows = [
            (name, {**label["at_threshold"], "support": label["support"]}, f"{label['threshold']:.3f}")
            for name, label in evaluation["labels"].items()
        ]
        header = ("label", "precision", "recall", "F1", "images", "threshold")
    else:
        return ""
    cells = []
    for name, scores, threshold in rows:
        numbers = ["-" if scores[key] is None else f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")]
        cells.append((_text(name), *numbers, f"{scores['support']:,}", *([threshold] if threshold else [])))
    table = _table(header, cells)
    if len(cells) <= MOST_OPEN:
        return table
    return f"<details><summary>All {len(cells)} classes</summary>\n\n{table}\n\n</details>"


def _limits(finished: FinishedRun, model: LoadedModel, evaluation: dict[str, Any] | None) -> str:
    counts = _environment(finished).get("data", {})
    lines = []
    if counts:
        lines.append(
            f"Trained on {plural(counts['train_samples'], 'image')} and validated on {counts['val_samples']:,}. On "
            "images of another kind than these, expect other results."
        )
    if model.kind == "classification":
        lines.append("It always names one of its classes, also for a picture that shows none of them.")
    if finished.recipe.final_weights == "best":
        lines.append(
            "The weights are those of the epoch that was best on the validation images, so the results above are "
            "somewhat better than on images that nothing was chosen by."
        )
    if model.kind == "classification":
        fitted = (
            f"Probabilities are calibrated with a temperature of {model.temperature:.4g}, fitted on the validation "
        )
        why = f": {model.not_calibrated}" if model.not_calibrated else ""
        lines.append(f"{fitted}images." if model.calibrated else f"Its probabilities are not calibrated{why}.")
    if model.kind == "multi-label":
        few = few_positives(dict(zip(model.classes, model.positives, strict=False)))
        rest = f" Some rest on few images: {_text(few)}." if few else ""
        lines.append(
            f"Its probabilities are not calibrated; the thresholds were fitted on the validation images.{rest}"
            if model.thresholds_fitted
            else "Its probabilities are not calibrated, and each label is given from a probability of 0.5 on."
        )
    if evaluation is not None and "classes" in evaluation:
        recalls = {
            name: found["recall"] for name, found in evaluation["classes"].items() if found["recall"] is not None
        }
        if recalls and min(recalls.values()) < max(recalls.values()):
            worst = min(recalls, key=lambda name: recalls[name])
            found = evaluation["classes"][worst]
            lines.append(
                f"Weakest class: {_text(worst)}, recall {found['recall']:.3f} of {plural(found['support'], 'image')}."
            )
        rare = [name for name, found in evaluation["classes"].items() if found["support"] < 10]
        if rare:
            lines.append(f"Fewer than 10 validation images, so little is known: {_listed(rare)}.")
    return "\n".join(f"- {line}" for line in lines)


def _training(finished: FinishedRun, has_report: bool, with_images: bool) -> str:
    environment = _environment(finished)
    packages = ", ".join(f"{_text(name)} {_text(str(v))}" for name, v in environment.get("packages", {}).items())
    words = [str(word) for word in environment.get("command", [])]
    command = _valid(shlex.join(["python", "-m", "launcher", *words])).replace("`", "'")
    lines = [f"Weights of step {finished.step:,}. The recipe is in `recipe.py`; the command was:"]
    lines.append(f"```bash\n{command}\n```")
    if packages:
        lines.append(f"Versions: {packages}.")
    if has_report:
        images = ", with validation images" if with_images else "; it shows no images"
        lines.append(f"`report.html` has the curves, the confusion matrix and the largest mistakes{images}.")
    return "\n\n".join(lines)


def _evaluation(finished: FinishedRun) -> dict[str, Any] | None:
    """Return the evaluation of the validation images with these weights, or None if there is none."""
    file = finished.rundir.path / "evaluation.json"
    if not file.exists():
        return None
    try:
        found = read_evaluation(file)
        of_these = found["weights"]["step"] == finished.step and found["split"] == "val"
    except UserError as error:
        raise UserError(f"{error.problems[0]}; remove it, and evaluate again") from error
    except KeyError as error:
        raise UserError(f"{file}: is damaged (it lacks {error}); remove it, and evaluate again") from error
    return found if of_these else None


def _metrics(finished: FinishedRun, evaluation: dict[str, Any] | None) -> dict[str, float]:
    found: dict[str, float] = finished.metrics if evaluation is None else metrics_from_json(evaluation["metrics"])
    return found


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


def _interval(found: Sequence[float] | None) -> str:
    return f"{number(found[0])} to {number(found[1])}" if found else "not defined"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(_text(name) for name in names[:most]) + more


def _text(name: str) -> str:
    """Escape a name as plain text on one line of Markdown, also in a table, so that none of it is markup or HTML."""
    escaped = html.escape(_valid(one_line(name)), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#~$!" else letter for letter in escaped)


def _valid(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
