"""Pairs and ratings as arrays: what a reward model is fitted to, small beside the embeddings it points into."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alignment.domain import Axis, Pair, RatedClip
from alignment.errors import DataError
from alignment.rewards.embeddings import Embeddings, MappedEmbeddings, stack
from alignment.rewards.heads import HEADS

RINGS = 2  # each rating is compared with the next and the next but one of its rater's, in an order that is drawn


@dataclass(frozen=True)
class PairTable:
    """N comparisons of two clips; the embeddings may be memory-mapped and are read a batch at a time.

    ``targets`` (N, 3) float32 is the credit of clip a under each of HEADS, NaN where nobody answered. ``rater`` (N,)
    is a row of ``raters``, -1 where there is none. ``side`` (N,) is 1 where a was shown left and b right, 0 where
    there were no sides. 49 bytes a comparison."""

    audio: np.ndarray  # (C, D) float32
    text: np.ndarray  # (P, D) float32
    a: np.ndarray  # (N,) int64 rows of audio
    b: np.ndarray
    text_a: np.ndarray  # (N,) int64 rows of text
    text_b: np.ndarray
    targets: np.ndarray
    rater: np.ndarray  # (N,) int32
    side: np.ndarray  # (N,) int8
    raters: int = 0
    names: Sequence[str] = ()  # of the comparisons, for messages; none: their numbers

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def one_text(self) -> bool:
        """Whether both clips of every comparison were made for one prompt."""
        return bool((self.text_a == self.text_b).all())

    def name(self, row: int) -> str:
        return self.names[row] if self.names else f"number {row}"

    def check(self) -> PairTable:
        """Itself. Raises DataError when shapes or rows do not fit, or an embedding is not finite."""
        if self.audio.ndim != 2 or self.audio.shape[1:] != self.text.shape[1:]:
            raise DataError(
                f"Audio embeddings are {self.audio.shape}, text embeddings {self.text.shape}; one encoder gives both."
            )
        for rows, values in ((self.a, self.audio), (self.b, self.audio), (self.text_a, self.text)):
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(values):
                raise DataError(f"A pair points at row {int(rows.max())} of {len(values)} embeddings.")
        for what, values in (("clip", self.audio), ("prompt", self.text)):
            for start in range(0, len(values), 4096):  # a memory-mapped array is never read whole
                finite = np.isfinite(values[start : start + 4096]).all(axis=1)
                if not finite.all():
                    raise DataError(
                        f"The embedding of {what} {start + int(finite.argmin())} is not finite; is a clip silent or "
                        "damaged? Leave it out or encode it again."
                    )
        return self


def table_of(
    pairs: Sequence[Pair],
    audio_embeddings: Embeddings,
    text_embeddings: Embeddings,
    *,
    ratings: Sequence[RatedClip] = (),
    raters: Mapping[str, int] | None = None,
    seed: int = 0,
) -> PairTable:
    """The comparisons of pairs, then those made of ratings. Raises DataError on a missing, misshapen or non-finite
    embedding.

    ``raters`` numbers the raters whose reliability is learnt; others, and ratings, have none. ``seed`` draws which
    ratings of a rater are compared."""
    clips, prompts = _Rows(), _Rows()
    raters = raters or {}
    rated = compared_ratings(ratings, seed)
    a = [clips[p.a.audio_sha256] for p in pairs] + [clips[r.a.clip.audio_sha256] for r in rated]
    b = [clips[p.b.audio_sha256] for p in pairs] + [clips[r.b.clip.audio_sha256] for r in rated]
    text_a = [prompts[p.prompt_text] for p in pairs] + [prompts[r.a.prompt_text] for r in rated]
    text_b = text_a[: len(pairs)] + [prompts[r.b.prompt_text] for r in rated]
    targets = [
        (axis_target(p, Axis.TEXT_ADHERENCE), axis_target(p, Axis.QUALITY), p.preference) for p in pairs
    ] + [(r.relevance, r.quality, float("nan")) for r in rated]  # fmt: skip
    audio, a, b = _matrix(audio_embeddings, clips, "embedding of clip", a, b)
    text, first, second = _matrix(text_embeddings, prompts, "text embedding of prompt", text_a, text_b)
    return PairTable(
        audio=audio, text=text, a=a, b=b, text_a=first, text_b=second,
        targets=np.asarray(targets, dtype=np.float32).reshape(-1, len(HEADS)),
        rater=np.array([raters.get(p.rater_id, -1) for p in pairs] + [-1] * len(rated), dtype=np.int32),
        side=np.array([1] * len(pairs) + [0] * len(rated), dtype=np.int8),
        raters=len(raters),
        names=[f"vote {p.vote_id}" for p in pairs] + [f"rating {r.a.rating_id}" for r in rated],
    ).check()  # fmt: skip


def axis_target(pair: Pair, axis: Axis) -> float:
    """Credit of clip a on an axis: -2 (clearly a) gives 1, 0 gives 0.5, 2 (clearly b) gives 0; NaN if unanswered."""
    step = pair.axes.get(axis.value)
    return float("nan") if step is None else 0.5 - step / 4


@dataclass(frozen=True)
class ComparedRatings:
    """Two ratings of one rater, with the credit of the first on each axis, NaN where the scale was not asked."""

    a: RatedClip
    b: RatedClip
    relevance: float
    quality: float


def compared_ratings(ratings: Sequence[RatedClip], seed: int = 0) -> list[ComparedRatings]:
    """Comparisons within each rater: nobody's 70 is set against another's.

    A rater's answers on a scale are counted in deviations of that rater's own; a difference of one is a quarter of
    credit, as a step on an axis is, and two or more are a clear win. Quality and the mean opinion score tell of one
    head and are averaged. Each rating meets up to four others of its rater, drawn by ``seed``; a scale on which a
    rater always gave one answer says nothing."""
    mine: dict[str, list[RatedClip]] = defaultdict(list)
    for rating in ratings:
        mine[rating.rater_id].append(rating)
    found = []
    for rater, given in sorted(mine.items()):
        order = np.random.default_rng([seed, *rater.encode()]).permutation(len(given))
        steps = {
            scale: _deviations([getattr(one, scale) for one in given]) for scale in ("relevance", "quality", "mos")
        }
        for ring in range(1, RINGS + 1):
            # Twice the ring round and every pair would be met again.
            places = {True: len(given), False: ring if len(given) == 2 * ring else 0}[len(given) > 2 * ring]
            for place, one in enumerate(order[:places]):
                other = order[(place + ring) % len(order)]
                apart = {scale: values[one] - values[other] for scale, values in steps.items()}
                known = [v for v in (apart["quality"], apart["mos"]) if not np.isnan(v)]
                quality = _credit(float(np.mean(known))) if known else float("nan")
                relevance = _credit(apart["relevance"])
                if not (np.isnan(quality) and np.isnan(relevance)):
                    found.append(ComparedRatings(given[one], given[other], relevance, quality))
    return found


def _deviations(answers: Sequence[float | None]) -> np.ndarray:
    """Answers in units of their own deviation; NaN where unanswered, and everywhere when all are alike."""
    values = np.array([np.nan if answer is None else answer for answer in answers], dtype=np.float64)
    known = values[~np.isnan(values)]
    spread = known.std() if len(known) > 1 else 0.0
    return values / spread if spread > 0 else np.full(len(values), np.nan)


def _credit(deviations: float) -> float:
    return float(np.clip(0.5 + deviations / 4, 0, 1))  # NaN stays NaN


class _Rows(dict[str, int]):
    """Numbers keys in the order in which they are first asked for."""

    def __missing__(self, key: str) -> int:
        self[key] = len(self)
        return self[key]


def _matrix(
    embeddings: Embeddings, rows: _Rows, what: str, a: list[int], b: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The embeddings the rows number, and both sides' rows; a memory-mapped one stays where it is."""
    first, second = np.array(a, dtype=np.int64), np.array(b, dtype=np.int64)
    if isinstance(embeddings, MappedEmbeddings):
        there = embeddings.rows(list(rows))
        return embeddings.matrix, there[first], there[second]
    return stack(embeddings, list(rows), what), first, second
