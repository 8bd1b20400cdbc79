"""A trained reward model: scores with their uncertainty, accuracy with its interval, a folder on disk."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file

from alignment.domain import Pair
from alignment.errors import DataError, ModelError, NotFoundError, StoreError
from alignment.rewards.embeddings import Embeddings, stack
from alignment.rewards.heads import HEADS, HeadEnsemble

FORMAT = 1


@dataclass(frozen=True)
class Scores:
    """Scores of N clips, each (N,) float64, in logits: the difference of two clips is the log-odds that one is liked.

    ``members`` (M, N) are the preference scores of the ensemble's members and ``uncertainty`` their deviation;
    ``uncertainties`` has the deviation of every head. A head that had nothing to learn from (no vote answered its
    question) is all NaN."""

    text_adherence: np.ndarray
    quality: np.ndarray
    preference: np.ndarray
    uncertainty: np.ndarray
    members: np.ndarray
    uncertainties: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardAccuracy:
    """Share of ``n`` decisive votes whose winner scores higher (equal scores count half), with its interval."""

    value: float
    low: float
    high: float
    n: int
    prompts: int
    confidence: float = 0.95


@dataclass
class RewardModel:
    """Heads with the temperatures that calibrate them; ``metrics`` is what training measured.

    ``ties`` is Davidson's nu of each head, empty where ties were learnt as half a win."""

    heads: HeadEnsemble
    encoder: str = ""
    temperatures: dict[str, float] = field(default_factory=dict)
    trained_heads: tuple[str, ...] = HEADS
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    ties: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], audio_vecs: np.ndarray, text_vecs: np.ndarray | Embeddings) -> Scores:
        """Scores of N clips. audio_vecs (N, D); text_vecs (N, D) or a mapping from each prompt to its (D,).

        Raises DataError when the shapes do not fit or an embedding is not finite."""
        if isinstance(text_vecs, Mapping):
            text_vecs = stack(text_vecs, prompts, "text embedding of prompt")
        audio = np.asarray(audio_vecs, dtype=np.float32)
        text = np.asarray(text_vecs, dtype=np.float32)
        needed = (len(prompts), self.heads.width)
        if audio.shape != needed or text.shape != needed:
            raise DataError(f"Embeddings are {audio.shape} and {text.shape}; this reward model needs {needed} of each.")
        if not (np.isfinite(audio).all() and np.isfinite(text).all()):
            raise DataError("An embedding is not finite; is a clip silent or damaged?")
        members = self.member_scores(torch.from_numpy(audio), torch.from_numpy(text))
        each = {head: scores.double().numpy() for head, scores in members.items()}
        for head in set(HEADS) - set(self.trained_heads):
            each[head] = np.full_like(each[head], np.nan)
        deviations = {head: scores.std(0) for head, scores in each.items()}
        return Scores(
            **{head: scores.mean(0) for head, scores in each.items()}, uncertainty=deviations["preference"],
            members=each["preference"], uncertainties=deviations,
        )  # fmt: skip

    @torch.no_grad()
    def member_scores(self, audio: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """{head: calibrated scores (M, N)} of audio (N, D) and text (N, D)."""
        scores = self.heads(self.heads.features(audio, text))
        return {head: values / self.temperatures.get(head, 1.0) for head, values in scores.items()}

    def accuracy(
        self,
        pairs: Sequence[Pair],
        audio_embeddings: Embeddings,
        text_embeddings: Embeddings,
        *,
        head: str = "preference",
        confidence: float = 0.95,
        rounds: int = 1000,
        seed: int = 0,
    ) -> RewardAccuracy:
        """How often the model agrees with decisive votes; the interval resamples prompts, whose votes are not
        independent of each other. Raises DataError when no vote is decisive."""
        if head not in self.trained_heads:
            raise DataError(f"The head {head} was not trained: no vote answered its question.")
        decisive = [pair for pair in pairs if pair.preference != 0.5]
        if not decisive:
            raise DataError(f"None of {len(pairs)} votes is decisive; accuracy needs votes for one of two clips.")
        correct = self.agreement(decisive, audio_embeddings, text_embeddings, head=head)
        prompts = [pair.prompt_text for pair in decisive]
        low, high, clusters = _clustered_interval(correct, prompts, confidence, rounds, seed)
        return RewardAccuracy(float(correct.mean()), low, high, len(decisive), clusters, confidence)

    def agreement(
        self, decisive: Sequence[Pair], audio_embeddings: Embeddings, text_embeddings: Embeddings, *, head: str
    ) -> np.ndarray:
        """(n,): 1 where a head scores the winner of a decisive vote higher, 0 where lower, 0.5 at equal scores."""
        prompts = [pair.prompt_text for pair in decisive]
        text = stack(text_embeddings, prompts, "text embedding of prompt")
        sides = [stack(audio_embeddings, [getattr(pair, side).audio_sha256 for pair in decisive], "embedding of clip")
                 for side in ("a", "b")]  # fmt: skip
        score_a, score_b = (getattr(self.score(prompts, audio, text), head) for audio in sides)
        sign = np.where([pair.preference > 0.5 for pair in decisive], 1.0, -1.0)
        return 0.5 + 0.5 * np.sign((score_a - score_b) * sign)

    def save(self, folder: str | Path) -> None:
        """Write heads.safetensors and reward.json; a failure leaves nothing half-written (StoreError)."""
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.partial")
        about = {
            "format": FORMAT, "width": self.heads.width, "hidden": self.heads.hidden, "members": self.heads.members,
            "dropout": self.heads.dropout, "encoder": self.encoder, "temperatures": self.temperatures,
            "trained_heads": list(self.trained_heads), "settings": self.settings, "metrics": self.metrics,
            "ties": self.ties,
        }  # fmt: skip
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(self.heads.state_dict(), temporary / "heads.safetensors")
            (temporary / "reward.json").write_text(json.dumps(about, indent=1, sort_keys=True), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            temporary.replace(folder)
        except (OSError, safetensors.SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StoreError(f"{folder}: the reward model cannot be written ({error}).") from error

    @classmethod
    def load(cls, folder: str | Path) -> RewardModel:
        """The reward model in a folder. Raises NotFoundError when it is missing, ModelError when it is damaged."""
        folder = Path(folder)
        if not (folder / "reward.json").is_file():
            raise NotFoundError(f"{folder}: no reward model here; train one with attune reward train.")
        try:
            about = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ModelError(f"{folder}: reward model format {about['format']}; this code reads {FORMAT}.")
            shape = {name: about[name] for name in ("hidden", "members", "dropout")}
            heads = HeadEnsemble(about["width"], **shape)
            heads.load_state_dict(load_file(folder / "heads.safetensors"))
            return cls(heads, about["encoder"], about["temperatures"], tuple(about["trained_heads"]),
                       about["settings"], about["metrics"], about.get("ties", {}))  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            raise ModelError(f"{folder}: damaged reward model ({error}); train it again.") from error


def _clustered_interval(
    values: np.ndarray, clusters: Sequence[str], confidence: float, rounds: int, seed: int
) -> tuple[float, float, int]:
    """Percentile interval of the mean when whole clusters are drawn with replacement, and how many there are.

    Where all clusters agree, resampling shows no spread; then it is Wilson's score interval (1927) with each cluster
    as one vote, since a point would claim what few votes cannot."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=values, minlength=len(names))
    sizes = np.bincount(index, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(rounds, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    if low == high:
        share, n = float(low), len(names)
        q2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
        half = math.sqrt(q2 * share * (1 - share) / n + q2 * q2 / (4 * n * n)) / (1 + q2 / n)
        centre = (share + q2 / (2 * n)) / (1 + q2 / n)
        low, high = max(0.0, centre - half), min(1.0, centre + half)
    return float(low), float(high), len(names)
