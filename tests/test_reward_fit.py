"""What a reward model learns beside its scores, how it stops, and how it goes on after a kill."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.config import RewardSettings
from alignment.domain import Outcome, RatedClip, RaterKind, Split
from alignment.errors import DataError, StoreError, TrainingError
from alignment.rewards import fit
from alignment.rewards.heads import HEADS, HeadEnsemble
from alignment.rewards.table import PairTable, compared_ratings, table_of
from alignment.rewards.train import train_on_table, train_reward
from tests.training_support import clip, pair, unit_vectors

WIDTH = 6
SMALL = RewardSettings(hidden=8, epochs=4, batch_size=32, ensemble=2, learning_rate=5e-3, patience=2)


def planted(votes: int, seed: int = 0, *, side: float = 0.0, nu: float = 0.0) -> PairTable:
    """Votes on differing clips by ten raters, the first five of whom answer at random; the others follow three times
    the clips' difference along the first coordinate, and everyone is pulled to the left by ``side``."""
    rng = np.random.default_rng(seed)
    audio = rng.normal(size=(2 * votes, WIDTH)).astype(np.float32)
    text = rng.normal(size=(20, WIDTH)).astype(np.float32)
    a, b, prompt = np.arange(votes), np.arange(votes, 2 * votes), rng.integers(20, size=votes)
    rater = rng.integers(10, size=votes).astype(np.int32)
    d = 3 * (rater >= 5) * (audio[a, 0] - audio[b, 0]) + side
    win, tie = np.exp(d / 2), nu * np.ones(votes)
    drawn = rng.random(votes) * (win + 1 / win + tie)
    credit = np.where(drawn < win, 1.0, np.where(drawn < win + tie, 0.5, 0.0))
    targets = np.full((votes, 3), np.nan, np.float32)
    targets[:, 2] = credit
    return PairTable(audio, text, a, b, prompt, prompt, targets, rater, np.ones(votes, np.int8), 10)


def rating(number: int, clip_name: str, rater: str = "ann", prompt: str = "calm piano", **scales) -> RatedClip:
    answers = {"quality": None, "relevance": None, "mos": None, **scales}
    return RatedClip(f"rating-{number}", f"prompt-{prompt}", prompt, Split.TRAIN, clip(clip_name), rater_id=rater,
                     rater_kind=RaterKind.HUMAN, **answers)  # fmt: skip


def same(one: HeadEnsemble, other: HeadEnsemble) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_the_fast_difference_is_that_of_two_scores_with_one_prompt_or_two() -> None:
    heads = HeadEnsemble(WIDTH, hidden=8, members=3, seed=1)
    generator = torch.Generator().manual_seed(0)
    audio, text = (torch.randn(10, WIDTH, generator=generator) for _ in range(2))
    heads.fit_features(audio, text)
    for words, one_text in ((text, False), (text[:5], True)):
        both = torch.cat([words, words]) if one_text else words
        scores = heads(heads.features(audio, both))
        found = heads.differences(audio, words, one_text=one_text)
        for head in HEADS:
            torch.testing.assert_close(found[head], scores[head][:, :5] - scores[head][:, 5:], rtol=0, atol=1e-5)


def test_ties_side_and_careless_raters_are_told_apart_from_the_clips() -> None:
    """Planted: nu 1, left favoured by 0.6, five careful and five random raters."""
    table = planted(3000, side=0.6, nu=1.0)
    settings = SMALL.model_copy(
        update={
            "epochs": 15,
            "batch_size": 100,
            "dropout": 0.0,
            "rater_deviation": 1.0,
            "learning_rate": 1.5e-3,
            "ensemble": 1,
        }
    )
    fitted = fit.fit_heads(table, None, settings)
    found = fitted.terms.summary()
    assert found["ties"]["preference"] == pytest.approx(1.0, abs=0.15)
    assert found["side"]["preference"] == pytest.approx(0.6, abs=0.12)
    reliability = fitted.terms.raters.detach().mean(0).exp()
    assert float(reliability[5:].min()) > 2 * float(reliability[:5].max())
    few = replace(table, **{name: getattr(table, name)[:300] for name in ("a", "b", "text_a", "text_b", "targets",
                                                                          "rater", "side")})  # fmt: skip
    off = {"ties": "half", "side_term": False, "rater_deviation": 0.0, "epochs": 1}
    assert fit.fit_heads(few, None, settings.model_copy(update=off)).terms.summary() == {}
    wide, narrow = (fit.fit_heads(few, None, settings.model_copy(update={"rater_deviation": d})) for d in (1.0, 0.05))
    spread = [float(fitted.terms.raters.detach().std()) for fitted in (narrow, wide)]
    assert spread[0] < spread[1] / 5, "a narrow prior holds raters together"


