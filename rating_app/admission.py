"""Who may take part in which study: the study an address names, the invitation, and the session there is already."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy.orm import Session

from alignment.db.engine import Database
from alignment.db.invites import invite_by_hash
from alignment.db.listening import not_open
from alignment.db.sessions import SessionRecord, get_sessions
from alignment.db.studies import Study, get_study, get_study_by_id
from alignment.domain import RaterKind
from alignment.errors import NotFoundError
from alignment.invites import find_invite
from alignment.studies import StudyRecipe, rules_of

UNKNOWN_STUDY = "There is no study at this address. Check the link that you were given."
INVITED_ONLY = "This study is by invitation. Open the link in your invitation."
INVITE_OVER = "This invitation does not open the study any more. Ask the people who sent it for a new one."


@dataclass(frozen=True)
class Admission:
    """What an address leads to. ``invited`` is None for an open study; ``problem`` is a sentence for the rater.

    ``session_id`` is the browser's session in the study, to be gone on with."""

    study: Study | None = None
    rules: StudyRecipe | None = None
    session_id: uuid.UUID | None = None
    invite_id: uuid.UUID | None = None
    invited: bool | None = None
    problem: str | None = None


def admit(
    database: Database,
    *,
    study_name: str | None,
    invite: str | None,
    sessions: Sequence[uuid.UUID],
    default: str,
) -> Admission:
    """Where this browser stands. An invitation goes before a study's name; without either it is the study that the
    browser took part in last, or the default one."""
    opened = find_invite(database, invite) if invite else None
    with database.session(write=False) as s:
        known = get_sessions(s, sessions)
        mine = [known[session] for session in sessions if session in known and known[session].active]
        if invite:
            study_id = opened.study_id if opened else _invited_before(s, invite)
            study = get_study_by_id(s, study_id) if study_id else None
            if study is None:
                return Admission(invited=False, problem=INVITE_OVER)
        elif study_name:
            study = _by_name(s, study_name)
        else:
            study = _last(s, mine) or _by_name(s, default)
    if study is None or study.rater_kind is not RaterKind.HUMAN or study.state == "draft":
        return Admission(problem=UNKNOWN_STUDY)
    rules = rules_of(study)
    session = next((record for record in mine if record.study_id == study.id), None)
    by_invitation = rules.access == "invited"
    problem = None
    if study.state != "open":
        problem = not_open(study.state)
    elif session is None and opened is None and (by_invitation or invite):
        problem = INVITE_OVER if invite else INVITED_ONLY
    return Admission(
        study,
        rules,
        session.id if session and session.finished_at is None else None,
        opened.id if opened else None,
        (opened is not None or session is not None) if by_invitation else None,
        problem,
    )


def _by_name(s: Session, name: str) -> Study | None:
    try:
        return get_study(s, name)
    except NotFoundError:
        return None


def _last(s: Session, mine: Sequence[SessionRecord]) -> Study | None:
    for record in mine:
        study = get_study_by_id(s, record.study_id)
        if study.state == "open" and record.finished_at is None:
            return study
    return None


def _invited_before(s: Session, token: str) -> uuid.UUID | None:
    """The study of an invitation that is used up, perhaps by this browser, which then goes on."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{22}", token):
        return None
    found = invite_by_hash(s, sha256(token.encode()).hexdigest())
    return found[1] if found else None
