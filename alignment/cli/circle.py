"""`attune generate`, `simulate-votes`, `snapshot`: the circle's stages by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Device, Dtype, Home, Seed, bar, emit, open_workspace

HEARD = " Default: as the version is listened to."
PromptSplit = Annotated[str, typer.Option("--split", help="train, valid, test or leaderboard.")]


def _split(name: str):
    from alignment.domain import Split
    from alignment.errors import ConfigError

    try:
        return Split(name)
    except ValueError:
        raise ConfigError(f"--split is {name}; it must be one of {', '.join(s.value for s in Split)}.") from None


def generate(
    version: Annotated[
        str, typer.Option(help="The version that sings; tiny-base is registered on first use.")
    ] = "tiny-base",
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt in words; may be given several times.")] = None,
    captions: Annotated[int, typer.Option(min=0, help="Draw this many captions attune-tiny never saw.")] = 0,
    split: Annotated[
        str | None,
        typer.Option(
            help="Sing the recorded prompts of this split; for new prompts, the split they get.", show_default=False
        ),
    ] = None,
    per_prompt: Annotated[int, typer.Option(min=1, max=256, help="Clips a prompt.")] = 2,
    seconds: Annotated[float | None, typer.Option(min=0.5, max=30, help="Length of a clip." + HEARD)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, max=5, help="Of the softmax." + HEARD)] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Keep the k likeliest codes; 0 keeps all." + HEARD)] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1, max=20, help="Classifier-free guidance; 1 is none." + HEARD)
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let a version sing prompts; clips are stored with their codes and recorded."""
    from dataclasses import replace

    from alignment.circle.captions import add_captions
    from alignment.circle.generate import generate_clips
    from alignment.db import prompts as queries
    from alignment.domain import GenerationConfig, Split
    from alignment.errors import DataError
    from alignment.versions import BASE_NAME, register_base

    chosen = _split(split) if split else None
    ws = open_workspace(home, database)
    if version == BASE_NAME:
        register_base(ws.database, name=BASE_NAME, base="tiny", base_sha256=ws.base_model("tiny").base_sha256)
    heard = ws.version(version).listening or GenerationConfig()
    split_of = (lambda _: chosen) if chosen else _hashed_split
    if prompt or captions:
        typed = [(_checked(text), "typed", split_of(text), {}) for text in dict.fromkeys(prompt or [])]
        with ws.database.session() as s:
            prompts = queries.add_prompts(s, typed)
        prompts += add_captions(ws, captions, 1000 + seed, split_of)
    elif chosen:
        with ws.database.session(write=False) as s:
            prompts = queries.list_prompts(s, split=Split(chosen))
    else:
        raise DataError("There is nothing to sing; give --prompt TEXT, --captions N or --split NAME.")
    asked = {"temperature": temperature, "top_k": top_k, "guidance": guidance, "clip_seconds": seconds}
    generation = replace(heard, **{name: value for name, value in asked.items() if value is not None})
    with bar("generate") as progress:
        clips = generate_clips(ws, version, prompts, generation, per_prompt=per_prompt, seed=seed, progress=progress)
    prompts = list({p.id: p for p in prompts}.values())
    rows = [
        {"clip": str(clip.id), "prompt": p.text, "seed": clip.seed, "file": ws.store.location(clip.audio_sha256)}
        for p in prompts
        for clip in clips[p.id]
    ]
    shown = [f"{row['file']}  {row['prompt']}" for row in rows[:20]]
    if len(rows) > 20:
        shown.append(f"... and {len(rows) - 20} more; {len(rows)} clips in all")
    emit({"version": version, "clips": rows}, "\n".join(shown), as_json)


def _checked(text: str) -> str:
    """The prompt as it is. Raises DataError when it is empty or no text."""
    from alignment.errors import DataError

    if not text.strip() or not text.isprintable():
        raise DataError(f"The prompt {text!r} is empty or not printable text; give --prompt in plain words.")
    return text


