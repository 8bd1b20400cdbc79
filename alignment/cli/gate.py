"""`attune gate`: whether a candidate may be promoted, on the evidence so far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, bar, emit, settings_of, table

app = typer.Typer(no_args_is_help=True, help="The gate: what a candidate must show to be promoted.")


@app.callback()
def _gate() -> None:
    """Keeps `check` a word of its own."""


@app.command("check")
def check(
    candidate: Annotated[str, typer.Argument(help="The version that may be promoted.")],
    champion: Annotated[str, typer.Option(help="The version it must win over.")],
    base: Annotated[str, typer.Option(help="The fixed base that it must hold against.")],
    study: Annotated[list[str], typer.Option(help="A study of these versions; may be given again.")],
    recipe: Annotated[Path, typer.Option(help="What promotion takes.")] = Path("configs/gate.yaml"),
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Decide from a study's votes, reward scores and metrics, and record the decision; promotes nothing itself.

    Look as often as you like: a candidate keeps the alpha that it had at the first look."""
    from alignment.circle.evidence import candidate_alpha, gather_evidence
    from alignment.config import load_recipe
    from alignment.db import gates
    from alignment.db.engine import open_database
    from alignment.evaluation.gate import GateRecipe, decide

    wanted = load_recipe(recipe, GateRecipe)
    db = open_database(settings_of(home, database).database_url)
    try:
        with bar("gate"):
            with db.session(write=False) as s:
                alpha = candidate_alpha(s, candidate, wanted)
            evidence = gather_evidence(db, candidate, champion, base, study, wanted, alpha=alpha)
            decision = decide(evidence, wanted)
            with db.session() as s:
                new = gates.record_decision(
                    s, candidate=candidate, champion=champion, outcome=decision.outcome, alpha_spent=alpha,
                    evidence={**evidence.to_json(), "studies": study, "recipe": wanted.model_dump(mode="json"),
                              "reasons": [vars(reason) for reason in decision.reasons]},
                )  # fmt: skip
    finally:
        db.close()
    rows = [{"check": r.check, "state": r.state, "why": r.sentence} for r in decision.reasons]
    marked = " (SIMULATED listeners)" if evidence.simulated else ""
    then = f"\nMake it champion: attune versions promote {candidate}" if decision.outcome == "promoted" else ""
    emit(
        {"decision": str(new), "candidate": candidate, "champion": champion, "outcome": decision.outcome,
         "simulated": evidence.simulated, "alpha": alpha, "checks": rows},
        f"{table(rows, ['check', 'state', 'why'])}\n\n"
        f"{candidate} is {decision.outcome}{marked}; alpha {alpha:.3g}{then}",
        as_json,
    )  # fmt: skip
