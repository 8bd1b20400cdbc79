"""The page's own HTTP routes: state, session, pairs, clips, events and votes. Nothing here names a version."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from alignment.domain import Axis, Outcome, Side, VoteDraft
from alignment.errors import NotFoundError
from alignment.votes import ListenEvent, SessionProgress
from rating_app.page import STATIC, static_digest
from rating_app.perimeter import note_of
from rating_app.service import RatingService, ServedPair
from rating_app.tokens import COOKIE_NAME, COOKIE_SECONDS, RaterCookie, Tokens

router = APIRouter()
NO_STORE = {"Cache-Control": "private, no-store"}
# The same for every clip, so that no date tells which one was made when.
FIXED_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Body(BaseModel):
    """A request's JSON: unknown keys and infinities are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SessionRequest(Body):
    consent: Literal[True]


class EventBody(Body):
    seq: int = Field(ge=0, lt=1_000_000)
    side: Side
    type: Literal["play", "pause", "seek", "switch", "loop", "ended", "blur", "stall"]
    position: float = Field(ge=0, le=3600)
    at_ms: int = Field(ge=0, lt=2**53)

    def to_domain(self) -> ListenEvent:
        return ListenEvent(
            seq=self.seq, type=self.type, side=self.side, media_seconds=self.position, client_ms=self.at_ms
        )


class EventsRequest(Body):
    pair: uuid.UUID
    events: list[EventBody] = Field(max_length=500)


class Heard(Body):
    left: float = Field(ge=0, le=3600)
    right: float = Field(ge=0, le=3600)


class VoteRequest(Body):
    pair: uuid.UUID
    key: str = Field(min_length=16, max_length=64, pattern=r"^[0-9a-f]+$")
    outcome: Outcome
    axes: dict[Axis, Annotated[int, Field(ge=-2, le=2)]] = Field(default_factory=dict)
    confidence: int | None = Field(None, ge=1, le=3)
    comment: str | None = Field(None, max_length=2000)
    heard: Heard
    switches: int = Field(0, ge=0, lt=1_000_000)
    decision_ms: int | None = Field(None, ge=0, lt=2**53)
    events: list[EventBody] = Field(default_factory=list, max_length=500)


def service_of(request: Request) -> RatingService:
    return request.app.state.service


def tokens_of(request: Request) -> Tokens:
    return request.app.state.tokens


def cookie_of(request: Request) -> RaterCookie | None:
    return tokens_of(request).read_cookie(request.cookies.get(COOKIE_NAME))


def session_of(request: Request) -> uuid.UUID:
    cookie = cookie_of(request)
    if cookie is None:
        raise HTTPException(401, "Your session is not known here any more; reload the page to start a new one.")
    return cookie.session_id


Service = Annotated[RatingService, Depends(service_of)]
Session = Annotated[uuid.UUID, Depends(session_of)]


def _progress(progress: SessionProgress) -> dict[str, int]:
    return {"done": progress.done, "available": progress.available}


def _pair(pair: ServedPair, tokens: Tokens) -> dict[str, object]:
    shown = pair.assignment
    return {
        "id": shown.id.hex,
        "prompt": shown.prompt_text,
        "first_side": shown.first_side.value,
        "clips": {side.value: f"/clip/{tokens.clip_token(shown.session_id, shown.id, side)}" for side in Side},
    }


@router.get("/rate/state")
def state(request: Request, service: Service) -> Response:
    """What the page needs before anything else."""
    study = service.study
    cookie = cookie_of(request)
    progress = None
    if cookie is not None:
        try:
            progress = _progress(service.progress(cookie.session_id))
        except NotFoundError:  # signed by us, but for a database that is not this one
            cookie = None
    body = {
        "study": {
            "questions": list(study.questions),
            "minimum_listening_seconds": study.minimum_listening_seconds,
            "demo": service.is_demo,
        },
        "session": cookie is not None,
        "progress": progress,
    }
    return JSONResponse(body, headers=NO_STORE)


