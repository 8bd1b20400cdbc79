"""Blind battles and simulated listeners, through the same service that a vote on the web uses."""

from __future__ import annotations

import itertools
import random
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.circle.generate import Clips
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.db.clips import get_clips
from alignment.db.listening import sessions_of
from alignment.db.prompts import get_prompts
from alignment.db.studies import NewBattle, add_battles, create_study, get_study, list_battles
from alignment.db.votes import VoteRow, counted_votes
from alignment.domain import Clip, Comparison, Outcome, RaterKind, VoteDraft
from alignment.errors import DataError
from alignment.simulation.judge import Judge, Judgement
from alignment.simulation.listeners import Listener, Listeners, draw_population
from alignment.votes import VoteService

QUESTIONS = ("overall", "text_adherence", "quality")


def pairs_within(clips: Clips, count: int, seed: int) -> list[tuple[Clip, Clip, float]]:
    """``count`` pairs of clips of one prompt, spread evenly over prompts, with the chance each had to be drawn.

    Every prompt gets ``count`` / prompts pairs out of its own, without repeats while there are any. Clips that
    sound exactly alike or differ in length are never paired."""
    rng = random.Random(seed)
    decks = []
    for own in clips.values():
        deck = [
            (a, b)
            for a, b in itertools.combinations(own, 2)
            if a.audio_sha256 != b.audio_sha256 and a.generation.clip_seconds == b.generation.clip_seconds
        ]
        rng.shuffle(deck)
        decks.append((deck, len(deck)))
    per_prompt, extra = divmod(count, max(1, len(decks)))
    more = set(rng.sample(range(len(decks)), extra)) if decks else set()
    out = []
    for number, (deck, size) in enumerate(decks):
        wanted = per_prompt + (number in more)
        chance = min(1.0, count / max(1, len(decks)) / max(1, size))
        out += [(a, b, chance) for a, b in deck[:wanted]]
    rng.shuffle(out)
    return out


def pairs_across(first: Mapping[uuid.UUID, Clip], second: Mapping[uuid.UUID, Clip]) -> list[tuple[Clip, Clip, float]]:
    """One pair a prompt, a clip of each side; a prompt where both sound exactly alike is left out."""
    both = [(first[prompt], second[prompt]) for prompt in first if prompt in second]
    # The same codes decoded in another batch differ in their last bits, which nobody hears.
    return [
        (a, b, 1.0)
        for a, b in both
        if a.audio_sha256 != b.audio_sha256 and (a.codes_sha256 is None or a.codes_sha256 != b.codes_sha256)
    ]


def open_study(
    ws: Workspace, name: str, pairs: Sequence[tuple[Clip, Clip, float]], *, rater_kind: RaterKind
) -> uuid.UUID:
    """A study of these pairs; opened again it keeps the pairs it has. Raises DataError when there are none."""
    if not pairs:
        raise DataError(f"Study {name} has no pairs to compare; generate at least two different clips a prompt.")
    names = sorted({clip.version for a, b, _ in pairs for clip in (a, b)})
    with ws.database.session() as s:
        study = create_study(
            s,
            name=name,
            versions=names,
            questions=list(QUESTIONS),
            minimum_listening_seconds=2.0,
            rater_kind=rater_kind,
        )
        if not list_battles(s, study):
            add_battles(s, study, [NewBattle(a.prompt_id, a.id, b.id, propensity=chance) for a, b, chance in pairs])
    return study


def judge_clips(
    ws: Workspace, judge: Judge, clips: Sequence[Clip], progress: Progress = no_progress
) -> dict[str, Judgement]:
    """What the gold judge hears in each clip, by audio sha256; clips of one length are heard together."""
    by_length: dict[float, list[str]] = {}
    for sha256, clip in {clip.audio_sha256: clip for clip in clips}.items():
        by_length.setdefault(clip.facts.seconds, []).append(sha256)
    heard: dict[str, Judgement] = {}
    total = sum(len(same) for same in by_length.values())
    for same in by_length.values():
        for start in range(0, len(same), 64):
            part = same[start : start + 64]
            audio = np.stack([ws.store.get_audio(sha256)[0] for sha256 in part])
            heard.update(zip(part, judge(audio), strict=True))
            progress(len(heard), total)
    return heard


