"""What a study asks, of whom and under which rules: a recipe in YAML, kept with the study in the database."""

from __future__ import annotations

import itertools
import math
import random
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from alignment import anchors
from alignment.clips import ClipStore
from alignment.config import GenerationSettings, Recipe
from alignment.db import people, ratings, studies
from alignment.db.clips import get_clips, list_clips
from alignment.db.engine import Database
from alignment.db.studies import NewBattle, Study
from alignment.db.versions import get_version
from alignment.domain import EXTERNAL_BASE, Axis, BattleKind, Clip, ClipSource, RaterKind
from alignment.errors import DataError, NotFoundError

SAMPLER = "recipe-1"
# More known answers than this tell nothing new about a rater.
MOST_CHECKS = 50
Clips = dict[str, dict[uuid.UUID, list[Clip]]]  # by version and prompt
Pairs = list[tuple[Clip, Clip, float]]  # two clips of one prompt and the chance with which the pair was drawn

CONSENT_TEXT = (
    "My answers are stored under a pseudonym, without my name or address. I can stop at any time and take my answers "
    "back later."
)


class Shares(Recipe):
    """Parts of what a session hears that check the rater instead of the versions; drawn at random among the rest."""

    repeats: float = Field(0.0, ge=0, le=0.5, description="pairs heard before, sides swapped; none under reveal")
    gold: float = Field(0.0, ge=0, le=0.5, description="pairs with a known winner")
    anchors: float = Field(0.0, ge=0, le=0.5, description="pairs of a clip and its low anchor (BS.1534: low-passed)")

    @model_validator(mode="after")
    def _leave_room(self) -> Shares:
        if self.repeats + self.gold + self.anchors > 0.5:
            raise ValueError("repeats, gold and anchors together take more than half of all pairs")
        return self


class Onboarding(Recipe):
    """What a rater sees before the first pair."""

    consent_version: str = Field("1", min_length=1, max_length=40)
    consent_text: str = Field(CONSENT_TEXT, min_length=1, max_length=5000)
    ask_training: bool = Field(True, description="ask whether answers may train models; refused votes train nothing")
    ask_publication: bool = Field(True, description="ask, apart from that, whether answers may be published")
    instructions: str = Field("", max_length=5000, description="shown above the standard ones")
    level_check: bool = Field(True, description="set the volume on a steady sound before the first pair")
    headphone_check: Literal["off", "asked", "tested"] = Field(
        "asked", description="tested: three antiphase trials (Woods et al. 2017), stored; nobody is refused"
    )
    background: tuple[Literal["musical_training", "culture", "age_group"], ...] = Field(
        (), description="optional questions whose answers become the cohort"
    )
    practice_pairs: int = Field(2, ge=0, le=5)


class Pacing(Recipe):
    """How long a session is."""

    pairs_per_session: int | None = Field(None, ge=1, le=1000, description="none: until there are no more")
    break_every: int = Field(20, ge=0, le=1000, description="pairs between breaks; 0 proposes none")
    break_seconds: float = Field(30.0, ge=0, le=600)


class ArenaRules(Recipe):
    """Prompts that raters type."""

    generation: GenerationSettings = GenerationSettings()
    longest_prompt: int = Field(300, ge=10, le=2000, description="characters")
    blocked_words: tuple[str, ...] = Field((), description="whole words or phrases, any case or spelling variant")
    blocked_artists: tuple[str, ...] = Field((), description="names that a prompt may not ask to imitate")
    requests_per_hour: int = Field(20, ge=1, le=1000, description="of one session")


