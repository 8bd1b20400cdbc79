"""Versions in a database and a store, on a very small random model: a base, two adapters, votes behind them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignment.clips import ClipStore
from alignment.config import LoraSettings
from alignment.db import gates, runs, snapshots, studies
from alignment.db.engine import Database, open_database
from alignment.db.votes import counted_votes
from alignment.domain import GenerationConfig, RaterKind, Split, Version
from alignment.evaluation.vote_arrays import VoteArrays
from alignment.music.model import MusicModel
from alignment.versions import register_adapter, register_base
from scripts.vote_rows import filled_database
from tests.music_support import randomise_adapter, save_tiny_music

LISTENING = GenerationConfig(temperature=0.9, top_k=20, guidance=3.0, clip_seconds=0.5)
DPO = {"learning_rate": 1e-3, "lora": {"r": 4, "lora_alpha": 8.0}}
# Twelve votes by three raters on four prompts; every third says A, B, tie.
VOTES = VoteArrays(
    ("left", "right"), np.zeros(12, int), np.ones(12, int), np.arange(12) % 3, np.repeat([0, 1, 2], 4),
    np.tile(np.arange(4), 3),
)  # fmt: skip


@dataclass
class Registry:
    """An open database with its store, the base and where its files are."""

    database: Database
    store: ClipStore
    base: Version
    source: Path

    def adapter(self, folder: Path, *, seed: int, lora: LoraSettings | None = None) -> Path:
        """A saved adapter that changes what the base sings."""
        return save_adapter(self.source, folder, seed=seed, lora=lora)

    def register(self, name: str, adapter: Path, *, parent: Version | None = None, **more) -> Version:
        """The adapter as a version with a training of its own."""
        simulated = more.pop("simulated", False)
        run = {"kind": "dpo", "snapshot_id": None, "config": DPO, "metrics": {}, "seconds": 3.0} | more.pop("run", {})
        return register_adapter(
            self.database, self.store, name=name, parent=parent or self.base, adapter=adapter, run=run,
            commit="c0ffee" * 6, simulated=simulated, **more,
        )  # fmt: skip


def save_adapter(source: Path, folder: Path, *, seed: int, lora: LoraSettings | None = None) -> Path:
    model = MusicModel.load(source)
    model.add_adapter(lora or LoraSettings(r=4, lora_alpha=8), seed=seed)
    randomise_adapter(model, seed=seed)
    model.save_adapter(folder)
    return folder


def open_registry(url: str, folder: Path, *, kind: RaterKind | None = None) -> Registry:
    """A migrated database with the base registered and, for a ``kind`` of rater, twelve votes in study "heard"."""
    from alignment.db import migrate

    migrate.upgrade(url)
    if kind is not None:
        filled_database(url, VOTES, kind=kind, study="heard")
    source = save_tiny_music(folder / "model")
    database = open_database(url)
    base = register_base(
        database, name="base", base=str(source), base_sha256=MusicModel.load(source).base_sha256,
        listening=LISTENING, licence="CC-BY-NC-4.0",
    )  # fmt: skip
    return Registry(database, ClipStore(folder / "store"), base, source)


def freeze(database: Database, name: str = "votes-1", *, kind: RaterKind, licence: str | None = "CC0-1.0") -> uuid.UUID:
    """A snapshot of every counted vote: the first eight train, the rest test."""
    with database.session() as s:
        votes = counted_votes(s, study_ids=[studies.get_study(s, "heard").id])
        members = [(row.vote_id, Split.TRAIN if i < 8 else Split.TEST) for i, row in enumerate(votes)]
        return snapshots.add_snapshot(
            s, name=name, policy={}, high_water_mark=None, content_sha256="5" * 64, uri="store://files/none",
            simulated=kind == RaterKind.SIMULATED, members=members, licence=licence,
        )  # fmt: skip


def reward_model(database: Database, name: str, snapshot_id: uuid.UUID | None) -> None:
    """A reward model on record, trained on that snapshot."""
    with database.session() as s:
        run = runs.add_train_run(s, kind="reward", snapshot_id=snapshot_id, config={"hidden": 8}, metrics={})
        runs.add_reward_model(
            s, name=name, train_run_id=run, encoder="clap:tiny", heads=["preference"], calibration={},
            artefact_sha256="7" * 64, artefact_uri="store://folders/none",
        )  # fmt: skip


def decide(
    database: Database, candidate: str, champion: str | None, outcome: str = "promoted", *, simulated: bool = False
) -> uuid.UUID:
    """A decision of the gate as `attune gate check` records it."""
    evidence = {"simulated": simulated, "over_champion": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 90}}
    with database.session() as s:
        return gates.record_decision(
            s, candidate=candidate, champion=champion, outcome=outcome, evidence=evidence, alpha_spent=0.005
        )