@dataclass
class _Member:
    """A listener of a panel. ``running`` goes on from vote to vote; without it each vote has random numbers of its own,
    the same whenever it is cast, and whether its pair was served before or not."""

    session: uuid.UUID
    listener: Listener
    seed: str
    cast: int
    running: random.Random | None

    def rng(self, purpose: str) -> random.Random:
        return self.running or random.Random(f"{self.seed}/{self.cast}/{purpose}")


def simulate_votes(
    ws: Workspace,
    study_name: str,
    listeners: Listeners,
    *,
    judge: Judge,
    population: str = "default",
    raters: int,
    votes: int,
    seed: int,
    per_pair: int | None = None,
    heard: Mapping[str, Judgement] | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
) -> int:
    """Let simulated listeners vote, blind, until ``votes`` are in or no battle is left; the number saved.

    Listeners take turns, so each casts about the same number; with ``per_pair`` no battle gets more votes than that.
    ``heard`` is what the judge made of the clips, if it has heard them. With ``resume`` ``votes`` is what this panel
    casts in all: after a call that was interrupted anywhere, the same call again goes on in the same sessions with the
    votes that are missing, and the votes are those of one call. Raises DataError for a study of human raters."""
    with ws.database.session(write=False) as s:
        study = get_study(s, study_name)
        battles = list_battles(s, study.id)
        clips = get_clips(s, {c for b in battles for c in (b.clip_1_id, b.clip_2_id)})
        prompts = get_prompts(s, list({b.prompt_id for b in battles}))
    if study.rater_kind != RaterKind.SIMULATED:
        raise DataError(f"Study {study_name} is for human raters; simulated votes never share a study with theirs.")
    if heard is None:
        heard = judge_clips(ws, judge, list(clips.values()))
    tally: Counter[uuid.UUID] = Counter()
    prompt_of = {b.id: b.prompt_id for b in battles}
    service = VoteService(ws.database, secret=ws.secret)
    known = {}
    if resume:
        with ws.database.session(write=False) as s:
            known = sessions_of(s, study.id)
    panel = []
    for number, (profile, listener) in enumerate(draw_population(listeners, population, raters, seed)):
        rater = service.enrol_rater(
            f"{study_name}/{seed}/{number}", kind=RaterKind.SIMULATED, cohort=f"simulated {profile}"
        )
        session, voted = known.get(rater) or (
            service.open_session(rater, study_name, user_agent_family="attune-simulation"),
            [],
        )
        tally.update(voted)
        own = f"{seed}/{number}"
        panel.append(_Member(session, listener, own, len(voted), None if resume else random.Random(own)))
    before = saved = sum(member.cast for member in panel)
    active, turn = list(panel), 0
    while active and saved < votes:
        for member in list(active):
            if member.cast > turn:
                continue  # this turn was taken before the interruption
            assignment = service.next_assignment(member.session, rng=member.rng("pair"))
            # Battles with the fewest votes come first: when this one is full, so are all that the listener has left.
            if assignment is None or (per_pair is not None and tally[assignment.battle_id] >= per_pair):
                active.remove(member)
                continue
            left, right = clips[assignment.left_clip_id], clips[assignment.right_clip_id]
            tags = prompts[prompt_of[assignment.battle_id]].tags
            outcome, axes = member.listener.vote(
                heard[left.audio_sha256], heard[right.audio_sha256], tags, member.rng("vote")
            )
            service.record_vote(member.session, VoteDraft(assignment.id, f"simulated/{assignment.id}", outcome, axes))
            tally[assignment.battle_id] += 1
            member.cast += 1
            saved += 1
            if saved % 20 == 0 or saved == votes:
                progress(saved, votes)
            if saved == votes:
                break
        turn += 1
    return saved - before


CREDIT = {Outcome.A: 1.0, Outcome.B: 0.0, Outcome.TIE: 0.5, Outcome.BOTH_BAD: 0.5}


def votes_of(ws: Workspace, study_name: str) -> list[VoteRow]:
    with ws.database.session(write=False) as s:
        return counted_votes(s, study_ids=[get_study(s, study_name).id])


def comparisons(rows: Sequence[VoteRow], label: Callable[[str, str], str]) -> list[Comparison]:
    """Votes as comparisons; ``label(clip id, version)`` names the contestant a clip stands for."""
    return [
        Comparison(
            label(row.left.clip_id, row.left.version),
            label(row.right.clip_id, row.right.version),
            CREDIT[row.outcome],
            row.outcome,
            row.rater_id,
            row.prompt_id,
        )  # fmt: skip
        for row in rows
        if row.outcome.trains
    ]
