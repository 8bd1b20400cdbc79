"""Versions with a pedigree, a comparison with clips that sound, and jobs in every state: what those pages show."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from admin_support import HOSTILE, QUICK, SECRET, AdminSite, admin_site
from fastapi import FastAPI

from alignment.clips import ClipStore
from alignment.config import Settings
from alignment.db import clips, comparisons, gates, job_workers, jobs, prompts, runs, snapshots, versions
from alignment.db.base import utcnow
from alignment.db.clips import NewClip
from alignment.db.comparisons import Difference, Measured, NewComparison
from alignment.db.engine import open_database
from alignment.db.tables import VersionRow, VoteTable
from alignment.db.tables_jobs import JobRow
from alignment.domain import GenerationConfig, Split, VersionStatus
from alignment.jobs.status import ledger_of
from rating_app.admin import mount_admin

RATE_HZ = 16_000
SETTING = GenerationConfig(clip_seconds=1.5)
NAMES = ("musicgen-small", "dpo-7", "dpo-8")
STEPS = ("count votes", "snapshot", "reward model", "align", "register", "generate", "checks", "study", "report")
PROMPTS = ("slow solo cello in a church", "driving techno, 132 bpm", "a bright marimba over soft pads", "brass fanfare")


@dataclass
class Bench:
    """A site with versions, a comparison and jobs. ``site.study_id`` is admin_support's study."""

    site: AdminSite
    settings: Settings
    comparison: uuid.UUID
    running: str
    failed: str
    clips: list[uuid.UUID]

    @property
    def ledger(self):
        return ledger_of(self.settings)

    def version(self, name: str) -> versions.Version:
        with self.site.database.session(write=False) as s:
            return versions.get_version(s, name)

    def page(self, name: str) -> str:
        """The address of a version's page."""
        return f"/admin/versions/{self.version(name).id}"


def bench_site(folder: Path) -> Bench:
    """admin_support's site, with what these pages show."""
    settings = Settings(database_url=f"sqlite:///{folder / 'attune.db'}", store=str(folder / "store"), secret=SECRET)
    site = admin_site(folder, settings=settings)
    _versions(site)
    comparison, ids = _comparison(site)
    running, failed = _jobs(settings)
    written = folder / "jobs" / running
    written.mkdir(parents=True)
    (written / "report.html").write_text("<!doctype html><title>A night</title>")
    return Bench(site, settings, comparison, running, failed, ids)


def reopened(folder: Path) -> AdminSite:
    """The site over the database that stands in this folder, with its accounts."""
    settings = Settings(database_url=f"sqlite:///{folder / 'attune.db'}", store=str(folder / "store"), secret=SECRET)
    database, store, app = open_database(settings.database_url), ClipStore(settings.store), FastAPI()
    admin = mount_admin(app, database, store, secret=SECRET, hasher=QUICK, settings=settings)
    return AdminSite(database, store, app, admin)


def _versions(site: AdminSite) -> None:
    """dpo-8, trained from dpo-7 on a snapshot of all votes, which the gate promoted over musicgen-small."""
    with site.database.session() as s:
        votes = list(s.scalars(sa.select(VoteTable.id).order_by(VoteTable.id)))
        snapshot = snapshots.add_snapshot(
            s, name="votes-3", policy={}, high_water_mark=None, content_sha256="5" * 64, uri="snapshots/5",
            simulated=False, licence="CC-BY-4.0",
            members=[(vote, Split.TRAIN if n % 4 else Split.TEST) for n, vote in enumerate(votes)],
        )  # fmt: skip
        run = runs.add_train_run(
            s, kind="dpo", snapshot_id=snapshot, config={"beta": 0.1, "lora": {"r": 16}}, metrics={"loss": 0.61},
            artefact_sha256="8" * 64, artefact_uri="adapters/8", seconds=5130.0, commit="c0ffee" * 6,
            job_id="nightly-4",
        )  # fmt: skip
        made = versions.add_version(
            s, name="dpo-8", base="folder", base_sha256="0" * 64, parent="dpo-7", adapter_sha256="8" * 64,
            adapter_uri="adapters/8", train_run_id=run, commit="c0ffee" * 6,
        )  # fmt: skip
        parent = versions.get_version(s, "musicgen-small")
        s.execute(sa.update(VersionRow).where(VersionRow.name.in_(("dpo-7", "expert-2"))).values(parent_id=parent.id))
        s.execute(sa.update(VersionRow).where(VersionRow.name == "expert-2").values(simulated=True))
        s.execute(
            sa.update(VersionRow).where(VersionRow.name.in_(("dpo-7", "expert-2"))).values(adapter_sha256="9" * 64)
        )
        versions.set_status(s, parent, VersionStatus.CHAMPION)
        assert made.parent == "dpo-7"
        gates.record_decision(
            s, candidate="dpo-8", champion="musicgen-small", outcome="promoted", alpha_spent=0.005,
            evidence={"simulated": False, "reasons": [
                {"check": "voters", "state": "pass", "sentence": "People voted."},
                {"check": "champion", "state": "pass", "sentence": "It won: win rate 64.1% [56.2%, 71.3%]."},
                {"check": "axis quality", "state": "open", "sentence": "Nobody has compared quality yet."}]},
        )  # fmt: skip


