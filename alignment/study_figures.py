"""What a study's votes and ratings say so far: every figure of the dashboard, each with its n and interval."""

from __future__ import annotations

import itertools
import math
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from scipy import stats

from alignment.db import figures as queries
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.db.figures import StudyRating, StudyVote
from alignment.domain import BattleKind, Comparison, Outcome, RaterKind, RatingOutcome
from alignment.errors import DataError
from alignment.evaluation.intervals import Interval, clustered_share, label_codes, resample_totals, two_way_draws
from alignment.evaluation.ratings import Rating, fit_ratings
from alignment.evaluation.win_rate import WinRate, win_rate
from alignment.studies import StudyRecipe
from alignment.study_power import VotesNeeded, votes_to_separate

ROUNDS = 400
RANGES = {"quality": (1.0, 100.0), "relevance": (1.0, 100.0), "mos": (1.0, 5.0)}
SCALES = tuple(RANGES)
FEWEST_RATERS_OF_A_SLICE = 3  # a slice of one or two people would tell what they said
DISAGREEMENTS_SHOWN = 12


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha (nominal) of the answers on the same pairs: 1 is perfect, 0 is chance. Interval by
    resampling pairs. ``pairs`` have two or more answers; ``n`` answers are on them."""

    alpha: float
    low: float
    high: float
    n: int
    pairs: int
    raters: int


@dataclass(frozen=True)
class VersionPair:
    """Two versions that met: the first one's win rate and the votes that would separate them."""

    version: str
    other: str
    rate: WinRate
    decisive: Interval | None
    needed: VotesNeeded | None


@dataclass(frozen=True)
class FlagCount:
    """How many votes a detector's newest opinion holds for each verdict."""

    detector: str
    version: str
    ok: int
    suspect: int
    invalid: int
    unknown: int


@dataclass(frozen=True)
class Disagreement:
    """A pair of clips whose raters prefer one clip and whose reward model scores the other higher.

    ``share`` is the raters' credit for the clip they prefer; ``margin`` its score less the other's, below 0, in units
    of the scores' combined uncertainty where that is known."""

    prompt: str
    preferred: str
    other: str
    share: Interval
    score_preferred: float
    score_other: float
    margin: float


@dataclass(frozen=True)
class RewardCheck:
    """How a reward model fares against the raters. ``agreement``: decisive votes for the clip it scores higher."""

    model: str
    scored_votes: int
    agreement: Interval | None
    disagreements: tuple[Disagreement, ...]


@dataclass(frozen=True)
class Slice:
    """The headline win rate among the raters of one background; None when they are too few to show."""

    key: str
    value: str
    raters: int
    votes: int
    rate: Interval | None


@dataclass(frozen=True)
class ScaleFigure:
    """Mean rating of one group of clips on one scale."""

    kind: str  # version, reference or anchor
    name: str
    scale: str
    mean: Interval
    raters: int


@dataclass(frozen=True)
class AnchorCheck:
    """Raters who heard both and rated the low anchors at or above the hidden references."""

    raters: int
    reversed_raters: tuple[str, ...]
    scale: str


