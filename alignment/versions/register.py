"""How versions come to be: a base by its checksum, an adapter with the training that made it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from alignment.clips import ClipStore
from alignment.db import runs, versions
from alignment.db.at_once import one_at_a_time
from alignment.db.engine import Database
from alignment.db.people import add_audit
from alignment.domain import GenerationConfig, Version
from alignment.errors import DataError, ModelError
from alignment.rewards.licences import UNKNOWN, licence_of_folder

BASE_NAME = "tiny-base"
TINY_LICENCE, MUSICGEN_LICENCE = "MIT", "CC-BY-NC-4.0"  # as their cards say


def register_base(
    database: Database, *, name: str, base: str, base_sha256: str, listening: GenerationConfig | None = None,
    licence: str | None = None,
) -> Version:  # fmt: skip
    """The base model as a version without adapter; the same base again gives the same version.

    ``licence`` defaults to what is known of the base: attune-tiny's, MusicGen's, or what its folder's card says."""
    licence = licence or licence_of_base(base)
    with database.session() as s:
        one_at_a_time(s, "version", name)
        known = versions.find_version(s, name)
        version = versions.add_version(
            s, name=name, base=base, base_sha256=base_sha256, listening=listening, licence=licence
        )
        if known is None:
            add_audit(s, actor="engine", action="version.register", subject=name, after=_content(version))
        return version


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
    listening: GenerationConfig | None = None,
    licence: str | None = None,
    job_id: str | None = None,
    actor: str | None = None,
) -> Version:
    """Store the adapter by content, record its training run and the version, in one transaction.

    ``run`` holds ``add_train_run``'s kind, snapshot_id, config, metrics, seconds and reward_models. ``listening`` and
    ``licence`` default to the parent's. The same ``job_id``, or the same name with the same content, gives the version
    that was registered then, and nothing is recorded twice.

    Raises ModelError for an adapter that is damaged, not finite or of another base than the parent's; DataError when
    the name stands for something else, or the job registered another version."""
    job_id = job_id or run.get("job_id")
    with database.session(write=False) as s:
        if (known := _of_job(s, job_id, name)) is not None:
            return known
    from alignment.music.adapter import check

    check(Path(adapter), base_sha256=parent.base_sha256)
    sha256, uri = store.put_folder(adapter)
    content = {
        "name": name, "base": parent.base, "base_sha256": parent.base_sha256, "parent": parent.name,
        "adapter_sha256": sha256, "adapter_uri": uri, "commit": commit, "simulated": simulated,
        "listening": listening or parent.listening, "licence": licence or parent.licence,
    }  # fmt: skip
    with database.session() as s:
        one_at_a_time(s, "version", name)
        if (known := _of_job(s, job_id, name)) is not None:
            return known
        if versions.find_version(s, name) is not None:
            return versions.add_version(s, **content)
        run_id = runs.add_train_run(
            s, **{**run, "job_id": job_id}, artefact_sha256=sha256, artefact_uri=uri, commit=commit
        )
        version = versions.add_version(s, **content, train_run_id=run_id)
        who = actor or (f"job:{job_id}" if job_id else "engine")
        add_audit(s, actor=who, action="version.register", subject=name, after=_content(version))
        return version


def require_base(version: Version, base_sha256: str) -> None:
    """Raises ModelError when the base at hand is not the one that the version was registered on."""
    if base_sha256 != version.base_sha256:
        raise ModelError(
            f"Version {version.name} was registered on base {version.base} {version.base_sha256[:12]}, the files "
            f"there are now {base_sha256[:12]}; restore the old files or register the new base."
        )


def licence_of_base(base: str) -> str | None:
    """What is known of a base's licence; None when nothing is."""
    if base == "tiny":
        return TINY_LICENCE
    if re.match(r"facebook/musicgen-", base):
        return MUSICGEN_LICENCE
    found = licence_of_folder(base) if Path(base).is_dir() else UNKNOWN
    return None if found == UNKNOWN else found


def _of_job(s: Session, job_id: str | None, name: str) -> Version | None:
    if job_id is None:
        return None
    known = versions.version_of_job(s, job_id)
    if known is not None and known.name != name:
        raise DataError(
            f"Job {job_id} has registered version {known.name} already and now names it {name}; give each version of "
            "a job a job id of its own."
        )
    return known


def _content(version: Version) -> dict[str, str | bool | None]:
    return {
        "name": version.name, "base_sha256": version.base_sha256, "adapter_sha256": version.adapter_sha256,
        "parent": version.parent, "simulated": version.simulated,
    }  # fmt: skip
