"""The night's votes: simulated listeners where there are no people, whether there are enough, the snapshot of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from alignment.circle import learn, listen
from alignment.circle.captions import add_captions
from alignment.circle.generate import generate_clips
from alignment.circle.night import Night, high_water
from alignment.config import VOTES_PER_PAIR
from alignment.db import new_votes, snapshots
from alignment.domain import RaterKind, Split
from alignment.errors import NotFoundError
from alignment.jobs import Finish, Skip
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import load_listeners

CAPTION_SEED = 700_000  # other captions than the demo's and the comparisons'


def gather(night: Night) -> Mapping[str, Any] | Skip:
    """Simulated listeners vote on fresh clips of the champion until there are enough new votes; people are waited for.

    Runs again without harm: what was sung is not sung again, and only votes that are missing are cast, by those who
    would have cast them and as they would have."""
    night.refuse_people()
    if not night.recipe.simulated:
        return Skip("People vote here; nothing is simulated.")
    night.base()
    study, seed, rules = f"{night.name}-votes", night.seed, night.recipe.panel
    (new, _, names), own, champion = _counted(night), _votes_in(night, study), night.champion()
    wanted = night.recipe.min_new_votes - (new - own if study in names else new)
    if wanted > own:
        captions = add_captions(night.ws, rules.prompts, CAPTION_SEED + seed, _train_or_valid)
        clips = generate_clips(
            night.ws, champion, captions, night.recipe.generation.to_domain(), per_prompt=rules.clips_per_prompt,
            seed=CAPTION_SEED + seed, progress=night.progress(f"{champion} sings"),
        )  # fmt: skip
        pairs = listen.pairs_within(clips, night.recipe.min_new_votes, seed)
        listen.open_study(night.ws, study, pairs, rater_kind=RaterKind.SIMULATED)
        # In an order that is the same in every home: the judge's last digits depend on what it hears together.
        heard = sorted((clip for own in clips.values() for clip in own), key=lambda clip: clip.audio_sha256)
        listen.simulate_votes(
            night.ws, study, load_listeners(), judge=Judge(), population=rules.population, raters=rules.raters,
            votes=wanted, seed=2 * seed, per_pair=VOTES_PER_PAIR, progress=night.progress("simulated votes"),
            heard=listen.judge_clips(night.ws, Judge(), heard, night.progress("the judge listens")), resume=True,
        )  # fmt: skip
        own = _votes_in(night, study)
    if not own:
        return Skip("There are enough new votes already.")
    return {"study": study, "votes": own, "singer": champion, "prompts": rules.prompts, "simulated": True}


def count(night: Night) -> Mapping[str, Any] | Finish:
    """Whether enough votes came in since this recipe's last night, and what they are compared with."""
    night.refuse_people()
    night.base()
    if (other := night.open_contest()) is not None:
        return Finish(
            f"{other.candidate} is still being heard in study {other.evidence['study']}; the next night starts when "
            "that is decided, or the study closed with attune study close."
        )
    new, since, names = _counted(night)
    if new < night.recipe.min_new_votes:
        when = f"since snapshot {since}" if since else "so far"
        return Finish(f"{new:,} new votes {when}; {night.recipe.min_new_votes:,} are wanted for a night's training.")
    champion = night.champion()
    parent = champion if night.recipe.start == "champion" else night.recipe.base
    return {
        "name": night.name, "new_votes": new, "since": since, "studies": names, "champion": champion,
        "parent": parent, "seed": night.seed, "simulated": night.recipe.simulated,
    }  # fmt: skip


def freeze(night: Night) -> Mapping[str, Any]:
    """The snapshot of every vote so far; taken once, and read if it is there."""
    try:
        with night.ws.database.session(write=False) as s:
            snapshots.get_snapshot(s, night.name)
        taken = learn.load_snapshot(night.ws, night.name)
    except NotFoundError:
        taken = learn.take_snapshot(
            night.ws, night.name, night.results["votes"]["studies"], both_bad=night.recipe.both_bad
        )
    return {
        "snapshot": taken.name, "content_sha256": taken.frozen.content_sha256, "counts": dict(taken.frozen.counts),
        "simulated": taken.frozen.simulated,
    }  # fmt: skip


def _counted(night: Night) -> tuple[int, str | None, list[str]]:
    """(new votes that may train, the snapshot they came after, the studies)."""
    found = night.training_studies()
    earlier = night.earlier()
    last = earlier[-1] if earlier else None
    with night.ws.database.session(write=False) as s:
        new = new_votes.count_new_votes(s, [study.id for study in found], after=high_water(last))
    return new, last and last.name, [study.name for study in found]


def _votes_in(night: Night, study: str) -> int:
    """Votes in the study; 0 while there is none of this name."""
    try:
        return len(listen.votes_of(night.ws, study))
    except NotFoundError:
        return 0


def _train_or_valid(text: str) -> Split:
    return Split.VALID if int(hashlib.sha256(text.encode()).hexdigest(), 16) // 10 % 5 == 0 else Split.TRAIN
