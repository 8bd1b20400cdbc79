"""`attune leaderboard`: versions by what listeners said of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, Seed, bar, emit, settings_of, table

if TYPE_CHECKING:
    from alignment.db.leaderboards import Slice
    from alignment.evaluation.leaderboard import Leaderboard


def leaderboard(
    study: Annotated[
        list[str] | None, typer.Option(help="Only this study's votes; may be given again.", show_default=False)
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="Only prompts tagged NAME=VALUE, or with this value.", show_default=False)
    ] = None,
    cohort: Annotated[str | None, typer.Option(help="Only raters of this cohort.", show_default=False)] = None,
    since: Annotated[
        datetime | None,
        typer.Option(help="Only votes from this day (UTC) on.", formats=["%Y-%m-%d"], show_default=False),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(help="Only votes before this day (UTC).", formats=["%Y-%m-%d"], show_default=False),
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Votes of simulated listeners, though there are votes of people.")
    ] = False,
    both_bad: Annotated[Literal["tie", "drop"], typer.Option(help="What a both-bad vote counts as.")] = "tie",
    html: Annotated[Path | None, typer.Option(help="Also write it as one HTML page.", show_default=False)] = None,
    seed: Seed = 0,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Rate the versions by all votes, or a slice of them, and record the result.

    Votes of people and of simulated listeners never mix: people's are taken where there are any."""
    from alignment.db.engine import open_database
    from alignment.db.leaderboards import Slice

    days = [day.replace(tzinfo=UTC) if day else None for day in (since, until)]
    chosen = Slice(tuple(dict.fromkeys(study or ())), tag, cohort, *days)
    db = open_database(settings_of(home, database).database_url)
    try:
        with bar("leaderboard"):
            board, trained, run = _rate(db, chosen, simulated, both_bad, seed)
        if html is not None:
            from alignment.evaluation.leaderboard_page import render_leaderboard
            from alignment.evaluation.writing import write_page

            write_page(render_leaderboard(board, simulated_versions=trained), html, what="page")
    finally:
        db.close()
    value = {"run": str(run), **board.to_json(), "simulated_versions": list(trained)}
    if html is not None:
        value["html"] = str(html)
    emit(value, "\n".join(_told(board, trained, html)), as_json)


def _rate(db, chosen: Slice, simulated: bool, both_bad: str, seed: int):
    """(the leaderboard, the versions on it that simulated votes trained, the id under which it is recorded)."""
    from alignment.db import leaderboards as records
    from alignment.errors import DataError
    from alignment.evaluation.leaderboard import METHOD, METHOD_VERSION, make_leaderboard
    from alignment.evaluation.vote_arrays import VoteArrays

    with db.session(write=False) as s:
        counts = records.count_votes(s, chosen)
        simulated = simulated or counts[False] == 0 < counts[True]
        c = records.load_columns(s, chosen, simulated=simulated)
    if not len(c):
        other = counts[not simulated]
        raise DataError(
            f"No counted vote {'of simulated listeners' if simulated else 'of people'} in this selection"
            + (f" (its studies and dates hold {other:,} votes of the other kind)" if other else "")
            + "; widen it, or collect votes first."
        )
    votes = VoteArrays.from_labels(c.left, c.right, c.outcome, c.rater, c.prompt, c.names)
    board = make_leaderboard(votes, simulated=simulated, both_bad=both_bad, slice=chosen.to_json(), seed=seed)
    side = board.ratings.side
    entries = [
        records.RecordedEntry(
            e.version, e.rating.elo.value, e.rating.elo.low, e.rating.elo.high, e.rank_low, e.rank_high, e.votes,
            e.wins, e.losses, e.ties + e.both_bad, bool(e.provisional),
        )
        for e in board.entries
    ]  # fmt: skip
    with db.session() as s:
        run = records.record_leaderboard(
            s, method=METHOD, method_version=METHOD_VERSION, slice=board.slice, tie_rule="davidson",
            both_bad_rule=both_bad, side_coefficient=side.value if side else None, simulated=simulated, entries=entries,
        )  # fmt: skip
    return board, c.simulated_versions, run


def _told(board: Leaderboard, trained: tuple[str, ...], html: Path | None) -> list[str]:
    """The leaderboard as lines of text."""
    r = board.ratings
    who = "SIMULATED listeners" if board.simulated else "people"
    asked = ", ".join(f"{name} {value}" for name, value in board.slice.items())
    lines = [
        f"{r.votes:,} votes of {r.raters:,} raters, {who}, on {r.prompts:,} prompts" + (f" ({asked})" if asked else ""),
        "",
    ]
    rows = []
    for e in board.entries:
        elo = e.rating.elo
        mark = "provisional: " + "; ".join(e.provisional) if e.provisional else ""
        if e.version in trained:
            mark = "; ".join(part for part in (mark, "trained on simulated votes") if part)
        rows.append(
            {"rank": str(e.rank_low) if e.rank_low == e.rank_high else f"{e.rank_low}-{e.rank_high}",
             "version": e.version, "rating": f"{elo.value:.0f}", "interval": f"{elo.low:.0f} to {elo.high:.0f}",
             "votes": f"{e.votes:,}", "won": e.wins, "lost": e.losses, "tied": e.ties, "both bad": e.both_bad,
             "": mark}
        )  # fmt: skip
    columns = ["rank", "version", "rating", "interval", "votes", "won", "lost", "tied", "both bad", ""]
    lines += [table(rows, columns), ""]
    lines += board.sentences()
    return lines + ([str(html)] if html is not None else [])
