"""Taking one's part back: what is deleted, what is kept out of everything new, and what it reached already."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from alignment.db import people, typed_prompts
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.domain import RaterKind, rater_pseudonym
from alignment.errors import ConfigError, NotFoundError


@dataclass(frozen=True)
class Withdrawal:
    """What a withdrawal did. ``versions_reached`` and ``snapshots`` are those that the rater's votes were part of
    before: they are named, not undone. ``prompts_kept`` are the prompts typed in an arena whose words stay, each with
    the versions that were trained on its clips, or with none because others use the same words. ``repeated``: it had
    been done before."""

    rater_id: uuid.UUID
    withdrawn_at: datetime
    versions_reached: tuple[str, ...]
    snapshots: tuple[str, ...]
    votes: int
    ratings: int
    comments_deleted: int
    prompts_deleted: int
    prompts_kept: tuple[tuple[str, ...], ...]
    repeated: bool

    @property
    def about_prompts(self) -> str:
        """What became of the words that the rater typed, in sentences; empty when they typed none."""
        if not self.prompts_deleted and not self.prompts_kept:
            return ""
        told = [f"{self.prompts_deleted} typed prompts deleted."]
        trained = [versions for versions in self.prompts_kept if versions]
        if trained:
            names = ", ".join(dict.fromkeys(name for versions in trained for name in versions))
            told.append(f"{len(trained)} kept: their clips trained {names}, which could not be retraced without.")
        if shared := len(self.prompts_kept) - len(trained):
            told.append(f"{shared} kept: others use the same words.")
        return " ".join(told)


def rater_of(
    database: Database, secret: str, external_id: str, *, kind: RaterKind = RaterKind.HUMAN
) -> uuid.UUID | None:
    """The rater's id of someone known outside as ``external_id``; None when there is none, or they have withdrawn.

    Raises ConfigError for an empty secret."""
    if not secret:
        raise ConfigError("The secret is empty; set ATTUNE_SECRET to the one under which the votes were given.")
    with database.session(write=False) as s:
        return people.rater_by_pseudonym(s, rater_pseudonym(secret.encode(), kind, external_id))


def withdraw(database: Database, rater_id: uuid.UUID, actor: str) -> Withdrawal:
    """Takes a rater's part back, in one transaction: comments and what they told about themselves are deleted, the
    pseudonym's link is cut, and no new snapshot, comparison or export counts their votes. The votes stay, unlinked:
    they are in the chain that shows tampering, and in snapshots that versions were trained on, which are listed.

    The words that they typed in an arena are deleted too, and what still waits to be sung is not. Kept are words on
    whose clips a version was trained, for its training could not be retraced without them, and words that others use
    as well: another rater who typed the same, or a study of the organisers. A frozen snapshot is never rewritten.

    Done once: again, it returns what was recorded. An audit row names ``actor``. Raises NotFoundError for an unknown
    rater."""
    now = utcnow()
    with database.session() as s:
        rater = people.lock_rater(s, rater_id)
        if rater is None:
            raise NotFoundError(f"No rater has the id {rater_id}; nothing was withdrawn.")
        snapshots = people.snapshots_with(s, rater_id)
        votes, ratings = people.count_answers(s, rater_id)
        known = people.get_withdrawal(s, rater_id)
        if known is not None:
            when, reached = known
            kept = tuple(one.versions for one in typed_prompts.typed_by(s, rater_id))
            return Withdrawal(rater_id, when, reached, snapshots, votes, ratings, 0, 0, kept, repeated=True)
        reached = people.versions_reached(s, rater_id)
        comments = people.delete_comments(s, rater_id)
        typed_prompts.cancel_requests(s, rater_id)
        typed = typed_prompts.typed_by(s, rater_id)
        kept = tuple(one.versions for one in typed if one.versions or one.is_shared)
        for one in typed:
            if not one.versions and not one.is_shared:
                typed_prompts.delete_words(s, one.id)
        people.cut_link(s, rater_id)
        people.add_withdrawal(s, rater_id, versions_reached=reached, now=now)
        people.add_audit(
            s, actor=actor, action="rater.withdraw", subject=str(rater_id), before={"status": rater},
            after={"status": "withdrawn", "versions_reached": list(reached)},
        )  # fmt: skip
    gone = len(typed) - len(kept)
    return Withdrawal(rater_id, now, reached, snapshots, votes, ratings, comments, gone, kept, repeated=False)
