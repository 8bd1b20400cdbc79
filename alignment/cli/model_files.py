"""`attune models`: base checkpoints by name, and audiocraft's files in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Device, Dtype, Home, actor, bar, emit, open_workspace, table

app = typer.Typer(no_args_is_help=True, help="Base models: MusicGen checkpoints, from transformers or audiocraft.")
Licence = Annotated[
    str | None, typer.Option(help="Its licence, such as cc-by-nc-4.0; default: what its card says.", show_default=False)
]

TEXT_ONLY = "A melody checkpoint, text only: nothing is conditioned on a melody.\n"


@app.callback()
def _models() -> None:
    """Base models."""


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What the model is called here.")],
    source: Annotated[
        str, typer.Argument(help="A folder in transformers' format, or a hub name like facebook/musicgen-small.")
    ],
    licence: Licence = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Register a MusicGen under a name, ready to sing and to be trained from; or tell where it has moved. Of a melody
    checkpoint the text is taken, not the melody."""
    from dataclasses import asdict

    from alignment.circle.bases import add_base, facts_of

    ws = open_workspace(home, database)
    with bar("reading"):
        version = add_base(ws, name, source, licence=licence, actor=actor())
    facts = facts_of(version.base)
    emit(
        {"name": name, "base": version.base, "base_sha256": version.base_sha256, "licence": version.licence,
         **asdict(facts)},
        f"{name}: {_sizes(facts)}; sha256 {version.base_sha256[:12]}, licence {version.licence or 'not known'}\n"
        f"{TEXT_ONLY if facts.text_only else ''}"
        f"Next: attune generate --version {name} --prompt TEXT",
        as_json,
    )  # fmt: skip


@app.command("list")
def list_all(home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """The registered base models, and whether their files are on this machine."""
    from dataclasses import asdict

    from alignment.circle.bases import bases
    from alignment.cli.common import settings_of
    from alignment.db.engine import open_database

    rows: list[dict[str, Any]] = []
    for version, facts in bases(open_database(settings_of(home, database).database_url)):
        rows.append(
            {"name": version.name, "from": version.base, "sha256": version.base_sha256[:12],
             "licence": version.licence} | asdict(facts)
        )  # fmt: skip
    shown = [
        row | {"model": _counted(row["parameters"]), "books": row["codebooks"],
               "state": row["state"] + (", text only" if row["text_only"] else "")}
        for row in rows
    ]  # fmt: skip
    columns = ["name", "from", "model", "books", "channels", "sample_rate_hz", "licence", "sha256", "state"]
    none = "No models yet; `attune models add NAME FOLDER_OR_HUB_NAME` registers one."
    emit(rows, table(shown, columns) if shown else none, as_json)


@app.command("import-audiocraft")
def import_audiocraft(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of state_dict.bin and compression_state_dict.bin, or a language model's file."),
    ],
    folder: Annotated[Path, typer.Argument(help="New folder, written in transformers' format.")],
    text_encoder: Annotated[
        str | None, typer.Option(help="Folder or hub name of its T5; default the one it names.", show_default=False)
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="Native codec file, or an EnCodec's folder or hub name.", show_default=False),
    ] = None,
    licence: Licence = None,
    as_json: AsJson = False,
) -> None:
    """Turn a native audiocraft checkpoint into a folder that `attune models add` takes."""
    from alignment.music.audiocraft_convert import import_checkpoint

    with bar("importing"):
        done = import_checkpoint(source, folder, text_encoder=text_encoder, codec=codec, licence=licence)
    emit(
        done,
        f"{folder}: {_counted(done['parameters'])} parameters, {done['codebooks']} codebooks, "
        f"{'stereo' if done['channels'] == 2 else 'mono'}, {done['sample_rate_hz']} Hz\n"
        f"{TEXT_ONLY if done['text_only'] else ''}"
        f"Next: attune models add NAME {folder}",
        as_json,
    )


@app.command("export-audiocraft")
def export_audiocraft(
    version: Annotated[str, typer.Argument(help="Version to export; its adapter is merged.")],
    folder: Annotated[Path, typer.Argument(help="New folder, which audiocraft loads.")],
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write a version as a native audiocraft checkpoint."""
    from alignment.music.audiocraft_convert import export_checkpoint

    ws = open_workspace(home, database)
    wanted = ws.version(version)
    licence = f", licence {wanted.licence}" if wanted.licence else ""
    simulated = ", trained on SIMULATED votes" if wanted.simulated else ""
    with bar("exporting"):
        done = export_checkpoint(ws.policy(wanted), folder, note=f"It is version {version}{simulated}{licence}.")
    merged = "adapter merged" if done["merged"] else "no adapter"
    emit(
        done | {"version": version, "licence": wanted.licence, "simulated": wanted.simulated},
        f"{folder}: {version}, {merged}{licence}{simulated}; how audiocraft loads it is in its README.md",
        as_json,
    )


def _counted(parameters: int | None) -> str | None:
    if parameters is None:
        return None
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def _sizes(facts: Any) -> str:
    kind = "stereo" if facts.channels == 2 else "mono"
    return f"{_counted(facts.parameters)} parameters, {facts.codebooks} codebooks, {kind}, {facts.sample_rate_hz} Hz"
