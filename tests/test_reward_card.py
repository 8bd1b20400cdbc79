"""A reward model's card: figures worked by hand, planted faults that it must expose, and a page that is safe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from alignment.config import RewardSettings
from alignment.domain import Axis, Outcome, Pair, Split
from alignment.errors import DataError, ShapeError, StoreError
from alignment.evaluation.calibration import calibration
from alignment.evaluation.intervals import Interval
from alignment.evaluation.reward_card import RewardCard, make_card
from alignment.evaluation.reward_card_page import card_text, render_card, write_card
from alignment.rewards import card
from alignment.rewards.baselines import level_dbfs, loudness_lufs, measures, measuring_scorer
from alignment.rewards.card import Baseline, CurvePoint, Evidence
from alignment.rewards.encoder import ClapEncoder
from alignment.rewards.train import train_reward
from tests.training_support import clip, pair, unit_vectors

WIDTH = 12
RATE = 16_000
QUICK = RewardSettings(hidden=16, epochs=15, batch_size=64, ensemble=2, learning_rate=5e-3, patience=5)


def planted(reason: str, votes: int = 500, seed: int = 0) -> tuple[list[Pair], dict, dict, dict]:
    """(pairs, audio, text, measured): votes that follow loudness, its opposite or a quality that loudness knows nothing
    of. An embedding's first coordinate hears loudness, its second quality."""
    rng = np.random.default_rng(seed)
    prompts = [f"prompt {n}" for n in range(50)]
    text, audio, measured, pairs = unit_vectors(prompts, WIDTH, seed + 1), {}, {}, []
    for n in range(votes):
        loud, quality = rng.normal(size=2), rng.normal(size=2)
        for side in (0, 1):
            vector = 0.3 * rng.normal(size=WIDTH)
            vector[:2] = loud[side], quality[side]
            name = f"audio-{n}{'ab'[side]}"
            audio[name] = vector.astype(np.float32)
            measured[name] = {"loudness": -23 + 4 * loud[side], "level": -20 + 4 * rng.normal(), "length": 5.0}
        heard = {"loudness": loud, "quiet": -loud, "quality": quality}[reason]
        utility = 3 * (heard[0] - heard[1]) + rng.logistic()
        split = (Split.TRAIN, Split.TRAIN, Split.VALID, Split.TEST, Split.TEST)[n % 5]
        one = pair(n, Outcome.A if utility > 0 else Outcome.B, prompt=prompts[n % 50], split=split)
        pairs.append(replace(one, rater_id=f"rater-{n % 9}"))
    return pairs, audio, text, measured


def carded(reason: str, *, folds: int | None = None, curve: tuple = ()) -> RewardCard:
    pairs, audio, text, measured = planted(reason)
    model = train_reward(pairs, audio, text, QUICK)
    deals = card.deal_votes(pairs, folds=folds, seed=0)
    evidence = card.gather(model, deals, audio, text, measured, curve_shares=curve)
    return make_card("likes", evidence, simulated=True, created_at="now", heard_by=pairs)


def baseline(made: RewardCard, name: str):
    return next(row for row in made.baselines if row.name == name)


def row(made: RewardCard, label: str) -> Interval:
    return next(row.accuracy for row in made.rows if row.label == label)


def test_a_model_that_only_hears_loudness_is_exposed() -> None:
    made = carded("loudness")
    assert made.verdict == "exposed" and made.headline == "likes is not shown to hear more than loudness"
    assert made.rows[0].accuracy.low > 0.6  # its accuracy alone would look fine
    found = baseline(made, "loudness")
    assert found.advantage.low <= 0 and found.follows.low > 0.6 and found.prefers == "the louder clip"
    assert found.beyond.low <= 0.5 <= found.beyond.high
    assert row(made, "The louder clip won").value > row(made, "The quieter clip won").value + 0.2
    assert any("It prefers the louder clip in" in finding for finding in made.findings)


def test_a_model_that_only_hears_how_quiet_a_clip_is_is_exposed_too() -> None:
    made = carded("quiet")
    found = baseline(made, "loudness")
    assert made.verdict == "exposed" and found.prefers == "the quieter clip" and found.accuracy.value > 0.7
    assert row(made, "The quieter clip won").value > 0.7  # by loudness as it is, not as the baseline turned it


