"""Where a version comes from: version, training, reward models, snapshots, studies, votes, down to the base."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from alignment.db import lineage as queries
from alignment.db import runs, snapshots, versions
from alignment.db.engine import Database
from alignment.db.runs import RewardModelRecord
from alignment.domain import GenerationConfig, Version


@dataclass(frozen=True)
class Ancestor:
    """One step of a lineage: the version, how it was trained and on which votes (None for a base)."""

    version: Version
    run_kind: str | None = None
    snapshot: str | None = None
    snapshot_sha256: str | None = None
    votes: int | None = None
    config: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    reward_models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """A thing in the lineage (``kind``: version, training, reward model, snapshot, votes) and what it was made from.

    ``facts`` are plain JSON values. A thing met again has the fact ``seen`` and no children."""

    kind: str
    name: str
    facts: Mapping[str, Any]
    children: tuple[Node, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The tree as nested JSON values."""
        below = [child.to_json() for child in self.children]
        return {"kind": self.kind, "name": self.name, **self.facts, **({"from": below} if below else {})}


def lineage(database: Database, name: str) -> list[Ancestor]:
    """The version and its ancestors, newest first. Raises NotFoundError naming the known versions."""
    out: list[Ancestor] = []
    with database.session(write=False) as s:
        current: str | None = name
        while current is not None:
            version = versions.get_version(s, current)
            if version.train_run_id is None:
                out.append(Ancestor(version))
            else:
                run = runs.get_train_run(s, version.train_run_id)
                snapshot = _snapshot(s, run.snapshot_id)
                out.append(
                    Ancestor(
                        version,
                        run.kind,
                        snapshot and snapshot.name,
                        snapshot and snapshot.content_sha256,
                        snapshot and snapshot.members,
                        run.config,
                        run.metrics,
                        tuple(model.name for model in runs.reward_models_of_run(s, run.id)),
                    )  # fmt: skip
                )
            current = version.parent
    return out


def tree(database: Database, name: str, *, votes: bool = False) -> Node:
    """The version's lineage as a tree; with ``votes`` each snapshot lists the ids of its votes.

    Raises NotFoundError naming the known versions."""
    with database.session(write=False) as s:
        return _Grown(s, votes).version(name)


def listening_text(listening: GenerationConfig | None) -> str | None:
    """How people hear a version, in words."""
    if listening is None:
        return None
    cut = f"top-k {listening.top_k}" if listening.top_k else "no top-k"
    return (
        f"guidance {listening.guidance:g}, {cut}, temperature {listening.temperature:g}, {listening.clip_seconds:g} s"
    )


def listening_json(listening: GenerationConfig | None) -> dict[str, Any] | None:
    """The listening config by its fields."""
    return None if listening is None else vars(listening).copy()


class _Grown:
    """Grows the tree inside one session; what was described once is only named again."""

    def __init__(self, s: Session, votes: bool) -> None:
        self.s, self.votes = s, votes
        self.seen: set[uuid.UUID] = set()

    def version(self, name: str) -> Node:
        version = versions.get_version(self.s, name)
        facts = {
            "status": version.status.value, "simulated": version.simulated, "base": version.base,
            "base_sha256": version.base_sha256, "adapter_sha256": version.adapter_sha256, "commit": version.commit,
            "licence": version.licence, "listening": listening_json(version.listening),
            "created_at": version.created_at and version.created_at.isoformat(timespec="seconds"),
        }  # fmt: skip
        children = [] if version.train_run_id is None else [self.training(version.train_run_id)]
        if version.parent is not None:
            children.append(self.version(version.parent))
        return Node("version", name, facts, tuple(children))

    def training(self, run_id: uuid.UUID) -> Node:
        run = runs.get_train_run(self.s, run_id)
        facts = {
            "id": str(run.id), "seconds": run.seconds, "commit": run.commit, "job": run.job_id,
            "config": dict(run.config), "artefact_sha256": run.artefact_sha256,
        }  # fmt: skip
        if run.id in self.seen:
            return Node("training", run.kind, {"id": str(run.id), "seen": True})
        self.seen.add(run.id)
        children = [self.snapshot(run.snapshot_id)] if run.snapshot_id else []
        children += [self.reward_model(model) for model in runs.reward_models_of_run(self.s, run.id)]
        return Node("training", run.kind, facts, tuple(children))

    def reward_model(self, model: RewardModelRecord) -> Node:
        facts = {
            "simulated": model.simulated, "encoder": model.encoder, "heads": list(model.heads),
            "artefact_sha256": model.artefact_sha256,
        }  # fmt: skip
        return Node("reward model", model.name, facts, (self.training(model.train_run_id),))

    def snapshot(self, snapshot_id: uuid.UUID) -> Node:
        snapshot = snapshots.get_snapshot(self.s, queries.snapshot_name(self.s, snapshot_id))
        if snapshot.id in self.seen:
            return Node("snapshot", snapshot.name, {"content_sha256": snapshot.content_sha256, "seen": True})
        self.seen.add(snapshot.id)
        facts: dict[str, Any] = {
            "content_sha256": snapshot.content_sha256, "votes": snapshot.members, "simulated": snapshot.simulated,
            "licence": snapshot.licence, "splits": queries.votes_by_split(self.s, snapshot.id),
        }  # fmt: skip
        if self.votes:
            facts["vote_ids"] = [str(vote) for vote, _ in snapshots.snapshot_members(self.s, snapshot.id)]
        return Node("snapshot", snapshot.name, facts, tuple(self._votes(snapshot.id)))

    def _votes(self, snapshot_id: uuid.UUID) -> list[Node]:
        return [
            Node("votes", one.study, {
                "votes": one.votes, "raters": one.raters, "rater_kind": one.kind.value, "prompts": one.prompts,
                "withdrawn": one.withdrawn, "first_at": one.first_at.isoformat(timespec="seconds"),
                "last_at": one.last_at.isoformat(timespec="seconds"),
            })
            for one in queries.votes_by_study(self.s, snapshot_id)
        ]  # fmt: skip


def _snapshot(s: Session, snapshot_id: uuid.UUID | None) -> snapshots.Snapshot | None:
    return snapshots.get_snapshot(s, queries.snapshot_name(s, snapshot_id)) if snapshot_id else None