@dataclass(frozen=True)
class StudyFigures:
    """Everything the dashboard shows of one study. Withdrawn raters' votes are counted in ``withdrawn`` alone."""

    study: str
    mode: str
    state: str
    simulated: bool
    simulated_versions: tuple[str, ...]
    made_at: datetime
    votes: int
    ratings_given: int
    passed_over: int  # clips of a rating study that were answered with SKIP
    faults: int  # and with FAULT
    withdrawn: int
    raters: int
    sessions: int
    finished_sessions: int
    session_raters: int
    battles: Mapping[str, int]
    wanted: int
    had: int
    per_hour: tuple[tuple[datetime, int], ...]
    last_hour: int
    hours_left: float | None
    outcomes: tuple[tuple[str, int, Interval], ...]
    agreement: Agreement | None
    repeat: Interval | None
    repeat_same_answer: Interval | None
    left: Interval | None
    gold: Interval | None
    anchors: Interval | None
    flags: tuple[FlagCount, ...]
    flagged_votes: int
    pairs: tuple[VersionPair, ...]
    ratings: tuple[Rating, ...]
    ratings_note: str | None
    reward: tuple[RewardCheck, ...]
    slices: tuple[Slice, ...]
    slice_of: str | None
    scales: tuple[ScaleFigure, ...]
    anchor_check: AnchorCheck | None

    def to_json(self) -> dict[str, Any]:
        """The same, of plain values, for ``attune study show --json``."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("ratings",)}
        plain["ratings"] = [{"version": r.version, "elo": r.elo} for r in self.ratings]
        return _plain(plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, datetime) else value


def study_figures(
    database: Database, study_id: uuid.UUID, *, recipe: StudyRecipe, state: str, rater_kind: RaterKind,
    now: Callable[[], datetime] = utcnow,
) -> StudyFigures:  # fmt: skip
    """The figures of a study as it stands. Reads one moment's state and holds no lock while it computes."""
    with database.session(write=False) as s:
        everything = queries.study_votes(s, study_id)
        all_ratings = queries.study_ratings(s, study_id)
        sessions, finished, session_raters = queries.count_sessions(s, study_id)
        battles = queries.count_battles_by_kind(s, study_id)
        items = queries.count_rating_items(s, study_id)
        trained_on_simulated = queries.simulated_versions(s, study_id)
        flags = queries.latest_flags(s, [vote.vote_id for vote in everything])
        scores = queries.clip_scores(s, queries.study_clip_ids(s, study_id))
    votes = [vote for vote in everything if not vote.withdrawn]
    answered = [rating for rating in all_ratings if not rating.withdrawn]
    rated = [rating for rating in answered if rating.outcome == RatingOutcome.RATED]
    normal = [vote for vote in votes if vote.kind == BattleKind.NORMAL]
    counted = [vote for vote in normal if vote.outcome.trains]
    pairs = version_pairs(counted)
    rows, note = _ratings(counted)
    sliced, slice_of = _slices(counted, pairs)
    moment = now()
    times = [vote.created_at for vote in votes] + [rating.created_at for rating in answered]
    last_hour = sum(time > moment - timedelta(hours=1) for time in times)
    wanted, had = _progress(counted, rated, battles, items, recipe)
    kept = {vote.vote_id for vote in votes}
    scales, check = _scales(rated)
    return StudyFigures(
        study=recipe.name, mode=recipe.mode, state=state, simulated=rater_kind == RaterKind.SIMULATED,
        simulated_versions=tuple(trained_on_simulated), made_at=moment, votes=len(votes), ratings_given=len(rated),
        passed_over=sum(rating.outcome == RatingOutcome.SKIP for rating in answered),
        faults=sum(rating.outcome == RatingOutcome.FAULT for rating in answered),
        withdrawn=len(everything) - len(votes) + len(all_ratings) - len(answered),
        raters=len({one.rater_id for one in [*votes, *answered]}), sessions=sessions, finished_sessions=finished,
        session_raters=session_raters, battles={kind.value: count for kind, count in battles.items()}, wanted=wanted,
        had=had, per_hour=votes_per_hour(times, moment), last_hour=last_hour,
        hours_left=(wanted - had) / last_hour if last_hour and wanted > had else None,
        outcomes=_outcomes(normal), agreement=agreement(counted), repeat=repeat_consistency(votes),
        repeat_same_answer=repeat_consistency(votes, decisive_only=False), left=left_share(normal),
        gold=_pass_rate(votes, BattleKind.GOLD), anchors=_pass_rate(votes, BattleKind.ANCHOR),
        flags=_flag_counts([flag for flag in flags if flag.vote_id in kept]),
        flagged_votes=len({f.vote_id for f in flags if f.vote_id in kept and f.verdict in ("suspect", "invalid")}),
        pairs=pairs, ratings=rows, ratings_note=note,
        reward=tuple(reward_check(name, found, counted) for name, found in scores.items()),
        slices=sliced, slice_of=slice_of, scales=scales, anchor_check=check,
    )  # fmt: skip


