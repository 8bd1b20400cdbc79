"""Nights as jobs: a very small one, what a night left behind, and the processes that work for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from jobs_support import Place
from nightly_support import PROGRAMS, cast, changed

from alignment.circle.nightly import NIGHTLY
from alignment.circle.workspace import Workspace
from alignment.db.accounts import list_audit
from alignment.db.base import Base
from alignment.db.gates import list_decisions
from alignment.db.studies import list_studies
from alignment.db.versions import list_versions
from alignment.music.model import MusicModel
from alignment.versions import register_base
from tests.music_support import save_tiny_music

STEPS = [step.name for step in NIGHTLY.steps]
KINDS = {"ATTUNE_JOB_KINDS": "tests.night_kind:KINDS"}
PPO: dict[str, Any] = {
    "name": "ppo", "method": "ppo", "prompts": 6,
    "ppo": {"max_steps": 3, "rollout_prompts": 4, "num_generations": 1, "per_device_train_batch_size": 4,
            "save_steps": 1, "generation": {"clip_seconds": 0.5}},
}  # fmt: skip
DPO: dict[str, Any] = PROGRAMS["align"]["stages"][0]
SMALL: dict[str, Any] = changed(
    PROGRAMS, base="small", min_new_votes=60, listeners=PROGRAMS["listeners"] | {"prompts": 24, "look_votes": 3},
    align=PROGRAMS["align"] | {
        "train_prompts": 8, "more_captions": 4, "stages": [DPO | {"dpo": DPO["dpo"] | {"save_steps": 1}}, PPO],
    },
)  # fmt: skip


def small_night(home: Path, url: str | None = None) -> tuple[Place, str]:
    """A home with a random MusicGen of a hundred thousand weights, and a night that is asked for there."""
    home.mkdir()
    place, folder = Place(home, url), save_tiny_music(home / "base")
    ws = Workspace.open(place.settings)
    register_base(ws.database, name="small", base=str(folder), base_sha256=MusicModel.load(str(folder)).base_sha256)
    ws.database.close()
    return place, place.submit("night", **SMALL)


def outcome(place: Place, job_id: str) -> dict[str, Any]:
    """What a night left behind, without what bears its name: how each step ended, each adapter by its digest, each
    vote, the decision with all it rests on, what the audit log tells, and the rows of every table."""
    job = place.job(job_id)
    assert job.state == "done", (job.state, job.reason, place.log(job_id)[-20:])
    own = hashlib.sha256(job_id.encode()).hexdigest()[:8]

    def plain(thing: Any) -> str:
        return json.dumps(thing, default=str, sort_keys=True).replace(job_id, "JOB").replace(own, "NIGHT")

    ws = Workspace.open(place.settings)
    with ws.database.session(write=False) as s:
        adapters = {plain(version.name): version.adapter_sha256 for version in list_versions(s)}
        names = [study.name for study in list_studies(s)]
        decided = [plain([made.outcome, made.alpha_spent, made.evidence]) for made in list_decisions(s)]
        audit = [plain([entry.actor, entry.action, entry.subject]) for entry in list_audit(s, limit=10_000)]
        rows = {name: s.scalar(sa.select(sa.func.count()).select_from(table))
                for name, table in Base.metadata.tables.items()}  # fmt: skip
    votes = {plain(name): cast(ws, name) for name in names}
    ws.database.close()
    states = {step.name: (step.state, plain(step.reason)) for step in job.steps}
    return {"states": states, "adapters": adapters, "votes": votes, "decisions": decided, "audit": sorted(audit),
            "rows": rows}  # fmt: skip


def reached(place: Place, job_id: str, number: int) -> bool:
    """Whether the job is at its so-manieth step, or further."""
    job = place.job(job_id)
    return not job.is_open or (job.step in STEPS and STEPS.index(job.step) + 1 >= number)


def working(job_id: str) -> list[int]:
    """The process ids of what runs for this job: its step, and its trainer."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"ATTUNE_JOB={job_id}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
