"""Which answers of a study may be published, under which licence, and the names that they carry outside."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from alignment.db import figures as queries
from alignment.db.external import licences_of_clips, licences_of_votes
from alignment.db.figures import StudyRating, StudyVote
from alignment.db.studies import Study, get_study
from alignment.domain import RaterKind, RatingOutcome
from alignment.errors import DataError
from alignment.licences import is_known, listed

DEFAULT_LICENCE = "CC BY 4.0"
WITHDRAWN, NO_CONSENT, NO_LICENCE = "withdrawn", "without publication consent", "came under no known licence"


@dataclass(frozen=True)
class Publishable:
    """A study's answers that may leave, and how many stay for which reason. ``licences``: vote or rating id -> licence
    of what it came with; answers of our own on our own clips are left out. ``said``: ids of all its votes."""

    study: Study
    votes: list[StudyVote]
    ratings: list[StudyRating]
    licences: Mapping[uuid.UUID, str]
    withheld: Mapping[str, int]
    said: list[uuid.UUID]

    @property
    def simulated(self) -> bool:
        return self.study.rater_kind == RaterKind.SIMULATED

    def licence_of(self, answer: uuid.UUID, own: str) -> str:
        """The licence of one answer; ``own`` is that of answers which came from nowhere else."""
        return self.licences.get(answer, own)


class Pseudonyms:
    """Names of one export alone: the key is drawn here and forgotten with it."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, kind: str, value: uuid.UUID | str) -> str:
        """16 hex digits; the same thing has the same name within this export and another one in the next."""
        return hmac.new(self._key, f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()[:16]


def publishable(s: Session, study_name: str) -> Publishable:
    """What of a study's answers may be published.

    Of people, only answers whose newest consent in this study allows publication leave, and none of raters who
    withdrew; simulated listeners need no consent. What came from elsewhere leaves under its own licence, and stays when
    nobody stated one. Raises NotFoundError for an unknown study."""
    study = get_study(s, study_name)
    votes = queries.study_votes(s, study.id)
    ratings = [one for one in queries.study_ratings(s, study.id) if one.outcome == RatingOutcome.RATED]
    agreed = queries.publication_consents(s, study.id)
    came = dict(licences_of_votes(s, [vote.vote_id for vote in votes]))
    of_clips = licences_of_clips(s, {one.clip_id for one in ratings})
    came |= {one.rating_id: of_clips[one.clip_id] for one in ratings if one.clip_id in of_clips}
    simulated = study.rater_kind == RaterKind.SIMULATED
    withheld: Counter[str] = Counter()

    def leaves(one: StudyVote | StudyRating) -> bool:
        answer = one.vote_id if isinstance(one, StudyVote) else one.rating_id
        if one.withdrawn:
            withheld[WITHDRAWN] += 1
        elif not (simulated or agreed.get(one.rater_id) is True):
            withheld[NO_CONSENT] += 1
        elif not all(is_known(licence) for licence in came.get(answer, ())):
            withheld[NO_LICENCE] += 1
        else:
            return True
        return False

    out_votes, out_ratings = [v for v in votes if leaves(v)], [r for r in ratings if leaves(r)]
    ids: Collection[uuid.UUID] = [*(v.vote_id for v in out_votes), *(r.rating_id for r in out_ratings)]
    licences = {one: name for one in ids if one in came and (name := listed(came[one])) is not None}
    return Publishable(study, out_votes, out_ratings, licences, withheld, [vote.vote_id for vote in votes])


def require_licence(licence: str) -> str:
    """The licence without spaces around it. Raises DataError for an empty one."""
    if not licence.strip():
        raise DataError(f"The export names no licence; give one, for example {DEFAULT_LICENCE}.")
    return licence.strip()
