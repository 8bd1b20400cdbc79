"""What the clips and the policy say without listeners: diversity and KL, each with its interval and its n."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from alignment.errors import ShapeError
from alignment.evaluation.intervals import Interval, check_bootstrap, label_codes, resample_totals, wilson

__all__ = [
    "Interval",
    "KlEstimate",
    "bootstrap_mean",
    "bootstrap_share",
    "diversity",
    "kl_nats_per_clip",
    "prompt_diversity",
]


def bootstrap_mean(
    values: np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean of ``values`` (n,) with a bootstrap interval that resamples whole clusters (each value its own if None).

    The interval is mean -/+ t x the bootstrap standard error x sqrt(G / (G - 1)), with G - 1 degrees of freedom for G
    clusters; with one cluster nothing can be resampled and low and high are nan. Raises ShapeError unless ``values``
    is a finite, non-empty vector with one cluster label each.
    """
    check_bootstrap(confidence, rounds)
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ShapeError(f"values have shape {values.shape}; a mean needs a non-empty vector of finite numbers.")
    if clusters is not None and len(clusters) != values.size:
        raise ShapeError(f"{len(clusters)} cluster labels for {values.size} values; each value needs one.")
    codes = np.arange(values.size) if clusters is None else label_codes(list(clusters))
    count = int(codes.max()) + 1
    mean = float(values.mean())
    if count == 1:
        return Interval(mean, float("nan"), float("nan"), n=values.size, clusters=1, confidence=confidence)
    totals = resample_totals(
        np.column_stack([values - mean, np.ones_like(values)]), codes, rounds, np.random.default_rng(seed)
    )
    error = float(np.std(totals[:, 0] / totals[:, 1])) * np.sqrt(count / (count - 1))
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half, n=values.size, clusters=count, confidence=confidence)


def bootstrap_share(
    values: np.ndarray, clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95, rounds: int = 1000,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """``bootstrap_mean`` of shares, each in [0, 1], with its interval inside [0, 1].

    Where all shares are alike resampling shows no spread; then it is Wilson's interval (1927) with each cluster as one
    answer, since "none of 16" does not say that there are none. Raises ShapeError for a share outside [0, 1]."""
    found = bootstrap_mean(values, clusters, confidence=confidence, rounds=rounds, seed=seed)
    if np.min(values) < 0 or np.max(values) > 1:
        raise ShapeError(f"shares go from {np.min(values):g} to {np.max(values):g}; they must lie from 0 to 1.")
    if np.ptp(values) == 0:
        quantile = float(stats.norm.ppf(0.5 + confidence / 2))
        low, high = wilson(found.value, found.clusters or found.n, quantile)
    else:
        low, high = max(0.0, found.low), min(1.0, found.high)
    return replace(found, low=low, high=high)


def diversity(embeddings: np.ndarray, *, confidence: float = 0.95, rounds: int = 1000, seed: int = 0) -> Interval:
    """Mean pairwise cosine distance, in [0, 2], among the N clips of one prompt; the mean over prompts. n = prompts.

    See ``prompt_diversity``. Prompts are resampled.
    """
    return bootstrap_mean(prompt_diversity(embeddings), confidence=confidence, rounds=rounds, seed=seed)


def prompt_diversity(embeddings: np.ndarray) -> np.ndarray:
    """(P,) mean pairwise cosine distance, in [0, 2], among the N clips of each prompt.

    embeddings (P, N, D), N >= 2, of any length but zero: CLAP's audio space here. 0 means that a prompt always gets
    the same clip. Raises ShapeError on other shapes and on zero or non-finite vectors.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 3 or embeddings.shape[1] < 2 or embeddings.shape[0] < 1:
        raise ShapeError(f"embeddings have shape {embeddings.shape}; needed is (prompts, clips >= 2, width).")
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ShapeError("An embedding is zero or not finite; leave silent or broken clips out before measuring.")
    units = embeddings / norms
    clips = units.shape[1]
    # The sum over ordered pairs of unit vectors is |sum|^2 - N: no (N, N) matrix is needed.
    return 1.0 - ((units.sum(axis=1) ** 2).sum(axis=-1) - clips) / (clips * (clips - 1))  # (P,)


@dataclass(frozen=True)
class KlEstimate:
    """KL(policy || reference) in nats, per clip and per token, from the policy's own samples. n = clips."""

    per_clip: Interval
    per_token: Interval

    @property
    def value(self) -> float:
        return self.per_clip.value

    @property
    def low(self) -> float:
        return self.per_clip.low

    @property
    def high(self) -> float:
        return self.per_clip.high

    @property
    def n(self) -> int:
        return self.per_clip.n


def kl_nats_per_clip(
    policy_logprobs: np.ndarray,
    ref_logprobs: np.ndarray,
    prompts: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
) -> KlEstimate:
    """KL(policy || reference) in nats: the mean over clips of the summed log-ratio, with its interval.

    Both (B, K, T) log-probabilities of the same codes, which the *policy* sampled, under the distribution it sampled
    from; resampled by prompt where ``prompts`` (B,) is given. The estimate is unbiased, so it may fall slightly below
    0 (Schulman 2020, "Approximating KL divergence", k1). Raises ShapeError on mismatch or non-finite values.
    """
    policy_logprobs = np.asarray(policy_logprobs, dtype=np.float64)
    ref_logprobs = np.asarray(ref_logprobs, dtype=np.float64)
    if policy_logprobs.shape != ref_logprobs.shape or policy_logprobs.ndim < 2:
        raise ShapeError(
            f"policy_logprobs {policy_logprobs.shape} and ref_logprobs {ref_logprobs.shape} must share one shape "
            "(clips, codebooks, frames)."
        )
    ratios = (policy_logprobs - ref_logprobs).reshape(len(policy_logprobs), -1)
    options = {"confidence": confidence, "rounds": rounds, "seed": seed}
    return KlEstimate(
        per_clip=bootstrap_mean(ratios.sum(axis=1), prompts, **options),
        per_token=bootstrap_mean(ratios.mean(axis=1), prompts, **options),
    )
