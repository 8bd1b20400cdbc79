"""Detectors that look at a study's votes and write down what they think; they never delete one."""

from __future__ import annotations

import itertools
import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from alignment.db import figures as queries
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.db.figures import FlagRow, StudyVote
from alignment.db.people import add_audit
from alignment.db.studies import get_study
from alignment.domain import BattleKind

log = logging.getLogger(__name__)

VERDICTS = ("ok", "suspect", "invalid", "unknown")
LEAST_SECONDS = 1.5  # nobody hears two clips and decides in less
ONE_SIDED_LEAST, ONE_SIDED_P = 10, 0.001
DUPLICATE_LEAST, DUPLICATE_SHARE = 10, 0.5
GOLD_LEAST, REPEAT_LEAST = 4, 5


@dataclass(frozen=True)
class Finding:
    """A detector's verdict on one vote, with the numbers behind it."""

    verdict: str
    detail: Mapping[str, Any] = field(default_factory=dict)


Findings = dict[uuid.UUID, Finding]


@dataclass(frozen=True)
class Rules:
    """What a detector needs beside the votes. ``broken``: votes given early because a clip was clearly broken."""

    minimum_listening_seconds: float
    broken: frozenset[uuid.UUID] = frozenset()


@dataclass(frozen=True)
class Detector:
    """``look`` judges the votes it can and leaves out the others; a changed rule gets a new ``version``."""

    name: str
    version: str
    look: Callable[[Sequence[StudyVote], Rules], Findings]


def too_fast(votes: Sequence[StudyVote], rules: Rules) -> Findings:
    """Suspect: the answer came sooner than both clips can have been heard for the study's minimum.

    One pair of ears hears one clip at a time. SKIP, FAULT and votes on a broken clip may come at any time; without a
    decision time the verdict is unknown."""
    least = max(LEAST_SECONDS, 2 * rules.minimum_listening_seconds - 0.5)
    found: Findings = {}
    for vote in votes:
        if not vote.outcome.trains or vote.vote_id in rules.broken:
            found[vote.vote_id] = Finding("ok")
        elif vote.decision_ms is None:
            found[vote.vote_id] = Finding("unknown", {"missing": "decision time"})
        else:
            seconds = vote.decision_ms / 1000
            detail = {"seconds": round(seconds, 2), "least": least}
            found[vote.vote_id] = Finding("suspect" if seconds < least else "ok", detail)
    return found


def one_sided(votes: Sequence[StudyVote], rules: Rules) -> Findings:
    """Suspect: a rater's decisive votes favour one side more than sides drawn by chance allow (exact binomial, two
    sides, p < 0.001). Raters with fewer than ten decisive votes are not judged."""
    found: Findings = {}
    for mine in _by_rater(votes).values():
        sides = Counter(vote.chosen_side for vote in mine if vote.chosen_side is not None)
        if sides.total() < ONE_SIDED_LEAST:
            continue
        left = next((count for side, count in sides.items() if side.value == "left"), 0)
        p = float(stats.binomtest(left, sides.total(), 0.5).pvalue)
        verdict = "suspect" if p < ONE_SIDED_P else "ok"
        finding = Finding(verdict, {"left": left, "decisive": sides.total(), "p": round(p, 6)})
        found |= {vote.vote_id: finding for vote in mine}
    return found


def duplicate(votes: Sequence[StudyVote], rules: Rules) -> Findings:
    """Suspect: a rater voted on the same two clips twice (other than a repeat that was asked), many of a rater's
    decision times are the same to the millisecond, or two raters gave the same answers on ten shared pairs or more.

    Two raters count as the same answers when clip, outcome and both axes agree on every shared pair with at least
    three different answers, or when half of their decision times there are equal."""
    found: Findings = {vote.vote_id: Finding("ok") for vote in votes}
    by_rater = _by_rater(votes)
    shared: dict[uuid.UUID, dict[tuple[uuid.UUID, ...], StudyVote]] = {}
    for rater, mine in by_rater.items():
        seen: dict[tuple[uuid.UUID, ...], StudyVote] = {}
        for vote in mine:
            clips = _clips(vote)
            if clips in seen and vote.kind != BattleKind.REPEAT:
                found[vote.vote_id] = Finding("suspect", {"same pair as": str(seen[clips].vote_id)})
            if vote.kind != BattleKind.REPEAT:
                seen.setdefault(clips, vote)
        shared[rater] = seen
        times = Counter(vote.decision_ms for vote in mine if vote.decision_ms is not None)
        if times and times.total() >= DUPLICATE_LEAST and times.most_common(1)[0][1] >= DUPLICATE_SHARE * times.total():
            finding = Finding("suspect", {"same decision time": times.most_common(1)[0][1], "of": times.total()})
            found |= {vote.vote_id: finding for vote in mine if vote.decision_ms == times.most_common(1)[0][0]}
    for one, two in itertools.combinations(shared, 2):
        both = shared[one].keys() & shared[two].keys()
        if len(both) < DUPLICATE_LEAST:
            continue
        couples = [(shared[one][clips], shared[two][clips]) for clips in both]
        timed = [(a, b) for a, b in couples if a.decision_ms is not None and b.decision_ms is not None]
        equal_times = sum(a.decision_ms == b.decision_ms for a, b in timed)
        answers = [_answer(a) for a, _ in couples]
        same = len(set(answers)) >= 3 and answers == [_answer(b) for _, b in couples]
        if same or (timed and equal_times >= max(DUPLICATE_LEAST / 2, DUPLICATE_SHARE * len(timed))):
            finding = Finding("suspect", {"same answers": same, "equal times": equal_times, "shared pairs": len(both)})
            found |= {vote.vote_id: finding for couple in couples for vote in couple}
    return found


