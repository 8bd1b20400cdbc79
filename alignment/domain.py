"""The values that cross boundaries: frozen, typed, free of SQL and torch."""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class Outcome(enum.StrEnum):
    """What a rater said overall. A is the clip shown left, B the one shown right."""

    A = "A"
    B = "B"
    TIE = "TIE"
    BOTH_BAD = "BOTH_BAD"
    SKIP = "SKIP"
    FAULT = "FAULT"

    @property
    def trains(self) -> bool:
        """SKIP and FAULT never train anything and never count in a comparison."""
        return self not in (Outcome.SKIP, Outcome.FAULT)

    @property
    def is_decisive(self) -> bool:
        return self in (Outcome.A, Outcome.B)


class RatingOutcome(enum.StrEnum):
    """What became of a clip that was to be rated alone. SKIP (passed over) and FAULT (audio broken) have no rating and
    count in no figure."""

    RATED = "RATED"
    SKIP = "SKIP"
    FAULT = "FAULT"


class Side(enum.StrEnum):
    LEFT = "left"
    RIGHT = "right"


class Split(enum.StrEnum):
    TRAIN = "train"
    VALID = "valid"
    TEST = "test"
    LEADERBOARD = "leaderboard"


class RaterKind(enum.StrEnum):
    HUMAN = "human"
    SIMULATED = "simulated"


class BattleKind(enum.StrEnum):
    NORMAL = "normal"
    GOLD = "gold"
    REPEAT = "repeat"
    ANCHOR = "anchor"


class VersionStatus(enum.StrEnum):
    CANDIDATE = "candidate"
    CHAMPION = "champion"
    RETIRED = "retired"


class ClipSource(enum.StrEnum):
    GENERATED = "generated"
    EXTERNAL = "external"


class Axis(enum.StrEnum):
    """Five steps from A to B: -2 clearly A, -1 slightly A, 0 equal, 1 slightly B, 2 clearly B."""

    TEXT_ADHERENCE = "text_adherence"
    QUALITY = "quality"


# The "base" of versions that are processed audio and no policy: heard in studies, never trained on, never listed.
ANCHOR_BASE = "anchor"
# The "bases" of versions whose clips came from elsewhere: of another system, or recordings that no system made. They
# are heard and compared; there is nothing of theirs to train, sing with or promote.
EXTERNAL_BASE = "external"
REFERENCE_BASE = "reference"


def canonical_sha256(value: object) -> str:
    """sha256, hex, of ``value`` as canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def json_plain(value: Any) -> Any:
    """``value`` as JSON can hold it: names as text, tuples as lists, what is no finite number as null."""
    if isinstance(value, Mapping):
        return {str(key): json_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rater_pseudonym(secret: bytes, kind: RaterKind, external_id: str) -> str:
    """Keyed hash, hex, under which someone known outside as ``external_id`` is a rater."""
    return hmac.new(secret, f"{kind.value}:{external_id}".encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class GenerationConfig:
    """How clips are sampled. ``top_k`` 0 means no truncation; ``guidance`` 1 means none."""

    temperature: float = 1.0
    top_k: int = 0
    guidance: float = 1.0
    clip_seconds: float = 5.0

    @property
    def sha256(self) -> str:
        return canonical_sha256(
            {
                "temperature": float(self.temperature),
                "top_k": int(self.top_k),
                "guidance": float(self.guidance),
                "clip_seconds": float(self.clip_seconds),
            }
        )


@dataclass(frozen=True)
class Prompt:
    id: uuid.UUID
    text: str
    source: str
    split: Split
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Version:
    """A registered policy. The base itself is a version without adapter."""

    id: uuid.UUID
    name: str
    base: str
    base_sha256: str
    status: VersionStatus
    adapter_sha256: str | None = None
    adapter_uri: str | None = None
    parent: str | None = None
    train_run_id: uuid.UUID | None = None
    commit: str | None = None
    simulated: bool = False  # trained on simulated votes: never promoted for humans
    listening: GenerationConfig | None = None  # how people hear it, and under which its ratings are reported
    licence: str | None = None
    created_at: datetime | None = None

    @property
    def is_model(self) -> bool:
        """Whether it can sing, be trained and be promoted: clips from elsewhere and processed audio cannot."""
        return self.base not in (ANCHOR_BASE, EXTERNAL_BASE, REFERENCE_BASE)


@dataclass(frozen=True)
class AudioFacts:
    """Measured on the stored audio: integrated loudness (BS.1770, LUFS), true peak (dBTP), shares in [0, 1]."""

    sample_rate_hz: int
    seconds: float
    lufs: float | None  # None for silence
    true_peak_dbtp: float
    silence_ratio: float
    clipping_ratio: float


@dataclass(frozen=True)
class Clip:
    """Audio one version generated for a prompt, by content address, with the codes that were sampled."""

    id: uuid.UUID
    prompt_id: uuid.UUID
    version: str
    generation: GenerationConfig
    seed: int
    audio_sha256: str
    codes_sha256: str | None
    facts: AudioFacts
    source: ClipSource = ClipSource.GENERATED
    generation_seconds: float | None = None


@dataclass(frozen=True)
class Battle:
    """Two clips for one prompt. ``propensity`` is the probability with which this pair was chosen, > 0."""

    id: uuid.UUID
    study_id: uuid.UUID
    prompt_id: uuid.UUID
    clip_1_id: uuid.UUID
    clip_2_id: uuid.UUID
    kind: BattleKind = BattleKind.NORMAL
    propensity: float = 1.0


@dataclass(frozen=True)
class Assignment:
    """One battle served to one listening session, sides drawn for this assignment alone."""

    id: uuid.UUID
    session_id: uuid.UUID
    battle_id: uuid.UUID
    prompt_text: str
    left_clip_id: uuid.UUID
    right_clip_id: uuid.UUID
    first_side: Side
    nonce: str
    served_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class VoteDraft:
    """What a listener's client sends. ``heard_seconds`` are distinct media seconds a side."""

    assignment_id: uuid.UUID
    idempotency_key: str
    outcome: Outcome
    axes: Mapping[Axis, int] = field(default_factory=dict)
    confidence: int | None = None  # 1 guess .. 3 sure
    comment: str | None = None
    heard_left_seconds: float = 0.0
    heard_right_seconds: float = 0.0
    switches: int = 0
    decision_ms: int | None = None
    comment_side: Side | None = None  # the clip that the comment is about
    comment_start_seconds: float | None = None  # a moment, or with an end a stretch, of that clip
    comment_end_seconds: float | None = None
    broken: Side | None = None  # "this one is clearly broken": the outcome is then the other clip


