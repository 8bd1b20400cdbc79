"""The reward model: its loss against TRL's, what it learns, what it refuses, its folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.config import RewardSettings
from alignment.domain import Axis, Outcome, Pair, Split
from alignment.errors import DataError, ModelError, NotFoundError, TrainingError
from alignment.rewards.fit import losses_of
from alignment.rewards.heads import HEADS, HeadEnsemble
from alignment.rewards.losses import reward_loss, soft_bradley_terry
from alignment.rewards.model import RewardModel
from alignment.rewards.table import axis_target, table_of
from alignment.rewards.terms import VoteTerms
from alignment.rewards.train import cross_validate, train_reward
from tests.training_support import TrlModel, pair, trl_state, unit_vectors

WIDTH = 12
QUICK = RewardSettings(hidden=16, epochs=40, batch_size=32, ensemble=2, learning_rate=5e-3)


def taught(votes: int = 400, seed: int = 0) -> tuple[list[Pair], dict, dict]:
    """Votes by a listener whose quality is the clip's first coordinate and whose text adherence is the clip's
    agreement with the prompt: the overall vote follows their sum."""
    rng = np.random.default_rng(seed)
    prompts = [f"prompt {n}" for n in range(40)]
    text = unit_vectors(prompts, WIDTH, seed + 1)
    audio = unit_vectors([f"audio-{n}{side}" for n in range(votes) for side in "ab"], WIDTH, seed + 2)
    pairs = []
    for n in range(votes):
        prompt = prompts[rng.integers(40)]
        split = (Split.TRAIN, Split.TRAIN, Split.VALID, Split.TEST)[int(prompt.split()[1]) % 4]
        a, b = audio[f"audio-{n}a"], audio[f"audio-{n}b"]
        quality, adherence = 2 * float(b[0] - a[0]), 2 * float((b - a) @ text[prompt])
        axes = {"quality": int(np.clip(round(2 * quality), -2, 2)),
                "text_adherence": int(np.clip(round(2 * adherence), -2, 2))}  # fmt: skip
        outcome = Outcome.B if quality + adherence > 0 else Outcome.A
        pairs.append(pair(n, outcome, prompt=prompt, split=split, axes=axes))
    return pairs, audio, text


@pytest.fixture(scope="module")
def learned() -> tuple[RewardModel, list[Pair], dict, dict]:
    pairs, audio, text = taught()
    return train_reward(pairs, audio, text, QUICK, encoder="stand-in"), pairs, audio, text


def test_the_plain_case_is_the_loss_of_trls_reward_trainer_on_the_same_scores() -> None:
    from trl import RewardTrainer

    heads = HeadEnsemble(WIDTH, hidden=8, members=1, seed=3)
    pairs, audio, text = taught(16)
    # Plain: no ties, the overall vote only, one member. TRL wants the chosen clips first.
    chosen_is_a = [replace(p, preference=1.0, axes={}) for p in pairs]
    table = table_of(chosen_is_a, audio, text)
    plain = RewardSettings(ties="half", side_term=False, rater_deviation=0, ensemble=1)
    terms = VoteTerms(1, 0, torch.zeros(0, 3), ties=False, side=False, rater_deviation=0)
    ours = losses_of(heads, terms, table, np.arange(16), plain)
    words = torch.from_numpy(table.text[table.text_a])
    scores = [heads(heads.features(torch.from_numpy(table.audio[x]), words)) for x in (table.a, table.b)]
    logits = torch.cat([s["preference"][0] for s in scores])[:, None]
    state = trl_state()
    state.args = type("Arguments", (), {"center_rewards_coefficient": None})()
    theirs = RewardTrainer.compute_loss(state, TrlModel(logits=logits), {"attention_mask": torch.ones(32, 1)})
    assert ours.shape == (1,)
    assert ours.item() == pytest.approx(theirs.item(), rel=0, abs=1e-6)
    assert theirs.item() != pytest.approx(math.log(2), abs=1e-3)


def test_a_tie_costs_least_at_equal_scores_and_a_soft_target_is_a_mix_of_both_outcomes() -> None:
    score, zero = torch.tensor([0.0, 1.0]), torch.zeros(2)
    found = soft_bradley_terry(score, zero, torch.tensor(0.5))
    assert found.tolist() == pytest.approx([math.log(2), 0.5 * (math.log1p(math.exp(-1)) + math.log1p(math.e))])
    quarter = soft_bradley_terry(score, zero, torch.tensor(0.25))[1].item()
    assert quarter == pytest.approx(0.25 * math.log1p(math.exp(-1)) + 0.75 * math.log1p(math.e), abs=1e-7)


def test_axis_steps_are_quarters_of_credit_and_an_unanswered_axis_costs_nothing() -> None:
    steps = [axis_target(pair(0, axes={"quality": s}), Axis.QUALITY) for s in (-2, -1, 0, 1, 2)]
    assert steps == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert math.isnan(axis_target(pair(0), Axis.QUALITY))
    scores = {head: torch.tensor([[2.0, -1.0]]) for head in HEADS}
    nan = float("nan")
    # Quality is answered for the first pair only: its mean is over one.
    targets = torch.tensor([[nan, 1.0, 1.0], [nan, nan, 0.0]])
    vote = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    quality = math.log1p(math.exp(-2))
    assert reward_loss(scores, targets, 3.0).item() == pytest.approx(vote + 3 * quality, abs=1e-6)


def test_one_batch_of_members_equals_each_member_run_alone() -> None:
    heads = HeadEnsemble(5, hidden=7, members=3, seed=1)
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    together = heads(features)
    for member in range(3):
        for head in HEADS:
            weights = {name: heads.weights[f"{head}_{name}"][member] for name in ("in", "bias", "out")}
            inputs = features[:, :5] if head == "quality" else features
            alone = torch.nn.functional.gelu(inputs @ weights["in"] + weights["bias"]) @ weights["out"]
            torch.testing.assert_close(together[head][member], alone[:, 0], rtol=0, atol=1e-6)
    assert not torch.equal(together["preference"][0], together["preference"][1])


def test_quality_hears_the_audio_alone(learned: tuple) -> None:
    model, _, audio, text = learned
    vectors = np.stack(list(audio.values())[:6])
    one, other = (model.score([p] * 6, vectors, text) for p in ("prompt 1", "prompt 2"))
    assert (one.quality == other.quality).all()
    assert (one.text_adherence != other.text_adherence).any() and (one.preference != other.preference).any()


def test_it_learns_what_each_axis_follows_on_prompts_it_never_saw(learned: tuple) -> None:
    model, pairs, audio, text = learned
    test = [p for p in pairs if p.split == Split.TEST]
    found = model.accuracy(test, audio, text)
    assert found.n == len(test) and found.prompts == 10
    assert 0.7 < found.value <= 1 and found.low <= found.value <= found.high and found.low > 0.5
    fresh = unit_vectors([str(n) for n in range(300)], WIDTH, 99)
    vectors = np.stack(list(fresh.values()))
    scores = model.score(["prompt 3"] * 300, vectors, text)
    assert np.corrcoef(scores.quality, vectors[:, 0])[0, 1] > 0.8
    assert np.corrcoef(scores.text_adherence, vectors @ text["prompt 3"])[0, 1] > 0.5
    assert (scores.uncertainty > 0).all() and scores.preference.shape == (300,)


def test_training_stops_early_keeps_the_best_epoch_and_calibrates(learned: tuple) -> None:
    model, pairs, audio, text = learned
    seen: list[dict] = []
    again = train_reward(pairs, audio, text, QUICK.model_copy(update={"epochs": 400, "patience": 3}),
                         lambda epoch, epochs, metrics: seen.append(metrics))  # fmt: skip
    assert len(seen) == again.metrics["epochs"] < 400
    assert again.metrics["valid_loss"] <= min(m["valid_loss"] for m in seen) + 1e-9
    assert seen[-1]["loss"] < seen[0]["loss"]
    assert set(model.temperatures) == set(HEADS) and all(0.1 <= t <= 10 for t in model.temperatures.values())
    valid = table_of([p for p in pairs if p.split == Split.VALID], audio, text)
    words = torch.from_numpy(valid.text[valid.text_a])
    losses = {}
    for name, temperatures in (("calibrated", model.temperatures), ("raw", {})):
        shown = replace(model, temperatures=temperatures)
        a, b = (shown.member_scores(torch.from_numpy(valid.audio[x]), words)["preference"].mean(0)
                for x in (valid.a, valid.b))  # fmt: skip
        losses[name] = soft_bradley_terry(a, b, torch.from_numpy(valid.targets[:, 2])).mean().item()
    assert losses["calibrated"] <= losses["raw"]


def test_the_test_split_is_never_looked_at_and_the_same_votes_give_the_same_model() -> None:
    pairs, audio, text = taught(120)
    settings = QUICK.model_copy(update={"epochs": 3})
    flipped = [replace(p, preference=1 - p.preference, axes={}) if p.split == Split.TEST else p for p in pairs]
    torch.manual_seed(5)
    one = train_reward(pairs, audio, text, settings)
    torch.manual_seed(6)
    other = train_reward(flipped, audio, text, settings)
    for name, value in one.heads.state_dict().items():
        assert torch.equal(value, other.heads.state_dict()[name]), name


def test_accuracy_and_its_interval_treat_a_prompts_votes_as_one() -> None:
    text = {p: np.ones(2, np.float32) for p in ("x", "y")}
    audio = {f"audio-{n}{s}": np.array([float(s == "a"), 0], np.float32) for n in range(8) for s in "ab"}
    model = RewardModel(HeadEnsemble(2, hidden=4, members=1, seed=0))
    scores = model.score(["x", "x"], np.array([[1, 0], [0, 0]]), text).preference
    right, wrong = (Outcome.A, Outcome.B) if scores[0] > scores[1] else (Outcome.B, Outcome.A)
    # Six right votes on one prompt, two wrong on the other: drawing prompts gives 0, 3/4 or 1 and nothing between.
    pairs = [pair(n, right if n < 6 else wrong, prompt="x" if n < 6 else "y") for n in range(8)]
    found = model.accuracy([*pairs, pair(0, Outcome.TIE, prompt="x")], audio, text)
    assert (found.value, found.low, found.high, found.n, found.prompts) == (0.75, 0.0, 1.0, 8, 2)
    with pytest.raises(DataError, match="None of 1 votes is decisive"):
        model.accuracy([pair(0, Outcome.TIE)], audio, text)


def test_without_validation_pairs_all_epochs_run_and_unasked_heads_are_nan() -> None:
    pairs, audio, text = taught(60)
    plain = [replace(p, split=Split.TRAIN, axes={}) for p in pairs]
    model = train_reward(plain, audio, text, QUICK.model_copy(update={"epochs": 4, "patience": 1}))
    assert model.metrics["epochs"] == 4 and model.metrics["valid_pairs"] == 0
    assert model.trained_heads == ("preference",) and model.temperatures == {"preference": 1.0}
    scores = model.score(["prompt 1"], np.stack(list(audio.values())[:1]), text)
    assert np.isnan(scores.quality).all() and np.isfinite(scores.preference).all()
    with pytest.raises(DataError, match="quality was not trained"):
        model.accuracy(plain, audio, text, head="quality")


def test_data_that_teaches_nothing_is_refused() -> None:
    pairs, audio, text = taught(20)
    with pytest.raises(DataError, match="None of 0 pairs is in the train split"):
        train_reward([], audio, text, QUICK)
    with pytest.raises(DataError, match="None of 20 pairs"):
        train_reward([replace(p, split=Split.TEST) for p in pairs], audio, text, QUICK)
    with pytest.raises(DataError, match="train votes are ties"):
        train_reward([replace(p, preference=0.5) for p in pairs], audio, text, QUICK)
    with pytest.raises(DataError, match="no embedding of clip 'audio-0a'"):
        train_reward(pairs[:1], {}, text, QUICK) if pairs[0].split == Split.TRAIN else train_reward(
            [replace(pairs[0], split=Split.TRAIN)], {}, text, QUICK
        )
    broken = {**audio, "audio-3a": np.full(WIDTH, np.nan, np.float32)}
    with pytest.raises(DataError, match="not finite"):
        train_reward([replace(p, split=Split.TRAIN) for p in pairs], broken, text, QUICK)
    with pytest.raises(TrainingError, match="epoch .*learning_rate"):
        train_reward(
            [replace(p, split=Split.TRAIN) for p in pairs], {k: 1e30 * v for k, v in audio.items()},
            {k: 1e30 * v for k, v in text.items()}, QUICK,
        )  # fmt: skip


def test_both_bad_can_be_left_out_of_training() -> None:
    pairs, audio, text = taught(60)
    pairs = [replace(p, outcome=Outcome.BOTH_BAD, preference=0.5) if n % 3 == 0 else p for n, p in enumerate(pairs)]
    kept = [p for p in pairs if p.outcome != Outcome.BOTH_BAD]
    settings = QUICK.model_copy(update={"epochs": 2, "both_bad": "drop"})
    one, other = train_reward(pairs, audio, text, settings), train_reward(kept, audio, text, settings)
    assert one.metrics == other.metrics
    assert train_reward(pairs, audio, text, settings.model_copy(update={"both_bad": "tie"})).metrics != one.metrics


def test_a_saved_model_gives_the_same_scores_and_a_damaged_one_is_refused(learned: tuple, tmp_path: Path) -> None:
    model, pairs, audio, text = learned
    model.save(tmp_path / "reward")
    model.save(tmp_path / "reward")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["heads.safetensors", "reward", "reward.json"]
    loaded = RewardModel.load(tmp_path / "reward")
    vectors = np.stack(list(audio.values())[:5])
    one, other = (m.score(["prompt 1"] * 5, vectors, text) for m in (model, loaded))
    assert all((getattr(one, name) == getattr(other, name)).all() for name in (*HEADS, "uncertainty"))
    assert loaded.encoder == "stand-in" and loaded.metrics == model.metrics

    (tmp_path / "reward" / "heads.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(ModelError, match="damaged"):
        RewardModel.load(tmp_path / "reward")
    about = json.loads((tmp_path / "reward" / "reward.json").read_text())
    (tmp_path / "reward" / "reward.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(ModelError, match="format 2"):
        RewardModel.load(tmp_path / "reward")
    with pytest.raises(NotFoundError, match="no reward model here"):
        RewardModel.load(tmp_path / "nothing")


def test_embeddings_of_another_width_are_refused(learned: tuple) -> None:
    model, _, _, text = learned
    with pytest.raises(DataError, match="needs \\(1, 12\\)"):
        model.score(["prompt 1"], np.zeros((1, 7)), text)
    with pytest.raises(DataError, match="'unheard'"):
        model.score(["unheard"], np.zeros((1, 12)), text)


def test_unanimous_clusters_still_leave_an_interval() -> None:
    """Five prompts, all right: Wilson's interval at n = 5 is [n / (n + 1.96^2), 1] = [0.5655, 1]."""
    from alignment.rewards.model import _clustered_interval

    low, high, clusters = _clustered_interval(np.ones(10), list("aabbccddee"), 0.95, 200, 0)
    assert clusters == 5 and high == pytest.approx(1.0)
    assert low == pytest.approx(5 / (5 + 1.959964**2), abs=1e-5)
    low, high, _ = _clustered_interval(np.zeros(10), list("aabbccddee"), 0.95, 200, 0)
    assert low == pytest.approx(0.0) and high == pytest.approx(1 - 5 / (5 + 1.959964**2), abs=1e-5)


