"""Two reward models out of one snapshot, by rater and by prompt, and what a stage's weights make of their heads."""

from __future__ import annotations

import importlib
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.circle import learn
from alignment.circle.learn import NamedSnapshot
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.config import RewardSettings, ScorerSettings
from alignment.db import runs, snapshots
from alignment.domain import Pair, RatedClip, Split
from alignment.errors import ConfigError, DataError, StoreError
from alignment.preferences import FrozenSnapshot, part_of, write_snapshot

if TYPE_CHECKING:
    from alignment.rewards.model import RewardModel
    from alignment.rewards.scorers import Scorer, SharedEncoder, WeightedScorer

HEADS = ("text_adherence", "quality", "preference")


@dataclass(frozen=True)
class Halves:
    """What trains the policy (``proxy``) and what only watches it (``held_out``): no rater and no prompt in common."""

    proxy: FrozenSnapshot
    held_out: FrozenSnapshot


@dataclass(frozen=True)
class RewardModels:
    """The reward model that trains the policy and the one that watches it, with the prompts that only the second
    learnt from."""

    proxy: RewardModel
    held_out: RewardModel
    names: tuple[str, str]
    watch_prompts: tuple[str, ...]
    simulated: bool


def split_snapshot(frozen: FrozenSnapshot, share: float, seed: int) -> Halves:
    """The snapshot's votes and ratings in two: ``share`` of raters and of each split's prompts for ``held_out``, the
    rest for ``proxy``. What one's raters said of the other's prompts is in neither.

    The draw depends on what was voted, not on ids. Raises DataError with one rater or one prompt, and where a part is
    left without a decisive train vote."""
    rng = random.Random(seed)
    said = (*frozen.pairs, *frozen.ratings)
    raters = list(dict.fromkeys(one.rater_id for one in said))  # in the order of the content
    prompts = {split: sorted({one.prompt_text for one in said if one.split == split}) for split in Split}
    if len(raters) < 2:
        raise DataError(
            "The snapshot has one rater; a reward model that watches needs other raters than the one that trains. "
            "Collect votes of a second rater."
        )
    other_raters = _drawn(raters, share, rng)
    other_prompts = {text for texts in prompts.values() for text in _drawn(texts, share, rng)}

    def part(held: bool) -> tuple[list[Pair], list[RatedClip]]:
        def belongs(one: Pair | RatedClip) -> bool:
            return (one.rater_id in other_raters) == (one.prompt_text in other_prompts) == held

        return [one for one in frozen.pairs if belongs(one)], [one for one in frozen.ratings if belongs(one)]

    parts = {held: part(held) for held in (False, True)}
    for name, (pairs, _) in (("trains", parts[False]), ("watches", parts[True])):
        decisive = sum(pair.preference != 0.5 and pair.split == Split.TRAIN for pair in pairs)
        if not decisive:
            raise DataError(
                f"Of {len(frozen.pairs)} votes by {len(raters)} raters, none decisive is left in the train split for "
                f"the reward model that {name}; collect more votes, or give two reward models of other raters."
            )
    return Halves(*(part_of(frozen, *parts[held]) for held in (False, True)))


def two_reward_models(
    ws: Workspace, name: str, snapshot: NamedSnapshot, settings: RewardSettings, *, share: float, seed: int,
    progress: Progress = no_progress,
) -> RewardModels:  # fmt: skip
    """Both reward models, trained and recorded as ``name``-reward and ``name``-watch with a snapshot each; those that
    an interrupted run has recorded already are not trained again."""
    halves = split_snapshot(snapshot.frozen, share, seed)
    names = (f"{name}-reward", f"{name}-watch")
    with ws.database.session(write=False) as s:
        known = {model.name for model in runs.list_reward_models(s)}
    models = []
    for each, half in zip(names, (halves.proxy, halves.held_out), strict=True):
        taken = _record_half(ws, each, snapshot, half, share, seed)
        models.append(
            learn.load_reward_model(ws, each)
            if each in known
            else learn.train_reward_model(ws, each, taken, settings, progress)
        )
    texts = tuple(sorted(_raters_and_prompts(halves.held_out)[1]))
    return RewardModels(models[0], models[1], names, texts, snapshot.frozen.simulated)


def given_reward_models(ws: Workspace, proxy: str, held_out: str) -> RewardModels:
    """Two recorded reward models. Raises DataError when a rater or a prompt taught both."""
    found = []
    for name in (proxy, held_out):
        with ws.database.session(write=False) as s:
            record = runs.get_reward_model(s, name)
            run = runs.get_train_run(s, record.train_run_id)
            taken = next((one for one in snapshots.list_snapshots(s) if one.id == run.snapshot_id), None)
        if taken is None:
            raise DataError(f"Reward model {name} has no snapshot on record; train it with attune reward train.")
        found.append((record, *_raters_and_prompts(learn.load_snapshot(ws, taken.name).frozen)))
    (first, raters, texts), (second, other_raters, other_texts) = found
    shared = (len(raters & other_raters), len(texts & other_texts))
    if any(shared):
        raise DataError(
            f"Reward models {proxy} and {held_out} share {shared[0]} raters and {shared[1]} prompts; what watches must "
            "have learnt from others. Leave both out, and the snapshot is split in two."
        )
    models = [learn.load_reward_model(ws, name) for name in (proxy, held_out)]
    return RewardModels(
        models[0], models[1], (proxy, held_out), tuple(sorted(other_texts)), first.simulated or second.simulated
    )


