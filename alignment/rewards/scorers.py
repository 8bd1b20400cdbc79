"""Scorers of clips behind one interface: CLAP cosine, the heads of a reward model, any Python callable; and their
weighted sum on one scale."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from alignment.errors import ConfigError, DataError
from alignment.rewards.heads import HEADS
from alignment.rewards.licences import OWN, UNKNOWN, refuse_non_commercial
from alignment.rewards.model import RewardModel


@dataclass(frozen=True)
class Scored:
    """Scores of B clips: ``values`` (B,) float64, more is better; ``uncertainty`` (B,) float64 in the same unit, None
    where the scorer has none."""

    values: np.ndarray
    uncertainty: np.ndarray | None = None


@runtime_checkable
class Scorer(Protocol):
    """Anything that scores clips. ``licence`` is that of its weights or data (an SPDX name, or "own")."""

    name: str
    licence: str

    def score(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> Scored:
        """Scores of B clips: prompts (B,), audio (B, N) float32, mono."""
        ...


class Encoder(Protocol):
    """What scorers need of a ``ClapEncoder``."""

    name: str

    def audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray: ...
    def text(self, prompts: Sequence[str]) -> np.ndarray: ...


class SharedEncoder:
    """An encoder that embeds a batch once for all the scorers that ask about it, and each prompt once for ever.

    Give one of these to several scorers: embedding is nearly all of what scoring costs."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.name = encoder.name
        self._last: tuple[tuple, np.ndarray] | None = None
        self._texts: dict[str, np.ndarray] = {}

    def audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Embeddings (B, D) of audio (B, N)."""
        audio = np.ascontiguousarray(audio)
        key = (audio.shape, sample_rate_hz, hashlib.blake2b(audio.data).digest())
        if self._last is None or self._last[0] != key:
            self._last = (key, self.encoder.audio(audio, sample_rate_hz))
        return self._last[1]

    def text(self, prompts: Sequence[str]) -> np.ndarray:
        """Embeddings (B, D) of prompts."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if new:
            self._texts.update(zip(new, self.encoder.text(new), strict=True))
        return np.stack([self._texts[prompt] for prompt in prompts])


