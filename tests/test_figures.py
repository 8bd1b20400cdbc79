"""A study's figures: worked by hand, published, or checked against a simulation; never without n and interval."""

from __future__ import annotations

import math
import random
from datetime import timedelta

import numpy as np
import pytest
from scipy import stats
from study_support import NOON, a_vote, an_id, swapped, voted_study

from alignment import study_figures as figures
from alignment.db.figures import StudyRating
from alignment.domain import BattleKind, Outcome, RaterKind, Side
from alignment.errors import DataError
from alignment.evaluation.intervals import wilson
from alignment.flags import VERDICTS, flag_study
from alignment.studies import StudyRecipe
from alignment.study_power import decisive_votes_needed, design_effect, votes_to_separate
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)


def test_agreement_is_krippendorffs_alpha_of_the_published_example():
    # Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units, five
    # nominal values, alpha 0.743. Five values do not fit into four answers; so values go through the closed form.
    table = [
        [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4],
        [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1],
    ]  # fmt: skip
    counts = np.array([[sum(v == value for v in unit) for value in range(1, 6)] for unit in table], dtype=float)
    sizes = counts.sum(axis=1)
    same = ((counts * (counts - 1)).sum(axis=1) / (sizes - 1)).sum()
    assert figures.nominal_alpha(np.array([same]), counts.sum(axis=0)[None])[0] == pytest.approx(0.743, abs=5e-4)


def test_agreement_of_votes_counts_clips_and_not_sides():
    # Two pairs, two raters. Pair 0: both chose the same clip, one saw it left and one right. Pair 1: one each way.
    votes = [
        a_vote(0, "A", rater="ann", pair=0), swapped(a_vote(1, "B", rater="bob", pair=0)),
        a_vote(2, "A", rater="ann", pair=1), a_vote(3, "B", rater="bob", pair=1),
    ]  # fmt: skip
    found = figures.agreement(votes)
    # Clips are told apart within a pair by the order of their ids. By hand: pair 0 is an agreement, pair 1 is not:
    # n = 4, coincidences: 2 equal of 4. Values: 3 of one and 1 of the other, or 2 and 2.
    first = [sorted((v.left_clip_id, v.right_clip_id)).index(v.chosen_clip_id) for v in votes]
    ones = sum(first)
    by_hand = 1 - (4 - 1) * (4 - 2) / (4**2 - ones**2 - (4 - ones) ** 2)
    assert found.alpha == pytest.approx(by_hand) and (found.n, found.pairs, found.raters) == (4, 2, 2)


def test_agreement_equals_the_closed_form_on_random_votes_and_its_interval_covers_it():
    rng = random.Random(4)
    votes = [
        a_vote(100 * pair + rater, rng.choice(["A", "A", "A", "B", "TIE", "BOTH_BAD"]), rater=rater, pair=pair)
        for pair in range(40) for rater in range(rng.randint(1, 5))
    ]  # fmt: skip
    found = figures.agreement(votes)
    counts = {}
    for vote in votes:
        said = vote.outcome.value
        if vote.chosen_clip_id:
            said = str(sorted((vote.left_clip_id, vote.right_clip_id)).index(vote.chosen_clip_id))
        counts.setdefault(vote.battle_id, []).append(said)
    kept = [said for said in counts.values() if len(said) > 1]
    values = sorted({x for said in kept for x in said})
    matrix = np.array([[said.count(v) for v in values] for said in kept], dtype=float)
    same = ((matrix * (matrix - 1)).sum(axis=1) / (matrix.sum(axis=1) - 1)).sum()
    assert found.alpha == pytest.approx(figures.nominal_alpha(np.array([same]), matrix.sum(axis=0)[None])[0])
    assert found.low < found.alpha < found.high and found.pairs == len(kept)
    assert figures.agreement([a_vote(0)]) is None