def _share(credits: Sequence[float], votes: Sequence[StudyVote]) -> Interval | None:
    """Mean credit with its clustered interval; None without votes."""
    if not votes:
        return None
    return clustered_share(
        np.array(credits, dtype=float), [v.rater_id for v in votes], [v.prompt_id for v in votes], rounds=ROUNDS
    )


def votes_per_hour(times: Sequence[datetime], now: datetime, hours: int = 24) -> tuple[tuple[datetime, int], ...]:
    """(start of the hour, votes in it) of the last ``hours`` hours, the running one last; hours without votes too."""
    this_hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    counts = Counter(time.astimezone(UTC).replace(minute=0, second=0, microsecond=0) for time in times)
    starts = [this_hour - timedelta(hours=back) for back in range(hours - 1, -1, -1)]
    return tuple((start, counts[start]) for start in starts)


def left_share(votes: Sequence[StudyVote]) -> Interval | None:
    """Share of decisive votes won by the clip shown left; sides are drawn, so away from one half is side bias."""
    decisive = [vote for vote in votes if vote.outcome.is_decisive]
    return _share([vote.outcome == Outcome.A for vote in decisive], decisive)


def repeat_pairs(votes: Sequence[StudyVote]) -> list[tuple[StudyVote, StudyVote]]:
    """(vote, the same rater's vote on the same pair asked again), SKIP and FAULT left out."""
    first = {vote.assignment_id: vote for vote in votes}
    found = []
    for again in votes:
        before = first.get(again.repeats) if again.repeats else None
        if before is not None and before.outcome.trains and again.outcome.trains:
            found.append((before, again))
    return found


def repeat_consistency(votes: Sequence[StudyVote], *, decisive_only: bool = True) -> Interval | None:
    """Share of repeated pairs on which the rater chose the same clip: of those decisive both times, or of all, where
    a tie or both-bad is the same answer as another one."""
    couples = [
        (a, b) for a, b in repeat_pairs(votes) if not decisive_only or a.outcome.is_decisive and b.outcome.is_decisive
    ]
    return _share([a.chosen_clip_id == b.chosen_clip_id for a, b in couples], [a for a, _ in couples])


def agreement(votes: Sequence[StudyVote], *, rounds: int = 1000, seed: int = 0) -> Agreement | None:
    """Krippendorff's alpha of what raters answered on the same pair of clips: this clip, that clip, tie, both bad.

    The value is evalica's. The interval resamples whole pairs, because answers on one pair are not independent, as
    percentiles (Hayes and Krippendorff's bootstrap of single disagreements is narrower than it may be). None unless
    some pair has two answers."""
    import evalica
    import pandas as pd

    answers: dict[tuple[Hashable, Hashable], str] = {}
    for vote in votes:
        clips = tuple(sorted((vote.left_clip_id, vote.right_clip_id)))
        said = vote.outcome.value if vote.chosen_clip_id is None else f"clip {clips.index(vote.chosen_clip_id)}"
        answers.setdefault((clips, vote.rater_id), said)
    by_pair: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for (clips, _), said in answers.items():
        by_pair[clips][said] += 1
    counts = [count for count in by_pair.values() if count.total() >= 2]
    if not counts:
        return None
    values = sorted({value for count in counts for value in count})
    several = {clips for clips, count in by_pair.items() if count.total() >= 2}
    kept = {key: said for key, said in answers.items() if key[0] in several}
    columns, rows = (list(dict.fromkeys(key[i] for key in kept)) for i in (0, 1))
    table = np.full((len(rows), len(columns)), np.nan)
    row_at, column_at = ({key: i for i, key in enumerate(keys)} for keys in (rows, columns))
    for (clips, rater), said in kept.items():
        table[row_at[rater], column_at[clips]] = values.index(said)
    value = float(evalica.alpha(pd.DataFrame(table), distance="nominal").alpha)
    matrix = np.array([[count[value_] for value_ in values] for count in counts], dtype=float)  # (pairs, values)
    low, high = _alpha_interval(matrix, rounds, seed)
    return Agreement(value, low, high, n=len(kept), pairs=len(counts), raters=len(rows))


