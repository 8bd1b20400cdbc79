"""The kind ``align``: one recipe of stages from a snapshot to a new version, as a command that can be stopped."""

from __future__ import annotations

import sys
from typing import Any

import yaml
from pydantic import Field

from alignment.config import AlignRecipe, Recipe
from alignment.jobs.parts import Command, JobKind, Step, StepContext


class AlignJobRecipe(Recipe):
    """What `attune align run` is given: recipe, names, and the reward models, if they are not trained on the way."""

    name: str = Field(description="name of the new version")
    snapshot: str = Field(description="snapshot whose votes teach")
    parent: str = Field("tiny-base", description="version to start from")
    reward: str | None = Field(None, description="reward model that trains; null: half of the snapshot's")
    watch: str | None = Field(None, description="reward model that watches: other raters and prompts")
    recipe: AlignRecipe = Field(description="the stages, as in configs/sequential.yaml")


def align(context: StepContext) -> Command:
    """`attune align run` in the GPU slot; started again, it goes on from its last checkpoint."""
    asked = AlignJobRecipe.model_validate(dict(context.recipe))
    context.run_dir.mkdir(parents=True, exist_ok=True)
    recipe = context.run_dir / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(asked.recipe.model_dump(mode="json")), encoding="utf-8")
    given: list[Any] = ["--reward", asked.reward, "--watch", asked.watch] if asked.reward else []
    argv = [
        sys.executable, "-m", "alignment.cli", "align", "run", str(recipe), asked.name, "--snapshot", asked.snapshot,
        "--parent", asked.parent, "--resume", "--json", *given,
    ]  # fmt: skip
    return Command(tuple(argv), run_dir=context.home / "runs" / asked.name, several_gpus=True)


ALIGN = JobKind(
    "align", AlignJobRecipe, (Step("align", align, gpu=True),), "one alignment recipe from a snapshot to a new version"
)
