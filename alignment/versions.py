"""The registry of versions: bases and adapters with their lineage, down to the votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.clips import ClipStore
from alignment.db import runs, snapshots, versions
from alignment.db.engine import Database
from alignment.domain import Version

BASE_NAME = "tiny-base"


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


def register_base(database: Database, *, name: str, base: str, base_sha256: str) -> Version:
    """The base model as a version without adapter; the same base again gives the same version."""
    with database.session() as s:
        return versions.add_version(s, name=name, base=base, base_sha256=base_sha256)


def register_adapter(
    database: Database,
    store: ClipStore,
    *,
    name: str,
    parent: Version,
    adapter: Path,
    run: Mapping[str, Any],
    commit: str | None,
    simulated: bool,
) -> Version:
    """Store the adapter by content, record its training run and the version, in one transaction.

    ``run`` holds ``add_train_run``'s kind, snapshot_id, config, metrics and seconds.
    Raises DataError when the name stands for something else."""
    sha256, uri = store.put_folder(adapter)
    with database.session() as s:
        run_id = runs.add_train_run(s, **run, artefact_sha256=sha256, artefact_uri=uri, commit=commit)
        return versions.add_version(
            s, name=name, base=parent.base, base_sha256=parent.base_sha256, parent=parent.name,
            adapter_sha256=sha256, adapter_uri=uri, train_run_id=run_id, commit=commit, simulated=simulated,
        )  # fmt: skip


def lineage(database: Database, name: str) -> list[Ancestor]:
    """The version and its ancestors, newest first. Raises NotFoundError naming the known versions."""
    out: list[Ancestor] = []
    with database.session(write=False) as s:
        known = {snapshot.id: snapshot for snapshot in snapshots.list_snapshots(s)}
        current: str | None = name
        while current is not None:
            version = versions.get_version(s, current)
            if version.train_run_id is None:
                out.append(Ancestor(version))
            else:
                run = runs.get_train_run(s, version.train_run_id)
                snapshot = known.get(run.snapshot_id) if run.snapshot_id else None
                out.append(
                    Ancestor(
                        version,
                        run.kind,
                        snapshot and snapshot.name,
                        snapshot and snapshot.content_sha256,
                        snapshot and snapshot.members,
                        run.config,
                        run.metrics,
                    )  # fmt: skip
                )
            current = version.parent
    return out