def test_a_model_that_hears_what_raters_hear_is_called_sound() -> None:
    made = carded("quality")
    assert made.verdict == "sound"
    assert all(found.advantage.low > 0 and found.beyond.low > 0.5 for found in made.baselines)
    louder, quieter = row(made, "The louder clip won"), row(made, "The quieter clip won")
    assert abs(louder.value - quieter.value) < 0.2 and quieter.low > 0.5
    assert louder.n + quieter.n == made.rows[0].accuracy.n


def test_cross_validation_finds_the_same_and_says_so() -> None:
    made = carded("loudness", folds=4)
    assert made.verdict == "exposed" and made.rows[0].accuracy.n == 500
    assert made.asked.startswith("cross-validation: 4 models")
    assert any("no test split" in note for note in made.notes)


def by_hand() -> Evidence:
    """Six votes; the model is right on the first three and the fifth, wrong on the fourth; the sixth is a tie."""
    outcomes = (Outcome.A, Outcome.B, Outcome.A, Outcome.B, Outcome.A, Outcome.TIE)
    pairs = []
    for n, outcome in enumerate(outcomes):
        axes = {"quality": (-2, 1, 0, -1, 2, 2)[n]} | ({"text_adherence": -1} if n == 0 else {})
        one = replace(
            pair(n, outcome, prompt=f"prompt {n}", axes=axes), rater_id=f"rater-{n}", cohort="young" if n < 2 else None
        )
        if n >= 3:
            one = replace(one, b=replace(one.b, version="other"))
        pairs.append(one)
    differences = {
        "preference": np.array([1.0, -2.0, 0.5, 3.0, 0.1, 9.0]),
        "quality": np.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]),
        "text_adherence": np.full(6, np.nan),
    }
    same = Baseline("length", np.ones(6), np.full((6, 2), 5.0))
    louder = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])  # 1: clip a is the louder one; quieter was liked before
    loud = Baseline("loudness", np.full(6, -1), np.column_stack([louder, 1 - louder]))
    return Evidence(tuple(pairs), differences, (loud, same), (CurvePoint(5, tuple(pairs[:5]), np.ones(5)),), 0)


def test_every_row_counts_the_votes_it_names() -> None:
    made = make_card("likes", by_hand(), simulated=False, created_at="now")
    found = {r.label: (r.accuracy.value, r.accuracy.n) for r in made.rows}
    assert found["Preference head, overall vote"] == (0.8, 5)
    # Steps -2, 1, -1, 2, 2 favour a, b, a, b, b; the head says a, a, b, b, b; the step 0 is not decisive.
    assert found["Quality head, its own question"] == (0.6, 5)
    # The overall vote: a, b, a, b, a against a, a, a, b, b.
    assert found["Quality head, overall vote"] == (0.6, 5)
    assert not any("Text adherence" in label for label in found)  # nothing taught that head
    assert found["Within one version"] == (1.0, 3) and found["Across versions"] == (0.5, 2)
    assert found["young"] == (1.0, 2) and found["cohort not told"] == (pytest.approx(2 / 3), 3)
    # The louder clip is a, b, b, a, b; a, b, a, b, a won: louder won the first two.
    assert found["The louder clip won"] == (1.0, 2) and found["The quieter clip won"] == (pytest.approx(2 / 3), 3)


def test_the_lead_over_a_baseline_is_counted_vote_by_vote() -> None:
    made = make_card("likes", by_hand(), simulated=False, created_at="now")
    loud, length = baseline(made, "loudness"), baseline(made, "length")
    # Turned loudness votes b, a, a, b, a where a, b, a, b, a won: 3 of 5; the model has 4 of 5.
    assert loud.accuracy.value == 0.6 and loud.advantage.value == pytest.approx(0.2)
    # The model's signs are a, b, a, a, a, a against b, a, a, b, a, a: 3 of 6.
    assert loud.follows.value == 0.5 and loud.prefers == "the quieter clip"
    assert (length.accuracy.value, length.accuracy.low, length.accuracy.high) == (0.5, 0.5, 0.5)
    assert length.advantage.value == pytest.approx(0.3) and length.follows.value == 0.5
    assert any("equally long" in note for note in made.notes)


