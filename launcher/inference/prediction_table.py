r"""Predictions as rows: a table for people, CSV, JSON lines, or parquet.

Names of files need not be valid text. CSV keeps their bytes as they are, except on a terminal, and text that a
spreadsheet would take for a formula gets an apostrophe before it. JSON has such bytes as \udc80 to \udcff, which Python
reads as the file's name; parquet has the text with escapes, and the bytes in a column of their own.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import pyarrow as pa
import torch
from rich.console import Console

from launcher.console import show_table
from launcher.errors import UserError
from launcher.files import draft_file, json_text, remove_drafts
from launcher.inference.loaded_model import LoadedModel
from launcher.inference.prediction_columns import name_columns
from launcher.text import encodable, inert_cell, level, one_line, without_controls

Form = Literal["table", "csv", "jsonl", "parquet"]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of predictions; "value" is a number in the user's units, float64."""

    name: str
    values: list[Any]
    type: Literal["string", "float", "value", "int8"]


class Rows(Protocol):
    """A writer of rows of predictions."""

    def add(self, names: Sequence[str], results: torch.Tensor) -> None: ...

    def close(self) -> None:
        """Finish once all rows have been added."""
        ...


def columns_of(model: LoadedModel, results: torch.Tensor, top: int) -> list[Column]:
    """Return the columns of the results of a model.

    They are, for classification, class_1, probability_1, and so on up to `top`, the likeliest first; for multi-label,
    prediction/LABEL, which is 1 from the label's threshold on, and probability/LABEL; and otherwise prediction/NAME.
    """
    names = model.classes
    columns: list[Column] = []
    if model.kind == "classification":
        values, indices = results.topk(min(top, results.shape[1]), dim=1)
        for place in range(values.shape[1]):
            columns.append(Column(f"class_{place + 1}", [names[i] for i in indices[:, place].tolist()], "string"))
            columns.append(Column(f"probability_{place + 1}", values[:, place].tolist(), "float"))
        return columns
    for i, name in enumerate(names if len(names) == results.shape[1] else map(str, range(results.shape[1]))):
        column = results[:, i]
        if model.kind == "multi-label":
            positive = column.double() >= model.thresholds[i]
            columns.append(Column(f"prediction/{name}", positive.to(torch.int8).tolist(), "int8"))
            columns.append(Column(f"probability/{name}", column.tolist(), "float"))
        else:
            kind: Literal["float", "value"] = "value" if column.dtype == torch.float64 else "float"
            columns.append(Column(f"prediction/{name}", column.tolist(), kind))
    return columns