def test_a_run_stopped_anywhere_goes_on_to_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid = planted(200), planted(60, seed=1)
    whole = fit.fit_heads(train, valid, SMALL)
    real, calls = fit.losses_of, 0

    def broken(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    for stop in (3, 11, 23, 29):  # seven steps and a validation an epoch: in the first, second, third and last
        calls, folder = 0, tmp_path / str(stop)
        monkeypatch.setattr(fit, "losses_of", broken)
        with pytest.raises(KeyboardInterrupt):
            fit.fit_heads(train, valid, SMALL, run_dir=folder)
        monkeypatch.setattr(fit, "losses_of", real)
        again = fit.fit_heads(train, valid, SMALL, run_dir=folder)
        assert same(whole.heads, again.heads) and same(whole.terms, again.terms), f"stopped at {stop}"
        assert (again.epochs, again.valid_loss, again.history) == (whole.epochs, whole.valid_loss, whole.history)


def test_a_run_killed_at_a_random_step_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    train = planted(200)
    step = random.Random().randrange(2, 27)
    code = (
        "import os, signal, sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "from pathlib import Path\n"
        "from alignment.rewards import fit\n"
        "from tests.test_reward_fit import SMALL, planted\n"
        "real, calls = fit.losses_of, 0\n"
        "def killed(*arguments, **named):\n"
        "    global calls\n"
        "    calls += 1\n"
        f"    if calls == {step}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*arguments, **named)\n"
        "fit.losses_of = killed\n"
        "fit.fit_heads(planted(200), None, SMALL, run_dir=Path(sys.argv[1]))\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-500:]
    assert (tmp_path / fit.CHECKPOINT).exists() == (step > 7)
    whole, again = fit.fit_heads(train, None, SMALL), fit.fit_heads(train, None, SMALL, run_dir=tmp_path)
    assert same(whole.heads, again.heads) and same(whole.terms, again.terms), f"killed at step {step}"


def test_a_checkpoint_of_other_votes_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    train = planted(100)
    fit.fit_heads(train, None, SMALL, run_dir=tmp_path)
    other = replace(train, targets=1 - train.targets)
    with pytest.raises(DataError, match="other votes or settings"):
        fit.fit_heads(other, None, SMALL, run_dir=tmp_path)
    with pytest.raises(DataError, match="other votes or settings"):
        fit.fit_heads(train, None, SMALL.model_copy(update={"seed": 1}), run_dir=tmp_path)
    (tmp_path / fit.CHECKPOINT).write_bytes(b"\x80\x04")
    with pytest.raises(StoreError, match="checkpoint is damaged"):
        fit.fit_heads(train, None, SMALL, run_dir=tmp_path)


def test_a_loss_that_is_no_number_stops_with_step_batch_and_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fit.reward_loss, 0

    def poisoned(*arguments, **named):
        nonlocal calls
        calls += 1
        return real(*arguments, **named) * (float("nan") if calls == 10 else 1)

    monkeypatch.setattr(fit, "reward_loss", poisoned)
    with pytest.raises(TrainingError, match=r"nan at step 10 of epoch 2, in the batch of number \d+.*and others; "
                                            r"the last good checkpoint is .*reward-checkpoint.pt"):  # fmt: skip
        fit.fit_heads(planted(200), None, SMALL, run_dir=tmp_path)
    assert torch.load(tmp_path / fit.CHECKPOINT, weights_only=True)["epoch"] == 1


def test_clips_that_all_sound_the_same_are_refused() -> None:
    pairs = [pair(n, Outcome.A, prompt=f"p{n % 3}") for n in range(20)]
    text = unit_vectors(["p0", "p1", "p2"], WIDTH, 0)
    silent = {f"audio-{n}{side}": np.ones(WIDTH, np.float32) for n in range(20) for side in "ab"}
    with pytest.raises(DataError, match="one embedding, so every score would be the same"):
        train_reward(pairs, silent, text, SMALL)


def test_odd_votes_are_learnt_from_and_counted() -> None:
    """One rater, one version, a pair that won both ways, an axis on which everything is equal."""
    audio = unit_vectors([f"audio-{n}{side}" for n in range(20) for side in "ab"], WIDTH, 0)
    pairs = [pair(n, (Outcome.A, Outcome.B)[n % 2], axes={"quality": 0}) for n in range(20)]
    pairs += [replace(pairs[0], vote_id="turned", a=pairs[0].b, b=pairs[0].a)]  # outcome A again: the other clip
    model = train_reward(pairs, audio, {"calm piano": np.ones(WIDTH, np.float32)}, SMALL)
    assert model.metrics["contradicted_pairs"] == 1 and model.metrics["versions"] == 1
    assert model.metrics["raters_of_votes"] == 1 and "raters" not in model.metrics
    assert model.trained_heads == ("preference",) and set(model.ties) == {"preference"}
    found = model.score(["calm piano"], audio["audio-3a"][None], {"calm piano": np.ones(WIDTH, np.float32)})
    assert np.isnan(found.uncertainties["quality"]).all() and found.uncertainties["preference"] == found.uncertainty


def test_ratings_are_compared_within_their_rater_in_units_of_that_raters_deviation() -> None:
    """10, 20 and 30 deviate by sqrt(200 / 3) = 8.165: a step is 1.2247 deviations, credit 0.5 + 0.3062; two are 1."""
    mine = [rating(n, f"{n}", quality=value) for n, value in enumerate((10, 20, 30))]
    theirs = [rating(9, "9", rater="bob", quality=90), rating(8, "8", rater="bob", quality=90)]
    found = compared_ratings([*mine, *theirs])
    assert len(found) == 3, "three pairs of three clips; bob always says the same"
    for one in found:
        step = (one.a.quality - one.b.quality) / 10
        assert one.quality == pytest.approx(np.clip(0.5 + step * 0.30619, 0, 1), abs=1e-4)
        assert np.isnan(one.relevance)
    both = [rating(0, "0", quality=10, mos=5), rating(1, "1", quality=20, mos=5)]
    assert [one.quality for one in compared_ratings(both)] in ([0.0], [1.0]), "two answers are two deviations apart"
    four = [rating(n, f"{n}", relevance=n + 1) for n in range(4)]
    met = [frozenset((one.a.rating_id, one.b.rating_id)) for one in compared_ratings(four)]
    assert len(met) == len(set(met)) == 6


def test_ratings_alone_teach_the_heads_they_answer() -> None:
    names = [f"{n}" for n in range(120)]
    audio = unit_vectors([f"audio-{name}" for name in names], WIDTH, 0)
    text = unit_vectors([f"p{n}" for n in range(10)], WIDTH, 1)
    given = [
        rating(n, name, rater=f"rater {n % 4}", prompt=f"p{n % 10}",
               quality=int(np.clip(50 + 15 * (n % 4) + 40 * audio[f"audio-{name}"][0], 1, 100)))
        for n, name in enumerate(names)
    ]  # fmt: skip
    settings = SMALL.model_copy(update={"epochs": 30, "batch_size": 16})
    model = train_reward([], audio, text, settings, ratings=given)
    assert model.trained_heads == ("quality",) and model.metrics["train_ratings"] == 120
    fresh = np.stack(list(unit_vectors([str(n) for n in range(200)], WIDTH, 9).values()))
    scores = model.score(["p1"] * 200, fresh, text)
    assert np.corrcoef(scores.quality, fresh[:, 0])[0, 1] > 0.8 and np.isnan(scores.preference).all()
    table = table_of([], audio, text, ratings=given)
    assert not table.one_text and not table.side.any() and (table.rater == -1).all()


def test_nothing_decisive_among_arrays_is_refused() -> None:
    table = planted(50)
    with pytest.raises(DataError, match="None of 50 comparisons is decisive"):
        train_on_table(replace(table, targets=np.where(table.targets < 2, 0.5, np.nan)), None, SMALL)
    with pytest.raises(DataError, match="row 99 of 20"):
        replace(table, text_a=np.full(50, 99)).check()
