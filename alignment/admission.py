"""Who may open a listening session of a study, and what is recorded when they do."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from alignment.db import listening, people
from alignment.db.studies import get_study
from alignment.domain import Consent
from alignment.errors import DataError, NotFoundError, VoteRejected
from alignment.studies import rules_of


def check_open(state: str) -> None:
    """Raises VoteRejected with a sentence for the rater when a study in this state serves nothing."""
    if state != "open":
        raise VoteRejected(listening.not_open(state))


def admit(
    s: Session,
    rater_id: uuid.UUID,
    study_name: str,
    *,
    now: datetime,
    consent: Consent | None,
    invite_id: uuid.UUID | None,
    background: Mapping[str, str] | None,
    **about: Any,
) -> uuid.UUID:
    """The id of a new session of the study; ``about`` are its other columns. See VoteService.open_session."""
    study = get_study(s, study_name)
    rater = listening.get_rater(s, rater_id)
    if rater is None:
        raise NotFoundError(f"No rater has the id {rater_id}; enrol the rater first.")
    kind, status = rater
    if status != "active":
        raise DataError(f"This rater is {status} and takes part in no further study.")
    if kind != study.rater_kind:
        raise DataError(f"Study {study_name} is for {study.rater_kind.value} raters; this one is {kind.value}.")
    check_open(study.state)
    rules = rules_of(study)
    if invite_id is not None:
        fault = people.invite_fault(s, invite_id, study.id, now)
        if fault is not None:
            raise VoteRejected(fault)
    elif rules.access == "invited" and not people.was_invited(s, rater_id, study.id):
        raise VoteRejected("This study is by invitation; open the link that you were sent.")
    if consent is not None:
        wanted = rules.onboarding.consent_version
        if study.rules and consent.text_version != wanted:
            raise VoteRejected("The consent text has changed since you read it; reload the page to read it.")
        people.add_consent(s, rater_id=rater_id, study_id=study.id, consent=consent, now=now)
    if background:
        told = _background(background, rules.onboarding.background)
        cohort = ", ".join(f"{name}: {told[name]}" for name in rules.onboarding.background if name in told)
        people.tell_background(s, rater_id, told, cohort or None)
    session_id = listening.add_session(
        s,
        rater_id=rater_id,
        study_id=study.id,
        now=now,
        **about,
    )
    if invite_id is not None:
        people.add_invite_use(s, session_id=session_id, invite_id=invite_id, now=now)
    return session_id


def _background(told: Mapping[str, str], asked: Sequence[str]) -> dict[str, str]:
    for name, answer in told.items():
        if name not in asked:
            raise VoteRejected(f"This study does not ask about {name!r}.")
        if not isinstance(answer, str) or not 0 < len(answer.strip()) <= 80:
            raise VoteRejected("An answer about yourself must have 1 to 80 characters.")
    return {name: answer.strip() for name, answer in told.items()}