def test_cross_validation_predicts_every_decisive_vote_by_a_model_that_never_saw_its_prompt(monkeypatch) -> None:
    from alignment.rewards import train

    pairs, audio, text = taught(200)
    pairs = [*pairs, pair(999, Outcome.TIE, prompt="prompt 3", a="0a", b="0b")]
    asked: list[tuple[set, set]] = []
    agreement = RewardModel.agreement

    def watched(dealt, *arguments, **named):
        seen.update(p.prompt_text for p in dealt if p.split != Split.TEST)
        return plain(dealt, *arguments, **named)

    def noted(self, decisive, *arguments, **named):
        asked.append((set(seen), {p.prompt_text for p in decisive}))
        seen.clear()
        return agreement(self, decisive, *arguments, **named)

    seen: set[str] = set()
    plain = train.train_reward
    monkeypatch.setattr(train, "train_reward", watched)
    monkeypatch.setattr(RewardModel, "agreement", noted)
    quick = QUICK.model_copy(update={"epochs": 3})
    tested, found = cross_validate(pairs, audio, text, quick, folds=4)
    first = [asked[i] for i in range(0, len(asked), len(found))]  # one a fold; the other heads follow with none seen
    assert len(first) == 4 and all(trained and not trained & tested for trained, tested in first)
    assert sorted(p.vote_id for p in tested) == sorted(p.vote_id for p in pairs if p.preference != 0.5)
    assert set(found) == set(HEADS) and all(values.shape == (len(tested),) for values in found.values())
    assert set(np.unique(found["preference"])) <= {0.0, 0.5, 1.0}
    with pytest.raises(DataError, match="on 39 prompts; 41 folds"):
        cross_validate(pairs, audio, text, quick, folds=41)


def test_the_members_scores_come_with_their_mean_and_deviation(learned: tuple) -> None:
    model, _, audio, text = learned
    found = model.score(["prompt 1"] * 6, np.stack(list(audio.values())[:6]), text)
    assert found.members.shape == (2, 6)
    assert found.members.mean(0) == pytest.approx(found.preference, abs=1e-6)
    assert found.uncertainty == pytest.approx(np.abs(found.members[0] - found.members[1]) / 2, abs=1e-6)