def test_side_bias_counts_decisive_votes_and_its_interval_is_wilsons_when_votes_are_independent():
    # 60 raters on 60 prompts, 45 chose A and 15 B; ties do not count.
    votes = [a_vote(i, "A" if i < 45 else "B", rater=i, pair=i) for i in range(60)]
    left = figures.left_share([*votes, a_vote(99, "TIE", rater=99, pair=99)])
    assert (left.value, left.n) == (0.75, 60)
    low, high = wilson(0.75, 60, stats.t.ppf(0.975, 59))
    assert left.low == pytest.approx(low, abs=0.02) and left.high == pytest.approx(high, abs=0.02)


def test_repeat_consistency_counts_the_clip_and_not_the_letter():
    def asked(number, first, again):
        before = a_vote(number, first, rater=number, pair=number)
        after = a_vote(500 + number, again, rater=number, pair=number, kind=BattleKind.REPEAT,
                       repeats=before.assignment_id)  # fmt: skip
        return [before, swapped(after)]

    said = [("A", "B"), ("A", "A"), ("TIE", "TIE"), ("B", "A"), ("A", "SKIP")]
    votes = [vote for number, (first, again) in enumerate(said) for vote in asked(number, first, again)]
    decisive, every = figures.repeat_consistency(votes), figures.repeat_consistency(votes, decisive_only=False)
    assert (decisive.value, decisive.n) == (pytest.approx(2 / 3), 3)
    assert (every.value, every.n) == (0.75, 4)
    assert figures.repeat_consistency([a_vote(0)]) is None


def test_votes_per_hour_fall_into_the_hour_they_were_given_in():
    times = [NOON, NOON + timedelta(minutes=59), NOON + timedelta(hours=1), NOON - timedelta(days=3)]
    hours = figures.votes_per_hour(times, NOON + timedelta(hours=1, minutes=30), hours=3)
    assert [count for _, count in hours] == [0, 2, 1] and hours[-1][0] == NOON + timedelta(hours=1)


def test_the_votes_needed_are_those_of_the_textbook():
    # Fleiss's formula by hand for 60% against 50%: (1.95996 / 2 + 0.84162 * sqrt(0.24))^2 / 0.01 = 193.85.
    assert decisive_votes_needed(0.6) == pytest.approx(193.85, abs=0.05)
    assert decisive_votes_needed(0.4) == decisive_votes_needed(0.6)
    assert decisive_votes_needed(0.6, design_effect=2.5) == pytest.approx(2.5 * 193.85, abs=0.2)
    assert decisive_votes_needed(0.5) == math.inf
    with pytest.raises(DataError):
        decisive_votes_needed(1.2)


@pytest.mark.parametrize(("share", "per_rater", "icc"), [(0.6, 1, 0.0), (0.65, 10, 0.08), (0.56, 20, 0.05)])
def test_the_predicted_number_of_votes_gives_eighty_percent_power(share, per_rater, icc):
    # Each rater's own share is drawn from a beta with intraclass correlation icc: Kish's design effect 1 + (m - 1) icc.
    effect = 1 + (per_rater - 1) * icc
    raters = round(decisive_votes_needed(share, design_effect=effect) / per_rater)
    rng, studies = np.random.default_rng(7), 4000
    scale = (1 - icc) / icc if icc else None
    own = rng.beta(share * scale, (1 - share) * scale, (studies, raters)) if icc else np.full((studies, raters), share)
    means = rng.binomial(per_rater, own) / per_rater  # (studies, raters)
    error = np.sqrt(0.25 * effect / (raters * per_rater))
    power = np.mean(np.abs(means.mean(axis=1) - 0.5) / error > stats.norm.ppf(0.975))
    assert abs(power - 0.8) < 0.05