def _hashed_split(text: str):
    """The split of a typed prompt, fixed by its words: 65% train, 15% valid, 20% test."""
    import hashlib

    from alignment.domain import Split

    share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    return Split.TRAIN if share < 0.65 else Split.VALID if share < 0.8 else Split.TEST


def simulate_votes(
    study: Annotated[str, typer.Option(help="Study to vote in; created over all pairs of clips if it is new.")],
    votes: Annotated[int, typer.Option(min=1)] = 300,
    raters: Annotated[int, typer.Option(min=1)] = 8,
    population: Annotated[str, typer.Option(help="A population of configs/listeners.yaml.")] = "default",
    version: Annotated[
        list[str] | None, typer.Option(help="For a new study: versions whose clips meet; default all.")
    ] = None,
    seed: Seed = 0,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let SIMULATED listeners vote, through the same service that a vote on the web uses."""
    from alignment.circle import listen
    from alignment.db.clips import list_clips
    from alignment.db.studies import list_studies
    from alignment.domain import RaterKind
    from alignment.errors import DataError
    from alignment.simulation.judge import Judge
    from alignment.simulation.listeners import load_listeners

    listeners = load_listeners()
    ws = open_workspace(home, database)
    with ws.database.session(write=False) as s:
        exists = study in {known.name for known in list_studies(s)}
        clips = [] if exists else list_clips(s)
    if not exists:
        by_prompt: dict = {}
        for clip in clips:
            if version is None or clip.version in version:
                by_prompt.setdefault(clip.prompt_id, []).append(clip)
        if not by_prompt:
            raise DataError("There are no clips to vote on; run `attune generate --captions 40` first.")
        listen.open_study(ws, study, listen.pairs_within(by_prompt, votes, seed), rater_kind=RaterKind.SIMULATED)
    with bar("simulated votes") as progress:
        saved = listen.simulate_votes(
            ws,
            study,
            listeners,
            judge=Judge(),
            population=population,
            raters=raters,
            votes=votes,
            seed=2 * seed,  # even: `compare` draws its listeners from odd seeds
            progress=progress,
        )
    short = "" if saved == votes else f" ({votes} asked; every listener has heard every pair)"
    emit(
        {"study": study, "votes": saved, "raters": raters, "simulated": True},
        f"{saved} simulated votes in study {study}{short}", as_json,
    )  # fmt: skip


def snapshot(
    name: Annotated[str, typer.Argument(help="Name of the new snapshot.")],
    study: Annotated[list[str], typer.Option(help="Study whose votes are frozen; may be given several times.")],
    both_bad: Annotated[str, typer.Option(help="What BOTH_BAD means: tie or drop.")] = "tie",
    shuffle_votes: Annotated[
        bool, typer.Option("--shuffle-votes", help="Control: permute winners among the pairs.")
    ] = False,
    include_flagged: Annotated[
        bool, typer.Option("--include-flagged", help="Keep votes that a detector called invalid; otherwise left out.")
    ] = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Only what came under licences that allow commercial use, and our own.")
    ] = False,
    seed: Seed = 0,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Freeze votes into an immutable, hashed set of train, valid and test pairs."""
    from alignment.circle.learn import take_snapshot

    ws = open_workspace(home, database)
    rules = {"exclude": ()} if include_flagged else {}
    taken = take_snapshot(
        ws, name, study, both_bad=both_bad, shuffle_seed=seed if shuffle_votes else None, commercial=commercial, **rules
    )
    counts = taken.frozen.counts
    kind = "simulated" if taken.frozen.simulated else "human"
    emit(
        {"snapshot": name, "content_sha256": taken.frozen.content_sha256, "counts": dict(counts),
         "simulated": taken.frozen.simulated},
        f"{name}: {counts['pairs']} pairs of {counts['votes']} {kind} votes, {counts['decisive']} decisive, "
        f"{counts['raters']} raters, {counts['prompts']} prompts; sha256 {taken.frozen.content_sha256[:12]}",
        as_json,
    )  # fmt: skip
