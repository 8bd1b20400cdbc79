"""From what was measured of each clip to figures with intervals, and to differences between versions."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignment.circle.compare_recipe import MetricSettings
from alignment.db.comparisons import Difference, Measured
from alignment.domain import Clip, Prompt
from alignment.evaluation.fidelity import SetFigure
from alignment.evaluation.intervals import Interval
from alignment.evaluation.metrics import bootstrap_mean, bootstrap_share

SHARES = ("silence", "clipping", "duplicates", "copied")
NOT_SHOWN = ("reward_uncertainty",)  # kept by clip only
Key = tuple[str, str | None]  # metric and the exact model behind it


@dataclass
class Found:
    """What was measured of one version: ``values`` a clip or prompt, with ``clusters`` by their number, and figures
    of the whole set."""

    clips: list[Clip]
    values: dict[Key, np.ndarray] = field(default_factory=dict)
    sets: dict[Key, SetFigure] = field(default_factory=dict)


def figures_of(
    found: Mapping[str, Found], prompts: int, settings: MetricSettings
) -> tuple[tuple[Measured, ...], tuple[Difference, ...]]:
    """The figures of each version, and how far the first one's lie from each of the others'."""
    options = {"confidence": settings.confidence, "rounds": settings.rounds, "seed": settings.seed}
    each = settings.clips_per_prompt

    def mean(key: Key, values: np.ndarray) -> Interval | None:
        clusters = [at // each for at in range(len(values))] if len(values) > prompts else None
        if not np.isfinite(values).all():
            return None
        return (bootstrap_share if key[0] in SHARES else bootstrap_mean)(values, clusters, **options)

    metrics, differences = [], []
    first, *others = found
    for name, own in found.items():
        told: dict[Key, Interval | None] = {key: mean(key, values) for key, values in own.values.items()}
        told |= {key: one.interval(least=0.0 if key[0] == "fad" else -np.inf) for key, one in own.sets.items()}
        metrics += [
            Measured(name, *key, one.n, one.value, one.low, one.high)
            for key, one in told.items() if one is not None and key[0] not in NOT_SHOWN
        ]  # fmt: skip
    for name in others:
        one, two = found[first], found[name]
        gaps = {
            key: mean(("difference", None), values - two.values[key])
            for key, values in one.values.items() if key in two.values
        }  # fmt: skip
        gaps |= {key: figure.minus(two.sets[key]) for key, figure in one.sets.items() if key in two.sets}
        differences += [
            Difference(first, name, *key, gap.n, gap.value, gap.low, gap.high)
            for key, gap in gaps.items() if gap is not None and key[0] not in NOT_SHOWN
        ]  # fmt: skip
    return tuple(metrics), tuple(differences)


def in_order(found: Mapping[str, Found], prompts: Sequence[Prompt]) -> tuple[uuid.UUID, ...]:
    """Ids of all clips by prompt, version and take."""
    place = {prompt.id: at for at, prompt in enumerate(prompts)}
    ordered = sorted(
        ((place[clip.prompt_id], number, take, clip.id) for number, own in enumerate(found.values())
         for take, clip in enumerate(own.clips)),
    )  # fmt: skip
    return tuple(id_ for *_, id_ in ordered)
