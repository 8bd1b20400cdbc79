"""`attune import`: votes and clips from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, actor, emit, open_workspace

if TYPE_CHECKING:
    from alignment.imports.run import Parse

app = typer.Typer(no_args_is_help=True, help="Take in votes and clips from elsewhere, with their licences.")
Licence = Annotated[
    str | None,
    typer.Option(help="Of the rows that name none; one nobody stated is unknown.", show_default=False),
]
Audio = Annotated[
    Path | None,
    typer.Option(help="Folder that the paths of audio start from; default that of the rows.", show_default=False),
]
Study = Annotated[
    str | None, typer.Option(help="Closed study for the votes; default the source's name.", show_default=False)
]
Source = Annotated[
    str | None, typer.Option(help="Name of where the rows come from; default the file's.", show_default=False)
]
Prefix = Annotated[str, typer.Option(help="Goes before every system's name, as in music-arena-.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Take the rows that are whole, and tell the others.")]
Codes = Annotated[
    str | None,
    typer.Option(help="Encode the audio by this base's codec; marked as re-encoded, not sampled.", show_default=False),
]
Mono = Annotated[bool, typer.Option("--mono", help="Mix every clip to one channel; default stereo stays stereo.")]
Rate = Annotated[
    int | None,
    typer.Option(min=8000, max=192_000, help="Sample rate of the clips; default as they come.", show_default=False),
]
Seconds = Annotated[
    float | None,
    typer.Option(min=0.5, max=600, help="Cut every clip to this length; default as they come.", show_default=False),
]


@app.command("music-arena")
def music_arena(
    rows: Annotated[Path, typer.Argument(help="The release: a folder of .json files, or .jsonl, .json, .parquet.")],
    audio: Audio = None,
    licence: Annotated[str, typer.Option(help="Of the rows that name none.")] = "CC BY 4.0",
    study: Study = None,
    source: Annotated[str, typer.Option(help="Name of where the rows come from.")] = "music-arena",
    prefix: Prefix = "",
    rate: Rate = None,
    seconds: Seconds = None,
    one_channel: Mono = False,
    codes: Codes = None,
    skip_bad: SkipBad = False,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Battles in Music Arena's format: systems become versions, the votes a closed study."""
    from alignment.imports.music_arena import parse
    from alignment.imports.run import ImportSettings

    settings = ImportSettings(source, licence, study, prefix, skip_bad)
    _run(rows, audio, parse, settings, (rate, seconds, one_channel, codes), home, database, as_json)


@app.command("trl")
def trl(
    rows: Annotated[Path, typer.Argument(help=".jsonl, .json or .parquet with prompt, chosen, rejected.")],
    audio: Audio = None,
    licence: Licence = None,
    study: Study = None,
    source: Source = None,
    system: Annotated[
        str | None, typer.Option(help="Who made the clips of which no row says it; default the source.")
    ] = None,
    prefix: Prefix = "",
    rate: Rate = None,
    seconds: Seconds = None,
    one_channel: Mono = False,
    codes: Codes = None,
    skip_bad: SkipBad = False,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Preferences in TRL's format, where chosen and rejected are audio files: the votes of a closed study."""
    from alignment.imports.run import ImportSettings
    from alignment.imports.trl import parse

    name = source or rows.stem

    def read(row):
        return parse(row, system=system or name)

    settings = ImportSettings(name, licence, study, prefix, skip_bad)
    _run(rows, audio, read, settings, (rate, seconds, one_channel, codes), home, database, as_json)


@app.command("csv")
def clip_table(
    rows: Annotated[Path, typer.Argument(help="CSV with the columns file, prompt, system; see docs/data.md.")],
    audio: Audio = None,
    licence: Licence = None,
    source: Source = None,
    prompt_set: Annotated[
        str | None, typer.Option(help="Also name the prompts as a set that a study can draw from.", show_default=False)
    ] = None,
    prefix: Prefix = "",
    rate: Rate = None,
    seconds: Seconds = None,
    one_channel: Mono = False,
    codes: Codes = None,
    skip_bad: SkipBad = False,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """A folder of clips, so that any system's audio can be rated: each system becomes a version."""
    from alignment.imports.clip_table import parse
    from alignment.imports.run import ImportSettings

    settings = ImportSettings(source or rows.stem, licence, None, prefix, skip_bad, prompt_set)
    _run(rows, audio, parse, settings, (rate, seconds, one_channel, codes), home, database, as_json)


def _run(
    path: Path,
    audio: Path | None,
    parse: Parse,
    settings,
    shape: tuple[int | None, float | None, bool, str | None],
    home: Path | None,
    database: str | None,
    as_json: bool,
) -> None:
    """Read, check and take the rows; the result on stdout, rows left out on stderr."""
    from dataclasses import asdict

    from alignment.imports.audio import AudioIntake, codec_of
    from alignment.imports.rows import read_rows
    from alignment.imports.run import import_rows

    rows = read_rows(path)
    ws = open_workspace(home, database)
    rate, seconds, one_channel, codes = shape
    intake = AudioIntake(
        ws.store,
        audio or (path if path.is_dir() else path.parent),
        sample_rate_hz=rate,
        clip_seconds=seconds,
        encode=None if codes is None else codec_of(ws.base_model(codes)),
        one_channel=one_channel,
    )
    done = import_rows(ws.database, intake, ws.secret.encode(), rows, parse, settings, actor=actor())
    for fault in done.faults:
        typer.echo(f"attune: left out: {fault}.", err=True)
    if done.bad > len(done.faults):
        typer.echo(f"attune: left out: {done.bad - len(done.faults)} more.", err=True)
    left = [f"{count} with {reason}" for reason, count in done.not_released.items()]
    left += [f"{done.known} that came before"] if done.known else []
    left += [f"{done.bad} bad"] if done.bad else []
    votes = f", {done.votes} {'SIMULATED ' if done.simulated else ''}votes in study {done.study}" if done.votes else ""
    licences = "; ".join(f"{licence} ({count})" for licence, count in done.licences.items())
    text = (
        f"{done.source}: {done.records} records of {done.rows} rows, {done.clips} clips for {done.prompts} prompts by "
        f"{', '.join(done.versions) or 'nobody'}{votes}"
        + (f"\nlicences: {licences}" if licences else "")
        + (f"\nmixed, from more than two channels: {done.mixed_down} clips" if done.mixed_down else "")
        + (f"\nleft out: {', '.join(left)}" if left else "")
    )
    emit(asdict(done), text, as_json)
