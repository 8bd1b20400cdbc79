"""Routes of the absolute rating mode: the next clip, its sound, what was said of it. Nothing tells a clip's kind."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from alignment.db.clips import get_clips
from alignment.db.ratings import get_served
from alignment.domain import RatingDraft, RatingOutcome, Side
from rating_app.bodies import Body, IdempotencyKey, Seconds
from rating_app.flac import alone
from rating_app.perimeter import note_of
from rating_app.routes import Service, Session, progress_json, session_of, sessions_of, tokens_of
from rating_app.sending import NO_STORE, audio_answer
from rating_app.service import RatingService

router = APIRouter()
MOST_IN_HAND = 20


class RatingRequest(Body):
    item: uuid.UUID
    key: IdempotencyKey
    outcome: RatingOutcome = RatingOutcome.RATED
    quality: int | None = Field(None, ge=1, le=100)
    relevance: int | None = Field(None, ge=1, le=100)
    mos: int | None = Field(None, ge=1, le=5)
    heard: Seconds
    decision_ms: int | None = Field(None, ge=0, lt=2**53)


@router.get("/rate/item")
def item(request: Request, service: Service, session_id: Session) -> Response:
    """The next clip; ``except`` lists those the browser holds already (on the page, or rated and not yet saved)."""
    listed = request.query_params.get("except", "")
    try:
        in_hand = [uuid.UUID(hex=text) for text in listed.split(",") if text][:MOST_IN_HAND]
    except ValueError:
        raise HTTPException(422, "The list of clips in hand cannot be read.") from None
    found = service.votes.next_rating(session_id, rng=service.rng, in_hand=in_hand)
    told = None
    if found is not None:
        # The address is made like a pair's; a rating assignment has one side only.
        token = tokens_of(request).clip_token(session_id, found.id, Side.LEFT)
        told = {"id": found.id.hex, "prompt": found.prompt_text, "clip": f"/clip/item/{token}"}
    return JSONResponse({"item": told, "progress": progress_json(service.progress(session_id))}, headers=NO_STORE)


@router.api_route("/clip/item/{token}", methods=["GET", "HEAD"])
def item_clip(token: str, request: Request, service: Service) -> Response:
    """The clip's FLAC, without tags, as large as all of its length; only the session it was served to gets it."""
    session_of(request)  # refuses a browser without sessions
    for session_id in sessions_of(request):
        address = tokens_of(request).read_clip_token(session_id, token)
        if address is not None and address[1] is Side.LEFT:
            data = _sound(service, session_id, address[0])
            if request.method == "GET":
                service.votes.note_rating_fetched(session_id, address[0])
            return audio_answer(request, data)
    raise HTTPException(404, "There is no such clip in this session.")


@router.post("/rate/ratings")
def rate(body: RatingRequest, request: Request, service: Service, session_id: Session) -> Response:
    """Records the rating; answers after the commit and never before."""
    receipt = service.votes.record_rating(
        session_id,
        RatingDraft(
            assignment_id=body.item,
            idempotency_key=body.key,
            outcome=body.outcome,
            quality=body.quality,
            relevance=body.relevance,
            mos=None if body.mos is None else float(body.mos),
            heard_seconds=body.heard,
            decision_ms=body.decision_ms,
        ),
    )
    note_of(request.scope).receipt = "repeated" if receipt.repeated else "saved"
    answer = {"saved": True, "repeated": receipt.repeated, "progress": progress_json(receipt.progress)}
    return JSONResponse(answer, headers=NO_STORE)


def _sound(service: RatingService, session_id: uuid.UUID, assignment_id: uuid.UUID) -> bytes:
    """The bytes as raters hear them. References and anchors go the same way as any other clip."""
    with service.database.session(write=False) as s:
        served = get_served(s, assignment_id)
        if served is None or served.assignment.session_id != session_id:
            raise HTTPException(404, "There is no such clip in this session.")
        clip_id = served.assignment.clip_id
        audio_sha256 = get_clips(s, [clip_id])[clip_id].audio_sha256
    return alone(service.store.rendition(audio_sha256))
