"""What a study asks, of whom and under which rules: a recipe in YAML, kept with the study in the database."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from alignment.config import GenerationSettings, Recipe
from alignment.domain import Axis

CONSENT_TEXT = (
    "My answers are stored under a pseudonym, without my name or address. I can stop at any time and take my answers "
    "back later."
)


class Shares(Recipe):
    """Parts of what a session hears that check the rater instead of the versions; drawn at random among the rest."""

    repeats: float = Field(0.0, ge=0, le=0.5, description="pairs heard before, sides swapped")
    gold: float = Field(0.0, ge=0, le=0.5, description="pairs with a known winner")
    anchors: float = Field(0.0, ge=0, le=0.5, description="pairs of a clip and its low anchor (BS.1534: low-passed)")

    @model_validator(mode="after")
    def _leave_room(self) -> Shares:
        if self.repeats + self.gold + self.anchors > 0.5:
            raise ValueError("repeats, gold and anchors together take more than half of all pairs")
        return self


class Onboarding(Recipe):
    """What a rater sees before the first pair."""

    consent_version: str = Field("1", min_length=1, max_length=40)
    consent_text: str = Field(CONSENT_TEXT, min_length=1, max_length=5000)
    ask_training: bool = Field(True, description="ask whether answers may train models; refused votes train nothing")
    ask_publication: bool = Field(True, description="ask, apart from that, whether answers may be published")
    instructions: str = Field("", max_length=5000, description="shown above the standard ones")
    level_check: bool = Field(True, description="set the volume on a steady sound before the first pair")
    headphone_check: Literal["off", "asked", "tested"] = Field(
        "asked", description="tested: three antiphase trials (Woods et al. 2017), stored; nobody is refused"
    )
    background: tuple[Literal["musical_training", "culture", "age_group"], ...] = Field(
        (), description="optional questions whose answers become the cohort"
    )
    practice_pairs: int = Field(2, ge=0, le=5)


class Pacing(Recipe):
    """How long a session is."""

    pairs_per_session: int | None = Field(None, ge=1, le=1000, description="none: until there are no more")
    break_every: int = Field(20, ge=0, le=1000, description="pairs between breaks; 0 proposes none")
    break_seconds: float = Field(30.0, ge=0, le=600)


class ArenaRules(Recipe):
    """Prompts that raters type."""

    generation: GenerationSettings = GenerationSettings()
    longest_prompt: int = Field(300, ge=10, le=2000, description="characters")
    blocked_words: tuple[str, ...] = Field((), description="whole words or phrases, any case or spelling variant")
    blocked_artists: tuple[str, ...] = Field((), description="names that a prompt may not ask to imitate")
    requests_per_hour: int = Field(20, ge=1, le=1000, description="of one session")


class StudyRecipe(Recipe):
    """A study. ``attune study create FILE`` makes it; the admin page edits the same fields."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\s/][^/\n]*$")
    title: str = Field("", max_length=200, description="shown to raters; it must not tell what is compared")
    mode: Literal["ab", "rating", "arena"] = "ab"
    versions: tuple[str, ...] = Field(min_length=1)
    prompt_set: str | None = Field(None, description="a named set of prompts; none: all that the versions have sung")
    pairs: int | None = Field(None, ge=1, description="battles to make; none: one a prompt and pair of versions")
    votes_per_pair: int = Field(3, ge=1, le=1000, description="wanted; more are taken while raters come")
    minimum_listening_seconds: float = Field(2.0, ge=0, le=60, description="distinct seconds of each clip")
    questions: tuple[Axis, ...] = tuple(Axis)
    ask_confidence: bool = False
    ask_comment: bool = True
    scales: tuple[Literal["quality", "relevance", "mos"], ...] = Field(
        ("quality", "relevance"), min_length=1, description="of the rating mode: two of 1-100, one of five points"
    )
    access: Literal["invited", "open"] = "open"
    choice: Literal["random", "balanced", "active"] = Field("balanced", description="how the next pair is drawn")
    shares: Shares = Shares()
    onboarding: Onboarding = Onboarding()
    pacing: Pacing = Pacing()
    arena: ArenaRules = ArenaRules()
    reveal: bool = Field(False, description="say which version was which after the vote, which then cannot change")

    @model_validator(mode="after")
    def _fits_together(self) -> StudyRecipe:
        if len(set(self.versions)) != len(self.versions):
            raise ValueError("versions names one version twice")
        if self.mode == "arena" and len(self.versions) != 2:
            raise ValueError(f"an arena needs exactly two versions; found {len(self.versions)}")
        if self.mode == "rating" and (self.shares.repeats or self.shares.gold):
            raise ValueError("repeats and gold are pairs; a rating study has anchors only")
        return self
