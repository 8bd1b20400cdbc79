"""Versions side by side: prompts, clips, metrics, battles of listeners, and the page of it all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from alignment.circle import listen
from alignment.circle.captions import add_captions
from alignment.circle.compare_recipe import CompareRecipe
from alignment.circle.measure_version import measure_versions
from alignment.circle.workspace import Progress, Workspace
from alignment.db import comparisons, studies
from alignment.db import prompts as prompt_queries
from alignment.db.comparisons import ComparedPrompt, Comparison
from alignment.db.studies import Study
from alignment.db.votes import VoteRow
from alignment.domain import Prompt, RaterKind, Split, canonical_sha256
from alignment.errors import DataError, StoreError
from alignment.evaluation.compare_page import ComparePage, HeardClip, HeardPrompt, write_page
from alignment.evaluation.report import Contest, audio_data_uri
from alignment.evaluation.win_rate import win_rate
from alignment.simulation.judge import SAMPLE_RATE_HZ, Judge
from alignment.simulation.listeners import load_listeners
from alignment.studies import StudyRecipe, create_study_from_recipe
from alignment.versions.export import provenance

INLINE_BYTES = 24 * 2**20  # of audio inside one page; more lies in files beside it


class StageBar(Protocol):
    def __call__(self, name: str) -> AbstractContextManager[Progress]: ...


@dataclass(frozen=True)
class Result:
    """A comparison with the contests that were voted on so far; ``study`` waits for people, where it was asked."""

    comparison: Comparison
    contests: list[Contest]
    simulated_votes: bool
    study: str | None = None


def compare(ws: Workspace, recipe: CompareRecipe, *, bar: StageBar, job_id: str | None = None) -> Result:
    """Measures the versions and lets listeners compare them as the recipe asks; done again it adds nothing.

    Raises DataError for prompts or clips that cannot be compared, NotFoundError for an unknown name."""
    prompts = prompts_of(ws, recipe)
    with bar("sing and measure") as progress:
        found = measure_versions(
            ws, recipe.versions, prompts=prompts, settings=recipe.metrics, name=recipe.name, job_id=job_id,
            progress=progress,
        )  # fmt: skip
    study = battle(ws, found.name, recipe, bar)
    return replace(recorded(ws, found.name), study=study)


def recorded(ws: Workspace, name: str) -> Result:
    """A comparison that is on record, with the votes that are in by now. Raises NotFoundError with the newest."""
    with ws.database.session(write=False) as s:
        found = comparisons.get_comparison(s, name)
    return Result(found, *contests_of(ws, found))


def prompts_of(ws: Workspace, recipe: CompareRecipe) -> list[Prompt]:
    """The recipe's prompts, recorded. New ones are for comparisons only: nothing is ever trained on them.

    Raises NotFoundError for an unknown version before anything is recorded."""
    for version in recipe.versions:
        ws.version(version)
    known: list[Prompt] = []
    with ws.database.session() as s:
        recorded = {prompt.text: prompt for prompt in prompt_queries.list_prompts(s)} if recipe.prompts else {}
        for text in dict.fromkeys(recipe.prompts):
            if not text.strip() or not text.isprintable():
                raise DataError(f"The prompt {text!r} is empty or not printable text; give it in plain words.")
        new = [(text, "typed", Split.LEADERBOARD, {}) for text in dict.fromkeys(recipe.prompts) if text not in recorded]
        recorded |= {prompt.text: prompt for prompt in prompt_queries.add_prompts(s, new)} if new else {}
        known += [recorded[text] for text in dict.fromkeys(recipe.prompts)]
        if recipe.prompt_set:
            ids = studies.prompts_of_set(s, recipe.prompt_set)
            found = prompt_queries.get_prompts(s, ids)
            known += [found[id_] for id_ in ids]
        if recipe.split:
            known += prompt_queries.list_prompts(s, split=Split(recipe.split))
    if recipe.captions:
        known += add_captions(ws, recipe.captions, 500_000 + recipe.metrics.seed, lambda _: Split.LEADERBOARD)
    found_all = list({prompt.id: prompt for prompt in known}.values())
    if len(found_all) < 2:
        raise DataError(f"Found {len(found_all)} prompts to compare on; two or more are needed. Name others.")
    return found_all


def battle(ws: Workspace, name: str, recipe: CompareRecipe, bar: StageBar) -> str | None:
    """Simulated votes until there are as many as asked, or a study drafted for people, whose name comes back."""
    if recipe.battles == "simulated":
        with bar("simulated votes") as progress:
            simulate_battles(ws, name, recipe, progress)
    return human_study(ws, name).name if recipe.battles == "human" else None


def simulate_battles(ws: Workspace, name: str, recipe: CompareRecipe, progress: Progress) -> list[str]:
    """The studies in which simulated listeners compared the first version with each of the others, blind, on each
    prompt's first clips. The listeners are none of those that ``attune simulate-votes`` draws.

    Raises DataError where clips are not at the rate that the judge hears."""
    with ws.database.session(write=False) as s:
        found = comparisons.get_comparison(s, name)
        asked = comparisons.compared_prompts(s, found.id)
    first, *others = found.versions
    rates = {clip.facts.sample_rate_hz for one in asked for clips in one.clips.values() for clip in clips}
    if rates != {SAMPLE_RATE_HZ}:
        raise DataError(
            f"Simulated listeners hear attune-tiny's {SAMPLE_RATE_HZ} Hz and these clips have "
            f"{', '.join(map(str, sorted(rates)))} Hz; let people compare them (--battles human) or nobody (none)."
        )
    seed, judge, names = recipe.metrics.seed, Judge(), []
    digest = canonical_sha256([[one.prompt.sha256 for one in asked], found.settings["generation"], seed])
    for other in others:
        study = (
            f"compare {first} {other}, {len(asked)} prompts {digest[:8]}, {recipe.raters} of {recipe.population}, "
            f"seed {seed}"
        )
        takes = [{one.prompt.id: one.clips[version][0] for one in asked} for version in (other, first)]
        listen.open_study(ws, study, listen.pairs_across(*takes), rater_kind=RaterKind.SIMULATED)
        done = len(listen.votes_of(ws, study))
        if done < recipe.votes:
            listen.simulate_votes(
                ws, study, load_listeners(), judge=judge, population=recipe.population, raters=recipe.raters,
                votes=recipe.votes - done, seed=2 * seed + 1, progress=progress,
            )  # fmt: skip
        with ws.database.session() as s:
            comparisons.attach_study(s, name, study)
        names.append(study)
    return names


def human_study(ws: Workspace, name: str, *, actor: str = "attune compare") -> Study:
    """A study for people over the comparison's prompts, as a draft: `attune study open` opens it. Made once."""
    with ws.database.session() as s:
        found = comparisons.get_comparison(s, name)
        prompts = [one.prompt.id for one in comparisons.compared_prompts(s, found.id)]
        studies.add_prompt_set(s, found.name, prompts)
    asked = StudyRecipe(name=found.name, title="Which clip do you prefer?", versions=found.versions,
                        prompt_set=found.name)  # fmt: skip
    study = create_study_from_recipe(ws.database, ws.store, asked, actor=actor)
    with ws.database.session() as s:
        comparisons.attach_study(s, name, study.name)
    return study


