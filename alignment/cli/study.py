"""`attune study`: listening studies from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, Seed, actor, emit, settings_of, table

app = typer.Typer(no_args_is_help=True, help="Listening studies: create, open, watch, export.")
Name = Annotated[str, typer.Argument(help="The study's name.")]


def _open(home, database):
    from alignment.db.engine import open_database

    return open_database(settings_of(home, database).database_url)


@app.command("create")
def create(
    recipe: Annotated[Path, typer.Argument(help="The study as YAML; see configs/study.yaml.")],
    seed: Seed = 0,
    open_it: Annotated[bool, typer.Option("--open", help="Open it to raters at once.")] = False,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create a study with its pairs from a YAML file, as a draft."""
    from alignment.clips import ClipStore
    from alignment.config import load_recipe
    from alignment.studies import StudyRecipe, create_study_from_recipe, set_study_state

    wanted = load_recipe(recipe, StudyRecipe)
    db = _open(home, database)
    store = ClipStore(settings_of(home, database).store)
    study = create_study_from_recipe(db, store, wanted, actor=actor(), seed=seed)
    state = study.state
    if open_it and state != "open":
        set_study_state(db, study.name, "open", actor=actor())
        state = "open"
    battles, items = _pairs(db, study.id)
    made = f"{items} clips to rate" if wanted.mode == "rating" else f"{battles} pairs"
    following = "" if state == "open" else f"; open it with `attune study open {_quoted(study.name)}`"
    emit(
        {"study": study.name, "id": str(study.id), "state": state, "pairs": battles, "clips_to_rate": items},
        f"{study.name}: {state}, {made}{following}", as_json,
    )  # fmt: skip


