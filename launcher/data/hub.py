"""Data sets of the Hugging Face hub, and local folders and files that the `datasets` library reads."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from pydantic import Field

from launcher.assets.bundle import Asset, OwnPath, assets_folder, fetch_command
from launcher.data.arrow_columns import ImageTable
from launcher.data.folder import PathText, read_folders, read_test_folder
from launcher.data.local_tables import is_for_datasets, read_file, read_folder, unused_tables
from launcher.data.names import split_named
from launcher.data.split import set_aside
from launcher.data.targets import Columns, refuse
from launcher.errors import UserError, did_you_mean
from launcher.files import expanded
from launcher.recipe.part import part
from launcher.recipe.protocols import Split, Splits, TargetKind
from launcher.text import listed, one_line

if TYPE_CHECKING:
    import datasets

_PROBE_SECONDS = 5.0  # for a connection
_ANSWER_SECONDS = 8.0  # for the whole, name servers included
_VAL_NAMES = ("validation", "val", "valid")
"""Where there is one of these, others that mean the same ("dev") are not looked for."""


@part
class HuggingFace:
    """A data set by its hub name ("timm/oxford-iiit-pet"), or a local folder or file.

    A local `path` is a folder of class folders (with or without train and val above them, as in `ImageFolder`; columns
    do not apply), a folder written by `save_to_disk`, a folder of parquet or arrow files, or one such file.
    """

    path: PathText
    name: str | None = None
    """Configuration of the data set, where it has several."""
    train_split: str = "train"
    val_split: str | None = None
    """None: "validation" or "val" where there is one, else a fraction of the training split; never "test". The name of
    the training split: a fraction of it, also where there is a validation split."""
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    test_split: str | None = None
    """None: "test" where there is one. Read by `evaluate --split test` alone."""
    image_column: str | None = None
    """None: the only column of images. It may hold images, bytes, structs of bytes and path, or paths."""
    label_column: Columns | None = None
    """Column of classes; of lists of labels (as a list, or in text as in `CsvImages`), or one column of 0 and 1 per
    label; or of numbers, one per target. None: the only column that can be meant."""
    root: PathText | None = None
    """Folder that paths of images start from; None: the folder of the table."""
    group_column: str | None = None
    """Column whose equal values (a patient, a camera) stay on one side where a fraction is set aside."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What an image that cannot be decoded does: stop the run before training starts, or be left out and listed."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        """See `protocols.Data`. Raises UserError where it is neither here nor to be had, and for unclear columns.

        Without network that takes a second (8 s where nothing answers at all); `datasets` alone retries for 23 s.
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
            way_out = (
                ""
                if self.val_split
                else (f"; data.val_split={self.train_split} sets a part of the training split aside instead")
            )
            raise UserError(*(f"{problem}{way_out}" for problem in error.problems)) from error
        return Splits(train_split, val_split, names, notes=notes)

    def tables(self) -> Mapping[str, datasets.Dataset]:
        """All splits as `datasets` reads them, for whoever wants to see the columns first. Raises UserError as `build`;
        a folder of class folders is not for `datasets`, and has none."""
        return self._load(expanded(self.path).absolute())

    def test_images(self, target_kind: TargetKind, names: tuple[str, ...]) -> Split | None:
        """Return the test split (None where there is none), for the names that the training split gave. Raises
        UserError as `build`, and for targets that are not among these names."""
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
        """Return the images of a parquet or arrow file with the columns of this data set; otherwise as
        `test_images`."""
        other = dataclasses.replace(self, path=str(path), train_split="train", root=self.root or str(path.parent))
        table = other._table(other.tables(), "train", target_kind)
        like = None
        if target_kind == "labels" and (expanded(self.path).exists() or assets_folder() is not None):
            with contextlib.suppress(UserError):  # the training images need not be here to evaluate on others
                like = self._table(self.tables(), self.train_split, target_kind)
        return Split(table.images, table.targets(names, like))

    def _table(self, tables: Mapping[str, datasets.Dataset], split: str, target_kind: TargetKind) -> ImageTable:
        columns = (self.label_column,) if isinstance(self.label_column, str) else self.label_column
        local = expanded(self.path).absolute()
        root = expanded(self.root).absolute() if self.root else local if local.is_dir() else local.parent
        on_disk = root if local.exists() or self.root else None
        return ImageTable(f"{self.path}:{split}", tables[split], target_kind, self.image_column, columns, on_disk)

    def _val_name(self, tables: Mapping[str, datasets.Dataset]) -> str | None:
        self._known("train_split", self.train_split, tables)
        if self.val_split is not None:
            self._known("val_split", self.val_split, tables)
        if self.val_split is not None:
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

        if not sys.stderr.isatty():  # bars are control characters in a log file
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
        except Exception as error:  # whatever a reader of some format says about the files
            raise UserError(f"data.path: {local} cannot be read as a data set: {error}") from error
        self._check_hub_name(local)
        return self._load_from_assets() if assets_folder() is not None else self._load_from_hub(local)

    def _check_hub_name(self, local: Path) -> None:
        """Raises UserError where `path`, which is not on this disk, cannot be a name of the hub either."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        if (
            self.path.startswith(("/", ".", "~"))
            or self.path.count("/") > 1
            or local.suffix in (".parquet", ".arrow", ".csv")
        ):
            raise UserError(f"data.path: no folder or file {local}")
        try:
            validate_repo_id(self.path)
        except HFValidationError as error:
            raise UserError(
                f"data.path: no folder or file {local}, and no name of the hub looks so: {error}"
            ) from error

    def assets(self) -> list[Asset | OwnPath]:
        """A data set of the hub as something that must be there for `build`; what is local stays where it is.

        Asks no network. Raises UserError.
        """
        local = expanded(self.path).absolute()
        if local.exists():
            return [OwnPath(field=f"data.path={self.path!r}", path=local)]
        self._check_hub_name(local)

        def bring(files: Path, scratch: Path) -> str:
            import datasets

            tables = self._load_from_hub(local, scratch)
            # As a folder of its own, not as a cache of the library: it holds the images themselves, not paths into a
            # cache; it is read without locks, which a folder that cannot be written does not have; and it does not
            # depend on how a release of the library names what it caches.
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
        """From the hub, or where that cannot be reached from the cache of `datasets`; what is downloaded goes to the
        usual cache, or to `scratch`."""
        import datasets

        unreachable = _probe(self.path)
        options = {} if unreachable or scratch is None else _below(scratch)
        try:
            with _offline() if unreachable else _hub_cache(scratch):
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
    """Say which tables of a folder are not read."""
    if not local.is_dir() or any((local / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return []
    names = unused_tables(local)
    return (
        [f"not used: {listed(names)} in {one_line(str(local))} (only files named after splits are read)"]
        if names
        else []
    )


def _probe(path: str) -> str | None:
    """Why the hub cannot be reached, or None where it answers.

    In a thread with a deadline, as a name server that does not answer keeps a process waiting for much longer than any
    connection's time-out.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[str | None] = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().dataset_info(path, timeout=_PROBE_SECONDS)
            answer.append(None)
        except HfHubHTTPError:
            answer.append(None)  # it answers; what it says is told by the loading that follows
        except Exception as error:
            answer.append(str(error) or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return answer[0] if answer else f"no answer within {_ANSWER_SECONDS:g} s"


def _below(scratch: Path) -> dict[str, Any]:
    import datasets

    cache = scratch / "datasets"
    return {"cache_dir": str(cache), "download_config": datasets.DownloadConfig(cache_dir=str(cache / "downloads"))}


@contextlib.contextmanager
def _hub_cache(scratch: Path | None) -> Iterator[None]:
    """Let the hub's library, which `datasets` downloads with, keep its files below `scratch`."""
    from huggingface_hub import constants

    before = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = before if scratch is None else str(scratch / "hub")
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = before


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` look into its cache only."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
