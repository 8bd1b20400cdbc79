"""The nightly circle as a kind of job: from new votes to a promoted version, or a reason why not.

A step may run twice, and be killed between an effect and its record: whatever it makes has a name that follows from
the job's id, and is looked for before it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from alignment.circle.nightly_recipe import NightlyRecipe
from alignment.jobs import JobKind, Step, StepContext

if TYPE_CHECKING:
    from alignment.circle.night import Night
    from alignment.jobs.parts import Outcome


def _step(module: str, function: str) -> Callable[[StepContext], Outcome]:
    """The step that calls a function of a night; its module, which may need torch, is imported when it runs."""

    def run(context: StepContext) -> Outcome:
        import importlib

        from alignment.circle.night import opened

        work: Callable[[Night], Outcome] = getattr(importlib.import_module(f"alignment.circle.{module}"), function)
        with opened(context) as night:
            return work(night)

    run.__name__ = function
    return run


NIGHTLY = JobKind(
    name="nightly",
    recipe=NightlyRecipe,
    about="the whole circle: votes, snapshot, reward model, alignment, comparison, promotion or not, report",
    steps=(
        Step("gather", _step("nightly_votes", "gather"), gpu=True, retries=1),
        Step("votes", _step("nightly_votes", "count"), retries=2),
        Step("snapshot", _step("nightly_votes", "freeze"), retries=2),
        Step("reward", _step("nightly_train", "teach"), gpu=True, retries=1),
        Step("align", _step("nightly_train", "align_command"), gpu=True, retries=1),
        Step("candidate", _step("nightly_train", "candidate")),
        Step("sing", _step("nightly_contest", "sing"), gpu=True, retries=1),
        Step("check", _step("nightly_contest", "check"), gpu=True, retries=1),
        Step("study", _step("nightly_contest", "open_study"), retries=2),
        Step("decide", _step("nightly_decision", "look"), retries=2),
        Step("promote", _step("nightly_decision", "promote"), retries=2),
        Step("report", _step("nightly_report", "report"), retries=2),
    ),
)