def test_a_simple_scorer_taken_out_leaves_what_the_scores_hold_beside_it() -> None:
    rng = np.random.default_rng(0)
    values, other = rng.normal(size=(400, 2)), rng.normal(size=400)
    bent = values - 0.3 * values**3  # more is better up to a point
    assert card.taken_out(bent[:, 0] - bent[:, 1], values) == pytest.approx(np.zeros(400), abs=1e-9)
    left = card.taken_out(3 * (values[:, 0] - values[:, 1]) + other, values)
    assert np.corrcoef(left, other)[0, 1] > 0.99
    assert card.taken_out(other, np.full((400, 2), 5.0)) is other


def test_a_model_with_loudness_and_more_is_not_called_by_loudness_name() -> None:
    """Votes follow loudness and quality alike; the model hears both, so something is left without loudness."""
    rng = np.random.default_rng(3)
    n = 400
    loud, quality, noise = rng.normal(size=(n, 2)), rng.normal(size=n), rng.logistic(size=n)
    utility = 2 * (loud[:, 0] - loud[:, 1]) + 2 * quality + noise
    pairs = tuple(
        replace(pair(i, Outcome.A if u > 0 else Outcome.B, prompt=f"prompt {i % 50}"), rater_id=f"rater-{i % 9}")
        for i, u in enumerate(utility)
    )
    both = loud[:, 0] - loud[:, 1] + quality
    only = loud[:, 0] - loud[:, 1] + rng.normal(size=n)
    for heard, verdict in ((both, "sound"), (only, "exposed")):
        evidence = Evidence(pairs, dict.fromkeys(Axis, np.full(n, np.nan)) | {"preference": heard},
                            (Baseline("loudness", np.ones(n), loud),), (), 0)  # fmt: skip
        assert make_card("likes", evidence, simulated=False, created_at="now").verdict == verdict


def test_a_model_that_hears_what_goes_with_loudness_is_told_from_one_that_hears_loudness() -> None:
    """Levels (0, -6) and (-12, 0) dB, scores 2 and -4 apart: by nature 6 dB cost 2 of a typical sqrt(10)."""
    pairs = tuple(replace(pair(n, (Outcome.A, Outcome.B)[n % 2], prompt=f"prompt {n}"), rater_id=f"rater-{n}")
                  for n in range(40))  # fmt: skip
    values = np.array([[0.0, -6.0], [-12.0, 0.0]] * 20)
    evidence = Evidence(pairs, dict.fromkeys(Axis, np.full(40, np.nan)) | {"preference": np.array([2.0, -4.0] * 20)},
                        (Baseline("level", np.ones(40), values),), (), 0)  # fmt: skip
    prompts = [f"prompt {n}" for n in range(8)]
    for lost, hears, verdict in ((2.0, True, "exposed"), (0.1, False, "unproven"), (-2.0, False, "unproven")):
        made = make_card("likes", evidence, simulated=False, created_at="now",
                         level_shifts=(prompts, np.full(8, lost)))  # fmt: skip
        assert made.level is not None and made.level.by_nature == pytest.approx(2 / 10**0.5)
        assert made.level.shift.value == pytest.approx(lost / 10**0.5) and made.level.hears_level is hears
        assert made.verdict == verdict, made.findings
    assert "though it hears neither" in made.headline


def test_raters_are_compared_with_each_other_on_pairs_that_two_of_them_heard() -> None:
    def vote(rater: str, outcome: Outcome, a: str, b: str, prompt: str = "x") -> Pair:
        return replace(pair(0, outcome, prompt=prompt, a=a, b=b), rater_id=rater)

    heard = [
        vote("r1", Outcome.A, "1", "2"), vote("r2", Outcome.B, "2", "1"), vote("r3", Outcome.B, "1", "2"),
        vote("r1", Outcome.TIE, "3", "4", "y"), vote("r2", Outcome.A, "3", "4", "y"),
        vote("r1", Outcome.A, "5", "6", "z"), vote("r1", Outcome.B, "5", "6", "z"),
    ]  # fmt: skip
    evidence = replace(
        by_hand(),
        pairs=tuple(heard[:2]),
        curve=(),
        baselines=(),
        differences=dict.fromkeys(Axis, np.full(2, np.nan)) | {"preference": np.array([1.0, 1.0])},
    )
    made = make_card("likes", evidence, simulated=False, created_at="now", heard_by=heard)
    # r1 and r2 chose clip 1, r3 clip 2: one of three couples agrees. The tie and the same rater twice are no couple.
    assert made.raters is not None and made.raters.same.value == pytest.approx(1 / 3) and made.raters.same.n == 3
    assert made.raters.model is not None and (made.raters.model.value, made.raters.model.n) == (0.5, 2)
    alone = make_card("likes", evidence, simulated=False, created_at="now", heard_by=heard[5:])
    assert alone.raters is None and "nothing is known" in render_card(alone)