def contests_of(ws: Workspace, found: Comparison) -> tuple[list[Contest], bool]:
    """(the first version's win rates over each of the others, whether programs voted): in the comparison's studies, or
    people's votes alone where there are both."""
    votes: dict[RaterKind, list[VoteRow]] = {}
    for name in found.studies:
        with ws.database.session(write=False) as s:
            kind = studies.get_study(s, name).rater_kind
        votes.setdefault(kind, []).extend(listen.votes_of(ws, name))
    kind = RaterKind.HUMAN if votes.get(RaterKind.HUMAN) else RaterKind.SIMULATED
    rows = listen.comparisons(votes.get(kind, []), lambda _, version: version)
    first, *others = found.versions
    who = "SIMULATED listeners" if kind is RaterKind.SIMULATED else "people"
    out = [
        Contest(f"{first} vs {other}", win_rate(rows, first, opponent=other), f"blind, {who}")
        for other in others
        if any({row.version_left, row.version_right} == {first, other} for row in rows)
    ]
    return out, bool(out) and kind is RaterKind.SIMULATED


def write_comparison(ws: Workspace, name: str, path: Path, *, inline_bytes: int = INLINE_BYTES) -> Path:
    """The comparison's page at ``path``. Audio is inside it up to ``inline_bytes``, else in a folder beside it, PATH
    without its suffix and "-clips", whose files say that they are AI-generated and by which version."""
    with ws.database.session(write=False) as s:
        found = comparisons.get_comparison(s, name)
        asked = comparisons.compared_prompts(s, found.id)
    contests, simulated_votes = contests_of(ws, found)
    versions = [ws.version(one) for one in found.versions]
    trained_on = sum(one.prompt.split in (Split.TRAIN, Split.VALID) for one in asked)
    notes = [f"{trained_on} of the {len(asked)} prompts are of a split that training may see."] if trained_on else []
    shown = ComparePage(
        found, contests, _heard(ws, found.versions, asked, path, inline_bytes), simulated_votes,
        [one.name for one in versions if one.simulated], notes,
    )  # fmt: skip
    return write_page(shown, path)


def _heard(
    ws: Workspace, versions: Sequence[str], asked: Sequence[ComparedPrompt], path: Path, inline_bytes: int
) -> list[HeardPrompt]:
    """Each prompt's first clip of each version, at listening level."""
    takes = [[one.clips[name][0] for name in versions] for one in asked]
    data = [[ws.store.rendition(clip.audio_sha256) for clip in row] for row in takes]
    if sum(len(flac) for row in data for flac in row) <= inline_bytes:
        sources = [[audio_data_uri(flac) for flac in row] for row in data]
    else:
        sources = _beside(data, versions, path)
    return [
        HeardPrompt(
            one.prompt.text,
            [HeardClip(name, source, clip.facts.lufs)
             for name, source, clip in zip(versions, links, row, strict=True)],
        )
        for one, links, row in zip(asked, sources, takes, strict=True)
    ]  # fmt: skip


def _beside(data: Sequence[Sequence[bytes]], versions: Sequence[str], path: Path) -> list[list[str]]:
    """Addresses, relative to the page, of the clips' files; the folder is there whole or not at all."""
    folder = path.with_name(f"{path.stem}-clips")
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=path.parent))
        links = []
        for number, row in enumerate(data, start=1):
            links.append([])
            for letter, (name, flac) in enumerate(zip(versions, row, strict=True)):
                file = f"{number:04d}-{chr(97 + letter) if letter < 26 else letter}.flac"
                (partial / file).write_bytes(tagged(flac, name))
                links[-1].append(f"{folder.name}/{file}")
        os.chmod(partial, 0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise StoreError(f"{folder}: clips cannot be written ({error.strerror or error}); free space.") from error
    return links


def tagged(flac: bytes, version: str) -> bytes:
    """The FLAC with a comment that says what made it: clips that leave the page's context carry their origin."""
    import io

    import soundfile

    samples, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    out = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(out, "w", rate, channels, "PCM_16", format="FLAC") as file:
        file.comment = provenance(version)
        file.write(samples)
    return out.getvalue()
