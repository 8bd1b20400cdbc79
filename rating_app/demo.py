"""Studies that `attune serve` makes by itself on the embedded database, so that it can be listened to at once."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence

from alignment.clips import ClipStore
from alignment.config import REPOSITORY, load_recipe
from alignment.db.clips import list_clips
from alignment.db.engine import Database
from alignment.db.prompts import list_prompts
from alignment.db.studies import NewBattle, add_battles, create_study, list_battles, list_studies
from alignment.db.versions import add_version, list_versions
from alignment.domain import Axis, Clip, RaterKind, Split
from alignment.errors import DataError
from alignment.studies import Onboarding, StudyRecipe, create_study_from_recipe

MINIMUM_LISTENING_SECONDS = 2.0
DEMO_NAME, ARENA_NAME = "listening demo", "your-words"
OWN_NAMES = (DEMO_NAME, ARENA_NAME)  # of the studies made here; an organiser's go before them
TWIN = "-twin"


def default_study(database: Database) -> str | None:
    """The study that an address without a name leads to: the newest open one that an organiser made for people, one
    with prompts of its own before one where they are typed. None when there is none."""
    with database.session(write=False) as s:
        known = [
            study
            for study in list_studies(s)
            if study.rater_kind is RaterKind.HUMAN and study.state == "open" and not study.name.startswith(OWN_NAMES)
        ]
    pairs = [study for study in known if study.mode != "arena"]
    return (pairs or known)[-1].name if known else None


def newcomers_rules(name: str, versions: Sequence[str]) -> StudyRecipe:
    """A study that is rated within a minute: no checks and no practice; its title does not tell what is compared."""
    return StudyRecipe(
        name=name,
        title="Listen and compare",
        versions=tuple(versions),
        minimum_listening_seconds=MINIMUM_LISTENING_SECONDS,
        onboarding=Onboarding(ask_publication=False, level_check=False, headphone_check="off", practice_pairs=0),
    )


def ensure_arena_study(database: Database, store: ClipStore) -> str:
    """Name of an open arena study of the first version and the newest adapter on its base, made if it is new.

    Where there is no adapter yet, the base sings against itself with other seeds, under a second name. The lists of
    words are those of configs/arena.yaml. Raises DataError without a version."""
    with database.session() as s:
        versions = list_versions(s)
        if not versions:
            raise DataError("The database holds no version that could sing; run `attune generate` first.")
        base = versions[0]
        tuned = [v.name for v in versions if v.adapter_sha256 and v.base_sha256 == base.base_sha256]
        twin = base.name + TWIN
        if not tuned:
            add_version(s, name=twin, base=base.base, base_sha256=base.base_sha256)
        compared = (base.name, tuned[-1] if tuned else twin)
        known = {study.name: study for study in list_studies(s)}
    for study in known.values():
        if study.mode == "arena" and study.state == "open" and set(study.versions) == set(compared):
            return study.name
    shipped = load_recipe(REPOSITORY / "configs" / "arena.yaml", StudyRecipe)
    number = 1
    while (name := ARENA_NAME if number == 1 else f"{ARENA_NAME}-{number}") in known:
        number += 1
    onboarding = newcomers_rules(name, compared).onboarding
    onboarding = onboarding.model_copy(update={"instructions": shipped.onboarding.instructions})
    recipe = shipped.model_copy(update={"name": name, "versions": compared, "onboarding": onboarding})
    return create_study_from_recipe(database, store, recipe, actor="attune serve", state="open").name


def ensure_demo_study(
    database: Database,
    *,
    base: str | None = None,
    candidate: str | None = None,
    minimum_listening_seconds: float = MINIMUM_LISTENING_SECONDS,
    rules: Callable[[str, Sequence[str]], StudyRecipe] | None = None,
) -> str:
    """Name of a human study over clips that exist, made if it is new; ``rules`` gives a new one its recipe.

    Battles stand between ``base`` (default: the first version) and ``candidate`` (default: the newest one) on held-out
    prompts both have sung; where there is no such prompt, between two clips of the base. Votes of people are never
    mixed with simulated ones: this study is its own. Raises DataError when there are not two clips for any prompt.
    """
    with database.session() as s:
        versions = [version.name for version in list_versions(s)]
        if not versions:
            raise DataError("The database holds no version and no clips yet; run `attune demo` first.")
        base, candidate = base or versions[0], candidate or versions[-1]
        held_out = {p.id for split in (Split.LEADERBOARD, Split.TEST) for p in list_prompts(s, split=split)}
        base_clips = _by_prompt(list_clips(s, version=base))
        other_clips = _by_prompt(list_clips(s, version=candidate)) if candidate != base else {}
        battles = [
            NewBattle(prompt_id, clip.id, twin.id, sampler_version="demo-1")
            for prompt_id, clips in base_clips.items()
            if prompt_id in held_out
            for clip in clips[:1]
            for twin in _alike(clip, other_clips.get(prompt_id, []))[:1]
        ]
        pair = f"{candidate} and {base}" if battles else f"two clips of {base}"
        if not battles:
            battles = [
                NewBattle(prompt_id, clips[0].id, twin.id, sampler_version="demo-1")
                for prompt_id, clips in base_clips.items()
                for twin in _alike(clips[0], clips[1:])[:1]
            ]
        if not battles:
            raise DataError(f"No prompt has two clips of one length to compare; run `attune generate` for {base}.")
        name = f"{DEMO_NAME}: {pair}"
        if rules is not None and name in {study.name for study in list_studies(s)}:
            return name
        compared = sorted({base, candidate}) if "two clips" not in pair else [base]
        study_id = create_study(
            s,
            name=name,
            versions=compared,
            questions=[axis.value for axis in Axis],
            minimum_listening_seconds=minimum_listening_seconds,
            reveal=False,
            rater_kind=RaterKind.HUMAN,
            rules=rules(name, compared).model_dump(mode="json") if rules is not None else None,
        )
        if not list_battles(s, study_id):
            add_battles(s, study_id, battles)
        return name


def _by_prompt(clips: list[Clip]) -> dict[uuid.UUID, list[Clip]]:
    found: dict[uuid.UUID, list[Clip]] = defaultdict(list)
    for clip in clips:
        found[clip.prompt_id].append(clip)
    return found


def _alike(clip: Clip, others: list[Clip]) -> list[Clip]:
    """Those that could be told apart by nothing but their sound: same length, same rate, other audio."""
    return [
        other
        for other in others
        if other.generation.clip_seconds == clip.generation.clip_seconds
        and other.facts.sample_rate_hz == clip.facts.sample_rate_hz
        and other.audio_sha256 != clip.audio_sha256
    ]