@router.post("/rate/session")
def start_session(body: SessionRequest, request: Request, service: Service) -> Response:
    """Starts a listening session and binds it to this browser by a cookie that scripts cannot read."""
    tokens, old = tokens_of(request), cookie_of(request)
    browser_id = old.browser_id if old else tokens.new_browser_id()
    session_id = service.open_session(browser_id, user_agent_family=_family(request.headers.get("user-agent", "")))
    answer = JSONResponse({"session": True, "progress": _progress(service.progress(session_id))}, headers=NO_STORE)
    answer.set_cookie(
        COOKIE_NAME,
        tokens.cookie(RaterCookie(browser_id, session_id)),
        max_age=COOKIE_SECONDS,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.get("/rate/pair")
def pair(request: Request, service: Service, session_id: Session) -> Response:
    """The next pair; ``except`` lists those the browser holds already (on the page, or voted and not yet saved)."""
    listed = request.query_params.get("except", "")
    try:
        in_hand = [uuid.UUID(hex=text) for text in listed.split(",") if text][:20]
    except ValueError:
        raise HTTPException(422, "The list of pairs in hand cannot be read.") from None
    found = service.next_pair(session_id, in_hand=in_hand)
    body = {
        "pair": _pair(found, tokens_of(request)) if found else None,
        "progress": _progress(service.progress(session_id)),
    }
    return JSONResponse(body, headers=NO_STORE)


@router.api_route("/clip/{token}", methods=["GET", "HEAD"])
def clip(token: str, request: Request, service: Service, session_id: Session) -> Response:
    """One side's FLAC. Both sides answer with the same headers and the same size."""
    address = tokens_of(request).read_clip_token(session_id, token)
    if address is None:
        raise HTTPException(404, "There is no such clip in this session.")
    data = service.clip(session_id, *address)
    headers = {**NO_STORE, "Accept-Ranges": "bytes", "Last-Modified": FIXED_DATE}
    status, span = 200, byte_range(request.headers.get("range"), len(data))
    if span == "unsatisfiable":
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(data)}"})
    if span is not None:
        first, last = span
        status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(data)}"
        data = data[first : last + 1]
    if request.method == "HEAD":
        headers["Content-Length"], data = str(len(data)), b""
    return Response(data, status_code=status, headers=headers, media_type="audio/flac")


@router.post("/rate/events")
def events(body: EventsRequest, service: Service, session_id: Session) -> Response:
    service.record_events(session_id, body.pair, [event.to_domain() for event in body.events])
    return JSONResponse({"recorded": len(body.events)}, headers=NO_STORE)


@router.post("/rate/votes")
def vote(body: VoteRequest, request: Request, service: Service, session_id: Session) -> Response:
    """Records the events that came along, then the vote; answers after the commit and never before."""
    service.record_events(session_id, body.pair, [event.to_domain() for event in body.events])
    receipt = service.record_vote(
        session_id,
        VoteDraft(
            assignment_id=body.pair,
            idempotency_key=body.key,
            outcome=body.outcome,
            axes=body.axes,
            confidence=body.confidence,
            comment=body.comment,
            heard_left_seconds=body.heard.left,
            heard_right_seconds=body.heard.right,
            switches=body.switches,
            decision_ms=body.decision_ms,
        ),
    )
    note_of(request.scope).receipt = "repeated" if receipt.repeated else "saved"
    answer = {"saved": True, "repeated": receipt.repeated, "progress": _progress(service.progress(session_id))}
    return JSONResponse(answer, headers=NO_STORE)


@router.get("/player/{version}/{name}")
def static_file(version: str, name: str) -> Response:
    """A file of the page; its address changes with its content, so browsers may keep it."""
    path = STATIC / name
    if not re.fullmatch(r"[a-z]+\.(js|css)", name) or not path.is_file():
        raise HTTPException(404, "There is nothing at this address.")
    kept = "public, max-age=31536000, immutable" if version == static_digest() else "no-cache"
    return FileResponse(path, media_type=_MEDIA_TYPES[path.suffix], headers={"Cache-Control": kept})


@router.get("/favicon.ico")
def favicon() -> Response:
    headers = {"Cache-Control": "public, max-age=86400"}
    return FileResponse(STATIC / "icon.svg", media_type=_MEDIA_TYPES[".svg"], headers=headers)


def byte_range(header: str | None, size: int) -> tuple[int, int] | Literal["unsatisfiable"] | None:
    """(first, last) of a single byte range, inclusive; None to send everything (RFC 9110, section 14)."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first_text, last_text = match.groups()
    if not first_text:  # the last n bytes
        length = min(int(last_text), size)
        return (size - length, size - 1) if length else "unsatisfiable"
    first, last = int(first_text), min(int(last_text or size - 1), size - 1)
    if first >= size:
        return "unsatisfiable"
    return (first, last) if first <= last else None


def _family(user_agent: str) -> str:
    """The browser's family and nothing finer: a full user agent string can identify a person."""
    for family, mark in (("Edge", "Edg/"), ("Firefox", "Firefox/"), ("Chrome", "Chrome/"), ("Safari", "Safari/")):
        if mark in user_agent:
            return family
    return "other"