@dataclass(frozen=True)
class Consent:
    """What a rater agreed to: the version of the text, and apart from it training and publication."""

    text_version: str
    training: bool
    publication: bool


@dataclass(frozen=True)
class RatingAssignment:
    """One clip served to one listening session for absolute rating. It does not tell the item's kind."""

    id: uuid.UUID
    session_id: uuid.UUID
    item_id: uuid.UUID
    prompt_text: str
    clip_id: uuid.UUID
    served_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class RatingDraft:
    """What a listener says of one clip: quality and relevance from 1 to 100, mean opinion score from 1 to 5; a scale
    that the study does not ask stays None, and so do all with another outcome than RATED."""

    assignment_id: uuid.UUID
    idempotency_key: str
    quality: int | None = None
    relevance: int | None = None
    mos: float | None = None
    heard_seconds: float = 0.0
    decision_ms: int | None = None
    outcome: RatingOutcome = RatingOutcome.RATED


@dataclass(frozen=True)
class RatingReceipt:
    """Returned only after the commit. ``repeated`` is True when the same idempotency key was already saved."""

    rating_id: uuid.UUID
    assignment_id: uuid.UUID
    saved_at: datetime
    repeated: bool
    progress: SessionProgress | None = None  # as of this rating


@dataclass(frozen=True)
class SessionProgress:
    """``done``: pairs (or clips) this rater has answered; ``available``: those still waiting for them, as far as a
    session goes."""

    done: int
    available: int

    @property
    def total(self) -> int:
        return self.done + self.available


@dataclass(frozen=True)
class VoteReceipt:
    """Returned only after the commit. ``repeated`` is True when the same idempotency key was already saved."""

    vote_id: uuid.UUID
    assignment_id: uuid.UUID
    revision: int
    row_hash: str
    saved_at: datetime
    repeated: bool
    progress: SessionProgress | None = None  # as of this vote


@dataclass(frozen=True)
class ClipRef:
    """What a trainer needs to know of a clip: where its codes and audio are, and who sang it."""

    clip_id: str
    version: str
    audio_sha256: str
    codes_sha256: str | None


@dataclass(frozen=True)
class Pair:
    """A training example made of one vote. ``preference`` is the credit of clip a: 1, 0, or 0.5 for a tie.

    ``axes`` are in [-2, 2], positive when clip b is better. ``a`` was shown left.
    """

    vote_id: str
    prompt_id: str
    prompt_text: str
    split: Split
    a: ClipRef
    b: ClipRef
    outcome: Outcome
    preference: float
    axes: Mapping[str, int]
    rater_id: str
    rater_kind: RaterKind
    cohort: str | None = None  # of the rater, when the vote was frozen


@dataclass(frozen=True)
class RatedClip:
    """A training example made of one absolute rating: quality and relevance from 1 to 100, mean opinion score from 1
    to 5, None where the study did not ask."""

    rating_id: str
    prompt_id: str
    prompt_text: str
    split: Split
    clip: ClipRef
    quality: int | None
    relevance: int | None
    mos: float | None
    rater_id: str
    rater_kind: RaterKind
    cohort: str | None = None


@dataclass(frozen=True)
class Comparison:
    """One counted vote between two versions, for rating statistics.

    ``credit`` is the credit of ``version_left``: 1 won, 0 lost, 0.5 tie or both bad.
    """

    version_left: str
    version_right: str
    credit: float
    outcome: Outcome
    rater_id: str
    prompt_id: str
