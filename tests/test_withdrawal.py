"""Taking one's part back: words and link are gone, votes stay out of everything new, what they reached is told."""

from __future__ import annotations

import hashlib
import random
import uuid
from datetime import timedelta

import pytest
import sqlalchemy as sa

from alignment.db import runs, snapshots, versions, votes
from alignment.db.prompts import list_prompts
from alignment.db.requests import typed_prompt
from alignment.db.tables import AuditLogRow, PromptRow, RaterRow, VoteCommentRow, VoteTable, WithdrawalRow
from alignment.domain import Outcome, RaterKind, Split, VoteDraft
from alignment.errors import ConfigError, DataError, NotFoundError, VoteRejected
from alignment.requests import ArenaService, RequestQueue
from alignment.votes import VoteService
from alignment.withdrawal import rater_of, withdraw
from tests.arena_support import Clock, make_arena, open_session, rows, silent_clips
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    fill,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)

SECRET = "a secret for tests"


def _vote_on_all(service, who: str) -> tuple[uuid.UUID, uuid.UUID, list[uuid.UUID]]:
    rater = service.enrol_rater(who, kind=RaterKind.HUMAN, cohort="musicians")
    session = service.open_session(rater, "study")
    saved = []
    while (pair := service.next_assignment(session, rng=random.Random(1))) is not None:
        draft = VoteDraft(pair.id, f"key-{pair.id}", Outcome.A, comment=f"{who} says so")
        saved.append(service.record_vote(session, draft).vote_id)
    return rater, session, saved


def _snapshot(s, name: str, members: list[uuid.UUID]) -> uuid.UUID:
    return snapshots.add_snapshot(
        s, name=name, policy={}, high_water_mark=None, content_sha256=uuid.uuid4().hex * 2, uri="x", simulated=False,
        members=[(vote, Split.TRAIN) for vote in members],
    )  # fmt: skip


def _trained(s, name: str, parent: str, snapshot: uuid.UUID | None) -> None:
    run = runs.add_train_run(s, kind="dpo", snapshot_id=snapshot, config={}, metrics={})
    versions.add_version(
        s, name=name, base="tiny", base_sha256="0" * 64, parent=parent, adapter_sha256=uuid.uuid4().hex * 2,
        train_run_id=run,
    )  # fmt: skip


def test_a_withdrawal_deletes_words_and_link_and_lists_what_the_votes_reached(any_database):  # noqa: F811
    filled = fill(any_database, battles=3, kind=RaterKind.HUMAN)
    service = VoteService(any_database, secret=SECRET)
    ann, session, anns = _vote_on_all(service, "ann")
    bob, _, bobs = _vote_on_all(service, "bob")
    with any_database.session() as s:
        both, only_bob = _snapshot(s, "both", [*anns, *bobs]), _snapshot(s, "only bob", bobs)
        _trained(s, "bob's", "base", only_bob)
        _trained(s, "both's", "base", both)
        _trained(s, "child", "both's", only_bob)
        _trained(s, "grandchild", "child", None)
    assert rater_of(any_database, SECRET, "ann") == ann
    done = withdraw(any_database, ann, "the organiser")
    assert done.versions_reached == ("both's", "child", "grandchild")
    assert (done.snapshots, done.votes, done.comments_deleted, done.repeated) == (("both",), 3, 3, False)
    again = withdraw(any_database, ann, "someone else")
    assert (again.withdrawn_at, again.versions_reached, again.repeated) == (
        done.withdrawn_at, done.versions_reached, True,
    )  # fmt: skip
    with any_database.session(write=False) as s:
        row = s.get(RaterRow, ann)
        assert (row.pseudonym, row.cohort, row.background, row.status) == (None, None, {}, "withdrawn")
        assert set(s.scalars(sa.select(VoteCommentRow.text))) == {"bob says so"}
        assert {row.rater_id for row in votes.counted_votes(s, study_ids=[filled.study_id])} == {str(bob)}
        assert votes.chain_faults(s, session) == []  # the votes themselves are still what they were
        assert s.scalar(sa.select(sa.func.count()).select_from(VoteTable)) == 6
        assert s.scalars(sa.select(WithdrawalRow.versions_reached)).all() == [list(done.versions_reached)]
        log = [(row.actor, row.action, row.subject) for row in s.scalars(sa.select(AuditLogRow))]
        assert log == [("the organiser", "rater.withdraw", str(ann))]
    with pytest.raises(DataError, match="3 votes of raters who have withdrawn"), any_database.session() as s:
        _snapshot(s, "new", anns)
    with pytest.raises(VoteRejected, match="withdrawn"):
        service.next_assignment(session, rng=random.Random(1))
    assert rater_of(any_database, SECRET, "ann") is None
    assert service.enrol_rater("ann", kind=RaterKind.HUMAN) != ann  # somebody new, with no past


def test_who_is_unknown_cannot_withdraw(sqlite_database):  # noqa: F811
    with pytest.raises(NotFoundError, match="nothing was withdrawn"):
        withdraw(sqlite_database, uuid.uuid4(), "ann")
    assert rater_of(sqlite_database, SECRET, "nobody") is None
    with pytest.raises(ConfigError, match="ATTUNE_SECRET"):
        rater_of(sqlite_database, "", "nobody")


