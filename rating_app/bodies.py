"""The JSON of requests: unknown keys, infinities and impossible numbers are refused before anything is done."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment.domain import Axis, Consent, Outcome, Side, VoteDraft
from alignment.votes import ListenEvent

IdempotencyKey = Annotated[str, Field(min_length=16, max_length=64, pattern=r"^[0-9a-f]+$")]
Seconds = Annotated[float, Field(ge=0, le=3600)]


class Body(BaseModel):
    """A request's JSON."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ConsentBody(Body):
    version: str = Field(min_length=1, max_length=40)
    training: bool
    publication: bool

    def to_domain(self) -> Consent:
        return Consent(self.version, self.training, self.publication)


class SessionRequest(Body):
    """``study`` and ``invite`` are those of the page's own address."""

    consent: ConsentBody
    study: str | None = Field(None, max_length=200)
    invite: str | None = Field(None, max_length=100)
    background: dict[Annotated[str, Field(max_length=40)], Annotated[str, Field(max_length=80)]] = Field(
        default_factory=dict, max_length=10
    )
    headphone_check: bool | None = None
    audio_route: str | None = Field(None, max_length=40)


class EventBody(Body):
    seq: int = Field(ge=0, lt=1_000_000)
    side: Side
    type: Literal["play", "pause", "seek", "switch", "loop", "ended", "blur", "stall"]
    position: Seconds
    at_ms: int = Field(ge=0, lt=2**53)

    def to_domain(self) -> ListenEvent:
        return ListenEvent(
            seq=self.seq, type=self.type, side=self.side, media_seconds=self.position, client_ms=self.at_ms
        )


class EventsRequest(Body):
    pair: uuid.UUID
    events: list[EventBody] = Field(max_length=500)


class Heard(Body):
    left: Seconds
    right: Seconds


class CommentRange(Body):
    """A moment of one clip, or with ``end`` a stretch of it."""

    side: Side
    start: Seconds
    end: Seconds | None = None

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> CommentRange:
        if self.end is not None and self.end < self.start:
            raise ValueError("the end lies before the start")
        return self


class VoteRequest(Body):
    pair: uuid.UUID
    key: IdempotencyKey
    outcome: Outcome
    axes: dict[Axis, Annotated[int, Field(ge=-2, le=2)]] = Field(default_factory=dict)
    confidence: int | None = Field(None, ge=1, le=3)
    comment: str | None = Field(None, max_length=2000)
    comment_range: CommentRange | None = None
    broken: Side | None = None
    heard: Heard
    switches: int = Field(0, ge=0, lt=1_000_000)
    decision_ms: int | None = Field(None, ge=0, lt=2**53)
    events: list[EventBody] = Field(default_factory=list, max_length=500)

    def to_domain(self) -> VoteDraft:
        place = self.comment_range if self.comment else None
        return VoteDraft(
            assignment_id=self.pair,
            idempotency_key=self.key,
            outcome=self.outcome,
            axes=self.axes,
            confidence=self.confidence,
            comment=self.comment,
            heard_left_seconds=self.heard.left,
            heard_right_seconds=self.heard.right,
            switches=self.switches,
            decision_ms=self.decision_ms,
            comment_side=place.side if place else None,
            comment_start_seconds=place.start if place else None,
            comment_end_seconds=place.end if place else None,
            broken=self.broken,
        )


class FinishRequest(Body):
    """Nothing: the session is in the cookie."""
