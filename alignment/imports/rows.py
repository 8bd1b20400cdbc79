"""Rows of JSON Lines, JSON, Parquet and CSV files, one at a time, each with the place it stands at."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError, DataError, NotFoundError

LONGEST_LINE = 8 * 2**20  # bytes; a battle of Music Arena's release has some 10,000
LARGEST_JSON = 256 * 2**20  # of a .json file, which is read whole
Row = tuple[str, Mapping[str, Any] | DataError]  # "line 3", and what stands there


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file: .jsonl, .json (one object or a list of them), .parquet or .csv; of a folder, those of its
    .json files. What cannot be read as a row comes as a DataError in its place.

    Raises NotFoundError when there is nothing, ConfigError for another kind of file, DataError when the file as a whole
    cannot be read."""
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        if not files:
            raise NotFoundError(f"{path} holds no .json file; give the folder of a release, or one of its files.")
        return _folder(path, files)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; give the file with the rows.")
    kinds = {".jsonl": _lines, ".ndjson": _lines, ".json": _json, ".parquet": _parquet, ".csv": _csv}
    read = kinds.get(path.suffix.lower())
    if read is None:
        raise ConfigError(f"{path} ends in {path.suffix or 'nothing'}; give a file of {', '.join(kinds)}.")
    return _told(path, read(path))


def _told(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); nothing was imported.") from error


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
                yield f"line {number}", DataError(f"it is longer than {LONGEST_LINE // 2**20} MiB")
            elif line.strip():
                yield f"line {number}", _object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _json(path: Path) -> Iterator[Row]:
    if path.stat().st_size > LARGEST_JSON:
        raise DataError(
            f"{path} has {path.stat().st_size // 2**20} MiB in one piece; write it as .jsonl, a row a line."
        )
    value = _value(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    if isinstance(value, DataError):
        raise DataError(f"{path}: {value}; nothing was imported.")
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"row {number}", row if isinstance(row, dict) else DataError("it is no JSON object")


def _folder(folder: Path, files: list[Path]) -> Iterator[Row]:
    for file in files:
        for place, row in _told(file, _json(file)):
            yield f"{file.relative_to(folder)}, {place}", row


def _object(line: bytes) -> Mapping[str, Any] | DataError:
    value = _value(line)
    return value if isinstance(value, dict | DataError) else DataError("it is no JSON object")


def _value(data: bytes) -> Any:
    """The JSON value, or a DataError that says why it is none."""
    try:
        return json.loads(data)
    except RecursionError:
        return DataError("it is nested too deeply")
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        return DataError(f"it is no JSON ({str(error).splitlines()[0][:100]})")


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0][:100]}).") from None


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                place = f"line {reader.line_num}"
                if None in row or None in row.values():
                    yield place, DataError(f"it has not as many cells as the {len(reader.fieldnames or ())} columns")
                else:
                    yield place, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: no CSV ({error}); nothing was imported.") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: not UTF-8 ({error.reason} at byte {error.start}); nothing was imported."
            ) from None
