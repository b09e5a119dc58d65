"""The data that were found: the part that reads them, and what it gave."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pydantic

from launcher import data
from launcher.errors import UserError
from launcher.files import expanded
from launcher.recipe.part import problems_in
from launcher.recipe.protocols import Splits, TargetKind

PartName: TypeAlias = Literal["ImageFolder", "CsvImages", "HuggingFace"]

RARELY_SO_MANY = 20_000
"""The number of images from which on a tenth of them is enough for validation."""


@dataclasses.dataclass(frozen=True)
class DataFindings:
    """Data with targets, as a recipe's part reads them."""

    title: str
    """The data in words: "image folder data/pets"."""
    part: PartName
    fields: Mapping[str, Any]
    """The fields of the part that are not left at their defaults."""
    target_kind: TargetKind
    splits: Splits
    validation: str | None
    """The source of the validation images, such as "val/"; None for a random share of the training images."""
    remarks: tuple[str, ...] = ()
    """Remarks for the user on the choice of files and columns."""


def find(
    title: str,
    part: PartName,
    fields: Mapping[str, Any],
    target_kind: TargetKind,
    validation: str | None,
    remarks: tuple[str, ...] = (),
) -> DataFindings:
    """Build the part as training will. Raises UserError for whatever it refuses."""
    fields = dict(fields)
    try:
        splits = getattr(data, part)(**fields).build(target_kind, seed=0)
        if validation is None:
            count = len(splits.train) + len(splits.val)
            fields["val_fraction"] = 0.1 if count >= RARELY_SO_MANY else 0.2
            splits = getattr(data, part)(**fields).build(target_kind, seed=0)
    except pydantic.ValidationError as error:
        raise UserError(*problems_in(error, at="data")) from error
    return DataFindings(title, part, fields, target_kind, splits, validation, remarks)


def path_text(path: Path) -> str:
    """Return a path as it stands in a recipe: relative if it is below the current folder, otherwise absolute.

    Raises UserError for a name that is not text in UTF-8, since a recipe is stored as JSON.
    """
    full = os.path.abspath(expanded(path))  # noqa: PTH100 - links stay as they are
    here = str(Path.cwd())
    text = os.path.relpath(full, here) if f"{full}/".startswith(f"{here.rstrip('/')}/") else full
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!r}: the name is not text in UTF-8, which a recipe needs; rename it") from None
    return text