def test_a_rater_is_found_only_under_the_secret_and_kind_of_their_votes(sqlite_database):  # noqa: F811
    service = VoteService(sqlite_database, secret=SECRET)
    ann = service.enrol_rater("ann", kind=RaterKind.HUMAN)
    assert rater_of(sqlite_database, SECRET, "ann") == ann
    assert rater_of(sqlite_database, "another secret", "ann") is None
    assert rater_of(sqlite_database, SECRET, "ann", kind=RaterKind.SIMULATED) is None


# What was typed in an arena ----------------------------------------------------------------------------------------


class Typing:
    """An arena in which people type, a worker sings, and what was sung is voted on."""

    def __init__(self, database) -> None:
        self.database, self.clock, self.rng = database, Clock(), random.Random(1)
        make_arena(database, requests_per_hour=30)
        self.arena = ArenaService(database, clock=self.clock)
        self.queue = RequestQueue(database, worker="w", takeover_seconds=30, clock=self.clock)
        self.votes = VoteService(database, secret="a secret for tests only", clock=self.clock)

    def ask(self, session: uuid.UUID, text: str) -> uuid.UUID:
        return self.arena.ask(session, text, rng=self.rng).id

    def sing(self, session: uuid.UUID, text: str) -> uuid.UUID:
        """The vote on what came of these words."""
        self.ask(session, text)
        held = self.queue.claim()
        assert self.queue.finish(held, silent_clips(held))
        pair = self.votes.next_assignment(session, rng=self.rng)
        return self.votes.record_vote(session, VoteDraft(pair.id, f"key-{pair.id}", Outcome.A)).vote_id


def test_typed_words_go_with_the_rater_unless_a_version_was_trained_on_their_clips_or_others_use_them(
    any_database,  # noqa: F811
):
    typing = Typing(any_database)
    ann = open_session(any_database, rater="ann")
    with any_database.session() as s:
        typed_prompt(s, "an organiser's words", split=Split.TRAIN, source="organiser")
    for text in ("only mine", "sung and frozen", "an organiser's words", "ours"):
        vote = typing.sing(ann, text)
        if text == "sung and frozen":
            frozen = vote
    trained = typing.sing(ann, "sung and trained")
    bob = open_session(any_database, rater="bob")
    typing.sing(bob, "ours")
    with any_database.session() as s:
        _trained(s, "v2", "base", _snapshot(s, "used", [trained]))
        _snapshot(s, "never used", [frozen])
    waiting = typing.ask(ann, "not sung yet")
    typing.clock.now += timedelta(seconds=1)
    typing.ask(bob, "bob's own")
    who = rater_of(any_database, "a secret for tests only", "ann")
    done = withdraw(any_database, who, "the organiser")
    assert (done.prompts_deleted, sorted(done.prompts_kept)) == (3, [(), ("v2",)])
    assert done.about_prompts == (
        "3 typed prompts deleted. 1 kept: their clips trained v2, which could not be retraced without. "
        "1 kept: others use the same words."
    )
    with any_database.session(write=False) as s:
        left = {row.text: row.source for row in s.scalars(sa.select(PromptRow))}
        hashes = set(s.scalars(sa.select(PromptRow.sha256)))
        assert "" not in {prompt.text for prompt in list_prompts(s)}  # nobody sings what is gone
    assert left == {
        "": "withdrawn", "an organiser's words": "organiser", "ours": "arena", "sung and trained": "arena",
        "bob's own": "arena",
    }  # fmt: skip
    for gone in ("only mine", "sung and frozen", "not sung yet"):
        assert hashlib.sha256(gone.encode()).hexdigest() not in hashes  # nor may a guess be tried against it
    held = typing.queue.claim()
    assert held.prompt_text == "bob's own" and held.id != waiting
    again = withdraw(any_database, who, "the organiser")
    assert (again.repeated, again.prompts_deleted, sorted(again.prompts_kept)) == (True, 0, [(), ("v2",)])
    with any_database.session() as s:  # whoever types the same words later has a prompt of their own
        assert typed_prompt(s, "only mine", split=Split.TRAIN, source="arena")
    later = withdraw(any_database, rater_of(any_database, "a secret for tests only", "bob"), "the organiser")
    assert (later.prompts_deleted, later.prompts_kept) == (2, ())  # nobody is left who typed "ours"


def test_a_withdrawal_while_a_worker_sings_the_words_leaves_nothing_of_them(any_database):  # noqa: F811
    typing = Typing(any_database)
    ann = open_session(any_database, rater="ann")
    typing.ask(ann, "only mine")
    held = typing.queue.claim()
    withdraw(any_database, rater_of(any_database, "a secret for tests only", "ann"), "the organiser")
    assert not typing.queue.finish(held, silent_clips(held))
    assert [tuple(row) for row in rows(any_database, "prompt", "text, source")] == [("", "withdrawn")]
    assert [row[0] for row in rows(any_database, "generation_request", "state")] == ["failed"]


def test_a_rater_who_typed_nothing_is_told_nothing_of_prompts(sqlite_database):  # noqa: F811
    service = VoteService(sqlite_database, secret=SECRET)
    assert withdraw(sqlite_database, service.enrol_rater("ann", kind=RaterKind.HUMAN), "o").about_prompts == ""
