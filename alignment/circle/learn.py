"""From votes to a version: snapshot, reward model, DPO on voted and best/worst-of-N pairs."""

from __future__ import annotations

import re
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from alignment.circle.generate import Clips
from alignment.circle.workspace import Progress, Workspace, current_commit, no_progress
from alignment.config import DpoSettings, RewardSettings
from alignment.db import external, runs, snapshots, studies, versions
from alignment.db.rated import counted_ratings
from alignment.db.votes import counted_votes
from alignment.domain import Clip, Pair, Prompt, RatedClip, Split, Version
from alignment.errors import DataError
from alignment.licences import allows_commercial_use, listed
from alignment.preferences import EXCLUDED, FrozenSnapshot, freeze_snapshot, read_snapshot, write_snapshot
from alignment.versions import register_adapter

if TYPE_CHECKING:
    from alignment.rewards.model import RewardAccuracy, RewardModel, Scores
    from alignment.training.examples import DpoExample
    from alignment.training.trainer import TrainResult

Answer = TypeVar("Answer", Pair, RatedClip)


@dataclass(frozen=True)
class NamedSnapshot:
    name: str
    id: uuid.UUID
    frozen: FrozenSnapshot


def outside_contests(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that were not given in contests, whose prompts are the leaderboard's.

    A contest judges versions, and the clips of two good ones are hard to tell apart: its answers train nothing, and
    nobody asks of them whether votes can be learnt."""
    return [one for one in answers if one.split != Split.LEADERBOARD]


def take_snapshot(
    ws: Workspace,
    name: str,
    study_names: Sequence[str],
    *,
    both_bad: str = "tie",
    shuffle_seed: int | None = None,
    exclude: Sequence[str] = EXCLUDED,
    commercial: bool = False,
) -> NamedSnapshot:
    """Freeze the studies' votes and ratings so far into the store and record it with the licences of what came from
    elsewhere; votes that a detector last gave a verdict of ``exclude`` stay out.

    ``commercial`` marks the snapshot as fit for commercial use and leaves out every vote and rating that came, or whose
    clips came, under a licence that does not allow it or that nobody stated. Raises DataError when the name is taken or
    nothing is left."""
    with ws.database.session(write=False) as s:
        ids = [studies.get_study(s, study).id for study in study_names]
        rows = counted_votes(s, study_ids=ids, for_training=True)
        rated = counted_ratings(s, study_ids=ids)
        of_votes = external.licences_of_votes(s, [row.vote_id for row in rows])
        of_clips = external.licences_of_clips(s, {one.clip.clip_id for one in rated})
    high_water_mark = max(rows, key=lambda row: row.created_at).vote_id if rows else None
    left_out = None
    if commercial:
        had = len(rows) + len(rated)
        rows = [row for row in rows if may_serve_commerce(of_votes, row.vote_id)]
        rated = [one for one in rated if may_serve_commerce(of_clips, one.clip.clip_id)]
        left_out = had - len(rows) - len(rated)
        if had and not rows and not rated:
            raise DataError(
                f"None of {had} votes and ratings may serve a commercial purpose, by the licences of their records; "
                "collect votes of your own, or import under a licence that allows it."
            )
    frozen = freeze_snapshot(
        rows, both_bad=both_bad, shuffle_seed=shuffle_seed, exclude=exclude, ratings=rated, not_commercial=left_out
    )
    licences = [
        *(licence for vote, _ in frozen.members for licence in of_votes.get(uuid.UUID(vote), ())),
        *(licence for one in frozen.ratings for licence in of_clips.get(uuid.UUID(one.clip.clip_id), ())),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.jsonl"
        write_snapshot(frozen, path)
        _, uri = ws.store.put_file(path)
    with ws.database.session() as s:
        snapshot_id = snapshots.add_snapshot(
            s, name=name, policy=dict(frozen.policy) | {"studies": list(study_names)},
            high_water_mark=high_water_mark, content_sha256=frozen.content_sha256, uri=uri, simulated=frozen.simulated,
            members=frozen.members, licence=listed(licences),
        )  # fmt: skip
    return NamedSnapshot(name, snapshot_id, frozen)


def may_serve_commerce(licences: Mapping[uuid.UUID, frozenset[str | None]], which: str) -> bool:
    """Whether every licence of this vote or clip allows commercial use; what is our own has none."""
    return all(allows_commercial_use(licence) for licence in licences.get(uuid.UUID(which), ()))


def load_snapshot(ws: Workspace, name: str) -> NamedSnapshot:
    """A recorded snapshot with its pairs, hash checked."""
    with ws.database.session(write=False) as s:
        record = snapshots.get_snapshot(s, name)
    return NamedSnapshot(name, record.id, read_snapshot(ws.store.path_of(record.uri)))


def train_reward_model(
    ws: Workspace,
    name: str,
    snapshot: NamedSnapshot,
    settings: RewardSettings,
    progress: Progress = no_progress,
    *,
    run_dir: Path | None = None,
) -> RewardModel:
    """A reward model trained on the snapshot's votes and ratings, stored and recorded under ``name``.

    With ``run_dir`` a training that was killed goes on from its last epoch there. Raises StoreError when a clip of the
    snapshot is missing from the store."""
    from alignment.rewards.train import train_reward

    check_name(name)
    with ws.database.session(write=False) as s:
        if name in {known.name for known in runs.list_reward_models(s)}:
            raise DataError(f"Reward model {name} exists already; give the new one another name.")
    began = time.monotonic()
    pairs, ratings = snapshot.frozen.pairs, snapshot.frozen.ratings
    clips = [ref for pair in pairs for ref in (pair.a, pair.b)] + [rating.clip for rating in ratings]
    audio = ws.embed_audio([clip.audio_sha256 for clip in clips])
    text = ws.embed_text([one.prompt_text for one in (*pairs, *ratings)])
    model = train_reward(
        pairs, audio, text, settings, lambda epoch, epochs, _: progress(epoch, epochs), encoder=ws.encoder.name,
        ratings=ratings, run_dir=run_dir,
    )  # fmt: skip
    progress(1, 1)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "reward")
        sha256, uri = ws.store.put_folder(Path(folder) / "reward")
    with ws.database.session() as s:
        run_id = runs.add_train_run(
            s, kind="reward", snapshot_id=snapshot.id, config=settings.model_dump(mode="json"), metrics=model.metrics,
            artefact_sha256=sha256, artefact_uri=uri, seconds=time.monotonic() - began, commit=current_commit(),
        )  # fmt: skip
        runs.add_reward_model(
            s, name=name, train_run_id=run_id, encoder=model.encoder, heads=model.trained_heads,
            calibration=model.temperatures, artefact_sha256=sha256, artefact_uri=uri,
        )  # fmt: skip
    return model


def load_reward_model(ws: Workspace, name: str) -> RewardModel:
    """A recorded reward model. Raises DataError when it was trained on another CLAP than the one at hand."""
    from alignment.rewards.model import RewardModel

    with ws.database.session(write=False) as s:
        record = runs.get_reward_model(s, name)
    model = RewardModel.load(ws.store.path_of(record.artefact_uri))
    if model.encoder != ws.encoder.name:
        raise DataError(
            f"Reward model {name} reads embeddings of {model.encoder}; the encoder here is {ws.encoder.name}. "
            "Train it again with this encoder."
        )
    return model


def score_clips(
    ws: Workspace, reward: RewardModel, prompts: Sequence[Prompt], clips: Clips, progress: Progress = no_progress
) -> np.ndarray:
    """Preference scores (P, N) of every prompt's clips."""
    scores = score_each(ws, reward, prompts, clips, progress)
    return scores.preference.reshape(len(prompts), -1)


def score_each(
    ws: Workspace, reward: RewardModel, prompts: Sequence[Prompt], clips: Clips, progress: Progress = no_progress
) -> Scores:
    """All heads' scores, flat, prompt by prompt."""
    texts = [prompt.text for prompt in prompts for _ in clips[prompt.id]]
    shas = [clip.audio_sha256 for prompt in prompts for clip in clips[prompt.id]]
    audio = ws.embed_audio(shas, progress)
    return reward.score(texts, np.stack([audio[sha] for sha in shas]), ws.embed_text(texts))


def accuracy_of(ws: Workspace, reward: RewardModel, pairs: Sequence[Pair]) -> dict[str, RewardAccuracy]:
    """Each trained head's accuracy on the decisive ones of these pairs. Raises DataError when none is decisive."""
    audio = ws.embed_audio([ref.audio_sha256 for pair in pairs for ref in (pair.a, pair.b)])
    text = ws.embed_text([pair.prompt_text for pair in pairs])
    return {head: reward.accuracy(pairs, audio, text, head=head) for head in reward.trained_heads}


def check_name(name: str) -> None:
    """Raises DataError unless the name is made of letters, digits, dots, dashes and underscores."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise DataError(f"{name!r} is no name; use up to 100 letters, digits, dots, dashes and underscores.")


def check_new_version(ws: Workspace, name: str, parent: Version) -> None:
    """Raises DataError when the name is bad or taken, or the parent is not a base."""
    check_name(name)
    with ws.database.session(write=False) as s:
        taken = {version.name for version in versions.list_versions(s)}
    if name in taken:
        raise DataError(f"Version {name} exists already; give the new version another name.")
    if parent.adapter_uri is not None:
        raise DataError(f"Version {parent.name} carries an adapter; DPO starts from a base such as {parent.base}-base.")


def align_dpo(
    ws: Workspace,
    name: str,
    *,
    parent: Version,
    snapshot: NamedSnapshot,
    settings: DpoSettings,
    run_dir: Path,
    pool: tuple[Sequence[Prompt], Clips, np.ndarray] | None = None,
    pool_simulated: bool = True,
    pool_reward: str | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
) -> tuple[Version, TrainResult]:
    """DPO on the snapshot's train pairs and, with a ``pool`` (prompts, N clips each, scores (P, N)), on the best
    against the worst of each prompt's N clips; the adapter is stored and registered as version ``name``.

    ``pool_reward`` names the model that scored the pool; ``pool_simulated``: simulated votes trained it. Then, as with
    simulated votes in the snapshot or a parent that knew some, the version is marked simulated."""
    from alignment.training.best_of_n import best_worst_pairs
    from alignment.training.dpo import train_dpo
    from alignment.training.processes import from_first_process

    check_new_version(ws, name, parent)
    examples = voted_examples(ws, snapshot, tie_weight=settings.tie_weight)
    voted = len(examples)
    if pool is not None:
        prompts, clips, scores = pool
        codes = np.stack([[codes_of(ws, clip) for clip in clips[prompt.id]] for prompt in prompts])
        examples += best_worst_pairs([prompt.text for prompt in prompts], codes, scores)
    policy = ws.policy(parent)
    result = train_dpo(
        policy, examples, settings, run_dir, resume=resume, on_step=lambda step, steps, _: progress(step, steps)
    )
    register = partial(
        register_adapter,
        ws.database, ws.store, name=name, parent=parent, adapter=result.adapter_dir, commit=current_commit(),
        simulated=snapshot.frozen.simulated or parent.simulated or (pool is not None and pool_simulated),
        run={
            "kind": "dpo", "snapshot_id": snapshot.id, "config": settings.model_dump(mode="json"),
            "metrics": {"voted_pairs": voted, "best_worst_pairs": len(examples) - voted, "history": result.history},
            "seconds": result.seconds, "reward_models": [pool_reward] if pool_reward else [],
        },
    )  # fmt: skip
    return from_first_process(register), result  # under torchrun one of them records


def voted_examples(ws: Workspace, snapshot: NamedSnapshot, *, tie_weight: float = 0.0) -> list[DpoExample]:
    """DPO's examples from the snapshot's train votes: the decisive ones, and ties with that weight."""
    from alignment.training.examples import examples_from_pairs

    return examples_from_pairs(snapshot.frozen.split(Split.TRAIN), ws.store.get_codes, tie_weight=tie_weight)


def codes_of(ws: Workspace, clip: Clip) -> np.ndarray:
    """The codes (K, T) that were sampled. Raises DataError for a clip that was not."""
    if clip.codes_sha256 is None:
        raise DataError(f"Clip {clip.id} has no sampled codes (external audio); DPO cannot score it.")
    return ws.store.get_codes(clip.codes_sha256)