def test_the_design_effect_of_a_study_is_measured_from_its_votes():
    rng = np.random.default_rng(3)
    own = rng.beta(0.6 * 9, 0.4 * 9, 80)  # icc 0.1, 20 votes each: 1 + 19 * 0.1 = 2.9
    credits = (rng.random((80, 20)) < own[:, None]).astype(float).ravel()
    raters, prompts = np.repeat(np.arange(80), 20), np.arange(1600)
    assert design_effect(credits, raters.tolist(), prompts.tolist()) == pytest.approx(2.9, abs=0.7)
    alone = rng.random(1600) < 0.6
    assert design_effect(alone, range(1600), range(1600)) == pytest.approx(1, abs=0.15)
    assert design_effect(np.ones(5), range(5), range(5)) == 1.0


def test_what_is_missing_has_a_range_and_none_where_no_number_of_votes_would_do():
    credits = np.array([1.0] * 58 + [0.0] * 42)
    needed = votes_to_separate(credits, range(100), range(100))
    assert needed.n == 100 and needed.total == pytest.approx(304.23 * needed.design_effect, abs=1)
    assert needed.more == needed.total - 100 and needed.fewest < needed.more and needed.most is None
    clear = votes_to_separate(np.array([1.0] * 90 + [0.0] * 10), range(100), range(100))
    assert clear.separated and (clear.more, clear.fewest, clear.most) == (0, 0, 0)
    even = votes_to_separate(np.array([1.0, 0.0] * 50), range(100), range(100))
    assert even.total is None and even.more is None


def test_the_model_is_held_against_the_raters_pair_by_pair():
    clear = [a_vote(i, "A", rater=i, pair=0) for i in range(4)]  # all four like the left clip
    agreed = [a_vote(10 + i, "A", rater=i, pair=1) for i in range(2)]
    split = [a_vote(20, "A", rater=0, pair=2), a_vote(21, "B", rater=1, pair=2)]
    unscored = [a_vote(30, "A", pair=3)]
    scores = {
        an_id("clip", 0, "l"): (0.0, 0.3), an_id("clip", 0, "r"): (1.0, 0.4),  # the model likes the right one
        an_id("clip", 1, "l"): (1.0, 0.1), an_id("clip", 1, "r"): (0.0, 0.1),
        an_id("clip", 2, "l"): (1.0, 0.1), an_id("clip", 2, "r"): (0.0, 0.1),
    }  # fmt: skip
    check = figures.reward_check("judge", scores, [*clear, *agreed, *split, *unscored])
    # Of 8 decisive scored votes the model is with 2 + 1.
    assert check.scored_votes == 8 and (check.agreement.value, check.agreement.n) == (3 / 8, 8)
    (pair,) = check.disagreements
    assert (pair.preferred, pair.other, pair.share.value, pair.share.n) == ("base", "tuned", 1.0, 4)
    assert pair.margin == pytest.approx(-1 / 0.5)


def test_a_mean_has_the_interval_of_students_t_when_raters_are_independent():
    values = [60.0, 70.0, 80.0, 90.0, 75.0, 65.0, 85.0, 72.0, 68.0, 95.0]
    mean = figures.clustered_mean(values, range(10), range(10), rounds=4000)
    half = stats.t.ppf(0.975, 9) * np.std(values, ddof=1) / math.sqrt(10)
    assert mean.value == pytest.approx(76.0) and mean.high - mean.value == pytest.approx(half, rel=0.06)
    assert math.isnan(figures.clustered_mean([3.0], [0], [0]).low)


def _rating(number, kind, version, quality, rater):
    return StudyRating(
        rating_id=an_id("rating", number), session_id=an_id("session", rater), rater_id=an_id("rater", rater),
        cohort=None, background={}, withdrawn=False, clip_id=an_id("clip", number), audio="0" * 64, version=version,
        kind=kind, prompt_id=an_id("prompt", number % 3), prompt_text="p", quality=quality, relevance=None, mos=None,
        heard_seconds=3.0, decision_ms=5000, created_at=NOON,
    )  # fmt: skip


