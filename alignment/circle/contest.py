"""A panel of held-out listeners: blind contests against the base, and what the panel's taste makes of single clips."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from alignment.circle import listen
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.config import VOTES_PER_PAIR
from alignment.domain import Clip, Prompt, RaterKind
from alignment.errors import DataError
from alignment.evaluation.win_rate import WinRate, win_rate
from alignment.simulation.judge import Judge, Judgement
from alignment.simulation.listeners import Listener, Listeners, draw_population, load_listeners
from alignment.versions import BASE_NAME

ClipOf = Mapping[uuid.UUID, Clip]  # one clip a prompt


@dataclass
class Panel:
    """Simulated listeners who trained nothing; the same tastes in every contest of a run. ``heard`` fills as clips
    are judged, so that the judge hears each once."""

    ws: Workspace
    judge: Judge
    raters: int
    seed: int
    population: str = "default"
    listeners: Listeners = field(default_factory=load_listeners)
    heard: dict[str, Judgement] = field(default_factory=dict)

    def hear(self, clips: Sequence[Clip], progress: Progress = no_progress) -> None:
        fresh = [clip for clip in clips if clip.audio_sha256 not in self.heard]
        self.heard.update(listen.judge_clips(self.ws, self.judge, fresh, progress))

    def contest(
        self, study: str, name: str, first: ClipOf, rival: ClipOf, votes: int, progress: Progress = no_progress
    ) -> WinRate:
        """Win rate of ``rival``'s clips, called ``name``, over ``first``'s in a blind study of that name.

        At most VOTES_PER_PAIR votes fall on one pair. Raises DataError when all pairs sound exactly alike, or when the
        study has votes already: other listeners' would mix with the panel's."""
        self.hear([*first.values(), *rival.values()])
        pairs = listen.pairs_across(first, rival)
        listen.open_study(self.ws, study, pairs, rater_kind=RaterKind.SIMULATED)
        if listen.votes_of(self.ws, study):
            raise DataError(f"Study {study} has votes already; compare in a fresh folder.")
        listen.simulate_votes(
            self.ws, study, self.listeners, judge=self.judge, population=self.population, raters=self.raters,
            votes=votes, seed=self.seed, per_pair=VOTES_PER_PAIR, heard=self.heard, progress=progress,
        )  # fmt: skip
        ours = {str(clip.id) for clip in rival.values()}
        rows = listen.votes_of(self.ws, study)
        return win_rate(listen.comparisons(rows, lambda clip, _: name if str(clip) in ours else BASE_NAME), name)

    @cached_property
    def _members(self) -> list[Listener]:
        return [listener for _, listener in draw_population(self.listeners, self.population, self.raters, self.seed)]

    def rewards(self, prompts: Sequence[Prompt], clips: ClipOf) -> np.ndarray:
        """Judge reward (P,): the panel's mean utility of each prompt's clip, as the gold judge hears it."""
        self.hear([clips[prompt.id] for prompt in prompts])
        return np.array(
            [np.mean([m.utility(self.heard[clips[p.id].audio_sha256], p.tags) for m in self._members]) for p in prompts]
        )

    def adherence(self, prompts: Sequence[Prompt], clips: ClipOf) -> np.ndarray:
        """(P,): the judge's mean probability of what the caption asks for."""
        self.hear([clips[prompt.id] for prompt in prompts])
        return np.array([self.heard[clips[p.id].audio_sha256].adherence(p.tags) for p in prompts])

    def cleanliness(self, prompts: Sequence[Prompt], clips: ClipOf) -> np.ndarray:
        """(P,): how clean the judge hears each prompt's clip, in [0, 1]."""
        self.hear([clips[prompt.id] for prompt in prompts])
        return np.array([self.heard[clips[p.id].audio_sha256].cleanliness for p in prompts])

    def faults(self, prompts: Sequence[Prompt], clips: ClipOf) -> dict[str, np.ndarray]:
        """Each fault that the judge knows, (P,), from 0, none, to 1."""
        self.hear([clips[prompt.id] for prompt in prompts])
        heard = [self.heard[clips[p.id].audio_sha256].faults for p in prompts]
        return {name: np.array([faults[name] for faults in heard]) for name in heard[0]}
