"""Automatic checks of a candidate before anybody listens: its measured figures within the recipe's bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from alignment.evaluation.gate import Evidence, GateRecipe, Reason, decide
from alignment.evaluation.intervals import Interval

Measured = Mapping[str, tuple[float, float, float, int]]  # metric -> (value, low, high, n)


def automatic_checks(candidate: str, champion: str, measured: Measured, recipe: GateRecipe) -> tuple[Reason, ...]:
    """The gate's own checks of the metrics, decided now: a figure that is missing or no number fails here."""
    broken = sorted(name for name, (value, *_) in measured.items() if not math.isfinite(value))
    metrics = {name: Interval(value, low, high, n=n) for name, (value, low, high, n) in measured.items()}
    decision = decide(Evidence(candidate, champion, champion, metrics=metrics), recipe)
    found = []
    for reason in decision.reasons:
        if not reason.check.startswith("metric "):
            continue
        if reason.state == "open":
            name = reason.check.removeprefix("metric ")
            why = "is no number" if name in broken else "was not measured, and the gate asks for it"
            reason = Reason(reason.check, "fail", f"{name} {why}.")
        found.append(reason)
    asked = {reason.check.removeprefix("metric ") for reason in found}
    found += [Reason(f"metric {name}", "fail", f"{name} is no number.") for name in broken if name not in asked]
    return tuple(found)


def failures(reasons: tuple[Reason, ...]) -> str:
    """What failed, a sentence each; empty when all passed."""
    return " ".join(reason.sentence for reason in reasons if reason.state == "fail")
