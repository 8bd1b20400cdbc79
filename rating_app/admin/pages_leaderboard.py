"""The leaderboard over all studies, or a slice of their votes; `attune leaderboard` records what this page shows."""

from __future__ import annotations

import math
import shlex
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response

from alignment.db.leaderboards import Slice
from alignment.db.studies import list_studies
from alignment.db.versions import list_versions
from alignment.errors import AttuneError, ConfigError
from rating_app.admin.leaderboard_cache import Board
from rating_app.admin.view import page
from rating_app.admin.visitors import Signed

router = APIRouter()
MOST_STUDIES = 50


@router.get("/leaderboard")
def leaderboard_page(request: Request, visitor: Signed) -> Response:
    """Ratings with intervals and rank intervals, what first place hangs on, and how many votes are still wanted."""
    asked = request.query_params
    with request.app.state.database.session(write=False) as s:
        studies = [study.name for study in list_studies(s)]
        ids = {version.name: version.id for version in list_versions(s)}
    board: Board | None = None
    problem = None
    try:
        chosen = _slice(request)
        board = request.app.state.leaderboards.of(chosen, simulated=_kind(asked.get("listeners", "")))
    except AttuneError as error:
        chosen, problem = Slice(), str(error)
    return page(
        request, "leaderboard.html", status=422 if problem else 200, visitor=visitor, section="leaderboard",
        found=board, problem=problem, studies=studies, asked=asked, chosen=chosen, ids=ids,
        command=_command(chosen, board), axis=_axis(board),
    )  # fmt: skip


def _slice(request: Request) -> Slice:
    asked = request.query_params
    named = tuple(dict.fromkeys(name for name in asked.getlist("study") if name))[:MOST_STUDIES]
    return Slice(
        named, asked.get("tag", "").strip() or None, asked.get("cohort", "").strip() or None,
        _day(asked.get("since", "")), _day(asked.get("until", "")),
    )  # fmt: skip


def _day(text: str) -> datetime | None:
    """Midnight UTC of the day; None for no text. Raises ConfigError."""
    if not text.strip():
        return None
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ConfigError(f"{text!r} is no day; write it as 2026-03-01.") from None


def _axis(board: Board | None) -> tuple[float, float]:
    """The ends of the ratings' axis: every finite bound lies on it, and the mean, 1000."""
    entries = board.leaderboard.entries if board is not None and board.leaderboard is not None else ()
    bounds = [x for e in entries for x in (e.rating.elo.low, e.rating.elo.high) if math.isfinite(x)]
    return min([950.0, *bounds]), max([1050.0, *bounds])


def _kind(text: str) -> bool | None:
    return {"simulated": True, "people": False}.get(text)


def _command(chosen: Slice, board: Board | None) -> str:
    """The command that records this leaderboard."""
    parts = ["attune", "leaderboard"]
    for name in chosen.studies:
        parts += ["--study", name]
    for option, value in (("--tag", chosen.tag), ("--cohort", chosen.cohort)):
        parts += [option, value] if value else []
    for option, day in (("--since", chosen.since), ("--until", chosen.until)):
        parts += [option, f"{day:%Y-%m-%d}"] if day else []
    if board is not None and board.simulated:
        parts.append("--simulated")
    return shlex.join(parts)