class StudyRecipe(Recipe):
    """A study. ``attune study create FILE`` makes it; the admin page edits the same fields."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\s/][^/\n]*$")
    title: str = Field("", max_length=200, description="shown to raters; it must not tell what is compared")
    mode: Literal["ab", "rating", "arena"] = "ab"
    versions: tuple[str, ...] = Field(min_length=1)
    prompt_set: str | None = Field(None, description="a named set of prompts; none: all that the versions have sung")
    pairs: int | None = Field(None, ge=1, description="battles to make; none: one a prompt and pair of versions")
    votes_per_pair: int = Field(3, ge=1, le=1000, description="wanted; more are taken while raters come")
    minimum_listening_seconds: float = Field(2.0, ge=0, le=60, description="distinct seconds of each clip")
    questions: tuple[Axis, ...] = tuple(Axis)
    ask_confidence: bool = False
    ask_comment: bool = True
    scales: tuple[Literal["quality", "relevance", "mos"], ...] = Field(
        ("quality", "relevance"), min_length=1, description="of the rating mode: two of 1-100, one of five points"
    )
    access: Literal["invited", "open"] = "open"
    choice: Literal["random", "balanced", "active"] = Field("balanced", description="how the next pair is drawn")
    shares: Shares = Shares()
    onboarding: Onboarding = Onboarding()
    pacing: Pacing = Pacing()
    arena: ArenaRules = ArenaRules()
    reveal: bool = Field(False, description="say which version was which after the vote, which then cannot change")

    @model_validator(mode="after")
    def _fits_together(self) -> StudyRecipe:
        if len(set(self.versions)) != len(self.versions):
            raise ValueError("versions names one version twice")
        if self.mode == "arena" and len(self.versions) != 2:
            raise ValueError(f"an arena needs exactly two versions; found {len(self.versions)}")
        if self.mode == "rating" and (self.shares.repeats or self.shares.gold):
            raise ValueError("repeats and gold are pairs; a rating study has anchors only")
        return self


def create_study_from_recipe(
    database: Database,
    store: ClipStore,
    recipe: StudyRecipe,
    *,
    actor: str,
    seed: int = 0,
    state: str = "draft",
    gold: Sequence[tuple[uuid.UUID, uuid.UUID]] = (),
) -> Study:
    """The human study of the recipe, created in ``state`` with everything it asks about; an audit row names ``actor``.

    Mode ab: battles between clips of one prompt, equally long, at one sample rate, with different audio; gold pairs
    (a clip against its low anchor, or ``gold``: pairs of clip ids, the known winner first) and anchor pairs by their
    shares. Mode rating: one item a clip, clips that no model and no other system made as hidden references, low anchors
    by their share. Mode arena: nothing yet. The same recipe again gives the same study. Raises DataError when the name
    stands for another recipe or there is nothing to compare, NotFoundError for an unknown version or prompt set."""
    rules = recipe.model_dump(mode="json")
    with database.session(write=False) as s:
        try:
            known = studies.get_study(s, recipe.name)
        except NotFoundError:
            known = None
        if known is not None:
            if dict(known.rules) != rules:
                raise DataError(f"Study {recipe.name} exists with another recipe; choose another name.")
            return known
        sung = _sung(s, recipe)
        known_winners = get_clips(s, {clip for pair in gold for clip in pair})
    rng = random.Random(seed)
    battles: list[NewBattle] = []
    items: list[tuple[uuid.UUID, uuid.UUID, str]] = []
    if recipe.mode == "ab":
        pairs = _pairs(recipe, sung, rng)
        given = [(known_winners[winner], known_winners[loser]) for winner, loser in gold]
        battles = [NewBattle(a.prompt_id, a.id, b.id, propensity=p, sampler_version=SAMPLER) for a, b, p in pairs]
        battles += _checks(database, store, recipe.shares, pairs, given, rng)
    elif recipe.mode == "rating":
        items = _items(database, store, recipe, sung, rng)
    with database.session() as s:
        study_id = studies.create_study(
            s,
            name=recipe.name,
            versions=recipe.versions,
            questions=[axis.value for axis in recipe.questions],
            minimum_listening_seconds=recipe.minimum_listening_seconds,
            reveal=recipe.reveal,
            rater_kind=RaterKind.HUMAN,
            mode=recipe.mode,
            state=state,
            rules=rules,
            prompt_set_id=studies.get_prompt_set(s, recipe.prompt_set) if recipe.prompt_set else None,
            gold_share=recipe.shares.gold,
            repeat_share=recipe.shares.repeats,
        )
        studies.add_battles(s, study_id, battles)
        ratings.add_items(s, study_id, items)
        people.add_audit(s, actor=actor, action="study.create", subject=recipe.name, after=rules)
        return studies.get_study(s, recipe.name)


def rules_of(study: Study) -> StudyRecipe:
    """The recipe of a study; one made without a recipe gets what it always had: every pair, the least voted first,
    no checks, nothing asked beforehand."""
    if study.rules:
        return StudyRecipe.model_validate(dict(study.rules))
    return StudyRecipe.model_construct(
        name=study.name,
        mode=study.mode,
        versions=study.versions,
        minimum_listening_seconds=study.minimum_listening_seconds,
        questions=tuple(axis for axis in Axis if axis.value in study.questions),
        reveal=study.reveal,
        onboarding=Onboarding(ask_training=False, ask_publication=False),
    )


def set_study_state(database: Database, name: str, state: str, *, actor: str) -> None:
    """Moves a study between draft, open, paused and closed; an audit row names ``actor``. Only an open study serves
    pairs; votes on pairs that were served before are taken in every state."""
    with database.session() as s:
        study = studies.get_study(s, name)
        studies.set_state(s, study.id, state)
        if state != study.state:
            people.add_audit(
                s,
                actor=actor,
                action="study.state",
                subject=name,
                before={"state": study.state},
                after={"state": state},
            )


def _sung(s, recipe: StudyRecipe) -> Clips:
    prompts = set(studies.prompts_of_set(s, recipe.prompt_set)) if recipe.prompt_set else None
    found: Clips = {}
    for version in recipe.versions:
        get_version(s, version)  # tells an unknown name with the known ones
        own: dict[uuid.UUID, list[Clip]] = {}
        for clip in list_clips(s, version=version):
            if prompts is None or clip.prompt_id in prompts:
                own.setdefault(clip.prompt_id, []).append(clip)
        found[version] = own
    return found


def _alike(a: Clip, b: Clip) -> bool:
    """Whether nothing but the sound tells the clips apart."""
    return (
        abs(a.facts.seconds - b.facts.seconds) < 1 / a.facts.sample_rate_hz
        and a.facts.sample_rate_hz == b.facts.sample_rate_hz
        and a.audio_sha256 != b.audio_sha256
    )


def _pairs(recipe: StudyRecipe, sung: Mapping[str, Mapping[uuid.UUID, list[Clip]]], rng: random.Random) -> Pairs:
    """The pairs wanted, spread evenly over prompts and pairs of versions, each drawn from what there is."""
    sides = list(itertools.combinations(recipe.versions, 2)) or [(recipe.versions[0],) * 2]
    decks: list[list[tuple[Clip, Clip]]] = []
    for one, other in sides:
        for prompt, clips in sung[one].items():
            both = (
                itertools.combinations(clips, 2)
                if one == other
                else itertools.product(clips, sung[other].get(prompt, ()))
            )
            deck = [pair for pair in both if _alike(*pair)]
            rng.shuffle(deck)
            if deck:
                decks.append(deck)
    if not decks:
        raise DataError(_nothing_to_compare(recipe, sung))
    rng.shuffle(decks)
    wanted = len(decks) if recipe.pairs is None else recipe.pairs
    chosen: Pairs = []
    # Every prompt and pair of versions gives one pair before any gives its second.
    whole, left = 0, wanted
    while left >= (width := sum(len(deck) > whole for deck in decks)) > 0:
        whole, left = whole + 1, left - width
    extra = {id(deck) for deck in [deck for deck in decks if len(deck) > whole][:left]}
    for deck in decks:
        # A deck's place is random, and so is who is left over when the last round does not go round.
        chance = min(1.0, (min(whole, len(deck)) + (left / width if len(deck) > whole else 0)) / len(deck))
        chosen += [(*pair, chance) for pair in deck[: whole + (id(deck) in extra)]]
    rng.shuffle(chosen)
    return chosen


def _nothing_to_compare(recipe: StudyRecipe, sung: Mapping[str, Mapping[uuid.UUID, list[Clip]]]) -> str:
    names = " and ".join(recipe.versions) if len(recipe.versions) < 3 else f"{len(recipe.versions)} versions"
    where = f" of the prompt set {recipe.prompt_set}" if recipe.prompt_set else ""
    silent = [version for version in recipe.versions if not sung[version]]
    if silent:
        return (
            f"Study {recipe.name} has nothing to compare: {silent[0]} has sung no prompt{where}; "
            f"run `attune generate --version {silent[0]}` first."
        )
    return (
        f"Study {recipe.name} has nothing to compare: no prompt{where} has two different clips of one length and "
        f"sample rate from {names}; run `attune generate` for the same prompts and clip length."
    )


def _checks(
    database: Database,
    store: ClipStore,
    shares: Shares,
    pairs: Pairs,
    given: Sequence[tuple[Clip, Clip]],
    rng: random.Random,
) -> list[NewBattle]:
    """Gold and anchor battles, as many as a rater who hears every pair meets by their shares."""
    normal = max(1 - shares.gold - shares.anchors - shares.repeats, 0.5)
    wanted = {
        kind: min(MOST_CHECKS, _whole(share * len(pairs) / normal))
        for kind, share in ((BattleKind.GOLD, shares.gold), (BattleKind.ANCHOR, shares.anchors))
    }
    made = [
        NewBattle(w.prompt_id, w.id, x.id, kind=BattleKind.GOLD, expected_winner=1, sampler_version=SAMPLER)
        for w, x in given
        if shares.gold
    ]
    wanted[BattleKind.GOLD] = max(0, wanted[BattleKind.GOLD] - len(made))
    count = sum(wanted.values())
    if not count:
        return made
    clips = list({clip.id: clip for a, b, _ in pairs for clip in (a, b)}.values())
    rng.shuffle(clips)
    # Some clips have little up there: more are tried than needed, and those that lose most are taken.
    tried = anchors.add_low_anchors(database, store, clips[: 2 * count])
    good = sorted((x for x in tried if x.removed_db >= anchors.AUDIBLE_DB), key=lambda x: -x.removed_db)[:count]
    if not good:
        raise DataError(
            "Gold and anchor pairs need clips with something above 3.5 kHz, and none of those tried has it; "
            "set shares.gold and shares.anchors to 0."
        )
    rng.shuffle(good)
    kinds = [BattleKind.GOLD] * wanted[BattleKind.GOLD] + [BattleKind.ANCHOR] * wanted[BattleKind.ANCHOR]
    rng.shuffle(kinds)
    for kind, one in zip(kinds, good, strict=False):
        winner = 1 if kind is BattleKind.GOLD else None
        made.append(
            NewBattle(
                one.clip.prompt_id,
                one.clip.id,
                one.anchor.id,
                kind=kind,
                expected_winner=winner,
                sampler_version=SAMPLER,
            )
        )
    return made


def _whole(checks: float) -> int:
    """The next whole number; 4.000000000000001 (0.4 * 6 / 0.6 in floats) is 4."""
    return math.ceil(round(checks, 9))


def _items(
    database: Database,
    store: ClipStore,
    recipe: StudyRecipe,
    sung: Mapping[str, Mapping[uuid.UUID, list[Clip]]],
    rng: random.Random,
) -> list[tuple[uuid.UUID, uuid.UUID, str]]:
    """(prompt, clip, kind) of every clip to rate, one of each version and prompt first, then more up to ``pairs``."""
    layers: dict[int, list[Clip]] = {}
    for own in sung.values():
        for clips in own.values():
            for depth, clip in enumerate(clips):
                layers.setdefault(depth, []).append(clip)
    if not layers:
        raise DataError(_nothing_to_compare(recipe, sung))
    for layer in layers.values():
        rng.shuffle(layer)
    wanted = len(layers[0]) if recipe.pairs is None else recipe.pairs
    chosen = [clip for depth in sorted(layers) for clip in layers[depth]][:wanted]
    with database.session(write=False) as s:
        systems = {name for name in sung if get_version(s, name).base == EXTERNAL_BASE}
    items = [(clip.prompt_id, clip.id, "reference" if _is_reference(clip, systems) else "normal") for clip in chosen]
    if recipe.shares.anchors:
        count = min(MOST_CHECKS, _whole(recipe.shares.anchors * len(chosen) / (1 - recipe.shares.anchors)))
        made = anchors.add_low_anchors(database, store, rng.sample(chosen, min(count, len(chosen))))
        items += [(one.anchor.prompt_id, one.anchor.id, "anchor") for one in made]
    rng.shuffle(items)
    return items


def _is_reference(clip: Clip, systems: Collection[str]) -> bool:
    """Whether no model sang the clip: it came from outside, and from none of the other systems."""
    return clip.source is ClipSource.EXTERNAL and clip.version not in systems
