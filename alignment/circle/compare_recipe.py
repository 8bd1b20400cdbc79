"""What a comparison takes: versions, prompts, how they sing, what is measured, who listens. Light to import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from alignment.config import GenerationSettings, Recipe

VERSION = "version:"  # begins a reference that is a version's clips


class Sampling(Recipe):
    """How all versions sing; what is null is as people hear the first version that has a listening config."""

    temperature: float | None = Field(None, gt=0, le=5)
    top_k: int | None = Field(None, ge=0, description="keep the k likeliest codes; 0 keeps all")
    guidance: float | None = Field(None, ge=1, le=20, description="classifier-free guidance; 1 is none")
    clip_seconds: float | None = Field(None, ge=0.5, le=30, description="length of a clip in seconds")


class MetricSettings(Recipe):
    """How versions are measured; all of them alike."""

    generation: Sampling = Sampling()
    clips_per_prompt: int = Field(2, ge=2, le=32, description="of each version, with the same seeds for all")
    reference: str = Field(
        "base",
        min_length=1,
        description="what FAD and kernel distance are to: base (clips of the first version's base), version:NAME, "
        "a folder of audio, or none",
    )
    clap: str | None = Field(
        None, description="folder or hub name of another CLAP for CLAP score, FAD, kernel distance and diversity"
    )
    reward_models: tuple[str, ...] | None = Field(None, description="names; null takes the newest, [] takes none")
    training_clips: int = Field(2000, ge=0, description="of the votes' snapshots, at most, that copies are looked for")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    rounds: int = Field(1000, ge=100, le=100_000, description="of the bootstrap; FAD takes 200 at most")
    seed: int = Field(0, ge=0, le=2**30, description="fixes everything that is drawn")

    @field_validator("generation", mode="before")
    @classmethod
    def _from_other_settings(cls, generation: object) -> object:
        return generation.model_dump() if isinstance(generation, GenerationSettings) else generation


class CompareRecipe(Recipe):
    """A whole comparison: prompts, metrics and, where asked, battles."""

    versions: tuple[str, ...] = Field(description="two or more; the first is set against each of the others")
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$", description="default: made up")
    prompts: tuple[str, ...] = Field((), description="prompts in words")
    prompt_set: str | None = Field(None, description="a recorded prompt set")
    split: Literal["valid", "test", "leaderboard"] | None = Field(None, description="all recorded prompts of a split")
    captions: int = Field(0, ge=0, le=5000, description="attune-tiny captions that no version was trained on")
    battles: Literal["none", "simulated", "human"] = Field(
        "none", description="who votes: nobody, programs at once, or people in a study that is opened"
    )
    votes: int = Field(180, ge=2, description="simulated votes on the first against each of the others")
    raters: int = Field(8, ge=2, description="simulated listeners")
    population: str = Field("default", description="a population of configs/listeners.yaml")
    metrics: MetricSettings = MetricSettings()
    page: bool = Field(True, description="write the page with players")

    @field_validator("versions")
    @classmethod
    def _several(cls, versions: tuple[str, ...]) -> tuple[str, ...]:
        if len(versions) < 2 or len(set(versions)) < len(versions):
            raise ValueError(f"found {', '.join(versions) or 'none'}; name two versions or more, each once")
        return versions

    @model_validator(mode="after")
    def _prompts(self) -> CompareRecipe:
        if not (self.prompts or self.prompt_set or self.split or self.captions):
            raise ValueError("there are no prompts; give prompts, prompt_set, split or captions")
        return self