@app.command("list")
def list_studies(home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the studies."""
    from alignment.db import figures, studies

    with _open(home, database).session(write=False) as s:
        found, counts = studies.list_studies(s), figures.study_counts(s)
    rows = [
        {"name": study.name, "mode": study.mode, "state": study.state, "raters_are": study.rater_kind.value,
         "answers": counts[study.id].answers if study.id in counts else 0,
         "raters": counts[study.id].raters if study.id in counts else 0}
        for study in found
    ]  # fmt: skip
    columns = ["name", "mode", "state", "raters_are", "answers", "raters"]
    emit(rows, table(rows, columns) if rows else "no study yet; attune study create configs/study.yaml", as_json)


@app.command("show")
def show(name: Name, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """A study's figures so far, each with its n and interval; --json has all that the dashboard has."""
    from alignment.db.studies import get_study
    from alignment.studies import rules_of
    from alignment.study_figures import study_figures

    db = _open(home, database)
    with db.session(write=False) as s:
        study = get_study(s, name)
    found = study_figures(db, study.id, recipe=rules_of(study), state=study.state, rater_kind=study.rater_kind)
    emit(found.to_json(), "\n".join(_told(found)), as_json)


def _told(f) -> list[str]:
    """The figures as lines of text."""

    def share(name: str, interval) -> list[str]:
        if interval is None:
            return []
        return [f"  {name}: {interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}], n {interval.n}"]

    marked = ", SIMULATED listeners" if f.simulated else ""
    lines = [
        f"{f.study} ({f.mode}, {f.state}{marked})",
        f"  {f.votes} votes, {f.ratings_given} ratings of {f.raters} raters in {f.sessions} sessions; "
        f"{f.had} of {f.wanted} wanted; {f.withdrawn} withdrawn",
    ]
    for pair in f.pairs:
        lines += share(f"{pair.version} against {pair.other}", pair.rate.interval)
        if pair.needed is not None and pair.needed.more != 0:
            more = "no reachable number of" if pair.needed.more is None else f"about {pair.needed.more}"
            lines.append(f"    {more} more decisive votes would separate them (80% power)")
    for row in f.scales:
        lines.append(
            f"  {row.scale} of {row.name}: {row.mean.value:.1f} [{row.mean.low:.1f}, {row.mean.high:.1f}], "
            f"n {row.mean.n}"
        )
    if f.agreement:
        a = f.agreement
        lines.append(f"  agreement, Krippendorff's alpha: {a.alpha:.2f} [{a.low:.2f}, {a.high:.2f}], n {a.n}")
    lines += share("same clip when asked again", f.repeat) + share("left clip preferred", f.left)
    lines += share("gold pairs passed", f.gold) + share("anchors passed", f.anchors)
    for flag in f.flags:
        lines.append(
            f"  flags, {flag.detector}: {flag.suspect} suspect, {flag.invalid} invalid, {flag.unknown} unknown"
        )
    return lines


def _change(home, database, name: str, state: str, as_json: bool) -> None:
    from alignment.studies import set_study_state

    set_study_state(_open(home, database), name, state, actor=actor())
    emit({"study": name, "state": state}, f"{name} is {state}", as_json)


@app.command("open")
def open_study(name: Name, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Open a study to raters."""
    _change(home, database, name, "open", as_json)


@app.command("pause")
def pause(name: Name, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Serve no new pairs for now; votes on pairs already served still come in."""
    _change(home, database, name, "paused", as_json)


@app.command("close")
def close(name: Name, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Close a study."""
    _change(home, database, name, "closed", as_json)


@app.command("invite")
def invite(
    name: Name,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Links to make.")] = 1,
    label: Annotated[str | None, typer.Option(help="What to call them in the list.", show_default=False)] = None,
    most_uses: Annotated[
        int | None, typer.Option(min=1, help="Sessions a link opens; default any number.", show_default=False)
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days a link is good for; default no end.", show_default=False)
    ] = None,
    address: Annotated[str, typer.Option(help="Where raters reach the page.")] = "http://127.0.0.1:7860",
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Print new invitation links, once: only their hashes are kept."""
    from datetime import timedelta

    from alignment.db.base import utcnow
    from alignment.invites import create_invite

    db = _open(home, database)
    ends = utcnow() + timedelta(days=days) if days else None
    links = []
    for number in range(1, count + 1):
        called = label if count == 1 or not label else f"{label} {number}"
        token = create_invite(db, name, label=called, most_uses=most_uses, expires_at=ends, actor=actor())
        links.append(f"{address.rstrip('/')}/?invite={token}")
    emit({"study": name, "links": links}, "\n".join(links), as_json)


@app.command("flag")
def flag(name: Name, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Run the detectors over a study's votes; flags annotate and delete nothing."""
    from alignment.flags import VERDICTS, flag_study

    counts = flag_study(_open(home, database), name, actor=actor())
    rows = [{"detector": detector, **verdicts} for detector, verdicts in counts.items()]
    emit({"study": name, "flags": counts}, table(rows, ["detector", *VERDICTS]), as_json)


@app.command("export")
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="New folder for the files.")],
    licence: Annotated[str, typer.Option(help="Under which the answers are published.")] = "CC BY 4.0",
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write publishable votes, ratings and comments as JSONL and CSV, under pseudonyms of this export alone."""
    from alignment.errors import StoreError
    from alignment.exports import make_export, write_export

    if folder.exists():
        raise StoreError(f"{folder} exists already; name a new folder for the export.")
    made = make_export(_open(home, database), name, actor=actor(), licence=licence)
    write_export(made, folder)
    c = made.counts
    emit(
        {"study": name, "folder": str(folder), "counts": dict(c)},
        f"{folder}: {c['votes']} votes, {c['ratings']} ratings, {c['comments']} comments of {c['raters']} raters; "
        f"withheld {c['withheld_without_publication_consent']} without consent to publication, "
        f"{c['withheld_withdrawn']} withdrawn", as_json,
    )  # fmt: skip


@app.command("withdraw")
def withdraw(
    name: Name,
    rater: Annotated[str, typer.Argument(help="The code that the rater's page shows, or the rater's id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Take a rater's part back: comments and pseudonym deleted, votes out of every new snapshot."""
    from alignment.db.figures import study_raters
    from alignment.db.studies import get_study
    from alignment.errors import NotFoundError
    from alignment.withdrawal import withdraw as take_back

    db = _open(home, database)
    with db.session(write=False) as s:
        found = [one.id for one in study_raters(s, get_study(s, name).id) if one.is_called(rater)]
    if len(found) != 1:
        raise NotFoundError(f"{len(found)} raters of {name} are called {rater!r}; give the code from the rater's page.")
    if not yes:
        typer.confirm(f"Withdraw rater {found[0]}? It cannot be undone.", abort=True)
    done = take_back(db, found[0], actor=actor())
    emit(
        {"study": name, "rater": str(found[0]), "status": "withdrawn", "votes": done.votes, "ratings": done.ratings,
         "comments_deleted": done.comments_deleted, "versions_reached": list(done.versions_reached)},
        f"rater {found[0]} is withdrawn: {done.comments_deleted} comments deleted, {done.votes} votes and "
        f"{done.ratings} ratings kept out of everything new; they had reached "
        f"{', '.join(done.versions_reached) or 'no version'}. {done.about_prompts}".rstrip(), as_json,
    )  # fmt: skip


def _pairs(db, study_id) -> tuple[int, int]:
    from alignment.db.figures import count_battles_by_kind, count_rating_items

    with db.session(write=False) as s:
        return sum(count_battles_by_kind(s, study_id).values()), count_rating_items(s, study_id)


def _quoted(name: str) -> str:
    import shlex

    return shlex.quote(name)