def check_clips(ws: Workspace, snapshot: NamedSnapshot) -> None:
    """Raises StoreError, with the number of them, when clips of the snapshot are no longer in the store."""
    wanted = {ref.audio_sha256 for pair in snapshot.frozen.pairs for ref in (pair.a, pair.b)}
    wanted |= {rated.clip.audio_sha256 for rated in snapshot.frozen.ratings}
    missing = []
    for sha256 in sorted(wanted):
        try:
            ws.store.open_flac(sha256)
        except StoreError:
            missing.append(sha256)
    if missing:
        raise StoreError(
            f"Snapshot {snapshot.name}: {len(missing)} of its {len(wanted)} clips are missing from the store or "
            f"altered, first {missing[0][:12]}; restore the store from its backup, or freeze a new snapshot."
        )


def weighted_scorer(
    model: RewardModel,
    encoder: SharedEncoder,
    weights: Mapping[str, float],
    prompts: Sequence[str],
    audio: np.ndarray,
    sample_rate_hz: int,
    *,
    others: Mapping[str, Scorer] | None = None,
    **options: Any,
) -> WeightedScorer:
    """The weighted sum of a reward model's heads, CLAP's cosine or contrast and ``others`` by name, on the scale of
    these clips of the base (B, N), whose prompts are what the contrast takes for captions in general.

    ``options`` are ``WeightedScorer``'s. Raises DataError for a head that was not trained or scores all clips alike."""
    from alignment.rewards.contrast import CaptionContrast
    from alignment.rewards.scorers import ClapCosine, RewardHead, WeightedScorer

    def scorer(name: str) -> Scorer:
        if name in (others or {}):
            return others[name]
        if name == "clap_cosine":
            return ClapCosine(encoder)
        return CaptionContrast(encoder, prompts) if name == "caption_contrast" else RewardHead(model, encoder, name)

    parts = [(scorer(name), weight) for name, weight in weights.items() if weight]
    return WeightedScorer.on_base_clips(parts, prompts, audio, sample_rate_hz, **options)


def further_scorers(wanted: Mapping[str, ScorerSettings]) -> dict[str, Scorer]:
    """A recipe's own scorers, made ready, by name. Raises ConfigError for a function that is not there, and what
    AudioboxAesthetics raises."""
    return {name: _further(name, settings) for name, settings in wanted.items()}


def _further(name: str, settings: ScorerSettings) -> Scorer:
    from alignment.rewards.scorers import CallableScorer

    if settings.audiobox is not None:
        from alignment.rewards.audiobox import AudioboxAesthetics

        scorer = AudioboxAesthetics(settings.audiobox, axis=settings.axis)
        scorer.name = name
        return scorer
    module, _, function = str(settings.function).partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The scorer {name} is {settings.function}, which cannot be imported ({error}); put its file's folder into "
            "PYTHONPATH, or correct the name."
        ) from None
    return CallableScorer(found, name=name, licence=settings.licence)


def held_out_weights(weights: Mapping[str, float], model: RewardModel) -> dict[str, float]:
    """The same weights for the held-out model's heads; what no vote taught (CLAP's cosine) is left out.

    A reward that is made of nothing else is watched by text adherence where that head was trained, otherwise by
    preference."""
    heads = {name: weight for name, weight in weights.items() if name in HEADS and name in model.trained_heads}
    if any(heads.values()):
        return heads
    return {"text_adherence" if "text_adherence" in model.trained_heads else "preference": 1.0}


def _raters_and_prompts(frozen: FrozenSnapshot) -> tuple[set[str], set[str]]:
    said = (*frozen.pairs, *frozen.ratings)
    return {one.rater_id for one in said}, {one.prompt_text for one in said}


def _drawn(items: Sequence[str], share: float, rng: random.Random) -> set[str]:
    """A share of the items; of two or more at least one, and never all."""
    if len(items) < 2:
        return set()
    return set(rng.sample(list(items), min(len(items) - 1, max(1, round(share * len(items))))))


def _record_half(
    ws: Workspace, name: str, whole: NamedSnapshot, half: FrozenSnapshot, share: float, seed: int
) -> NamedSnapshot:
    """The half in store and database, with what it was split from; recorded again it is the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.jsonl"
        write_snapshot(half, path)
        _, uri = ws.store.put_file(path)
    origin = {"split_of": whole.name, "split_of_sha256": whole.frozen.content_sha256, "share": share, "seed": seed}
    with ws.database.session() as s:
        snapshot_id = snapshots.add_snapshot(
            s, name=name, policy=dict(whole.frozen.policy) | origin, high_water_mark=None,
            content_sha256=half.content_sha256, uri=uri, simulated=half.simulated, members=half.members,
            licence=snapshots.get_snapshot(s, whole.name).licence,
        )  # fmt: skip
    return NamedSnapshot(name, snapshot_id, half)