class TextRows:
    """A writer of CSV or JSON lines, which writes rows as they come."""

    def __init__(self, form: Literal["csv", "jsonl"], model: LoadedModel, top: int, stream: BinaryIO) -> None:
        self._form, self._model, self._top, self._stream = form, model, top, stream
        self._on_terminal = stream.isatty()
        if form == "csv":
            empty = model.interpret(torch.zeros(0, len(model.classes)))
            self._write_csv([["name", *(column.name for column in columns_of(model, empty, top))]])

    def add(self, names: Sequence[str], results: torch.Tensor) -> None:
        columns = columns_of(self._model, results, self._top)
        rows = zip(names, *(column.values for column in columns), strict=True)
        if self._form == "csv":
            self._write_csv([list(row) for row in rows])
        else:
            keys = ["name", *(column.name for column in columns)]
            lines = [_CONTROLS.sub(_escaped, json_text(dict(zip(keys, row, strict=True)))) + "\n" for row in rows]
            self._stream.write("".join(lines).encode("utf-8", "backslashreplace"))
        self._stream.flush()

    def _write_csv(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([[inert_cell(cell) for cell in row] for row in rows])
        if self._on_terminal:
            self._stream.write(without_controls(text.getvalue()).encode("utf-8", "backslashreplace"))
        else:
            self._stream.write(text.getvalue().encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        self._stream.flush()


_CONTROLS = re.compile("[\x7f-\x9f]")
"""Control characters that JSON leaves as they are, and some of which a terminal obeys."""


def _escaped(control: re.Match[str]) -> str:
    return f"\\u{ord(control[0]):04x}"


class ParquetRows:
    """A writer of a parquet file."""

    def __init__(self, model: LoadedModel, top: int, stream: BinaryIO) -> None:
        import pyarrow.parquet as pq

        self._model, self._top = model, top
        empty = self._table([], model.interpret(torch.zeros(0, len(model.classes))))
        self._writer: Any = pq.ParquetWriter(stream, empty.schema, compression="zstd")

    def add(self, names: Sequence[str], results: torch.Tensor) -> None:
        self._writer.write_table(self._table(names, results))

    def _table(self, names: Sequence[str], results: torch.Tensor) -> Any:
        types = {"string": pa.string(), "float": pa.float32(), "value": pa.float64(), "int8": pa.int8()}
        columns = name_columns(names)
        for column in columns_of(self._model, results, self._top):
            values = [encodable(value) for value in column.values] if column.type == "string" else column.values
            columns[encodable(column.name)] = pa.array(values, types[column.type])
        return pa.table(columns)

    def close(self) -> None:
        self._writer.close()


class TableRows:
    """A writer of a table for people, which is printed once all rows are there, and as wide as it needs to be."""

    def __init__(self, model: LoadedModel, top: int, console: Console) -> None:
        self._model, self._top, self._console = model, top, console
        if model.kind == "classification":
            names = ["prediction", *(f"{place + 1}." for place in range(1, min(top, len(model.classes))))]
        elif model.kind == "multi-label":
            names = ["labels"]
        else:
            names = [one_line(name) for name in model.classes]
        self._rows = [["image", *names]]

    def add(self, names: Sequence[str], results: torch.Tensor) -> None:
        columns = columns_of(self._model, results, self._top)
        for row, name in enumerate(names):
            cells = self._cells([(column.name, column.values[row]) for column in columns])
            self._rows.append([one_line(name), *cells])

    def _cells(self, row: list[tuple[str, Any]]) -> list[str]:
        pairs = [(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
        if self._model.kind == "classification":
            return [f"{one_line(name[1])} {probability[1]:.1%}" for name, probability in pairs]
        if self._model.kind == "multi-label":
            given = [(name.partition("/")[2], probability) for (name, is_given), (_, probability) in pairs if is_given]
            labels = [f"{one_line(name)} {probability:.1%}" for name, probability in given]
            return [", ".join(labels) or "none"]
        spreads = [1.0] * len(row) if self._model.std is None else self._model.std.tolist()
        return [level(value, spread) for (_, value), spread in zip(row, spreads, strict=True)]

    def close(self) -> None:
        is_named = self._model.kind in ("classification", "multi-label")
        show_table(self._rows, self._console, left=range(len(self._rows[0])) if is_named else (0,))


class Output:
    """A file that appears once it is complete, or a stream, which is used as it is."""

    def __init__(self, to: Path | None, stream: BinaryIO) -> None:
        """Open the output, which is a file unless `to` is None; raise UserError if it cannot be written."""
        self._to, self._draft = to, contextlib.ExitStack()
        with self.errors_reported():
            if to is None:
                self.stream = stream
            else:
                remove_drafts(to.parent, to.name)
                self.stream = self._draft.enter_context(draft_file(to))

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Give the file its name, or leave none if an error has ended the writing."""
        # Closing after an error writes buffered data, which fails again on a full disk.
        with self.errors_reported() if error is None else contextlib.suppress(OSError):
            self._draft.__exit__(kind, error, traceback)

    @contextlib.contextmanager
    def errors_reported(self) -> Iterator[None]:
        """Turn an OSError from writing to the file into a UserError."""
        try:
            yield
        except OSError as error:
            if self._to is None:
                raise
            raise UserError(f"--to {self._to}: cannot be written ({error.strerror or error})") from error


def rows_in(form: Form, model: LoadedModel, top: int, stream: BinaryIO) -> Rows:
    """Return the writer of rows to a stream; a table is printed."""
    if form == "table":
        return TableRows(model, top, Console(highlight=False))
    return ParquetRows(model, top, stream) if form == "parquet" else TextRows(form, model, top, stream)