def test_reference_and_anchor_stand_apart_and_raters_who_swap_them_are_named():
    rated = [
        _rating(0, "normal", "tuned", 80, "ann"), _rating(1, "normal", "base", 60, "ann"),
        _rating(2, "reference", "tuned", 95, "ann"), _rating(3, "anchor", "tuned", 20, "ann"),
        _rating(4, "reference", "tuned", 40, "bob"), _rating(5, "anchor", "tuned", 40, "bob"),
        _rating(6, "anchor", "tuned", 10, "cat"),
    ]  # fmt: skip
    scales, check = figures._scales(rated)
    assert [(s.kind, s.name, s.mean.value, s.mean.n) for s in scales] == [
        ("reference", "hidden reference", 67.5, 2), ("version", "base", 60.0, 1), ("version", "tuned", 80.0, 1),
        ("anchor", "low anchor", pytest.approx(70 / 3), 3),
    ]  # fmt: skip
    assert (check.raters, check.reversed_raters, check.scale) == (2, (str(an_id("rater", "bob"))[-8:],), "quality")


def test_a_background_of_fewer_than_three_raters_is_not_shown():
    votes = [a_vote(i, "A", rater=i, pair=i, background={"culture": "north"}) for i in range(3)]
    votes += [a_vote(10 + i, "B", rater=10 + i, pair=i, background={"culture": "south"}) for i in range(2)]
    slices, of = figures._slices(votes, figures.version_pairs(votes))
    assert [(s.value, s.raters, s.votes, s.rate is None) for s in slices] == [
        ("north", 3, 3, False), ("south", 2, 2, True),
    ]  # fmt: skip
    assert of == "base against tuned" and slices[0].rate.value == 1.0


def test_the_dashboard_of_a_study_adds_up_and_leaves_the_withdrawn_out(any_database):  # noqa: F811
    import sqlalchemy as sa

    from alignment.db.tables import RaterRow

    def say(assignment, number):
        return [Outcome.A, Outcome.TIE, Outcome.SKIP, Outcome.B][number]

    filled, raters = voted_study(any_database, battles=6, raters=4, say=say, kind=RaterKind.SIMULATED)
    with any_database.session() as s:
        s.execute(sa.update(RaterRow).where(RaterRow.id == raters[3]).values(status="withdrawn"))
    flag_study(any_database, "study", actor="olga")
    recipe = StudyRecipe(name="study", versions=("base", "tuned"), votes_per_pair=3)
    found = figures.study_figures(
        any_database, filled.study_id, recipe=recipe, state="open", rater_kind=RaterKind.SIMULATED
    )
    assert (found.votes, found.withdrawn, found.raters, found.sessions) == (18, 6, 3, 4)
    assert (found.wanted, found.had) == (18, 12) and found.simulated and found.last_hour == 18
    assert {name: count for name, count, _ in found.outcomes if count} == {"A": 6, "TIE": 6, "SKIP": 6}
    assert all(share.n == 18 for _, _, share in found.outcomes)
    assert (found.left.value, found.left.n) == (1.0, 6)
    (pair,) = found.pairs
    assert {pair.version, pair.other} == {"base", "tuned"} and pair.rate.votes == 12 and pair.needed.n == 6
    assert {row.version for row in found.ratings} == {"base", "tuned"}
    assert {flag.detector for flag in found.flags} == {"too fast", "duplicate"}
    plain = found.to_json()
    assert plain["votes"] == 18 and plain["ratings"][0]["elo"]["n"] == 12


