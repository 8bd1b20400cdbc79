"""The page's own HTTP routes: state, session, pairs, clips, events and votes. Nothing here names a version."""

from __future__ import annotations

import re
import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from alignment.domain import Assignment, SessionProgress, Side
from rating_app.admission import Admission
from rating_app.bodies import EventsRequest, FinishRequest, SessionRequest, VoteRequest
from rating_app.page import STATIC, static_digest
from rating_app.perimeter import note_of
from rating_app.sending import NO_STORE, audio_answer
from rating_app.service import RatingService
from rating_app.tokens import COOKIE_NAME, COOKIE_SECONDS, RaterCookie, Tokens

router = APIRouter()
# Which of the cookie's sessions a tab means; without it the newest.
SESSION_HEADER = "X-Attune-Session"
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def service_of(request: Request) -> RatingService:
    return request.app.state.service


def tokens_of(request: Request) -> Tokens:
    return request.app.state.tokens


def cookie_of(request: Request) -> RaterCookie | None:
    return tokens_of(request).read_cookie(request.cookies.get(COOKIE_NAME))


def sessions_of(request: Request) -> tuple[uuid.UUID, ...]:
    """This browser's sessions, the newest first."""
    cookie = cookie_of(request)
    return cookie.sessions if cookie else ()


def session_of(request: Request) -> uuid.UUID:
    """The session that this request is about. The header chooses among the cookie's and proves nothing by itself."""
    sessions, wanted = sessions_of(request), request.headers.get(SESSION_HEADER)
    chosen = [session for session in sessions if wanted is None or session.hex == wanted]
    if not chosen:
        raise HTTPException(401, "Your session is not known here any more; reload the page to start a new one.")
    return chosen[0]


Service = Annotated[RatingService, Depends(service_of)]
Session = Annotated[uuid.UUID, Depends(session_of)]


def progress_json(progress: SessionProgress | None) -> dict[str, int] | None:
    return {"done": progress.done, "available": progress.available} if progress else None


def _study_json(admission: Admission, service: RatingService) -> dict[str, object] | None:
    study, rules = admission.study, admission.rules
    if study is None or rules is None:
        return None
    return {
        "title": rules.title,
        "mode": study.mode,
        "questions": list(study.questions),
        "minimum_listening_seconds": study.minimum_listening_seconds,
        "ask_confidence": rules.ask_confidence,
        "ask_comment": rules.ask_comment,
        "scales": list(rules.scales),
        "reveal": study.reveal,
        "demo": service.is_demo(study),
        "access": rules.access,
        "onboarding": rules.onboarding.model_dump(mode="json"),
        "pacing": rules.pacing.model_dump(mode="json"),
        "arena": {"longest_prompt": rules.arena.longest_prompt},
        "practice_pairs": rules.onboarding.practice_pairs,
    }


def _pair_json(shown: Assignment, tokens: Tokens) -> dict[str, object]:
    return {
        "id": shown.id.hex,
        "prompt": shown.prompt_text,
        "first_side": shown.first_side.value,
        "clips": {side.value: f"/clip/{tokens.clip_token(shown.session_id, shown.id, side)}" for side in Side},
    }


@router.get("/rate/state")
def state(request: Request, service: Service, study: str | None = None, invite: str | None = None) -> Response:
    """What the page needs before anything else: the study of its address, and this browser's session in it."""
    found = service.admit(study_name=study, invite=invite, sessions=sessions_of(request))
    session_id = None if found.problem else found.session_id
    body = {
        "study": _study_json(found, service),
        "session": session_id is not None,
        "session_key": session_id.hex if session_id else None,
        "progress": progress_json(service.progress(session_id)) if session_id else None,
        "invited": found.invited,
        "problem": found.problem,
    }
    return JSONResponse(body, headers=NO_STORE)


@router.post("/rate/session")
def start_session(body: SessionRequest, request: Request, service: Service) -> Response:
    """Starts a listening session and binds it to this browser by a cookie that scripts cannot read."""
    tokens, old = tokens_of(request), cookie_of(request)
    found = service.admit(study_name=body.study, invite=body.invite, sessions=sessions_of(request))
    browser_id = old.browser_id if old else tokens.new_browser_id()
    session_id = service.open_session(
        found,
        browser_id,
        body.consent.to_domain(),
        background=body.background,
        headphone_check=body.headphone_check,
        audio_route=body.audio_route,
        user_agent_family=_family(request.headers.get("user-agent", "")),
    )
    told = {"session": True, "session_key": session_id.hex, "progress": progress_json(service.progress(session_id))}
    answer = JSONResponse(told, headers=NO_STORE)
    answer.set_cookie(
        COOKIE_NAME,
        tokens.cookie(old.with_session(session_id) if old else RaterCookie(browser_id, (session_id,))),
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
        "pair": _pair_json(found.assignment, tokens_of(request)) if found.assignment else None,
        "progress": progress_json(found.progress),
    }
    return JSONResponse(body, headers=NO_STORE)


@router.api_route("/clip/{token}", methods=["GET", "HEAD"])
def clip(token: str, request: Request, service: Service) -> Response:
    """One side's FLAC. Both sides answer with the same headers and the same size."""
    sessions = sessions_of(request)
    if not sessions:
        session_of(request)  # refuses
    for session_id in sessions:
        address = tokens_of(request).read_clip_token(session_id, token)
        if address is not None:
            data = service.clip(session_id, *address, sent=request.method == "GET")
            return audio_answer(request, data)
    raise HTTPException(404, "There is no such clip in this session.")


@router.post("/rate/events")
def events(body: EventsRequest, service: Service, session_id: Session) -> Response:
    service.record_events(session_id, body.pair, [event.to_domain() for event in body.events])
    return JSONResponse({"recorded": len(body.events)}, headers=NO_STORE)


@router.post("/rate/votes")
def vote(body: VoteRequest, request: Request, service: Service, session_id: Session) -> Response:
    """Records the vote and the events that came along; answers after the commit and never before."""
    receipt = service.record_vote(session_id, body.to_domain(), events=[event.to_domain() for event in body.events])
    note_of(request.scope).receipt = "repeated" if receipt.repeated else "saved"
    answer = {"saved": True, "repeated": receipt.repeated, "progress": progress_json(receipt.progress)}
    return JSONResponse(answer, headers=NO_STORE)


@router.get("/rate/reveal")
def reveal(pair: uuid.UUID, service: Service, session_id: Session) -> Response:
    """Which version was which, only after the commit of the vote and only where the study allows it."""
    return JSONResponse(service.reveal(session_id, pair), headers=NO_STORE)


@router.post("/rate/finish")
def finish(body: FinishRequest, service: Service, session_id: Session) -> Response:
    """Ends the session: what it came to, and the code with which the rater can take the answers back."""
    summary, progress = service.finish(session_id)
    told = {
        "answered": summary.answered,
        "minutes": (summary.last_at - summary.started_at).total_seconds() / 60,
        "available": progress.available,
        "code": withdrawal_code(summary.pseudonym),
    }
    return JSONResponse(told, headers=NO_STORE)


def withdrawal_code(pseudonym: str | None) -> str | None:
    """The first 64 bits of the pseudonym, in groups that can be read out: enough to find one rater."""
    return "-".join(pseudonym[i : i + 4] for i in range(0, 16, 4)) if pseudonym else None


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


def _family(user_agent: str) -> str:
    """The browser's family and nothing finer: a full user agent string can identify a person."""
    for family, mark in (("Edge", "Edg/"), ("Firefox", "Firefox/"), ("Chrome", "Chrome/"), ("Safari", "Safari/")):
        if mark in user_agent:
            return family
    return "other"
