"""What an import of many rows takes, to the end: processor time of both phases, the clock, memory at its peak.

    python -m scripts.bench_imports --rows 10000,100000 --json
    python -m scripts.bench_imports --rows 1000 --formats csv,trl --channels 2

Rows share 80 clips of a quarter second, so that what is timed is rows and not audio. Every size of every format runs in
a process of its own, into a new SQLite file. A growth of 1 is linear: the slope between two sizes, both on a log scale.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts import bench_options as given
from scripts.bench_growth import growth

FILES, RATE_HZ, CLIP_SECONDS = 80, 16_000, 0.25
FORMATS = ("music-arena", "folder", "parquet", "trl", "csv")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.one is not None:
        print(json.dumps(_one(options.one, options.formats[0], options.rows[0])))
        return
    found = [one for form in options.formats for one in _measured(form, options.rows, options.channels)]
    report = {
        "machine": given.machine(), "channels": options.channels, "imports": found,
        "growth": {
            form: growth([one["rows"] for one in same], [one["read_seconds"] + one["write_seconds"] for one in same])
            for form in options.formats
            if (same := [one for one in found if one["format"] == form])
        },
    }  # fmt: skip
    if options.json:
        print(json.dumps(report))
        return
    for one in found:
        print("{format} {rows:,}: read {read_seconds} s, write {write_seconds} s of processor time, {wall_seconds} s "
              "by the clock (load {load}), {peak_mib} MiB at the most".format(**one))  # fmt: skip
    for form, slope in report["growth"].items():
        print(f"{form}: growth {slope}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; exits with one sentence and status 2 on a bad one."""
    parser = given.Parser(prog="bench_imports", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=given.counts, default=[10_000, 100_000], help="comma between")
    parser.add_argument("--formats", type=given.names(FORMATS), default=list(FORMATS), help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--channels", type=int, choices=(1, 2), default=1, help="of the clips; default 1")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # the folder of one measurement
    return parser.parse_args(arguments)


def _measured(form: str, sizes: list[int], channels: int) -> Iterator[dict[str, Any]]:
    # How the C library hands memory back decides what is at its peak: the measurement is of its own settings.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="attune-bench-") as place:
            write_release(Path(place), form, rows, channels)
            command = [sys.executable, "-m", "scripts.bench_imports", "--one", place, "--formats", form, "--rows", rows]
            done = subprocess.run(list(map(str, command)), env=plain, check=True, stdout=subprocess.PIPE, text=True)
            yield json.loads(done.stdout.splitlines()[-1])


def _one(folder: Path, form: str, rows: int) -> dict[str, Any]:
    """The import of a folder that ``write_release`` made, measured in this process."""
    from functools import partial

    from alignment.clips import ClipStore
    from alignment.db import migrate
    from alignment.db.engine import open_database
    from alignment.imports import clip_table, music_arena, trl
    from alignment.imports.audio import AudioIntake
    from alignment.imports.rows import read_rows
    from alignment.imports.run import ImportSettings, import_rows

    url = f"sqlite:///{folder / 'attune.db'}"
    migrate.upgrade(url)
    database = open_database(url)
    read = {"trl": partial(trl.parse, system="them"), "csv": clip_table.parse}.get(form, music_arena.parse)
    intake = AudioIntake(ClipStore(folder / "store"), folder)
    marks: list[float] = []
    began, clock = time.process_time(), time.monotonic()
    done = import_rows(
        database, intake, b"a secret of the benchmark", read_rows(_rows_of(folder, form)), read,
        ImportSettings("bench", "CC0"), actor="bench", progress=lambda _: marks.append(time.process_time()),
    )  # fmt: skip
    ended, wall = time.process_time(), time.monotonic() - clock
    database.close()
    if done.records != rows:
        raise SystemExit(f"bench_imports: {done.records} of {rows} rows were taken; see --help.")
    return {
        "format": form, "rows": rows, "clips": done.clips, "votes": done.votes,
        "read_seconds": round(marks[-1] - began, 2), "write_seconds": round(ended - marks[-1], 2),
        "wall_seconds": round(wall, 1), "load": round(os.getloadavg()[0], 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def write_release(folder: Path, form: str, rows: int, channels: int = 1) -> None:
    """The clips and so many rows in one of the formats, where ``_rows_of`` finds them."""
    import soundfile

    seconds = np.arange(round(CLIP_SECONDS * RATE_HZ)) / RATE_HZ
    for number in range(FILES):
        tones = [0.3 * np.sin(2 * np.pi * (200 + 37 * number + 5 * c) * seconds) for c in range(channels)]
        soundfile.write(folder / f"{number}.wav", np.stack(tones, axis=1), RATE_HZ, subtype="PCM_16")
    path = _rows_of(folder, form)
    if form == "folder":
        path.mkdir()
        for number in range(rows):
            (path / f"{number}.json").write_text(json.dumps(_battle(number)), encoding="utf-8")
    elif form == "parquet":
        _write_parquet(path, rows)
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "file", "prompt", "system"])
            # Four clips a prompt, each another one: a clip is known by prompt, system and sound.
            writer.writerows((f"row {n}", f"{n % FILES}.wav", f"prompt {n // 4}", "them") for n in range(rows))
    else:
        with path.open("w", encoding="utf-8") as file:
            for number in range(rows):
                print(json.dumps(_battle(number) if form == "music-arena" else _preference(number)), file=file)


def _rows_of(folder: Path, form: str) -> Path:
    return folder / {"folder": "rows", "parquet": "rows.parquet", "csv": "rows.csv"}.get(form, "rows.jsonl")


def _battle(number: int) -> dict[str, Any]:
    """A row of Music Arena's release, with all its 28 fields."""
    played = '[["PLAY", 20.5], ["PAUSE", 21.0], ["PLAY", 22.0], ["PAUSE", 24.75]]'
    row: dict[str, Any] = {
        "battle_uuid": f"battle-{number}", "date": "2025-07-29T00:16:19.799690-04:00",
        "prompt": f"prompt {number % 500}", "is_instrumental": True, "is_prebaked": False,
        "user_pseudonym": f"user-{number % 300}", "preference": ("A", "B", "TIE", "BOTH_BAD")[number % 4],
        "feedback": "", "timestamp": 1753762579.5 + number, "lyrics": "",
    }  # fmt: skip
    for side, file in (("a", 2 * number % FILES), ("b", (2 * number + 1) % FILES)):
        row |= {
            f"audio_{side}": f"{file}.wav", f"system_{side}": f"system-{side}", f"total_listening_time_{side}": 3.25,
            f"hardware_{side}": "A6000", f"system_time_{side}": 7.9, f"gateway_time_{side}": 9.5,
            f"duration_{side}": CLIP_SECONDS, f"sample_rate_{side}": RATE_HZ, f"listen_data_{side}": played,
        }  # fmt: skip
    return row


def _preference(number: int) -> dict[str, Any]:
    return {
        "id": f"pair {number}", "prompt": f"prompt {number % 500}", "chosen": f"{2 * number % FILES}.wav",
        "rejected": f"{(2 * number + 1) % FILES}.wav", "rater": f"user-{number % 300}",
    }  # fmt: skip


def _write_parquet(path: Path, rows: int, at_once: int = 1000) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schema = pa.Table.from_pylist([_battle(0)]).schema
    with parquet.ParquetWriter(path, schema) as file:
        for start in range(0, rows, at_once):
            part = [_battle(number) for number in range(start, min(rows, start + at_once))]
            file.write_table(pa.Table.from_pylist(part, schema))


if __name__ == "__main__":
    main()
