"""The recipe of the nightly circle; configs/schedule.yaml has each field with its reason."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from alignment.circle.compare_recipe import MetricSettings
from alignment.config import VOTES_PER_PAIR, AlignRecipe, GenerationSettings, Recipe, RewardSettings, StageSettings
from alignment.domain import Axis
from alignment.evaluation.gate import GateRecipe
from alignment.studies import Onboarding, Pacing

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$"


class RewardRules(Recipe):
    """When the votes have taught a reward model enough to train on it."""

    folds: int = Field(5, ge=3, le=20, description="folds of the cross-validation that asks whether it beats chance")
    card: Literal["sound", "not exposed", "any"] = Field(
        "not exposed", description="the verdict its card needs; exposed: a simple rule such as loudness says the same"
    )


class ContestRules(Recipe):
    """The blind study between candidate, champion and base."""

    prompt_set: str | None = Field(None, description="a named set of prompts; none: all of the leaderboard split")
    captions: int = Field(0, ge=0, le=5000, description="attune-tiny captions drawn fresh for the night, instead")
    access: Literal["invited", "open"] = "invited"
    minimum_listening_seconds: float = Field(2.0, ge=0, le=60, description="distinct seconds of each clip")
    onboarding: Onboarding = Onboarding()
    pacing: Pacing = Pacing()
    look_seconds: float = Field(900.0, ge=1, le=86400, description="between two looks at the votes; looking is free")
    days: float = Field(14.0, gt=0, le=365, description="after which a study that decided nothing is closed")


class ListenerRules(Recipe):
    """Simulated listeners, in place of people, in a home that people do not hear."""

    population: str = Field("default", description="a population of configs/listeners.yaml")
    raters: int = Field(16, ge=2, le=500)
    prompts: int = Field(80, ge=8, le=5000, description="captions that the champion sings for them before a snapshot")
    clips_per_prompt: int = Field(4, ge=2, le=16)
    look_votes: int = Field(60, ge=2, le=5000, description="votes between two looks at the contest")


class NightlyRecipe(Recipe):
    """From new votes to a promoted version, or a reason why not."""

    name: str = Field("nightly", pattern=NAME, description="begins the name of all that a night makes")
    base: str = Field("tiny-base", description="the fixed base: champion while there is none, and held against later")
    start: Literal["champion", "base"] = Field("champion", description="where training starts from")
    studies: tuple[str, ...] = Field((), description="whose votes train; none: all of this kind of listener")
    min_new_votes: int = Field(200, ge=1, description="counted votes since the last night's snapshot")
    both_bad: Literal["tie", "drop"] = Field("tie", description="what BOTH_BAD means in the snapshot")
    reward: RewardRules = RewardRules()
    align: AlignRecipe = Field(
        AlignRecipe(stages=(StageSettings(name="dpo", method="dpo"),)), description="as of attune align run"
    )
    generation: GenerationSettings = Field(GenerationSettings(), description="how clips are sung that are voted on")
    metrics: MetricSettings = Field(
        MetricSettings(), description="of the automatic checks; generation, seed and reward models are the night's own"
    )
    gate: GateRecipe = GateRecipe()
    contest: ContestRules = ContestRules()
    listeners: str | ListenerRules | None = Field(
        None, description="none: people; a population or more: SIMULATED listeners"
    )
    simulated: bool = Field(False, description="simulated votes train and promote here; no person hears this home")
    seed: int = Field(0, ge=0, le=2**20, description="fixes everything that is drawn")

    @model_validator(mode="after")
    def _fits_together(self) -> NightlyRecipe:
        if self.simulated != (self.listeners is not None):
            raise ValueError(
                "simulated and listeners belong together: give both, and simulated listeners vote in a home that "
                "people do not hear, or neither, and people vote"
            )
        if isinstance(self.listeners, ListenerRules):
            clips = self.listeners.clips_per_prompt
            pairs = self.listeners.prompts * clips * (clips - 1) // 2
            if self.min_new_votes > VOTES_PER_PAIR * pairs:
                raise ValueError(
                    f"min_new_votes ({self.min_new_votes}) cannot be above {VOTES_PER_PAIR * pairs}: {VOTES_PER_PAIR} "
                    f"votes on each of {pairs:,} pairs that the listeners hear"
                )
        if self.gate.simulated and not self.simulated:
            raise ValueError("gate.simulated is true and simulated is not; people's votes alone promote here")
        if unknown := set(self.gate.axes) - {axis.value for axis in Axis}:
            raise ValueError(f"gate.axes names {', '.join(sorted(unknown))}; known: {', '.join(Axis)}")
        if self.contest.prompt_set is not None and self.contest.captions:
            raise ValueError("contest names a prompt_set and asks for captions; give one of them")
        return self

    @property
    def rewards(self) -> RewardSettings:
        """How both reward models are trained."""
        return self.align.reward.model_copy(update={"both_bad": self.both_bad})

    @property
    def rules(self) -> GateRecipe:
        """What promotion takes; simulated votes decide where the whole recipe is simulated."""
        return self.gate.model_copy(update={"simulated": self.simulated})

    @property
    def panel(self) -> ListenerRules:
        """The simulated listeners. Raises ValueError where people vote: our own bug."""
        if self.listeners is None:
            raise ValueError("people vote in this recipe")
        return ListenerRules(population=self.listeners) if isinstance(self.listeners, str) else self.listeners