def test_nothing_of_a_withdrawn_rater_is_left_in_any_figure(any_database):  # noqa: F811
    from alignment.db.figures import study_counts
    from alignment.withdrawal import withdraw

    def say(assignment, number):
        return [Outcome.A, Outcome.TIE, Outcome.B][number]

    def seen():
        found = figures.study_figures(
            any_database, filled.study_id, recipe=recipe, state="open", rater_kind=RaterKind.SIMULATED
        )
        plain = found.to_json()
        # What a session was, and that somebody left, stays known.
        for name in ("made_at", "withdrawn", "sessions", "finished_sessions", "session_raters"):
            del plain[name]
        with any_database.session(write=False) as s:
            count = study_counts(s)[filled.study_id]
        return plain, (count.answers, count.raters)

    recipe = StudyRecipe(name="study", versions=("base", "tuned"), votes_per_pair=3)
    filled, raters = voted_study(any_database, battles=6, raters=3, say=say, kind=RaterKind.SIMULATED)
    flag_study(any_database, "study", actor="olga")  # the detectors have spoken of the votes before they are withdrawn
    whole, counts = seen()
    assert (whole["votes"], whole["raters"], counts) == (18, 3, (18, 3))
    withdraw(any_database, raters[2], "olga")
    left, counts = seen()
    assert (left["votes"], left["raters"], left["had"], left["last_hour"], counts) == (12, 2, 12, 12, (12, 2))
    assert {name: count for name, count, _ in left["outcomes"] if count} == {"A": 6, "TIE": 6}
    assert left["left"]["n"] == 6 and left["agreement"]["n"] == 12 and left["agreement"]["raters"] == 2
    assert left["pairs"][0]["rate"]["votes"] == 12 and left["ratings"][0]["elo"]["n"] == 12
    for flag, before in zip(left["flags"], whole["flags"], strict=True):
        assert sum(flag[verdict] for verdict in VERDICTS) == 12 < sum(before[verdict] for verdict in VERDICTS)
    assert sum(count for _, count in left["per_hour"]) == 12


def test_a_study_without_votes_has_a_dashboard_too(sqlite_database):  # noqa: F811
    filled, _ = voted_study(sqlite_database, battles=2, raters=0)
    recipe = StudyRecipe(name="study", versions=("base", "tuned"))
    found = figures.study_figures(
        sqlite_database, filled.study_id, recipe=recipe, state="draft", rater_kind=RaterKind.HUMAN
    )
    assert (found.votes, found.wanted, found.had, found.pairs, found.agreement) == (0, 6, 0, (), None)


def test_gold_and_anchor_pairs_are_passed_by_picking_the_winner_only():
    votes = [
        a_vote(i, said, rater=i, pair=i, kind=BattleKind.GOLD, expected=Side.RIGHT)
        for i, said in enumerate(["B", "B", "A", "TIE", "SKIP"])
    ]
    passed = figures._pass_rate(votes, BattleKind.GOLD)
    assert (passed.value, passed.n) == (0.5, 4) and figures._pass_rate(votes, BattleKind.ANCHOR) is None


def test_the_lists_of_studies_and_raters_count_sessions_answers_and_consent(any_database):  # noqa: F811
    from alignment.db.figures import newest_mark, study_counts, study_raters

    filled, raters = voted_study(any_database, battles=3, raters=3, consent=lambda n: {0: True, 1: False}.get(n))
    with any_database.session(write=False) as s:
        counts, rows = study_counts(s), study_raters(s, filled.study_id)
        before = newest_mark(s, filled.study_id)
    count = counts[filled.study_id]
    assert (count.answers, count.raters, count.newest.tzinfo is not None) == (9, 3, True)
    assert [(row.id, row.sessions, row.answers, row.publication) for row in rows] == [
        (raters[0], 1, 3, True), (raters[1], 1, 3, False), (raters[2], 1, 3, None),
    ]  # fmt: skip
    assert all(row.is_called(str(row.id)) and row.is_called(row.code) and not row.is_called("") for row in rows)
    groups = [rows[0].code[i : i + 4] for i in range(0, 16, 4)]  # as the rater's page shows it, or as it is typed
    for told in ("-".join(groups), " ".join(groups).upper(), f" {' - '.join(groups)}\n"):
        assert [row.is_called(told) for row in rows] == [True, False, False]
    flag_study(any_database, "study", actor="olga")
    with any_database.session(write=False) as s:
        assert newest_mark(s, filled.study_id) != before