def tone(seed: int, seconds: float = 1.5) -> np.ndarray:
    """A chord with a falling envelope, (samples,), unlike any other seed's."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    wave = sum(np.sin(2 * np.pi * hz * t + rng.uniform(0, 6)) for hz in rng.uniform(120, 1400, 3))
    beat = 0.35 + 0.65 * np.exp(-4 * (t * rng.uniform(2, 4) % 1))
    return (0.2 * beat * wave).astype(np.float32)


def _comparison(site: AdminSite) -> tuple[uuid.UUID, list[uuid.UUID]]:
    """Three versions on four prompts, two takes each, with two figures, one of them clearly different; and a hostile
    prompt that two versions sang."""
    with site.database.session() as s:
        asked = prompts.add_prompts(s, [(text, "tests", Split.TEST, {}) for text in PROMPTS])
        new = []
        for at, prompt in enumerate(asked):
            for v, name in enumerate(NAMES):
                for take in range(2):
                    sha256, facts = site.store.put_audio(tone(100 * at + 10 * v + take), RATE_HZ)
                    new.append(NewClip(prompt.id, name, SETTING, 900 + take, sha256, None, facts))
        sung = clips.add_clips(s, new)
        hostile = prompts.add_prompts(s, [(HOSTILE, "tests", Split.TEST, {})])[0]
        more = (
            (n, name, site.store.put_audio(tone(900 + n), RATE_HZ)) for n, name in enumerate((NAMES[0], "expert-2"))
        )
        clips.add_clips(s, [NewClip(hostile.id, name, SETTING, n, sha, None, facts) for n, name, (sha, facts) in more])
        figures = [
            Measured(name, metric, model, 8, value + 0.02 * v, value + 0.02 * v - 0.008, value + 0.02 * v + 0.008)
            for metric, model, value in (("clap_score", "laion/clap-htsat-unfused", 0.31), ("silence", None, 0.012))
            for v, name in enumerate(NAMES)
        ]
        apart = [
            Difference("dpo-8", "musicgen-small", "clap_score", "laion/clap-htsat-unfused", 8, 0.04, 0.02, 0.06),
            Difference("dpo-7", "musicgen-small", "silence", None, 8, 0.01, -0.02, 0.04),
        ]
        made = comparisons.save_comparison(
            s,
            NewComparison(
                "autumn", NAMES, tuple(clip.id for clip in sung), tuple(figures), tuple(apart),
                {"confidence": 0.95, "clips_per_prompt": 2, "prompt_set": None}, {"reference": "musicgen-small"},
                "7" * 64, job_id="compare-1",
            ),
        )  # fmt: skip
        comparisons.attach_study(s, "autumn", "Autumn listening")
    return made.id, [clip.id for clip in sung]


def _jobs(settings: Settings) -> tuple[str, str]:
    """A job that runs (43% of its training), one that waits for votes, and some that ended; a plan and a worker."""
    now = utcnow()
    with ledger_of(settings).session() as s:
        job_workers.beat(s, name="gpu-1", host="gpu-1", pid=7, code="c1")
        job_workers.add_schedule(
            s, name="nightly", kind="nightly", cron="0 3 * * *", recipe={}, next_at=now + timedelta(hours=5),
            asked_by="ada",
        )  # fmt: skip
        for job_id, hours, done, state, reason in (
            ("nightly-1", 74, 9, "done", "dpo-6 is rejected: it lost, win rate 44% [37%, 50%]."),
            ("nightly-2", 50, 1, "done", "17 new votes, fewer than 100: nothing to do."),
            ("nightly-3", 26, 3, "failed", "The GPU ran out of memory in align; set per_device_train_batch_size to 4."),
            ("nightly-4", 2, 3, "running", None),
        ):
            jobs.add_job(s, job_id=job_id, kind="nightly", recipe={"least_votes": 100}, asked_by="schedule nightly")
            jobs.step_names(s, job_id, STEPS)
            began = now - timedelta(hours=hours)
            s.execute(sa.update(JobRow).where(JobRow.id == job_id).values(created=began, started=began))
            for n, name in enumerate(STEPS[:done]):
                jobs.set_step(s, job_id, name, state="done", seconds=3.0 + 40 * n, started=began, ended=began)
            if state == "done":
                for name in STEPS[done:]:
                    jobs.set_step(s, job_id, name, state="skipped", reason="the job ended before it")
            else:
                jobs.set_step(
                    s, job_id, STEPS[done], state=state, reason=reason, share=0.43, text="step 430 of 1000",
                    started=now - timedelta(minutes=20), attempts=1,
                )  # fmt: skip
            if state == "running":
                jobs.move_job(s, job_id, to="running", step=STEPS[done], executor="gpu-1")
                jobs.add_lines(s, job_id, [f"loss {1 / (n + 1):.4f}" for n in range(30)], step="align")
                jobs.add_line(s, job_id, "\x1b[31mred\x1b[0m and " + HOSTILE, step="align")
            else:
                jobs.end_job(s, job_id, state, reason)
                s.execute(sa.update(JobRow).where(JobRow.id == job_id).values(ended=began + timedelta(hours=1)))
        jobs.add_job(s, job_id="compare-1", kind="compare", recipe={"versions": list(NAMES)}, asked_by="ada")
        jobs.step_names(s, "compare-1", ("sing", "measure", "battles", "page"))
        for n, name in enumerate(("sing", "measure", "battles", "page")):
            jobs.set_step(s, "compare-1", name, state="done", seconds=40.0 + n)
        jobs.end_job(s, "compare-1", "done", None)
        began = now - timedelta(hours=4)
        times = {"created": began, "started": began, "ended": began + timedelta(seconds=170)}
        s.execute(sa.update(JobRow).where(JobRow.id == "compare-1").values(**times))
    return "nightly-4", "nightly-3"