class ClapCosine:
    """Cosine of CLAP's audio and text embeddings, in [-1, 1]: how well the clip follows its prompt (MusicRL's text
    reward; a long clip is the mean of its windows). No vote trained it."""

    def __init__(self, encoder: Encoder, *, licence: str = UNKNOWN, name: str = "clap_cosine") -> None:
        self.encoder, self.licence, self.name = encoder, licence, name

    def score(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> Scored:
        heard = self.encoder.audio(audio, sample_rate_hz).astype(np.float64)
        asked = self.encoder.text(prompts).astype(np.float64)
        lengths = np.linalg.norm(heard, axis=1) * np.linalg.norm(asked, axis=1)
        return Scored((heard * asked).sum(1) / np.maximum(lengths, 1e-12))


class RewardHead:
    """One head of a reward model, in logits; ``uncertainty`` is the deviation of the ensemble's members.

    Only differences between clips of one prompt mean something, so each member has a level of its own that says
    nothing of its doubt. ``levels`` (M,) are taken off first; ``on_base_clips`` measures them."""

    def __init__(
        self, model: RewardModel, encoder: Encoder, head: str = "preference", *, licence: str = OWN,
        name: str | None = None, levels: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if head not in HEADS:
            raise ConfigError(f"There is no reward head {head!r}; known: {', '.join(HEADS)}.")
        if head not in model.trained_heads:
            raise DataError(f"The head {head} was not trained: no vote answered its question. Choose another head.")
        if model.encoder and model.encoder != encoder.name:
            raise DataError(f"The reward model reads embeddings of {model.encoder}; the encoder here is "
                            f"{encoder.name}. Train it again with this encoder.")  # fmt: skip
        self.model, self.encoder, self.head, self.licence = model, encoder, head, licence
        self.name = name or head
        self.levels = np.zeros(model.heads.members) if levels is None else np.asarray(levels, dtype=np.float64)

    def on_base_clips(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> RewardHead:
        """This head with the members' levels measured on clips that the base sang."""
        levels = self._members(prompts, audio, sample_rate_hz).mean(1)
        return RewardHead(
            self.model, self.encoder, self.head, licence=self.licence, name=self.name, levels=levels - levels.mean()
        )

    def score(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> Scored:
        members = self._members(prompts, audio, sample_rate_hz) - self.levels[:, None]
        return Scored(members.mean(0), members.std(0))

    def _members(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Scores (M, B) of each member."""
        heard = torch.from_numpy(np.asarray(self.encoder.audio(audio, sample_rate_hz), dtype=np.float32))
        asked = torch.from_numpy(np.asarray(self.encoder.text(prompts), dtype=np.float32))
        return self.model.member_scores(heard, asked)[self.head].double().numpy()


class CallableScorer:
    """Any Python function of (prompts, audio (B, N), sample rate in Hz) that returns B numbers, more is better."""

    def __init__(
        self, function: Callable[[Sequence[str], np.ndarray, int], Any], *, name: str, licence: str = UNKNOWN
    ) -> None:
        self.function, self.name, self.licence = function, name, licence

    def score(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> Scored:
        return Scored(np.asarray(self.function(prompts, audio, sample_rate_hz), dtype=np.float64))


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of a scorer on clips that the base sang: 0 is the base's level, 1 its spread.

    Where every prompt was sung twice or more the deviation is that within prompts, because only differences within a
    prompt can be earned; otherwise it is that over all clips."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: np.ndarray, prompts: Sequence[str], name: str) -> Scale:
        """Raises DataError when the values do not vary: a constant reward teaches nothing."""
        texts, index = np.unique(np.asarray(prompts), return_inverse=True)
        sizes = np.bincount(index)
        within = bool(sizes.min() > 1) if len(values) else False
        level = (np.bincount(index, weights=values) / sizes)[index] if within else values.mean() if len(values) else 0
        freedom = len(values) - (len(texts) if within else 1)
        deviation = math.sqrt(float(((values - level) ** 2).sum()) / freedom) if freedom > 0 else 0.0
        if not deviation > 1e-9 * (1 + float(np.abs(values).max(initial=0.0))):
            raise DataError(f"The scorer {name} gives {'the same score to' if len(values) else 'no score:'} all "
                            f"{len(values)} base clips; a constant reward teaches nothing. Give other clips or leave "
                            "the scorer out.")  # fmt: skip
        return cls(float(values.mean()), deviation)


class WeightedScorer:
    """A weighted sum of scorers, each on the scale of the base's clips, less a penalty for uncertainty.

    total = sum of w (value - mean) / deviation - penalty * sum of |w| uncertainty / deviation.

    A weight may be negative. With ``commercial``, scorers whose licence forbids it are refused."""

    def __init__(
        self,
        parts: Sequence[tuple[Scorer, float]],
        scales: Mapping[str, Scale],
        *,
        uncertainty_penalty: float = 0.0,
        commercial: bool = False,
        name: str = "reward",
    ) -> None:
        names = [scorer.name for scorer, _ in parts]
        if not parts or not all(math.isfinite(w) for _, w in parts) or not any(w for _, w in parts):
            raise ConfigError(f"The reward's weights are {[w for _, w in parts]}; at least one must not be 0, and all "
                              "must be numbers.")  # fmt: skip
        if len(set(names)) < len(names):
            raise ConfigError(f"The reward's scorers are {', '.join(names)}; give each a name of its own.")
        if not uncertainty_penalty >= 0:
            raise ConfigError(f"uncertainty_penalty is {uncertainty_penalty}; it must be 0 or more.")
        if missing := [scorer for scorer in names if scorer not in scales]:
            raise ConfigError(f"There is no scale for {', '.join(missing)}; use WeightedScorer.on_base_clips.")
        if commercial:
            refuse_non_commercial(scorer for scorer, _ in parts)
        self.parts = tuple((scorer, float(weight)) for scorer, weight in parts)
        self.scales = {scorer: scales[scorer] for scorer in names}
        self.uncertainty_penalty, self.commercial, self.name = float(uncertainty_penalty), commercial, name

    @classmethod
    def on_base_clips(
        cls,
        parts: Sequence[tuple[Scorer, float]],
        prompts: Sequence[str],
        audio: np.ndarray,
        sample_rate_hz: int,
        **options: Any,
    ) -> WeightedScorer:
        """The weighted scorer whose scales (and members' levels) are measured on clips (B, N) that the base sang.

        A hundred clips or more, best several of each prompt, make a steady scale. ``options`` are the constructor's.
        Raises DataError for a scorer that gives all of them the same score."""
        if options.get("commercial"):
            refuse_non_commercial(scorer for scorer, _ in parts)
        audio = check_clips(prompts, audio)
        levelled = [(scorer.on_base_clips(prompts, audio, sample_rate_hz) if hasattr(scorer, "on_base_clips")
                     else scorer, weight) for scorer, weight in parts]  # fmt: skip
        scales = {
            scorer.name: Scale.of(checked(scorer, prompts, audio, sample_rate_hz).values, prompts, scorer.name)
            for scorer, _ in levelled
        }
        return cls(levelled, scales, **options)

    @property
    def licence(self) -> str:
        """The parts' licences, each once."""
        return ", ".join(dict.fromkeys(scorer.licence for scorer, _ in self.parts))

    def score_parts(
        self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(total (B,), {scorer name: its values on the base's scale (B,)}), all float64; audio (B, N).

        Raises DataError naming the clip for audio or a score that is not finite."""
        audio = check_clips(prompts, audio)
        total, values = np.zeros(len(prompts)), {}
        for scorer, weight in self.parts:
            found = checked(scorer, prompts, audio, sample_rate_hz)
            scale = self.scales[scorer.name]
            values[scorer.name] = (found.values - scale.mean) / scale.deviation
            total += weight * values[scorer.name]
            if found.uncertainty is not None and self.uncertainty_penalty:
                total -= self.uncertainty_penalty * abs(weight) * found.uncertainty / scale.deviation
        return total, values

    def score(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> Scored:
        """The total, as a scorer among others."""
        return Scored(self.score_parts(prompts, audio, sample_rate_hz)[0])

    def about(self) -> dict[str, Any]:
        """What a run's record keeps of its reward."""
        return {
            "uncertainty_penalty": self.uncertainty_penalty,
            "commercial": self.commercial,
            "parts": [
                {"name": scorer.name, "weight": weight, "licence": scorer.licence,
                 "mean": self.scales[scorer.name].mean, "deviation": self.scales[scorer.name].deviation}
                for scorer, weight in self.parts
            ],
        }  # fmt: skip


def check_clips(prompts: Sequence[str], audio: np.ndarray) -> np.ndarray:
    """The audio (B, N) float32. Raises DataError unless there is one finite, non-empty clip for each prompt."""
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 2 or len(audio) != len(prompts) or not audio.shape[1]:
        raise DataError(f"Found audio of shape {audio.shape} for {len(prompts)} prompts; needs (clips, samples).")
    finite = np.isfinite(audio).all(1)
    if not finite.all():
        at = int(finite.argmin())
        raise DataError(f"Clip {at} ({prompts[at]!r}) is not finite; the model that sang it is broken.")
    return audio


def checked(scorer: Scorer, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> Scored:
    """The scorer's scores, (B,) float64. Raises DataError naming scorer and clip when they are not B finite numbers."""
    found = scorer.score(prompts, audio, sample_rate_hz)
    kept = []
    for what, values in (("score", found.values), ("uncertainty", found.uncertainty)):
        if values is None:
            kept.append(None)
            continue
        values = np.asarray(values, dtype=np.float64)
        if values.shape != (len(prompts),):
            raise DataError(f"The scorer {scorer.name} gave a {what} of shape {values.shape} for {len(prompts)} clips; "
                            "needs one number a clip.")  # fmt: skip
        finite = np.isfinite(values)
        if not finite.all():
            at = int(finite.argmin())
            raise DataError(f"The scorer {scorer.name} gave the {what} {values[at]} to clip {at} ({prompts[at]!r}); "
                            "mend the scorer or leave it out.")  # fmt: skip
        kept.append(values)
    return Scored(*kept)