def test_agreement_counts_equal_scores_half_and_undecided_votes_not_at_all() -> None:
    found = card.agreement(np.array([2.0, -1.0, 0.0, 5.0, np.nan, 1.0]), np.array([1.0, 1.0, 0.0, 0.5, 1.0, np.nan]))
    assert found == pytest.approx([1.0, 0.0, 0.5, np.nan, np.nan, np.nan], nan_ok=True)


def test_the_test_split_is_asked_where_it_is_decisive_and_else_every_prompt_by_models_that_never_saw_it() -> None:
    pairs, *_ = planted("quality", votes=100)
    (deal,) = card.deal_votes(pairs, folds=None, seed=0)
    assert {p.split for p in deal.asked} == {Split.TEST} and len(deal.asked) == 40 and len(deal.learnt) == 60
    undecided = [replace(p, preference=0.5, outcome=Outcome.TIE) if p.split == Split.TEST else p for p in pairs]
    deals = card.deal_votes(undecided, folds=None, seed=0)
    assert len(deals) == 5
    assert sorted(p.vote_id for d in deals for p in d.asked) == sorted(p.vote_id for p in pairs)
    for one in deals:
        assert not {p.prompt_text for p in one.asked} & {p.prompt_text for p in one.learnt}
        assert {p.split for p in one.learnt} == {Split.TRAIN, Split.VALID}
    with pytest.raises(DataError, match="on 50 prompts; .*51 folds"):
        card.deal_votes(pairs, folds=51, seed=0)
    with pytest.raises(DataError, match="None of the votes to be asked about is decisive"):
        card.deal_votes([replace(p, preference=0.5) for p in pairs], folds=None, seed=0)


def test_a_baseline_is_turned_by_the_votes_learnt_from_and_never_by_those_asked() -> None:
    pairs, audio, text, measured = planted("loudness", votes=200)
    flipped = [replace(p, preference=1 - p.preference) if p.split == Split.TEST else p for p in pairs]
    model = train_reward(pairs, audio, text, QUICK)
    (deal,) = card.deal_votes(flipped, folds=None, seed=0)
    evidence = card.gather(model, [deal], audio, text, measured, curve_shares=())
    loud = next(one for one in evidence.baselines if one.name == "loudness")
    assert set(loud.signs) == {1} and np.nanmean(card.agreement(loud.differences, card.preferences(deal.asked))) < 0.3
    cosine = next(one for one in evidence.baselines if one.name == "clap_cosine")
    first = deal.asked[0]
    expected = (audio[first.a.audio_sha256] - audio[first.b.audio_sha256]) @ text[first.prompt_text]
    assert cosine.differences[0] == pytest.approx(expected, abs=1e-6) and set(cosine.signs) == {1}


def test_the_learning_curve_rises_with_votes_and_leaves_out_what_is_too_few() -> None:
    pairs, audio, text, measured = planted("quality")
    model = train_reward(pairs, audio, text, QUICK)
    steps: list[tuple[int, int]] = []
    evidence = card.gather(
        model, card.deal_votes(pairs, folds=None, seed=0), audio, text, measured,
        curve_shares=(1 / 50, 1 / 8, 1 / 2), curve_draws=2, on_progress=lambda *s: steps.append(s),
    )  # fmt: skip
    # 200 train and 100 valid votes: an eighth is 25 + 12, a half 100 + 50; a fiftieth, 6 votes, says nothing.
    assert [point.votes for point in evidence.curve] == [37, 150, 300]
    assert evidence.curve[-1].agreement.mean() > evidence.curve[0].agreement.mean()
    assert set(np.unique(evidence.curve[0].agreement)) <= {0.0, 0.5, 1.0}
    last = card.agreement(evidence.differences["preference"], card.preferences(evidence.pairs))
    assert evidence.curve[-1].agreement == pytest.approx(last)  # the model itself
    assert steps[-1][0] <= steps[-1][1] == 7


