"""The kind ``compare``: versions sing the same prompts, are measured, compared by listeners, and shown on a page.

Light to import: a web page checks a recipe with it. Every step may run twice: clips, votes and figures that are there
are not made again, and the comparison is recorded once, under the job's id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alignment.circle.compare_recipe import CompareRecipe, MetricSettings
from alignment.jobs import Finish, JobKind, Skip, Step, StepContext

if TYPE_CHECKING:
    from alignment.circle.workspace import Progress, Workspace

__all__ = ["COMPARE", "CompareRecipe", "MetricSettings"]
PAGE = "comparison.html"


@contextmanager
def _opened(context: StepContext) -> Iterator[tuple[Workspace, CompareRecipe, Progress]]:
    from alignment.circle.workspace import Workspace
    from alignment.config import Settings

    store = context.store or str(context.home / "store")
    ws = Workspace.open(Settings.from_environment(database=context.database_url, store=store))

    def progress(done: int, total: int) -> None:
        context.progress(done / total if total else 1.0, "")

    try:
        yield ws, CompareRecipe.model_validate(dict(context.recipe)), progress
    finally:
        ws.database.close()


def sing(context: StepContext) -> Mapping[str, Any]:
    """Every version's clips of every prompt."""
    from alignment.circle.compare import prompts_of
    from alignment.circle.measure_version import sing_all

    with _opened(context) as (ws, recipe, progress):
        prompts = prompts_of(ws, recipe)
        clips = sing_all(ws, recipe.versions, prompts, recipe.metrics, progress)
        count = sum(len(takes) for own in clips.values() for takes in own.values())
        context.say(f"{count} clips of {len(recipe.versions)} versions on {len(prompts)} prompts are there")
        return {"prompts": [str(prompt.id) for prompt in prompts], "clips": count}


def measure(context: StepContext) -> Mapping[str, Any]:
    """The metrics, recorded with their intervals. The prompts are those that the step before sang."""
    import uuid

    from alignment.circle.measure_version import measure_versions
    from alignment.db.prompts import get_prompts

    with _opened(context) as (ws, recipe, progress):
        ids = [uuid.UUID(one) for one in context.results["sing"]["prompts"]]
        with ws.database.session(write=False) as s:
            found = get_prompts(s, ids)
        made = measure_versions(
            ws, recipe.versions, prompts=[found[one] for one in ids], settings=recipe.metrics, name=recipe.name,
            job_id=context.job_id, progress=progress,
        )  # fmt: skip
        context.say(f"comparison {made.name}: {len(made.metrics)} figures")
        clear = [f"{one.metric} against {one.against}" for one in made.differences if one.is_clear]
        return {"comparison": made.name, "figures": len(made.metrics), "clear_differences": clear}


def battles(context: StepContext) -> Mapping[str, Any] | Skip:
    """Simulated votes, or a study for people as a draft."""
    from alignment.circle.compare import human_study, simulate_battles

    with _opened(context) as (ws, recipe, progress):
        name = context.results["measure"]["comparison"]
        if recipe.battles == "none":
            return Skip("The recipe asks for no battles; the page links none and a study can be opened later.")
        if recipe.battles == "human":
            study = human_study(ws, name, actor=f"job {context.job_id}").name
            context.say(f"study {study} is drafted; open it with: attune study open '{study}'")
            return {"studies": [study], "simulated": False}
        return {"studies": simulate_battles(ws, name, recipe, progress), "simulated": True}


def page(context: StepContext) -> Mapping[str, Any] | Skip | Finish:
    """The page with players, in the job's folder."""
    from alignment.circle.compare import write_comparison

    with _opened(context) as (ws, recipe, _):
        if not recipe.page:
            return Skip("The recipe asks for no page.")
        path = write_comparison(ws, context.results["measure"]["comparison"], context.run_dir / PAGE)
        context.say(f"page: {path}")
        return {"page": str(path)}


COMPARE = JobKind(
    "compare",
    CompareRecipe,
    (
        Step("sing", sing, gpu=True, retries=1),
        Step("measure", measure, gpu=True, retries=1),
        Step("battles", battles),
        Step("page", page),
    ),
    "versions side by side: clips, metrics with intervals, a page",
)
