"""What simulated listeners said or taught is marked as such, and cannot be passed off as people's."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignment.circle import learn, listen
from alignment.circle.workspace import Workspace
from alignment.clips import ClipStore
from alignment.config import DpoSettings
from alignment.db import runs, snapshots, versions
from alignment.db.votes import counted_votes
from alignment.domain import Outcome, RaterKind, VoteDraft
from alignment.errors import DataError
from alignment.preferences import freeze_snapshot
from alignment.simulation.listeners import load_listeners
from alignment.votes import VoteService
from tests.database_support import fill, sqlite_database, sqlite_url  # noqa: F401


def workspace(database, tmp_path: Path) -> Workspace:
    return Workspace(database, ClipStore(str(tmp_path / "store")), "a secret for tests")


def voted(database, kind: RaterKind, name: str) -> learn.NamedSnapshot:
    """A recorded snapshot of one vote of this kind in a study of its own."""
    filled = fill(database, kind=kind, study=name, battles=1)
    service = VoteService(database, secret="a secret for tests")
    session = service.open_session(service.enrol_rater("ann", kind=kind), name)
    assignment = service.next_assignment(session, rng=random.Random(0))
    service.record_vote(session, VoteDraft(assignment.id, f"key {name}", Outcome.A))
    with database.session() as s:
        frozen = freeze_snapshot(counted_votes(s, study_ids=[filled.study_id]))
        taken = snapshots.add_snapshot(
            s, name=name, policy={}, high_water_mark=None, content_sha256=frozen.content_sha256, uri="x",
            simulated=frozen.simulated, members=frozen.members,
        )  # fmt: skip
    return learn.NamedSnapshot(name, taken, frozen)


def run_on(s, snapshot_id: uuid.UUID | None) -> uuid.UUID:
    return runs.add_train_run(s, kind="dpo", snapshot_id=snapshot_id, config={}, metrics={})


def test_simulated_listeners_never_vote_in_a_study_of_people(sqlite_database, tmp_path):  # noqa: F811
    fill(sqlite_database, kind=RaterKind.HUMAN)
    with pytest.raises(DataError, match="is for human raters; simulated votes never share a study with theirs"):
        listen.simulate_votes(
            workspace(sqlite_database, tmp_path), "study", load_listeners(), judge=None, raters=2, votes=2, seed=0
        )


def test_a_version_or_reward_model_that_simulated_votes_trained_is_marked(sqlite_database):  # noqa: F811
    taken = {kind: voted(sqlite_database, kind, kind.value) for kind in RaterKind}
    about = {"base": "tiny", "base_sha256": "0" * 64, "adapter_sha256": "1" * 64, "adapter_uri": "x"}
    with pytest.raises(DataError, match="training on simulated votes; mark it"), sqlite_database.session() as s:
        run = run_on(s, taken[RaterKind.SIMULATED].id)
        versions.add_version(s, name="passed off", simulated=False, train_run_id=run, **about)
    with sqlite_database.session() as s:
        for kind, snapshot in taken.items():
            run, simulated = run_on(s, snapshot.id), kind is RaterKind.SIMULATED
            made = versions.add_version(s, name=kind.value, simulated=simulated, train_run_id=run, **about)
            assert made.simulated == simulated
            runs.add_reward_model(
                s, name=kind.value, train_run_id=run, encoder="clap", heads=["preference"], calibration={},
                artefact_sha256="2" * 64, artefact_uri="x",
            )  # fmt: skip
            assert runs.get_reward_model(s, kind.value).simulated == simulated
        versions.add_version(s, name="no votes", simulated=False, train_run_id=run_on(s, None), **about)
        assert {record.name for record in runs.list_reward_models(s) if record.simulated} == {"simulated"}


@pytest.mark.parametrize("kind", list(RaterKind))
@pytest.mark.parametrize("pool", [None, "human", "simulated", "unsaid"])
def test_a_version_is_marked_when_simulated_votes_trained_the_model_that_picked_its_pairs(
    kind,
    pool,
    sqlite_database,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    taken = voted(sqlite_database, kind, "votes")
    ws = workspace(sqlite_database, tmp_path)
    monkeypatch.setattr("alignment.training.examples.examples_from_pairs", lambda *_, **__: [])
    monkeypatch.setattr("alignment.training.best_of_n.best_worst_pairs", lambda *_, **__: [])
    monkeypatch.setattr(
        "alignment.training.dpo.train_dpo",
        lambda *_, **__: SimpleNamespace(adapter_dir=tmp_path, history=[], seconds=1.0),
    )
    monkeypatch.setattr("alignment.music.adapter.check", lambda *_, **__: None)
    monkeypatch.setattr(learn.np, "stack", lambda codes: codes)
    monkeypatch.setattr(Workspace, "policy", lambda self, version: None)
    (tmp_path / "adapter.bin").write_bytes(b"weights")
    said = {} if pool in (None, "unsaid") else {"pool_simulated": pool == "simulated"}
    version, _ = learn.align_dpo(
        ws, "new", parent=ws.version("base"), snapshot=taken, settings=DpoSettings(), run_dir=tmp_path,
        pool=None if pool is None else ([], {}, None), **said,
    )  # fmt: skip
    assert version.simulated == (kind is RaterKind.SIMULATED or pool in ("simulated", "unsaid"))