def test_calibration_worked_by_hand() -> None:
    """Twenty votes at 0.6 of which 12 came true, twenty at 0.9 of which 16: ECE = (0 + 0.1) / 2."""
    probability = np.repeat([0.9, 0.6], 20)
    came_true = np.concatenate([np.arange(20) < 16, np.arange(20) < 12]).astype(float)
    prompts = [f"p{n}" for n in range(40)]
    found = calibration(probability, came_true, prompts, prompts)
    assert [(one.predicted, one.came_true.value, one.came_true.n) for one in found.bins] == [
        (pytest.approx(0.6), 0.6, 20), (pytest.approx(0.9), 0.8, 20)
    ]  # fmt: skip
    assert found.ece.value == pytest.approx(0.05) and found.ece.low <= 0.05 <= found.ece.high
    assert (found.ece.n, found.ece.clusters) == (40, 40)
    # By chance: mean |k / 20 - p| over binomial k, from scipy's distribution.
    k = np.arange(21)
    expected = sum((binom.pmf(k, 20, p) * np.abs(k / 20 - p)).sum() for p in (0.6, 0.9)) / 2
    assert found.by_chance == pytest.approx(expected, abs=0.004)


def test_calibrations_interval_resamples_prompts_and_not_votes() -> None:
    """Two prompts, all right and all wrong at 0.5: each draw of both gives |1 - 0.5|, 0 or |0 - 0.5|."""
    came_true = np.repeat([1.0, 0.0], 9)
    prompts = ["x"] * 9 + ["y"] * 9
    found = calibration(np.full(18, 0.5), came_true, prompts, prompts)
    assert len(found.bins) == 1 and found.ece.value == 0.0
    assert (found.ece.low, found.ece.high, found.ece.clusters) == (0.0, 0.5, 2)
    with pytest.raises(ShapeError, match="between 0 and 1"):
        calibration(np.array([1.5]), np.array([1.0]), ["r"], ["p"])
    with pytest.raises(ShapeError, match=r"Found probabilities \(2,\)"):
        calibration(np.array([0.5, 0.5]), np.array([1.0]), ["r"], ["p"])


def test_calibration_asks_whether_the_clip_with_the_higher_score_won() -> None:
    made = make_card("likes", by_hand(), simulated=False, created_at="now")
    # Five decisive votes in one bin: the mean of sigmoid(|1|, |-2|, |0.5|, |3|, |0.1|) against 4 of 5.
    expected = np.mean(1 / (1 + np.exp(-np.array([1.0, 2.0, 0.5, 3.0, 0.1]))))
    assert made.calibration.bins[0].predicted == pytest.approx(expected)
    assert made.calibration.ece.value == pytest.approx(abs(0.8 - expected))


def test_loudness_level_and_length_are_measured() -> None:
    """A full-scale 997 Hz sine reads -3.01 LUFS (BS.1770 annex 1); its RMS level is -3.01 dBFS."""
    seconds = 2
    sine = np.sin(2 * np.pi * 997 * np.arange(48_000 * seconds) / 48_000)
    found = measures(sine, 48_000)
    assert found["loudness"] == pytest.approx(-3.01, abs=0.1) and found["level"] == pytest.approx(-3.01, abs=0.01)
    assert found["length"] == seconds
    assert loudness_lufs(sine / 2, 48_000) == pytest.approx(found["loudness"] - 6.02, abs=0.01)
    assert loudness_lufs(np.zeros(RATE), RATE) == -70 and level_dbfs(np.zeros(RATE), RATE) == -120
    scored = measuring_scorer("level").score(["a", "b"], np.stack([sine, sine / 10]), 48_000).values
    assert scored == pytest.approx([-3.01, -23.01], abs=0.01)


