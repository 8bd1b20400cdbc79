"""An invite opens a study until it ends, is used up or revoked; the database could not tell its token."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from study_support import voted_study

from alignment import invites
from alignment.db.base import utcnow
from alignment.db.tables import InviteUseRow, ListeningSessionRow
from alignment.errors import DataError, NotFoundError
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)


def test_an_invite_is_found_by_its_token_of_which_only_the_hash_is_kept(any_database):  # noqa: F811
    filled, _ = voted_study(any_database, battles=1, raters=0)
    token = invites.create_invite(any_database, "study", label="class of 2026", actor="olga")
    found = invites.find_invite(any_database, token)
    assert (found.study_name, found.study_id, found.label) == ("study", filled.study_id, "class of 2026")
    with any_database.engine.connect() as connection:
        kept = repr(connection.execute(sa.text("SELECT * FROM invite")).all())
        kept += repr(connection.execute(sa.text("SELECT * FROM audit_log")).all())
    assert token not in kept and "class of 2026" in kept
    for wrong in ("", token[:-1], token + "x", token.swapcase(), "%" * 22):
        assert invites.find_invite(any_database, wrong) is None


def test_an_invite_ends_by_time_by_use_and_by_revocation(any_database, monkeypatch):  # noqa: F811
    filled, _ = voted_study(any_database, battles=1, raters=2)
    once = invites.create_invite(any_database, "study", most_uses=2, actor="olga")
    short = invites.create_invite(any_database, "study", expires_at=utcnow() + timedelta(hours=1), actor="olga")
    open_one = invites.create_invite(any_database, "study", actor="olga")
    with any_database.session() as s:
        sessions = list(s.scalars(sa.select(ListeningSessionRow.id)))
    invite = invites.find_invite(any_database, once)
    for count, session in enumerate(sessions, start=1):
        assert invites.find_invite(any_database, once) == invite
        with any_database.session() as s:
            s.execute(sa.insert(InviteUseRow).values(session_id=session, invite_id=invite.id, created_at=utcnow()))
        by_id = {state.id: state for state in invites.list_invites(any_database, "study")}
        assert by_id[invite.id].uses == count
    assert invites.find_invite(any_database, once) is None
    shown = invites.find_invite(any_database, open_one)
    assert invites.revoke_invite(any_database, "study", shown.id, actor="olga").revoked_at is not None
    assert invites.find_invite(any_database, open_one) is None
    assert invites.find_invite(any_database, short) is not None
    later = utcnow() + timedelta(hours=1)
    monkeypatch.setattr(invites, "utcnow", lambda: later)
    assert invites.find_invite(any_database, short) is None
    standing = sorted(state.standing(later) for state in invites.list_invites(any_database, "study"))
    assert standing == ["expired", "revoked", "used up"]


def test_an_invite_that_makes_no_sense_is_refused(sqlite_database):  # noqa: F811
    voted_study(sqlite_database, battles=1, raters=0)
    for fault in ({"most_uses": 0}, {"expires_at": utcnow() - timedelta(seconds=1)}, {"label": "x" * 201}):
        with pytest.raises(DataError):
            invites.create_invite(sqlite_database, "study", actor="olga", **fault)
    with pytest.raises(NotFoundError):
        invites.create_invite(sqlite_database, "other", actor="olga")
    with pytest.raises(NotFoundError):
        invites.revoke_invite(sqlite_database, "study", __import__("uuid").uuid4(), actor="olga")
