"""Text files with a row of cells per line: CSV, and TSV with tabs."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from launcher.data.names import nfc
from launcher.errors import UserError
from launcher.files import check_file
from launcher.text import plural


def read_cells(file: Path, field: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of each row that is not blank, beginning with the header (in NFC).

    Raises UserError for a file that is empty or cannot be read, and for a row whose number of cells differs from the
    header's. The message begins with `field`, the field of the recipe that names the file.
    """
    prefix = f"{field}: " if field else ""
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        check_file(file)
        with file.open(newline="", encoding="utf-8-sig") as stream:
            # Strict, as a quote that is never closed would otherwise pull the lines below it into its cell.
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            try:
                header = [nfc(name.strip()) for name in next(filter(None, reader), [])]
                if not header:
                    raise UserError(f"{prefix}{file} is empty")
                yield reader.line_num, header
                for row in filter(None, reader):
                    if len(row) != len(header):
                        raise UserError(
                            f"{prefix}{file}, line {reader.line_num}: {plural(len(row), 'cell', spec='')}, "
                            f"but the header has {len(header)}"
                        )
                    yield reader.line_num, [cell.strip() for cell in row]
            except csv.Error as error:
                raise UserError(
                    f"{prefix}{file}, up to line {reader.line_num}: {error}; a cell that begins with a quote must end "
                    "with one (write a quote as two)"
                ) from error
    except FileNotFoundError:
        raise UserError(f"{prefix}no file {file}") from None
    except OSError as error:
        raise UserError(f"{prefix}cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{prefix}{file} is not text in UTF-8: {error}") from error
