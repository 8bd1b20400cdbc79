"""The watch hears the same prompts with the same random numbers, changes nothing, and learns from other raters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.circle.rewarding import held_out_weights, split_snapshot
from alignment.circle.watch import RunWatch, read_looks, write_look
from alignment.config import ExpertSettings, LoraSettings
from alignment.domain import Outcome, RatedClip, Split
from alignment.errors import DataError, StoreError
from alignment.evaluation.music_metrics import sound_metrics, twins
from alignment.music.codec import decode
from alignment.music.text import encode_prompts
from alignment.preferences import FrozenSnapshot
from alignment.training.examples import ClipExample
from alignment.training.expert_iteration import train_expert
from tests.music_support import make_tiny_music, randomise_adapter
from tests.watch_support import SHORT, TEXTS, Ears, loudness, prompts, scorers, votes


def watch(folder: Path, **changes: object) -> RunWatch:
    return RunWatch(prompts(), scorers(), SHORT, folder, **{"clips_per_prompt": 2, "seed": 0} | changes)


def policy(seed: int | None = 1):
    """A tiny model with an adapter; without a seed the adapter is fresh and changes nothing."""
    model = make_tiny_music()
    model.add_adapter(LoraSettings(r=2, lora_alpha=4))
    if seed is not None:
        randomise_adapter(model, seed)
    return model


def test_two_looks_at_one_policy_hear_the_same_clips_and_another_policy_sings_others(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    first, again, other = (seen.look(step, policy(seed)) for step, seed in ((0, 1), (7, 1), (7, 2)))
    assert (first.codes == again.codes).all() and (first.codes != other.codes).any()
    assert all((first.values[name] == again.values[name]).all() for name in first.values)
    # Best-of-N's pool begins with the clips of a look at the same policy.
    assert (seen.look(0, policy(1), clips_per_prompt=3).codes[:, :2] == first.codes).all()
    assert (watch(tmp_path, seed=1).look(0, policy(1)).codes != first.codes).any()


def test_every_value_of_a_look_is_what_it_says_of_the_clips_it_kept(tmp_path: Path) -> None:
    model = policy()
    found = watch(tmp_path).look(3, model)
    assert found.codes.shape == (4, 2, 4, 25)  # prompts, clips, codebooks, frames of half a second
    flat, texts = torch.from_numpy(found.codes.reshape(8, 4, 25)), [text for text in TEXTS for _ in range(2)]
    audio = decode(model, flat)
    assert found.values["proxy_reward"].ravel() == pytest.approx(loudness(texts, audio, 16_000), abs=1e-6)
    assert (found.values["held_out_reward"] == -found.values["proxy_reward"]).all()
    for name, values in sound_metrics(audio, 16_000).items():
        assert found.values[name].ravel() == pytest.approx(values)
    assert (found.values["duplicates"].ravel() == twins(flat.numpy())).all()
    with torch.no_grad():  # the KL by the trainer alone, where the watch takes the sampler's side of it
        text = encode_prompts(model, texts)
        ours = model.logprobs(flat, text).double().sum((1, 2))
        with model.reference():
            base = model.logprobs(flat, text).double().sum((1, 2))
    assert found.values["kl"].ravel() == pytest.approx((ours - base).numpy(), abs=2e-3)
    assert abs(found.values["kl"]).max() > 1
    heard = Ears().audio(audio, 16_000).reshape(4, 2, -1)
    assert found.values["diversity"][:, 0] == pytest.approx(1 - (heard[:, 0] * heard[:, 1]).sum(1), abs=1e-6)
    assert found.values["diversity"][:, 0] == pytest.approx(found.values["diversity"][:, 1])


def test_a_fresh_adapter_is_no_nat_away_from_its_base(tmp_path: Path) -> None:
    assert (watch(tmp_path).look(0, policy(None)).values["kl"] == 0).all()


def test_a_look_draws_no_random_number_of_training_and_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    model = policy()
    before = [parameter.clone() for parameter in model.trainable_parameters()]
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    watch(tmp_path)(2, model)
    assert (torch.random.get_rng_state() == state[0]).all() and (np.random.get_state()[1] == state[1]).all()
    assert all((a == b).all() for a, b in zip(before, model.trainable_parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.trainable_parameters())


def test_what_a_call_returns_are_means_with_intervals_and_the_look_is_on_disk(tmp_path: Path) -> None:
    said = watch(tmp_path)(12, policy())
    (kept,) = read_looks(tmp_path)
    assert kept.step == 12
    for name, values in kept.values.items():
        assert said[name] == pytest.approx(values.mean())
    for name in ("held_out_reward", "proxy_reward"):
        interval = kept.mean(name)
        assert (said[f"{name}_low"], said[f"{name}_high"]) == (interval.low, interval.high)
        assert said[f"{name}_low"] < said[name] < said[f"{name}_high"]
    assert all(isinstance(value, float) and np.isfinite(value) for value in said.values())


def test_looks_come_back_in_order_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    found = watch(tmp_path).look(0, policy())
    for step in (30, 4, 100):
        write_look(replace(found, step=step), tmp_path)
    assert [look.step for look in read_looks(tmp_path)] == [4, 30, 100]
    assert [look.step for look in read_looks(tmp_path, up_to=30)] == [4, 30]
    assert (read_looks(tmp_path)[0].codes == found.codes).all()
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "look-000030.npz").write_bytes(b"PK half a file")
    with pytest.raises(StoreError, match="look-000030.npz: damaged"):
        read_looks(tmp_path)
    with pytest.raises(DataError, match="no held-out prompts"):
        RunWatch([], scorers(), SHORT, tmp_path, clips_per_prompt=2, seed=0)


def test_a_watched_training_keeps_the_adapter_that_the_held_out_reward_likes_best(tmp_path: Path) -> None:
    model, rng = make_tiny_music(), np.random.default_rng(0)
    examples = [ClipExample(text, rng.integers(64, size=(4, 25))) for text in TEXTS * 2]
    settings = ExpertSettings(
        learning_rate=2e-2, num_train_epochs=4, per_device_train_batch_size=4, eval_steps=2, patience=9
    )
    result = train_expert(model, examples, settings, tmp_path / "run", watch=watch(tmp_path / "looks"))
    looks = read_looks(tmp_path / "looks")
    assert [look.step for look in looks] == [0, 2, 4, 6, 8] == [step for step, _ in result.watched]
    best = max(looks, key=lambda look: look.values["held_out_reward"].mean())
    assert result.best_step == best.step
    # The model is left with that adapter: it sings as it did at that look.
    assert (watch(tmp_path / "after").look(99, model).codes == best.codes).all()


# The split in two ---------------------------------------------------------------------------------------------------


def frozen(pairs: list, ratings: tuple = ()) -> FrozenSnapshot:
    return FrozenSnapshot(tuple(pairs), "", {"both_bad": "tie"}, {}, ratings)


def test_the_halves_of_a_snapshot_share_neither_a_rater_nor_a_prompt() -> None:
    whole = frozen(votes(raters=6, texts=10))
    halves = split_snapshot(whole, 0.5, seed=0)
    sides = [
        ({pair.rater_id for pair in half.pairs}, {pair.prompt_text for pair in half.pairs})
        for half in (halves.proxy, halves.held_out)
    ]
    assert not sides[0][0] & sides[1][0] and not sides[0][1] & sides[1][1]
    assert [len(raters) for raters, _ in sides] == [3, 3] and [len(texts) for _, texts in sides] == [5, 5]
    assert len(halves.proxy.pairs) == len(halves.held_out.pairs) == 15  # of 60: the rest is in neither
    known = {pair.vote_id: pair for pair in whole.pairs}
    for half in (halves.proxy, halves.held_out):
        assert all(known[pair.vote_id] == pair for pair in half.pairs)  # nothing of a vote is altered
        assert {pair.split for pair in half.pairs} == {Split.TRAIN, Split.VALID}
    uneven = split_snapshot(whole, 0.2, seed=0)
    assert len({pair.rater_id for pair in uneven.held_out.pairs}) == 1
    assert len({pair.prompt_text for pair in uneven.proxy.pairs}) == 7  # 8 less 2 of train, 2 less 1 of valid
    nearly_all = split_snapshot(whole, 0.99, seed=0)  # one rater is always left, and one prompt of each split
    assert len({pair.rater_id for pair in nearly_all.proxy.pairs}) == 1 and len(nearly_all.proxy.pairs) == 2


def test_the_split_depends_on_what_was_voted_and_not_on_ids() -> None:
    pairs = votes()
    renamed = [  # in another alphabetical order
        replace(pair, rater_id=f"{9 - int(pair.rater_id[-1])}", vote_id=f"x{pair.vote_id}") for pair in pairs
    ]
    one, two = split_snapshot(frozen(pairs), 0.5, 3), split_snapshot(frozen(renamed), 0.5, 3)
    assert [f"x{pair.vote_id}" for pair in one.proxy.pairs] == [pair.vote_id for pair in two.proxy.pairs]
    assert one.proxy.content_sha256 == split_snapshot(frozen(pairs), 0.5, 3).proxy.content_sha256
    other = split_snapshot(frozen(pairs), 0.5, 4)
    assert {pair.vote_id for pair in one.proxy.pairs} != {pair.vote_id for pair in other.proxy.pairs}


def test_ratings_of_single_clips_are_split_by_the_same_raters_and_prompts() -> None:
    pairs = votes()
    rated = tuple(
        RatedClip(f"r-{pair.vote_id}", pair.prompt_id, pair.prompt_text, pair.split, pair.a, 50, None, None,
                  pair.rater_id, pair.rater_kind)
        for pair in pairs
    )  # fmt: skip
    halves = split_snapshot(frozen(pairs, rated), 0.5, 0)
    for half in (halves.proxy, halves.held_out):
        assert {f"r-{pair.vote_id}" for pair in half.pairs} == {one.rating_id for one in half.ratings} != set()


def test_one_rater_one_prompt_and_a_half_of_ties_are_refused_in_words() -> None:
    pairs = votes()
    with pytest.raises(DataError, match="one rater.*second rater"):
        split_snapshot(frozen([replace(pair, rater_id="only") for pair in pairs]), 0.5, 0)
    with pytest.raises(DataError, match="none decisive.*watches"):
        split_snapshot(frozen([replace(pair, prompt_text="only", split=Split.TRAIN) for pair in pairs]), 0.5, 0)
    ties = [replace(pair, preference=0.5, outcome=Outcome.TIE) for pair in pairs]
    with pytest.raises(DataError, match="none decisive"):
        split_snapshot(frozen(ties), 0.5, 0)


def test_the_held_out_reward_has_the_stages_own_weights_where_votes_taught_them() -> None:
    class Trained:
        trained_heads = ("quality", "preference")

    assert held_out_weights({"quality": 2.0, "preference": 1.0, "clap_cosine": 5.0}, Trained()) == {
        "quality": 2.0, "preference": 1.0,
    }  # fmt: skip
    assert held_out_weights({"clap_cosine": 1.0}, Trained()) == {"preference": 1.0}
    assert held_out_weights({"text_adherence": 1.0}, Trained()) == {"preference": 1.0}
    Trained.trained_heads = ("text_adherence", "preference")
    assert held_out_weights({"clap_cosine": 1.0}, Trained()) == {"text_adherence": 1.0}


def test_the_metrics_file_holds_every_look_as_json_lines(tmp_path: Path) -> None:
    model = make_tiny_music()
    examples = [ClipExample(text, np.random.default_rng(1).integers(64, size=(4, 25))) for text in TEXTS]
    settings = ExpertSettings(num_train_epochs=2, per_device_train_batch_size=4, eval_steps=1)
    result = train_expert(model, examples, settings, tmp_path / "run", watch=watch(tmp_path / "looks"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    said = {line["step"]: line["watch/held_out_reward"] for line in lines if "watch/held_out_reward" in line}
    assert said == {step: metrics["held_out_reward"] for step, metrics in result.watched}