def test_real_sound_whose_votes_follow_loudness_is_exposed_and_the_level_probe_moves() -> None:
    """Noise through CLAP: the model learns loudness from audio, and its score falls when a clip is played quieter."""
    rng, encoder = np.random.default_rng(0), ClapEncoder()
    sounds = {f"audio-{n}{s}": (10 ** rng.uniform(-1.5, -0.5) * rng.normal(size=RATE // 2) / 4).astype(np.float32)
              for n in range(120) for s in "ab"}  # fmt: skip
    measured = {name: measures(sound, RATE) for name, sound in sounds.items()}
    prompts = [f"tune {n}" for n in range(30)]
    audio = dict(zip(sounds, encoder.audio(list(sounds.values()), RATE), strict=True))
    text = dict(zip(prompts, encoder.text(prompts), strict=True))
    splits = (Split.TRAIN, Split.TRAIN, Split.VALID, Split.TEST, Split.TEST)
    pairs = [
        replace(
            pair(n, Outcome.A if measured[f"audio-{n}a"]["loudness"] > measured[f"audio-{n}b"]["loudness"]
                 else Outcome.B, prompt=prompts[n % 30], split=splits[n % 5]), rater_id=f"rater-{n % 12}",
        )
        for n in range(120)
    ]  # fmt: skip
    model = train_reward(pairs, audio, text, QUICK.model_copy(update={"epochs": 40}))
    evidence = card.gather(model, card.deal_votes(pairs, folds=None, seed=0), audio, text, measured, curve_shares=())
    asked = [p.a.audio_sha256 for p in evidence.pairs]
    quieter = encoder.audio([sounds[sha] / 2 for sha in asked], RATE)
    shifts = card.level_shifts(
        model, [p.prompt_text for p in evidence.pairs], np.stack([audio[s] for s in asked]), quieter, text
    )
    made = make_card("likes", evidence, simulated=True, created_at="now",
                     level_shifts=([p.prompt_text for p in evidence.pairs], shifts))  # fmt: skip
    assert made.verdict == "exposed" and baseline(made, "loudness").accuracy.value == 1.0
    assert made.level is not None and made.level.shift.low > 0 and made.level.hears_level
    assert "loses" in card_text(made)


def test_a_card_without_a_preference_head_or_with_noise_alone_says_so() -> None:
    evidence = by_hand()
    nothing = replace(evidence, differences=dict(evidence.differences) | {"preference": np.full(6, np.nan)})
    with pytest.raises(DataError, match="no trained preference head"):
        make_card("likes", nothing, simulated=False, created_at="now")
    made = make_card("likes", evidence, simulated=False, created_at="now")  # five votes show nothing
    assert made.verdict == "unproven" and "not shown to predict votes better than chance" in made.headline


def test_the_page_is_one_safe_file_and_marks_simulated_votes(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script>'
    pairs = tuple(replace(p, cohort=nasty) for p in by_hand().pairs)
    made = make_card(nasty, replace(by_hand(), pairs=pairs), simulated=True, created_at="now", heard_by=pairs,
                     alpha=Interval(0.4, 0.2, 0.6, n=10, clusters=5), facts={"Encoder": nasty})  # fmt: skip
    html = render_card(made)
    assert "<script>alert" not in html and "alert" in html
    assert html.count("<script") == 2 and "http://" not in html and "https://" not in html
    assert "Simulated listeners." in html and "default-src 'none'" in html
    data = html.split('id="attune-report">')[1].split("</script>")[0]
    told = json.loads(data)
    assert told["verdict"] == made.verdict and told["rows"][0]["accuracy"]["n"] == 5
    text = card_text(made)
    assert "SIMULATED LISTENERS" in text and "ECE" in text
    path = write_card(made, tmp_path / "cards" / "likes.html")
    assert path.read_text(encoding="utf-8") == html and [p.name for p in path.parent.iterdir()] == ["likes.html"]
    honest = replace(made, simulated=False)
    assert "Simulated listeners." not in render_card(honest) and "SIMULATED" not in card_text(honest)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="the card cannot be written"):
        write_card(made, tmp_path / "file" / "likes.html")


def test_clips_of_one_version_only_and_one_rater_only_are_said_on_the_card() -> None:
    evidence = by_hand()
    alone = tuple(replace(p, b=clip(p.b.clip_id), rater_id="rater-1") for p in evidence.pairs)
    notes = make_card("likes", replace(evidence, pairs=alone), simulated=False, created_at="now").notes
    assert any("within one version" in note for note in notes) and any("One rater alone" in note for note in notes)
    across = tuple(replace(p, b=replace(p.b, version="other")) for p in evidence.pairs)
    notes = make_card("likes", replace(evidence, pairs=across), simulated=False, created_at="now").notes
    assert any("only tells versions apart" in note for note in notes)
