"""Votes frozen into hashed snapshots of train, valid and test pairs, with the ratings of single clips beside them."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

from alignment.domain import ClipRef, Outcome, Pair, RatedClip, RaterKind, Split, canonical_sha256
from alignment.errors import ConfigError, DataError, NotFoundError, StoreError

FORMAT = 1
BOTH_BAD_RULES = ("tie", "drop")
EXCLUDED = ("invalid",)  # verdicts of a flag that keep a vote out of snapshots
SCALES = ("quality", "relevance", "mos")

R = TypeVar("R", Pair, RatedClip)


class VoteRow(Protocol):
    """What a snapshot needs of a counted vote; ``outcome`` is as shown (A = left)."""

    @property
    def vote_id(self) -> Any: ...
    @property
    def outcome(self) -> Outcome: ...
    @property
    def axes(self) -> Mapping[Any, int]: ...
    @property
    def left(self) -> ClipRef: ...
    @property
    def right(self) -> ClipRef: ...
    @property
    def prompt_id(self) -> Any: ...
    @property
    def prompt_text(self) -> str: ...
    @property
    def split(self) -> Split: ...
    @property
    def rater_id(self) -> Any: ...
    @property
    def rater_kind(self) -> RaterKind: ...
    @property
    def cohort(self) -> str | None: ...
    @property
    def flags(self) -> Sequence[tuple[str, str]]: ...


@dataclass(frozen=True)
class FrozenSnapshot:
    """An immutable set of pairs and ratings. ``content_sha256`` covers both, their counts and the policy that made
    them."""

    pairs: tuple[Pair, ...]
    content_sha256: str
    policy: Mapping[str, Any]
    counts: Mapping[str, int]
    ratings: tuple[RatedClip, ...] = ()

    def split(self, split: Split) -> list[Pair]:
        """The pairs of one split, in the snapshot's order."""
        return [pair for pair in self.pairs if pair.split == split]

    @property
    def simulated(self) -> bool:
        return (self.pairs or self.ratings)[0].rater_kind == RaterKind.SIMULATED

    @property
    def members(self) -> list[tuple[str, Split]]:
        """(vote id, split) of every pair, for the database."""
        return [(pair.vote_id, pair.split) for pair in self.pairs]


def freeze_snapshot(
    rows: Sequence[VoteRow],
    *,
    both_bad: str = "tie",
    shuffle_seed: int | None = None,
    exclude: Sequence[str] = EXCLUDED,
    ratings: Sequence[RatedClip] = (),
    not_commercial: int | None = None,
) -> FrozenSnapshot:
    """The pairs of the counted votes, in an order that depends on what was voted and not on when.

    SKIP and FAULT are dropped, and so are votes between a clip and itself and votes that any detector last gave one of
    the verdicts ``exclude``. A tie is half; BOTH_BAD is a tie or is dropped, by ``both_bad``. ``ratings`` of single
    clips come beside the pairs. ``shuffle_seed`` permutes outcomes (with their axes) among the pairs of each split,
    and answers among its ratings: a control in which the same votes say nothing. ``not_commercial``: how many votes and
    ratings were left out because their licences do not allow commercial use, which marks the snapshot as fit for it;
    None: licences were not looked at. Raises DataError when nothing is left to train on, when simulated and human
    votes meet, when a vote appears twice or when one prompt lies in two splits."""
    if both_bad not in BOTH_BAD_RULES:
        raise ConfigError(f"both_bad is {both_bad!r}; it must be one of {', '.join(BOTH_BAD_RULES)}.")
    if not rows and not ratings:
        raise DataError("There are no votes to freeze; record votes first (attune simulate-votes, or attune serve).")
    _refuse_impossible(rows, ratings)
    counts = Counter({f"votes_{outcome.value.lower()}": 0 for outcome in Outcome})
    counts["votes"] = len(rows)
    kept = []
    for row in rows:
        outcome = Outcome(row.outcome)
        counts[f"votes_{outcome.value.lower()}"] += 1
        if not outcome.trains or (outcome == Outcome.BOTH_BAD and both_bad == "drop"):
            continue
        if row.left.clip_id == row.right.clip_id:
            counts["votes_same_clip"] += 1
            continue
        if set(dict(row.flags).values()) & set(exclude):  # the newest verdict of each detector
            counts["votes_excluded"] += 1
            continue
        kept.append(_pair(row))
    if not kept and not ratings:
        raise DataError(
            f"None of {len(rows)} votes can train anything (skips, faults, excluded or dropped); collect more votes."
        )
    # Vote ids are drawn by the clock, so they only break ties between votes that say the same.
    kept.sort(key=lambda p: (p.prompt_text, p.a.audio_sha256, p.b.audio_sha256, p.outcome, sorted(p.axes.items()),
                             p.vote_id))  # fmt: skip
    rated = sorted(ratings, key=lambda r: (r.prompt_text, r.clip.audio_sha256, _answers(r), r.rating_id))
    if shuffle_seed is not None:
        kept = _shuffled(kept, ("outcome", "preference", "axes"), shuffle_seed)
        rated = _shuffled(rated, SCALES, shuffle_seed)
    for pair in kept:
        counts[f"pairs_{pair.split.value}"] += 1
    counts["pairs"] = len(kept)
    counts["decisive"] = sum(pair.outcome.is_decisive for pair in kept)
    counts["prompts"] = len({one.prompt_id for one in (*kept, *rated)})
    counts["raters"] = len({one.rater_id for one in (*kept, *rated)})
    if rated:
        counts["ratings"] = len(rated)
    policy = {"both_bad": both_bad, "exclude": sorted(exclude), "rule_version": 2, "shuffle_seed": shuffle_seed}
    if not_commercial is not None:  # no such key otherwise, as in snapshots from before licences were looked at
        policy["commercial"] = True
        counts["left_out_not_commercial"] = not_commercial
    ordered = dict(sorted(counts.items()))
    return FrozenSnapshot(tuple(kept), _content_sha256(kept, rated, policy, ordered), policy, ordered, tuple(rated))


