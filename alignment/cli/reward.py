"""`attune reward card`: what a reward model is worth, before it is trusted with anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Device, Dtype, Home, bar, emit, open_workspace


def card(
    name: Annotated[str, typer.Argument(help="Name of the reward model.")],
    snapshot: Annotated[
        str | None, typer.Option(help="Snapshot whose votes are asked about; default its own.", show_default=False)
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=3, max=20, help="Cross-validate over all votes, in place of the test split.", show_default=False
        ),
    ] = None,
    curve: Annotated[bool, typer.Option(help="Train on shares of the votes for the learning curve.")] = True,
    page: Annotated[
        Path | None, typer.Option(help="HTML file to write; default cards/NAME.html in --home.", show_default=False)
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show how well a reward model predicts votes it never saw, where, and what it has to beat."""
    from alignment.circle.reward_card import make_reward_card
    from alignment.cli.common import settings_of
    from alignment.evaluation.reward_card_page import card_text, write_card

    ws = open_workspace(home, database)
    with bar("reward card") as progress:
        made = make_reward_card(ws, name, snapshot=snapshot, folds=folds, curve=curve, progress=progress)
    path = page or Path(settings_of(home, database).store).parent / "cards" / f"{name}.html"
    write_card(made, path)
    emit({**json.loads(made.to_json()), "page": str(path)}, f"{card_text(made)}\nPage: {path}", as_json)
