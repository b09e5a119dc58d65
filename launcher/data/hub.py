"""Data sets of the Hugging Face hub, and local folders and files that the `datasets` library reads."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from pydantic import Field

from launcher.assets.bundle import Asset, OwnPath, assets_folder, fetch_command
from launcher.assets.download import answer_within
from launcher.data.arrow_columns import ImageTable
from launcher.data.folder import PathText, read_folders, read_test_folder
from launcher.data.local_tables import is_for_datasets, read_file, read_folder, unused_tables
from launcher.data.names import split_named
from launcher.data.split import set_aside
from launcher.data.targets import Columns, column_names, refuse
from launcher.errors import UserError, did_you_mean
from launcher.files import expanded
from launcher.recipe.part import part
from launcher.recipe.protocols import Split, Splits, TargetKind
from launcher.text import listed, one_line

if TYPE_CHECKING:
    import datasets

_PROBE_SECONDS = 5.0  # time-out of a connection
_ANSWER_SECONDS = 8.0  # time-out of the whole request, name servers included
_VAL_NAMES = ("validation", "val", "valid")
"""Usual names of the validation split; synonyms ("dev") are looked for only if none of these exists."""


@part
class HuggingFace:
    """A data set of the hub, given by its name ("timm/oxford-iiit-pet"), or a local folder or file.

    A local `path` is a folder of class folders (with or without train and val above them, as in `ImageFolder`; columns
    do not apply), a folder written by `save_to_disk`, a folder of parquet or arrow files, or one such file.
    """

    path: PathText
    name: str | None = None
    """Configuration of the data set, if it has several."""
    train_split: str = "train"
    val_split: str | None = None
    """Validation split; None: "validation" or "val" if there is one, else a fraction of the training split, never
    "test". The name of the training split stands for a fraction of it, even if there is a validation split."""
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    test_split: str | None = None
    """Test split; None: "test" if there is one. Read by `evaluate --split test` alone."""
    image_column: str | None = None
    """Column of images, bytes, structs of bytes and path, or paths; None: the only such column."""
    label_column: Columns | None = None
    """Column of classes; column of lists of labels (as a list, or in text as in `CsvImages`), or one column of 0 and 1
    per label; or columns of numbers, one per target. None: the only column that fits."""
    root: PathText | None = None
    """Folder that the paths of images are relative to; None: the folder of the table."""
    group_column: str | None = None
    """Column whose equal values (a patient, a camera) stay on one side if a fraction is set aside."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """Treatment of images that cannot be decoded: stop the run before training starts, or leave them out and list
    them."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        """Read the splits, as `protocols.Data` describes.

        Raises UserError if the data set is neither on this machine nor available from the hub, and for columns that are
        missing or ambiguous. Without a network this takes a second (8 s if nothing answers at all), whereas `datasets`
        alone retries for 23 s.
        """
        local = expanded(self.path).absolute()
        if local.is_dir() and not is_for_datasets(local):
            refuse("a folder of class folders", "class", target_kind)
            train = None if self.train_split == "train" else self.train_split
            test = None if self.test_split is None else local / self.test_split
            return read_folders("data.path", self.path, self.val_fraction, seed, train, self.val_split, test)

        tables = self._load(local)
        val_name = self._val_name(tables)
        if self.test_split is not None and self.test_split in (self.train_split, val_name):
            use = "trained" if self.test_split == self.train_split else "validated"
            raise UserError(f"data.test_split: {self.test_split!r} is {use} on, too; name another split")
        train_table = self._table(tables, self.train_split, target_kind)
        names, notes = train_table.names, (*train_table.notes(), *_unused(local))
        train_split = Split(train_table.images, train_table.targets(names))
        if val_name is None:
            groups = train_table.groups(self.group_column) if self.group_column else None
            splits = set_aside(train_split.images, train_split.targets, names, self.val_fraction, seed, groups=groups)
            return dataclasses.replace(splits, notes=notes)
        if self.group_column:
            raise UserError(
                f"data.group_column: says what stays together where a fraction is set aside, but {val_name!r} is for "
                f"validation; give data.val_split={self.train_split} to set a part of the training split aside"
            )
        try:
            val_table = self._table(tables, val_name, target_kind)
            val_split = Split(val_table.images, val_table.targets(names, train_table))
        except UserError as error:
            way_out = f"; data.val_split={self.train_split} sets a part of the training split aside instead"
            raise UserError(*(problem + ("" if self.val_split else way_out) for problem in error.problems)) from error
        return Splits(train_split, val_split, names, notes=notes)

    def tables(self) -> Mapping[str, datasets.Dataset]:
        """Return all splits as `datasets` reads them, for a look at the columns before `build`.

        A folder of class folders is not read by `datasets` and has no tables. Raises UserError as `build` does.
        """
        return self._load(expanded(self.path).absolute())

    def test_images(self, target_kind: TargetKind, names: tuple[str, ...]) -> Split | None:
        """Return the test split, or None if there is none; `names` come from the training split.

        Raises UserError as `build` does, and for targets that are not among `names`.
        """
        local = expanded(self.path).absolute()
        if local.is_dir() and not is_for_datasets(local):
            return read_test_folder("data.path", local, self.test_split, names)
        tables = self.tables()
        if self.test_split is None:
            used = (self.train_split, self._val_name(tables))
            split = next((name for name in tables if split_named(name) == "test" and name not in used), None)
        else:
            split = self._known("test_split", self.test_split, tables)
        if split is None:
            return None
        table = self._table(tables, split, target_kind)
        return Split(table.images, table.targets(names, self._table(tables, self.train_split, target_kind)))

    def other_images(self, path: Path, target_kind: TargetKind, names: tuple[str, ...]) -> Split:
        """Return the images of a parquet or arrow file that has the columns of this data set.

        `names` and errors are as in `test_images`.
        """
        other = dataclasses.replace(self, path=str(path), train_split="train", root=self.root or str(path.parent))
        table = other._table(other.tables(), "train", target_kind)
        like = None
        if target_kind == "labels" and (expanded(self.path).exists() or assets_folder() is not None):
            with contextlib.suppress(UserError):  # the training images may be absent when others are evaluated
                like = self._table(self.tables(), self.train_split, target_kind)
        return Split(table.images, table.targets(names, like))

    def _table(self, tables: Mapping[str, datasets.Dataset], split: str, target_kind: TargetKind) -> ImageTable:
        columns = None if self.label_column is None else column_names(self.label_column)
        local = expanded(self.path).absolute()
        root = expanded(self.root).absolute() if self.root else local if local.is_dir() else local.parent
        on_disk = root if local.exists() or self.root else None
        return ImageTable(f"{self.path}:{split}", tables[split], target_kind, self.image_column, columns, on_disk)

    def _val_name(self, tables: Mapping[str, datasets.Dataset]) -> str | None:
        self._known("train_split", self.train_split, tables)
        if self.val_split is not None:
            self._known("val_split", self.val_split, tables)
            return None if self.val_split == self.train_split else self.val_split
        others = [name for name in tables if name != self.train_split]
        usual = [name for name in _VAL_NAMES if name in others]
        return next(iter([*usual, *(name for name in others if split_named(name) == "val")]), None)

    def _known(self, field: str, split: str, tables: Mapping[str, object]) -> str:
        if split not in tables:
            raise UserError(f"data.{field}: {self.path} has no split {split!r}{did_you_mean(split, list(tables))}")
        return split

    def _load(self, local: Path) -> Mapping[str, datasets.Dataset]:
        import datasets
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if not sys.stderr.isatty():  # in a log file, bars are control characters
            datasets.disable_progress_bars()
            disable_progress_bars()
        if local.is_file():
            return {self.train_split: read_file(local)}
        try:
            if (local / "dataset_dict.json").is_file():
                return dict(datasets.DatasetDict.load_from_disk(str(local)))
            if (local / "state.json").is_file():
                return {self.train_split: datasets.Dataset.load_from_disk(str(local))}
            if local.is_dir():
                return read_folder(local, self.name)
        except Exception as error:  # readers of the various formats may raise anything
            raise UserError(f"data.path: {local} cannot be read as a data set: {error}") from error
        self._check_hub_name(local)
        return self._load_from_assets() if assets_folder() is not None else self._load_from_hub(local)

    def _check_hub_name(self, local: Path) -> None:
        """Raise UserError if `path`, which is not on this disk, cannot be a name on the hub either."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        is_table = local.suffix in (".parquet", ".arrow", ".csv")
        if self.path.startswith(("/", ".", "~")) or self.path.count("/") > 1 or is_table:
            raise UserError(f"data.path: no folder or file {local}")
        try:
            validate_repo_id(self.path)
        except HFValidationError as error:
            why = f"no folder or file {local}, and no name of the hub looks so: {error}"
            raise UserError(f"data.path: {why}") from error

    def assets(self) -> list[Asset | OwnPath]:
        """Return the data set that `build` needs: an asset if it is on the hub, else a path that stays where it is.

        Nothing is asked of the network. Raises UserError if `path` is neither on this disk nor a possible hub name.
        """
        local = expanded(self.path).absolute()
        if local.exists():
            return [OwnPath(field=f"data.path={self.path!r}", path=local)]
        self._check_hub_name(local)

        def bring(files: Path, scratch: Path) -> str:
            import datasets

            tables = self._load_from_hub(local, scratch)
            # A folder of its own, not a cache of the library: it holds the images themselves, not paths into a cache;
            # it is read without locks, which a read-only folder cannot have; and it does not depend on how a release
            # of the library names the files in its cache.
            datasets.DatasetDict(tables).save_to_disk(str(files / self._place_in_assets()))
            commits = sorted(path.name for path in (scratch / "hub").glob("datasets--*/snapshots/*"))
            return f"{datasets.config.HF_ENDPOINT}/datasets/{self.path}@{'+'.join(commits) or 'cached'}"

        what = f"data set {self._title()}"
        return [Asset(key=f"dataset:{self._title()}", field=f"data.path={self.path!r}", what=what, bring=bring)]

    def _title(self) -> str:
        return self.path if self.name is None else f"{self.path}[{self.name}]"

    def _place_in_assets(self) -> Path:
        return Path("datasets", "hub", *self.path.split("/"), quote(self.name or "default", safe=""))

    def _load_from_assets(self) -> Mapping[str, datasets.Dataset]:
        import datasets

        folder = assets_folder()
        assert folder is not None
        place = folder / self._place_in_assets()
        if not (place / "dataset_dict.json").is_file():
            raise UserError(
                f"data.path={self.path!r}: data set {self._title()} is not among the assets in {folder}; bring it, "
                f"where there is network: {fetch_command(folder)}"
            )
        return dict(datasets.DatasetDict.load_from_disk(str(place)))

    def _load_from_hub(self, local: Path, scratch: Path | None = None) -> Mapping[str, datasets.Dataset]:
        """Load the data set from the hub or, if the hub cannot be reached, from the cache of `datasets`.

        Downloads go to the usual cache, or to `scratch`. Raises UserError if the data set cannot be loaded.
        """
        import datasets
        from huggingface_hub import constants

        unreachable = _probe(self.path)
        options = {} if unreachable or scratch is None else _below(scratch)
        # `datasets` uses its cache alone, or downloads with the hub's library, which then keeps its files in `scratch`.
        offline = _setting(datasets.config, "HF_HUB_OFFLINE", True)
        cache = _setting(constants, "HF_HUB_CACHE", str(scratch / "hub") if scratch else constants.HF_HUB_CACHE)
        try:
            with offline if unreachable else cache:
                return dict(datasets.load_dataset(self.path, self.name, **options))
        except datasets.exceptions.DatasetNotFoundError as error:
            raise UserError(
                f"data.path: {error} There is no local folder {local} either; for a private data set, log in with "
                "`hf auth login`"
            ) from error
        except Exception as error:
            if not unreachable or not isinstance(error, OSError):  # neither absent nor out of reach
                where = f"the cache {datasets.config.HF_DATASETS_CACHE}" if unreachable else "the hub"
                raise UserError(f"data.path: {self.path!r} cannot be loaded from {where}: {error}") from error
            raise UserError(
                f"data.path: data set {self.path!r} is not on this machine, and the hub cannot be reached "
                f"({unreachable}); looked for a folder {local} and in the cache {datasets.config.HF_DATASETS_CACHE}; "
                "give a local folder of images (data.path=<folder>), or bring it from a machine with network "
                "('python -m launcher fetch' there, --assets here), or try the offline demo, recipes/digits.py"
            ) from error


def _unused(local: Path) -> list[str]:
    """Return a line that names the tables of a folder that are not read, if there are any."""
    if not local.is_dir() or any((local / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return []
    names = unused_tables(local)
    line = f"not used: {listed(names)} in {one_line(str(local))} (only files named after splits are read)"
    return [line] if names else []


def _probe(path: str) -> str | None:
    """Return why the hub cannot be reached, or None if it answers."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"

    def ask() -> str | None:
        try:
            huggingface_hub.HfApi().dataset_info(path, timeout=_PROBE_SECONDS)
        except HfHubHTTPError:
            pass  # the hub answers; the loading that follows reports the error
        except Exception as error:
            return str(error) or type(error).__name__
        return None

    return answer_within(_ANSWER_SECONDS, ask, f"no answer within {_ANSWER_SECONDS:g} s")


def _below(scratch: Path) -> dict[str, Any]:
    import datasets

    cache = scratch / "datasets"
    return {"cache_dir": str(cache), "download_config": datasets.DownloadConfig(cache_dir=str(cache / "downloads"))}


@contextlib.contextmanager
def _setting(module: Any, name: str, value: Any) -> Iterator[None]:
    """Give a setting of a library another value for the time of a block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