def failed_gold(votes: Sequence[StudyVote], rules: Rules) -> Findings:
    """Pairs with a known winner: suspect when it was not picked; unknown when the winner is not recorded. All votes of
    a rater who failed more than half of four or more are invalid. Other votes of raters who passed are not judged."""
    found: Findings = {}
    for mine in _by_rater(votes).values():
        asked = [vote for vote in mine if vote.kind in (BattleKind.GOLD, BattleKind.ANCHOR) and vote.outcome.trains]
        known = [vote for vote in asked if vote.expected is not None]
        failed = [vote for vote in known if vote.chosen_side != vote.expected]
        if len(known) >= GOLD_LEAST and len(failed) > len(known) / 2:
            found |= {vote.vote_id: Finding("invalid", {"failed": len(failed), "of": len(known)}) for vote in mine}
            continue
        found |= {vote.vote_id: Finding("suspect" if vote in failed else "ok") for vote in known}
        found |= {vote.vote_id: Finding("unknown", {"missing": "winner"}) for vote in asked if vote.expected is None}
    return found


def inconsistent(votes: Sequence[StudyVote], rules: Rules) -> Findings:
    """Repeated pairs: both votes are suspect when the rater chose one clip and then the other. All votes of a rater
    with five or more repeats who chose the same clip on half of them or fewer are suspect."""
    found: Findings = {}
    first = {vote.assignment_id: vote for vote in votes}
    for mine in _by_rater(votes).values():
        outcome: list[bool] = []
        for again in mine:
            if again.kind != BattleKind.REPEAT or not again.outcome.trains:
                continue
            before = first.get(again.repeats) if again.repeats else None
            if before is None:
                found[again.vote_id] = Finding("unknown", {"missing": "the first vote"})
            elif before.chosen_clip_id is not None and again.chosen_clip_id is not None:
                same = before.chosen_clip_id == again.chosen_clip_id
                outcome.append(same)
                finding = Finding("ok" if same else "suspect", {"same clip": same})
                found |= {before.vote_id: finding, again.vote_id: finding}
        if len(outcome) >= REPEAT_LEAST and sum(outcome) <= len(outcome) / 2:
            finding = Finding("suspect", {"same": sum(outcome), "of": len(outcome)})
            found |= {vote.vote_id: finding for vote in mine}
    return found


DETECTORS = (
    Detector("too fast", "1", too_fast),
    Detector("one-sided", "1", one_sided),
    Detector("duplicate", "1", duplicate),
    Detector("failed gold", "1", failed_gold),
    Detector("inconsistent", "1", inconsistent),
)


def flag_study(
    database: Database, study_name: str, *, actor: str, detectors: Sequence[Detector] = DETECTORS
) -> dict[str, dict[str, int]]:
    """Detector -> verdict -> votes with that verdict now. Only opinions that are new or changed are appended.

    So a second run writes nothing, and a rater's pattern that shows only later is still written down; the newest row
    of a detector counts. A detector that breaks says ``unknown`` of every vote, and says better when it works again.
    Raises NotFoundError for an unknown study."""
    with database.session(write=False) as s:
        study = get_study(s, study_name)
        votes = [vote for vote in queries.study_votes(s, study.id) if not vote.withdrawn]
        told_by_raters = queries.latest_flags(s, [vote.vote_id for vote in votes])
    broken = frozenset(f.vote_id for f in told_by_raters if f.detector == "rater" and f.detail.get("broken"))
    rules = Rules(study.minimum_listening_seconds, broken)
    told: list[FlagRow] = []
    for detector in detectors:
        try:
            findings = detector.look(votes, rules)
        except Exception as error:
            log.exception("detector %s failed on study %s", detector.name, study_name)
            outage = Finding("unknown", {"outage": type(error).__name__})
            findings = {vote.vote_id: outage for vote in votes}
        told += [
            FlagRow(vote_id, detector.name, detector.version, finding.verdict, finding.detail)
            for vote_id, finding in findings.items()
        ]
    with database.session() as s:
        known = {(f.vote_id, f.detector): f for f in queries.latest_flags(s, [vote.vote_id for vote in votes])}

        def is_new(flag: FlagRow) -> bool:
            old = known.get((flag.vote_id, flag.detector))
            return old is None or (old.version, old.verdict) != (flag.version, flag.verdict)

        new = [flag for flag in told if is_new(flag)]
        queries.add_flags(s, new, utcnow())
        add_audit(s, actor=actor, action="study.flag", subject=f"{study_name}: {len(new)} new flags")
    counts: dict[str, dict[str, int]] = {d.name: dict.fromkeys(VERDICTS, 0) for d in detectors}
    for flag in told:
        counts[flag.detector][flag.verdict] += 1
    return counts


def _by_rater(votes: Sequence[StudyVote]) -> dict[uuid.UUID, list[StudyVote]]:
    found: dict[uuid.UUID, list[StudyVote]] = defaultdict(list)
    for vote in votes:
        found[vote.rater_id].append(vote)
    return found


def _clips(vote: StudyVote) -> tuple[uuid.UUID, ...]:
    return tuple(sorted((vote.left_clip_id, vote.right_clip_id)))


def _answer(vote: StudyVote) -> tuple[Any, ...]:
    """What was said of the clips, whichever side they were on."""
    turned = vote.left_clip_id != _clips(vote)[0]
    axes = tuple((axis.value, -value if turned else value) for axis, value in sorted(vote.axes.items()))
    return vote.outcome if vote.chosen_clip_id is None else str(vote.chosen_clip_id == _clips(vote)[0]), axes
