"""`attune account`: who may organise studies."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, actor, emit, settings_of, table

app = typer.Typer(no_args_is_help=True, help="Accounts of organisers and admins.")
Name = Annotated[str, typer.Argument(help="The account's name.")]


def _accounts(home, database):
    from alignment.accounts import Accounts
    from alignment.db.engine import open_database

    return Accounts(open_database(settings_of(home, database).database_url))


def _password() -> str:
    """From a prompt, asked twice; from the first line of stdin when that is no terminal. Never from the command line,
    which other users of the machine can read."""
    from alignment.errors import DataError

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    import getpass

    first = getpass.getpass("Password: ")
    if first != getpass.getpass("Again: "):
        raise DataError("The two passwords are not the same; run the command again.")
    return first


@app.command("add")
def add(
    name: Name,
    role: Annotated[str, typer.Option(help="organiser runs studies; admin also manages accounts.")] = "organiser",
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Only single sign-on opens it; see docs/single-sign-on.md.")
    ] = False,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Add an account; the password is asked for, or read from stdin."""
    accounts = _accounts(home, database)
    made = accounts.add(name, role, None if no_password else _password(), actor=actor())
    emit({"name": made.name, "role": made.role}, f"{made.name} is an {made.role}; log in at /admin", as_json)


@app.command("list")
def list_accounts(home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the accounts."""
    rows = [
        {"name": one.name, "role": one.role, "password": "yes" if one.has_password else "no",
         "standing": "disabled" if one.disabled_at else "open", "created": f"{one.created_at:%Y-%m-%d}"}
        for one in _accounts(home, database).list()
    ]  # fmt: skip
    text = table(rows, ["name", "role", "password", "standing", "created"]) if rows else "no account yet"
    emit(rows, text, as_json)


@app.command("password")
def password(name: Name, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Set a new password, asked for or read from stdin; open sessions of the account end."""
    _accounts(home, database).set_password(name, _password(), actor=actor())
    emit({"name": name}, f"{name} has a new password", as_json)


@app.command("disable")
def disable(name: Name, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Close an account; its open sessions end."""
    _accounts(home, database).disable(name, actor=actor())
    emit({"name": name, "standing": "disabled"}, f"{name} is closed", as_json)


@app.command("enable")
def enable(name: Name, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Open a closed account again."""
    _accounts(home, database).enable(name, actor=actor())
    emit({"name": name, "standing": "open"}, f"{name} is open again", as_json)
