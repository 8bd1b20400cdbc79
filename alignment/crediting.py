"""What a rater is credited with having heard of a pair: their claims, held against time and the player's events."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy.orm import Session

from alignment.answers import ListenEvent, plain
from alignment.db import vote_path
from alignment.domain import Side, VoteDraft
from alignment.listening_credit import Ledger, capped, coverage, room

Claims = dict[uuid.UUID, tuple[float, datetime]]  # seconds heard of a pair, and since when they could be


class Crediting:
    """Remembers what raters claimed, checked against the database's count of their votes. Safe for threads."""

    def __init__(self, *, slack_seconds: float, require_fetch: bool) -> None:
        self._slack = slack_seconds
        self._require_fetch = require_fetch
        self._ledger = Ledger()
        self._guard = threading.Lock()

    def claims(self, s: Session, pair: vote_path.VoteContext, standing: vote_path.Standing) -> Claims:
        """What the rater claimed to have heard of each pair so far."""
        with self._guard:
            known = self._ledger.get(pair.rater_id, standing.votes)
            if known is not None:
                return dict(known)
        claims: Claims = {}
        for assignment_id, seconds, since in vote_path.claims(s, pair.rater_id):
            claims[assignment_id] = (max(seconds, claims.get(assignment_id, (0.0, since))[0]), since)
        return claims

    def credited(
        self,
        s: Session,
        pair: vote_path.VoteContext,
        draft: VoteDraft,
        claims: Mapping[uuid.UUID, tuple[float, datetime]],
        told: Sequence[ListenEvent] | None,
        rows: Sequence[Mapping[str, object]],
        now: datetime,
    ) -> VoteDraft:
        """The draft with the seconds that can have been heard: of each clip no more than it has and than the player's
        events allow where they are complete, of all clips no more than the time there was."""
        left, right = (
            min(claimed, length)
            for claimed, length in zip((draft.heard_left_seconds, draft.heard_right_seconds), pair.seconds, strict=True)
        )
        if rows:
            # Only the player's last word tells how many events there were; it comes with the vote.
            last = max(row["seq"] for row in rows)
            listed = vote_path.read_events(s, pair.assignment_id) if told is None else [plain(one) for one in told]
            covered = coverage(listed, max(pair.seconds), last_seq=last)
            if covered is not None:
                left, right = min(left, covered[Side.LEFT]), min(right, covered[Side.RIGHT])
        since = pair.fetched_at or (None if self._require_fetch else pair.served_at)
        allowed = 0.0
        if since is not None:
            others = [claim for other, claim in claims.items() if other != pair.assignment_id]
            allowed = room(others, since=since, now=now, slack_seconds=self._slack)
        left, right = capped(left, right, allowed)
        return replace(draft, heard_left_seconds=left, heard_right_seconds=right)

    def note(self, pair: vote_path.VoteContext, draft: VoteDraft, claims: Claims, votes: int) -> None:
        """Remembers, after the commit, the claims with this pair's own; ``votes``: how many the rater has now."""
        heard = draft.heard_left_seconds + draft.heard_right_seconds
        since = pair.fetched_at or pair.served_at
        claims[pair.assignment_id] = (max(heard, claims.get(pair.assignment_id, (0.0, since))[0]), since)
        with self._guard:
            self._ledger.put(pair.rater_id, votes, claims)