def nominal_alpha(same: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """(rounds,) alpha = 1 - (n - 1) (n - same) / (n^2 - sum of squared totals), Krippendorff (2011, Computing
    Krippendorff's Alpha-Reliability, section C). same (rounds,): the coincidence matrix's diagonal sum; totals
    (rounds, values). Where only one value occurs nothing can disagree: 1, as evalica has it."""
    n = totals.sum(axis=1)
    expected = n**2 - (totals**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - (n - 1) * (n - same) / expected, 1.0)


def _alpha_interval(counts: np.ndarray, rounds: int, seed: int) -> tuple[float, float]:
    """Percentile interval of alpha over resampled pairs; counts (pairs, values)."""
    if len(counts) < 2:
        return math.nan, math.nan
    sizes = counts.sum(axis=1)
    same = (counts * (counts - 1)).sum(axis=1) / (sizes - 1)
    features = np.column_stack([same, counts])
    drawn = resample_totals(features, np.arange(len(counts)), rounds, np.random.default_rng(seed))
    low, high = np.percentile(nominal_alpha(drawn[:, 0], drawn[:, 1:]), [2.5, 97.5])
    return float(low), float(high)


def _pass_rate(votes: Sequence[StudyVote], kind: BattleKind) -> Interval | None:
    """Share of answers on pairs of this kind that picked the known winner; a tie or both-bad did not."""
    asked = [vote for vote in votes if vote.kind == kind and vote.expected is not None and vote.outcome.trains]
    return _share([vote.chosen_side == vote.expected for vote in asked], asked)


def _outcomes(votes: Sequence[StudyVote]) -> tuple[tuple[str, int, Interval], ...]:
    found = []
    for outcome in Outcome:
        share = _share([vote.outcome == outcome for vote in votes], votes)
        if share is not None:
            found.append((outcome.value, sum(vote.outcome == outcome for vote in votes), share))
    return tuple(found)


def _flag_counts(flags: Sequence[queries.FlagRow]) -> tuple[FlagCount, ...]:
    counts = Counter((flag.detector, flag.version, flag.verdict) for flag in flags)
    return tuple(
        FlagCount(
            name, version, *(counts[name, version, verdict] for verdict in ("ok", "suspect", "invalid", "unknown"))
        )
        for name, version in sorted({(name, version) for name, version, _ in counts})
    )


def comparisons_of(votes: Sequence[StudyVote]) -> list[Comparison]:
    """The counted votes between two different versions, as rating statistics want them."""
    credit = {Outcome.A: 1.0, Outcome.B: 0.0}
    return [
        Comparison(
            v.left_version, v.right_version, credit.get(v.outcome, 0.5), v.outcome, str(v.rater_id), str(v.prompt_id)
        )
        for v in votes
        if v.outcome.trains and v.left_version != v.right_version
    ]


def version_pairs(votes: Sequence[StudyVote]) -> tuple[VersionPair, ...]:
    """Each two versions that met, the better one first, most votes first."""
    comparisons = comparisons_of(votes)
    met = Counter(tuple(sorted((c.version_left, c.version_right))) for c in comparisons)
    found = []
    for (one, two), _ in sorted(met.items(), key=lambda item: (-item[1], item[0])):
        rate = win_rate(comparisons, one, opponent=two, rounds=ROUNDS)
        if rate.value < 0.5:
            one, two = two, one
            rate = win_rate(comparisons, one, opponent=two, rounds=ROUNDS)
        decided = [c for c in comparisons if {c.version_left, c.version_right} == {one, two} and c.outcome.is_decisive]
        decisive = needed = None
        if decided and rate.decisive_value is not None:
            decisive = Interval(rate.decisive_value, rate.decisive_low, rate.decisive_high, rate.decisive)  # type: ignore[arg-type]
            won = np.array([c.credit if c.version_left == one else 1 - c.credit for c in decided])
            raters, prompts = [c.rater_id for c in decided], [c.prompt_id for c in decided]
            needed = votes_to_separate(won, raters, prompts, rounds=ROUNDS)
        found.append(VersionPair(one, two, rate, decisive, needed))
    return tuple(found)


def _ratings(votes: Sequence[StudyVote]) -> tuple[tuple[Rating, ...], str | None]:
    comparisons = comparisons_of(votes)
    if not comparisons:
        return (), None
    try:
        fitted = fit_ratings(comparisons, rounds=ROUNDS)
    except DataError as error:
        return (), str(error)
    note = "Provisional: some version never lost, so only the prior bounds its rating." if fitted.separable else None
    return fitted.ratings, note


def _progress(
    counted: Sequence[StudyVote], rated: Sequence[StudyRating], battles: Mapping[BattleKind, int], items: int,
    recipe: StudyRecipe,
) -> tuple[int, int]:  # fmt: skip
    """(answers wanted, answers had that count towards them: no more than ``votes_per_pair`` on one pair)."""
    most = recipe.votes_per_pair
    if recipe.mode == "rating":
        had = Counter(rating.clip_id for rating in rated)
        return items * most, sum(min(count, most) for count in had.values())
    had = Counter(vote.battle_id for vote in counted)
    return battles.get(BattleKind.NORMAL, 0) * most, sum(min(count, most) for count in had.values())


def reward_check(name: str, scores: Mapping[uuid.UUID, tuple[float, float]], votes: Sequence[StudyVote]) -> RewardCheck:
    """How a reward model's scores fare against the votes, with the pairs on which they part most clearly.

    A pair is listed when its raters' credit (ties half) is for one clip and the scores are for the other."""
    scored = [vote for vote in votes if vote.left_clip_id in scores and vote.right_clip_id in scores]
    decisive = [vote for vote in scored if vote.outcome.is_decisive]

    def credit(vote: StudyVote) -> float:
        gap = scores[vote.left_clip_id][0] - scores[vote.right_clip_id][0]
        return 0.5 if gap == 0 else float((gap > 0) == (vote.outcome == Outcome.A))

    by_pair: dict[tuple[uuid.UUID, uuid.UUID], list[StudyVote]] = defaultdict(list)
    for vote in scored:
        by_pair[tuple(sorted((vote.left_clip_id, vote.right_clip_id)))].append(vote)  # type: ignore[index]
    found = []
    for (one, two), said in by_pair.items():
        credits = np.array([0.5 if v.chosen_clip_id is None else float(v.chosen_clip_id == one) for v in said])
        preferred, other = (one, two) if credits.mean() > 0.5 else (two, one)
        gap = scores[preferred][0] - scores[other][0]
        if credits.mean() == 0.5 or gap >= 0:
            continue
        share = _share(credits if preferred == one else 1 - credits, said)
        spread = math.hypot(scores[preferred][1], scores[other][1])
        versions = {v.left_clip_id: v.left_version for v in said} | {v.right_clip_id: v.right_version for v in said}
        found.append(
            Disagreement(
                said[0].prompt_text, versions[preferred], versions[other], share, scores[preferred][0],
                scores[other][0], gap / spread if spread > 0 else gap,
            )
        )  # fmt: skip
    # Many raters of one mind against a sure model come first.
    found.sort(key=lambda d: -(d.share.value - 0.5) * math.sqrt(d.share.n) * abs(d.margin))
    return RewardCheck(
        name, len(scored), _share([credit(v) for v in decisive], decisive), tuple(found[:DISAGREEMENTS_SHOWN])
    )


def _groups(one: StudyVote) -> list[tuple[str, str]]:
    told = [(str(key), str(value)) for key, value in sorted(one.background.items()) if value not in (None, "")]
    return ([("cohort", one.cohort)] if one.cohort else []) + told


def _slices(votes: Sequence[StudyVote], pairs: Sequence[VersionPair]) -> tuple[tuple[Slice, ...], str | None]:
    """The win rate of the pair with the most votes, by cohort and by what raters told of themselves."""
    if not pairs:
        return (), None
    head = pairs[0]
    inside = [v for v in votes if {v.left_version, v.right_version} == {head.version, head.other}]
    groups: dict[tuple[str, str], list[StudyVote]] = defaultdict(list)
    for vote in inside:
        for group in _groups(vote):
            groups[group].append(vote)
    found = []
    for (key, value), members in sorted(groups.items()):
        raters = len({vote.rater_id for vote in members})
        rate = None
        if raters >= FEWEST_RATERS_OF_A_SLICE:
            rate = win_rate(comparisons_of(members), head.version, rounds=ROUNDS).interval
        found.append(Slice(key.replace("_", " "), value, raters, len(members), rate))
    return tuple(found), f"{head.version} against {head.other}"


def clustered_mean(
    values: Sequence[float], rater_ids: Sequence[Hashable], prompt_ids: Sequence[Hashable], *, rounds: int = ROUNDS,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """Mean of ``values`` (n,) with its two-way clustered 95% interval: mean -/+ t x the standard error of
    ``intervals.two_way_draws``, as for every share. With one value low and high are nan."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, math.nan, math.nan, n=len(array))
    raters, prompts = label_codes(rater_ids), label_codes(prompt_ids)
    draws = two_way_draws(
        np.column_stack([array, np.ones_like(array)]), raters, prompts,
        lambda totals: totals[:, :1] / totals[:, 1:], rounds=rounds, seed=seed,
    )  # fmt: skip
    half = float(stats.t.ppf(0.975, draws.degrees_of_freedom)) * math.sqrt(draws.variance(np.ones(1)))
    return Interval(mean, mean - half, mean + half, n=len(array), clusters=min(draws.raters, draws.prompts))


def _scales(rated: Sequence[StudyRating]) -> tuple[tuple[ScaleFigure, ...], AnchorCheck | None]:
    """Means of each version, and apart from them of the hidden references and low anchors, on every scale asked."""
    groups: dict[tuple[str, str], list[StudyRating]] = defaultdict(list)
    for rating in rated:
        kind = "version" if rating.kind == "normal" else rating.kind
        name = {"reference": "hidden reference", "anchor": "low anchor"}.get(kind, rating.version)
        groups[kind, name].append(rating)
    order = {"reference": 0, "version": 1, "anchor": 2}
    found = []
    for scale, ((kind, name), members) in itertools.product(
        SCALES, sorted(groups.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    ):
        told = [(float(getattr(r, scale)), r) for r in members if getattr(r, scale) is not None]
        if told:
            mean = clustered_mean([x for x, _ in told], [r.rater_id for _, r in told], [r.prompt_id for _, r in told])
            least, most = RANGES[scale]
            mean = replace(mean, low=max(least, mean.low), high=min(most, mean.high)) if mean.n > 1 else mean
            found.append(ScaleFigure(kind, name, scale, mean, len({r.rater_id for _, r in told})))
    return tuple(found), _anchor_check(rated)


def _anchor_check(rated: Sequence[StudyRating]) -> AnchorCheck | None:
    """BS.1534's post-screening: whoever rates the anchors at or above the references did not hear or not listen."""
    for scale in SCALES:
        by_rater: dict[uuid.UUID, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for rating in rated:
            if getattr(rating, scale) is not None:
                by_rater[rating.rater_id][rating.kind].append(float(getattr(rating, scale)))
        both = {rater: kinds for rater, kinds in by_rater.items() if kinds["anchor"] and kinds["reference"]}
        if both:
            turned = [r for r, kinds in both.items() if np.mean(kinds["anchor"]) >= np.mean(kinds["reference"])]
            return AnchorCheck(len(both), tuple(sorted(str(rater)[-8:] for rater in turned)), scale)
    return None
