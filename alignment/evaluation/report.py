"""The report of a run: plain values in, one self-contained HTML page (no outside request) and JSON out."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import DataError
from alignment.evaluation.intervals import Interval
from alignment.evaluation.win_rate import WinRate
from alignment.evaluation.writing import write_page


@dataclass(frozen=True)
class Contest:
    """One line of the win-rate plot; ``note`` says who was compared, in a few words."""

    label: str  # "DPO vs base"
    rate: WinRate
    note: str = ""


@dataclass(frozen=True)
class HeadAccuracy:
    """Share of held-out decisive pairs that one head orders as the rater did; ``baseline`` what a simple rule gets."""

    head: str
    accuracy: Interval
    baseline: float | None = None
    baseline_label: str = ""


@dataclass(frozen=True)
class RewardCard:
    """What is known of the reward model; ``facts`` are short lines such as encoder, training pairs, ensemble."""

    name: str
    heads: Sequence[HeadAccuracy]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """One training quantity over optimizer steps; ``reference`` draws a dashed level (chance, zero)."""

    label: str
    points: Sequence[tuple[float, float]]
    unit: str = ""
    reference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class MetricRow:
    """One quantity for base and aligned version, with its definition; None where it has no meaning."""

    label: str
    base: Interval | None
    aligned: Interval | None
    unit: str = ""
    definition: str = ""


@dataclass(frozen=True)
class MethodRow:
    """One way to sing, beside the others: every figure on the same prompts, by the same listeners and judge.

    ``kl_bound`` stands in, in nats a clip, where KL is not estimated: best-of-N. The base has neither."""

    label: str
    judge_reward: Interval
    cleanliness: Interval
    adherence: Interval
    win_rate: Interval | None = None
    kl: Interval | None = None
    kl_bound: float | None = None
    diversity: Interval | None = None
    headline: bool = False

    @property
    def nats(self) -> float:
        """KL to the base in nats a clip, as estimated, else its bound, else 0."""
        return self.kl.value if self.kl else self.kl_bound or 0.0


@dataclass(frozen=True)
class AdherenceRow:
    """Share of clips in which an attribute is what the caption asked for, in [0, 1], base against aligned."""

    attribute: str
    base: Interval
    aligned: Interval
    chance: float | None = None


@dataclass(frozen=True)
class ExampleClip:
    """A playable clip: ``audio`` is a ``data:audio/`` URI (see ``audio_data_uri``), sha256 its stored content."""

    version: str
    audio: str
    sha256: str = ""
    votes: int | None = None  # votes this clip won in the pair shown


@dataclass(frozen=True)
class Example:
    """One held-out prompt with its clips, base first. ``outcome`` is one line on how the votes fell."""

    prompt: str
    clips: Sequence[ExampleClip]
    outcome: str = ""


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float


@dataclass(frozen=True)
class FigureTrace:
    """What one figure of the page rests on. Hashes in full; the page shortens them."""

    figure: str
    study: str = ""
    votes: int | None = None
    snapshot_sha256: str = ""
    reward_model: str = ""
    adapter_sha256: str = ""
    config_sha256: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. The first contest is the headline; empty sections are left out of the page.

    ``not_trained`` is the reason in a sentence when a run ended without a version to compare, and has no contest.

    ``simulated`` has no default: whoever builds a report says whether its votes are people's.
    ``run`` holds what all figures share: commit, seed, database, library versions, machine.
    """

    title: str
    created_at: str  # ISO 8601, UTC
    simulated: bool
    candidate: str
    base: str
    contests: Sequence[Contest]
    reward: RewardCard | None = None
    curves: Sequence[Curve] = ()
    methods: Sequence[MethodRow] = ()
    metrics: Sequence[MetricRow] = ()
    adherence: Sequence[AdherenceRow] = ()
    examples: Sequence[Example] = ()
    stages: Sequence[Stage] = ()
    peak_memory_mb: float | None = None
    traces: Sequence[FigureTrace] = ()
    run: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()  # shown under the headline: "Votes were shuffled: a control run."
    next_command: str = ""
    not_trained: str = ""

    def __post_init__(self) -> None:
        if not self.contests and not self.not_trained:
            raise DataError("A report needs at least one win rate: its headline rests on it.")
        for example in self.examples:
            for clip in example.clips:
                if not clip.audio.startswith("data:audio/"):
                    raise DataError(
                        f"The clip of {clip.version} for {example.prompt[:40]!r} is no data: URI; a report makes no "
                        "outside request. Build it with audio_data_uri(bytes)."
                    )

    @property
    def verdict(self) -> str:
        """ "gain" when the headline win rate's lower bound is above one half, else "no gain", or "not trained"."""
        if not self.contests:
            return "not trained"
        return self.contests[0].rate.verdict

    @property
    def headline(self) -> str:
        """The verdict as one sentence without figures."""
        if not self.contests:
            return f"Not trained: {self.not_trained[:1].lower()}{self.not_trained[1:]}"
        listeners = "Simulated listeners" if self.simulated else "Listeners"
        rate = self.contests[0].rate
        if rate.low > 0.5:
            return f"Gain: {listeners.lower()} prefer {self.candidate} to {self.base}."
        if rate.high < 0.5:
            return f"No gain: {listeners.lower()} prefer {self.base} to {self.candidate}."
        return f"No gain: {listeners.lower()} show no clear preference between {self.candidate} and {self.base}."

    def to_json(self, *, audio: bool = False) -> str:
        """The whole report as JSON text. Numbers that are not finite become null; audio is left out unless asked."""
        values = _plain(self)
        values["verdict"] = self.verdict
        values["headline"] = self.headline
        if not audio:
            for example in values["examples"]:
                for clip in example["clips"]:
                    del clip["audio"]
        return json.dumps(values, ensure_ascii=False, allow_nan=False)


def audio_data_uri(content: bytes, mime: str = "audio/flac") -> str:
    """A ``data:`` URI that an audio element plays without any request."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def write_report(data: ReportData, path: str | Path) -> Path:
    """Writes the page to ``path`` in one move (a half-written page is never seen) and returns it.

    Raises StoreError when the folder cannot be written.
    """
    from alignment.evaluation.page import render_page

    return write_page(render_page(data), path)


def terminal_table(data: ReportData) -> str:
    """The report's figures as compact plain text, 80 columns or less."""
    from alignment.evaluation.terminal import render_table

    return render_table(data)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
