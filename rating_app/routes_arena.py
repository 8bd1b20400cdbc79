"""Routes of the arena: a typed prompt, and how far its two clips are. The pair itself goes the way of every other."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from alignment.errors import NotFoundError, PromptRefused
from alignment.requests import ArenaService, ArenaTicket
from rating_app.bodies import Body
from rating_app.routes import Service, Session
from rating_app.sending import NO_STORE

router = APIRouter()
LONGEST_TEXT = 2000  # of any study; each study has its own limit below


class ArenaRequest(Body):
    text: str = Field(max_length=LONGEST_TEXT)


def arena_of(request: Request, service: Service) -> ArenaService:
    """The arena over the app's database; a test may put another one into ``app.state.arena``."""
    arena = getattr(request.app.state, "arena", None)
    if arena is None:
        arena = request.app.state.arena = ArenaService(service.database, clock=service.clock)
    return arena


Arena = Annotated[ArenaService, Depends(arena_of)]


def _ticket(ticket: ArenaTicket) -> dict[str, object]:
    return {
        "id": ticket.id.hex,
        "state": ticket.state,
        "progress": ticket.progress,
        "queue_position": ticket.queue_position,
        "pair": ticket.assignment.id.hex if ticket.assignment else None,
        "error": ticket.error,
    }


@router.post("/rate/arena")
def ask(body: ArenaRequest, arena: Arena, service: Service, session_id: Session) -> Response:
    """Puts a prompt into the queue. A refusal is an answer like any other: one sentence for the rater."""
    try:
        ticket = arena.ask(session_id, body.text, rng=service.rng)
    except PromptRefused as refused:
        return JSONResponse({"error": str(refused)}, status_code=409, headers=NO_STORE)
    return JSONResponse(_ticket(ticket), headers=NO_STORE)


@router.get("/rate/arena/{request_id}")
def status(request_id: uuid.UUID, arena: Arena, session_id: Session) -> Response:
    """Where the prompt stands."""
    try:
        ticket = arena.status(session_id, request_id)
    except NotFoundError:
        return JSONResponse({"error": "This prompt is not known here any more; type it again."}, 404, NO_STORE)
    return JSONResponse(_ticket(ticket), headers=NO_STORE)