def part_of(whole: FrozenSnapshot, pairs: Sequence[Pair], ratings: Sequence[RatedClip] = ()) -> FrozenSnapshot:
    """Some of a snapshot's pairs and ratings as a snapshot of their own, under the whole's rules.

    Raises DataError when there are none."""
    rows = []
    for pair in pairs:  # as the votes that they were; what flags exclude is left out of the whole already
        values = {field.name: getattr(pair, field.name) for field in fields(pair)}
        rows.append(SimpleNamespace(**values, left=pair.a, right=pair.b, flags=()))
    return freeze_snapshot(
        rows, both_bad=whole.policy["both_bad"], ratings=ratings,
        not_commercial=0 if whole.policy.get("commercial") else None,
    )  # fmt: skip


def chosen_and_rejected(pair: Pair) -> tuple[ClipRef, ClipRef] | None:
    """(the clip that won, the clip that lost), or None when the vote was not decisive."""
    if pair.preference == 0.5:
        return None
    return (pair.a, pair.b) if pair.preference > 0.5 else (pair.b, pair.a)


def write_snapshot(frozen: FrozenSnapshot, path: str | Path) -> None:
    """Write one JSON line of header, then one a pair, then one a rating; a failure leaves no part (StoreError)."""
    path = Path(path)
    header = {"format": FORMAT, "content_sha256": frozen.content_sha256, "policy": dict(frozen.policy),
              "counts": dict(frozen.counts)}  # fmt: skip
    lines = [header, *map(_to_json, frozen.pairs), *map(_to_json, frozen.ratings)]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: the snapshot cannot be written ({error}); free space or choose a folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_snapshot(path: str | Path) -> FrozenSnapshot:
    """The snapshot in a file. Raises NotFoundError when it is missing, DataError when altered or of another kind."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such snapshot; make one with attune snapshot.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a snapshot ({error}).") from None
    try:
        header = json.loads(lines[0])
        if header["format"] != FORMAT:
            raise DataError(f"{path}: snapshot format {header['format']}; this code reads format {FORMAT}.")
        rows = [_from_json(json.loads(line)) for line in lines[1:]]
        pairs = tuple(row for row in rows if isinstance(row, Pair))
        ratings = tuple(row for row in rows if isinstance(row, RatedClip))
        frozen = FrozenSnapshot(pairs, header["content_sha256"], header["policy"], header["counts"], ratings)
    except (IndexError, KeyError, TypeError, ValueError):
        raise DataError(f"{path}: not a snapshot, or cut short; freeze the votes again with attune snapshot.") from None
    if not rows or _content_sha256(pairs, ratings, frozen.policy, frozen.counts) != frozen.content_sha256:
        raise DataError(f"{path}: the content does not match its hash; it was altered. Freeze the votes again.")
    return frozen


def _refuse_impossible(rows: Sequence[VoteRow], ratings: Sequence[RatedClip]) -> None:
    kinds = {RaterKind(row.rater_kind) for row in (*rows, *ratings)}
    if len(kinds) > 1:
        raise DataError("Simulated and human votes never share a snapshot; freeze the studies of each kind apart.")
    repeated = [vote for vote, n in Counter(str(row.vote_id) for row in rows).items() if n > 1]
    if repeated:
        raise DataError(f"Vote {repeated[0]} appears twice; give the latest revision of each vote only.")
    split_of: dict[str, Split] = {}
    for row in (*rows, *ratings):
        if split_of.setdefault(row.prompt_text, Split(row.split)) != Split(row.split):
            raise DataError(f"The prompt {row.prompt_text!r} lies in two splits; a split is fixed before any voting.")


def _pair(row: VoteRow) -> Pair:
    outcome = Outcome(row.outcome)
    axes = {str(getattr(axis, "value", axis)): int(step) for axis, step in row.axes.items() if step is not None}
    if any(not -2 <= step <= 2 for step in axes.values()):
        raise DataError(f"Vote {row.vote_id} has axes {axes}; steps go from -2 (clearly A) to 2 (clearly B).")
    return Pair(
        vote_id=str(row.vote_id),
        prompt_id=str(row.prompt_id),
        prompt_text=row.prompt_text,
        split=Split(row.split),
        a=row.left,
        b=row.right,
        outcome=outcome,
        preference=_preference(outcome),
        axes=dict(sorted(axes.items())),
        rater_id=str(row.rater_id),
        rater_kind=RaterKind(row.rater_kind),
        cohort=row.cohort,
    )


def _preference(outcome: Outcome) -> float:
    return {Outcome.A: 1.0, Outcome.B: 0.0}.get(outcome, 0.5)


def _answers(rating: RatedClip) -> tuple[float, ...]:
    return tuple(-1 if (value := getattr(rating, scale)) is None else value for scale in SCALES)


def _shuffled(rows: list[R], said: Sequence[str], seed: int) -> list[R]:
    """The rows with the fields ``said`` permuted within each split, so that every split keeps its counts."""
    rng = random.Random(seed)
    shuffled = list(rows)
    for split in Split:
        places = [i for i, row in enumerate(rows) if row.split == split]
        donors = list(places)
        rng.shuffle(donors)
        for place, donor in zip(places, donors, strict=True):
            shuffled[place] = replace(rows[place], **{name: getattr(rows[donor], name) for name in said})
    return shuffled


def _to_json(row: Pair | RatedClip) -> dict[str, Any]:
    """The fields; a rater of no cohort has no such key, as in snapshots from before cohorts were kept."""
    line = {name: getattr(row, name) for name in row.__dataclass_fields__ if name != "cohort" or row.cohort is not None}
    if isinstance(row, RatedClip):
        return {**line, "clip": _clip_to_json(row.clip)}
    return {**line, "a": _clip_to_json(row.a), "b": _clip_to_json(row.b), "axes": dict(row.axes)}


def _clip_to_json(clip: ClipRef) -> dict[str, Any]:
    return {name: None if (value := getattr(clip, name)) is None else str(value)
            for name in ClipRef.__dataclass_fields__}  # fmt: skip


def _from_json(line: dict[str, Any]) -> Pair | RatedClip:
    typed = {**line, "split": Split(line["split"]), "rater_kind": RaterKind(line["rater_kind"])}
    if "rating_id" in line:
        return RatedClip(**{**typed, "clip": ClipRef(**line["clip"])})
    both = {side: ClipRef(**line[side]) for side in ("a", "b")}
    return Pair(**{**typed, **both, "outcome": Outcome(line["outcome"])})


def _content_sha256(
    pairs: Sequence[Pair], ratings: Sequence[RatedClip], policy: Mapping[str, Any], counts: Mapping[str, int]
) -> str:
    content = {"format": FORMAT, "policy": dict(policy), "counts": dict(counts), "pairs": [*map(_to_json, pairs)]}
    if ratings:
        content["ratings"] = [*map(_to_json, ratings)]
    return canonical_sha256(content)
