"""Scorers: what each one gives, one scale, the penalty, licences, and what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alignment.errors import ConfigError, DataError, ModelError, NotFoundError
from alignment.rewards.audiobox import AudioboxAesthetics
from alignment.rewards.encoder import TINY_CLAP, ClapEncoder
from alignment.rewards.heads import HeadEnsemble
from alignment.rewards.licences import is_non_commercial, licence_of_folder
from alignment.rewards.model import RewardModel
from alignment.rewards.of_codes import CodesReward, base_reward
from alignment.rewards.scorers import (
    CallableScorer,
    ClapCosine,
    RewardHead,
    Scale,
    Scored,
    Scorer,
    SharedEncoder,
    WeightedScorer,
)

RATE = 16_000


class Ear:
    """An 'encoder' whose embeddings are given by hand: a clip's first two samples, a prompt's word."""

    name = "ear"

    def __init__(self) -> None:
        self.heard, self.read = 0, []

    def audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        self.heard += len(audio)
        return np.asarray(audio, np.float32)[:, :2]

    def text(self, prompts) -> np.ndarray:
        self.read += list(prompts)
        return np.array([{"right": [1.0, 0.0], "up": [0.0, 1.0]}[p] for p in prompts], np.float32)


class Doubtful:
    """Scores a clip by its first sample, in doubt by its second."""

    name, licence = "doubtful", "MIT"

    def score(self, prompts, audio, sample_rate_hz) -> Scored:
        return Scored(audio[:, 0].astype(np.float64), audio[:, 1].astype(np.float64))


def first(name: str = "first", licence: str = "MIT") -> CallableScorer:
    return CallableScorer(lambda prompts, audio, rate: audio[:, 0], name=name, licence=licence)


def clips(*rows: tuple[float, float]) -> np.ndarray:
    return np.array([[*row, 0.0] for row in rows], np.float32)


def test_clap_cosine_is_the_cosine_of_clip_and_prompt() -> None:
    scorer = ClapCosine(Ear())
    found = scorer.score(["right", "up", "up"], clips((3, 4), (3, 4), (-2, 0)), RATE)
    assert found.values == pytest.approx([0.6, 0.8, 0.0]) and found.uncertainty is None
    assert isinstance(scorer, Scorer)


def test_clap_cosine_of_the_tiny_clap_is_the_dot_product_of_its_embeddings() -> None:
    encoder = ClapEncoder()
    audio = np.random.default_rng(0).normal(0, 0.1, (2, RATE)).astype(np.float32)
    prompts = ["a calm tune", "a fast tune"]
    expected = (encoder.audio(audio, RATE) * encoder.text(prompts)).sum(1)
    found = ClapCosine(encoder, licence=licence_of_folder(TINY_CLAP)).score(prompts, audio, RATE)
    assert found.values == pytest.approx(expected, abs=1e-6)
    assert licence_of_folder(TINY_CLAP) == "mit"


def test_scorers_that_share_an_encoder_embed_a_batch_once() -> None:
    ear = Ear()
    shared = SharedEncoder(ear)
    audio = clips((1, 0), (0, 1))
    for _ in range(3):
        assert shared.audio(audio.copy(), RATE) == pytest.approx(audio[:, :2])
        shared.text(["up", "right", "up"])
    assert ear.heard == 2 and ear.read == ["up", "right"]
    louder = shared.audio(audio * 2, RATE)
    assert louder == pytest.approx(audio[:, :2] * 2) and ear.heard == 4
    assert shared.audio(audio[:1] * 2, RATE).shape == (1, 2)


def reward_model(members: int = 3, trained=("quality", "preference")) -> RewardModel:
    return RewardModel(HeadEnsemble(2, hidden=4, members=members, seed=1), "ear", {}, trained)


def test_a_reward_head_gives_the_ensembles_mean_and_its_deviation() -> None:
    model, audio, prompts = reward_model(), clips((1, 0), (0, 1), (0.5, 0.5)), ["right", "up", "right"]
    text = {"right": np.array([1.0, 0.0]), "up": np.array([0.0, 1.0])}
    expected = model.score(prompts, audio[:, :2], text)
    found = RewardHead(model, Ear()).score(prompts, audio, RATE)
    assert found.values == pytest.approx(expected.preference, abs=1e-6)
    assert found.uncertainty == pytest.approx(expected.uncertainty, abs=1e-6)
    quality = RewardHead(model, Ear(), "quality").score(prompts, audio, RATE)
    assert quality.values == pytest.approx(expected.quality, abs=1e-6)


def test_a_members_own_level_is_no_doubt() -> None:
    """Two members that agree on every difference and stand 10 apart: the deviation is 5 before, 0 after."""
    model = reward_model(2)

    def members(audio, text):
        values = audio[:, 0]
        return {"preference": torch.stack([values, values + 10])}

    model.member_scores = members
    audio, prompts = clips((1, 0), (3, 0)), ["up", "up"]
    head = RewardHead(model, Ear())
    assert head.score(prompts, audio, RATE).uncertainty == pytest.approx([5, 5])
    levelled = head.on_base_clips(prompts, audio, RATE)
    assert levelled.score(prompts, audio, RATE).uncertainty == pytest.approx([0, 0])
    assert levelled.score(prompts, audio, RATE).values == pytest.approx([6, 8])  # the mean stays
    total = WeightedScorer.on_base_clips([(head, 1.0)], prompts, audio, RATE, uncertainty_penalty=3.0)
    assert total.score_parts(prompts, audio, RATE)[0] == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_a_head_that_nothing_taught_or_that_reads_other_embeddings_is_refused() -> None:
    with pytest.raises(ConfigError, match="no reward head 'melody'; known: text_adherence"):
        RewardHead(reward_model(), Ear(), "melody")
    with pytest.raises(DataError, match="text_adherence was not trained"):
        RewardHead(reward_model(), Ear(), "text_adherence")
    other = Ear()
    other.name = "other"
    with pytest.raises(DataError, match="embeddings of ear; the encoder here is other"):
        RewardHead(reward_model(), other)


def test_the_scale_is_the_spread_within_prompts_where_each_was_sung_twice_and_over_all_otherwise() -> None:
    # Within: (-1, 1) about 1 and (-2, 2) about 12: sqrt((1 + 1 + 4 + 4) / (4 - 2)) = sqrt(5); mean 6.5.
    within = Scale.of(np.array([0.0, 2.0, 10.0, 14.0]), ["x", "x", "y", "y"], "s")
    assert (within.mean, within.deviation) == (6.5, pytest.approx(5**0.5))
    # One prompt sung once: over all, sample variance of 0, 2, 10 is (16 + 4 + 36) / 2 = 28.
    overall = Scale.of(np.array([0.0, 2.0, 10.0]), ["x", "x", "y"], "s")
    assert (overall.mean, overall.deviation) == (4.0, pytest.approx(28**0.5))


def test_the_total_is_weighted_on_one_scale_and_the_penalty_counts_each_parts_doubt() -> None:
    scales = {"first": Scale(1.0, 2.0), "doubtful": Scale(0.0, 4.0)}
    scorer = WeightedScorer([(first(), 3.0), (Doubtful(), -2.0)], scales, uncertainty_penalty=0.5)
    total, parts = scorer.score_parts(["up", "up"], clips((5, 8), (1, 0)), RATE)
    assert parts["first"] == pytest.approx([2, 0]) and parts["doubtful"] == pytest.approx([1.25, 0.25])
    # 3 * 2 - 2 * 1.25 - 0.5 * |-2| * 8 / 4 = 1.5; 3 * 0 - 2 * 0.25 - 0 = -0.5. The parts carry no penalty.
    assert total == pytest.approx([1.5, -0.5]) and total.dtype == np.float64
    assert scorer.score(["up", "up"], clips((5, 8), (1, 0)), RATE).values == pytest.approx([1.5, -0.5])
    assert scorer.licence == "MIT"
    assert scorer.about()["parts"][0] == {"name": "first", "weight": 3.0, "licence": "MIT", "mean": 1.0,
                                          "deviation": 2.0}  # fmt: skip


def test_on_base_clips_each_part_has_level_nought_and_spread_one() -> None:
    audio = clips((0, 0.5), (2, 0.5), (10, 0.5), (14, 0.5))
    prompts = ["up", "up", "right", "right"]
    scorer = WeightedScorer.on_base_clips([(first(), 1.0), (ClapCosine(Ear()), 1.0)], prompts, audio, RATE)
    _, parts = scorer.score_parts(prompts, audio, RATE)
    for values in parts.values():
        assert values.mean() == pytest.approx(0, abs=1e-12)
        centred = values - values.reshape(2, 2).mean(1).repeat(2)
        assert (centred**2).sum() / 2 == pytest.approx(1)


@pytest.mark.parametrize("penalty", [-1.0, float("nan")])
def test_a_penalty_below_nought_is_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match="uncertainty_penalty is .*0 or more"):
        WeightedScorer([(first(), 1.0)], {"first": Scale(0, 1)}, uncertainty_penalty=penalty)


def test_weights_names_and_scales_that_make_no_reward_are_refused() -> None:
    scale = {"first": Scale(0, 1)}
    with pytest.raises(ConfigError, match="at least one must not be 0"):
        WeightedScorer([(first(), 0.0)], scale)
    with pytest.raises(ConfigError, match="at least one"):
        WeightedScorer([], scale)
    with pytest.raises(ConfigError, match="all must be numbers"):
        WeightedScorer([(first(), float("nan"))], scale)
    with pytest.raises(ConfigError, match="first, first; give each a name"):
        WeightedScorer([(first(), 1.0), (first(), 1.0)], scale)
    with pytest.raises(ConfigError, match="no scale for doubtful"):
        WeightedScorer([(Doubtful(), 1.0)], scale)


def test_a_constant_reward_is_refused_before_it_trains_anything() -> None:
    flat = CallableScorer(lambda prompts, audio, rate: np.full(len(prompts), 0.1), name="flat")
    with pytest.raises(DataError, match="flat gives the same score to all 3 base clips; a constant reward"):
        WeightedScorer.on_base_clips([(flat, 1.0)], ["up"] * 3, clips((1, 0), (2, 0), (3, 0)), RATE)
    by_prompt = CallableScorer(lambda prompts, audio, rate: [len(p) for p in prompts], name="words")
    with pytest.raises(DataError, match="words gives the same score"):  # it varies, but never within a prompt
        WeightedScorer.on_base_clips(
            [(by_prompt, 1.0)], ["up", "up", "right", "right"], clips((1, 0), (2, 0), (3, 0), (4, 0)), RATE
        )


def test_audio_and_scores_that_are_no_numbers_name_their_clip() -> None:
    scorer = WeightedScorer([(first(), 1.0)], {"first": Scale(0, 1)})
    with pytest.raises(DataError, match=r"Clip 1 \('right'\) is not finite"):
        scorer.score_parts(["up", "right"], clips((1, 0), (float("nan"), 0)), RATE)
    with pytest.raises(DataError, match="shape \\(2, 3\\) for 1 prompts"):
        scorer.score_parts(["up"], clips((1, 0), (1, 0)), RATE)
    broken = CallableScorer(lambda prompts, audio, rate: [1.0, float("inf")], name="broken")
    with pytest.raises(DataError, match=r"broken gave the score inf to clip 1 \('right'\)"):
        WeightedScorer([(broken, 1.0)], {"broken": Scale(0, 1)}).score_parts(
            ["up", "right"], clips((1, 0), (1, 0)), RATE
        )
    short = CallableScorer(lambda prompts, audio, rate: [1.0], name="short")
    with pytest.raises(DataError, match="short gave a score of shape \\(1,\\) for 2 clips"):
        WeightedScorer([(short, 1.0)], {"short": Scale(0, 1)}).score_parts(["up", "up"], clips((1, 0), (1, 0)), RATE)
    unsure = Doubtful()
    with pytest.raises(DataError, match="doubtful gave the uncertainty"):
        unsure.score = lambda prompts, audio, rate: Scored(np.zeros(1), np.array([float("nan")]))
        WeightedScorer([(unsure, 1.0)], {"doubtful": Scale(0, 1)}).score_parts(["up"], clips((1, 0)), RATE)


@pytest.mark.parametrize(
    ("licence", "refused"),
    [("CC-BY-NC-4.0", True), ("cc by-nc-sa 4.0", True), ("Non-commercial research licence", True),
     ("noncommercial", True), ("research only", True), ("MIT", False), ("CC-BY-4.0", False), ("CC0-1.0", False),
     ("apache-2.0", False), ("own", False), ("NCSA", False), ("BSD-3-Clause", False)],
)  # fmt: skip
def test_a_licence_says_whether_it_forbids_commercial_use(licence: str, refused: bool) -> None:
    assert is_non_commercial(licence) is refused


def test_a_commercial_purpose_refuses_non_commercial_scorers_and_unstated_licences() -> None:
    parts = [(first("muq", "CC-BY-NC-4.0"), 1.0), (first("home", "unknown"), 1.0), (first("free", "MIT"), 1.0)]
    scales = {name: Scale(0, 1) for name in ("muq", "home", "free")}
    WeightedScorer(parts, scales)  # where nobody says commercial, all may serve
    with pytest.raises(ConfigError) as refusal:
        WeightedScorer(parts, scales, commercial=True)
    assert str(refusal.value) == (
        "The purpose is commercial: muq is licensed CC-BY-NC-4.0, which forbids commercial use; leave it out. home has "
        "no known licence; state it (licence=...) or leave it out."
    )
    with pytest.raises(ConfigError, match="muq"):
        WeightedScorer.on_base_clips(parts, ["up"], clips((1, 0)), RATE, commercial=True)
    assert WeightedScorer(parts[2:], scales, commercial=True).about()["commercial"] is True


def test_a_licence_is_read_from_the_head_of_a_models_card(tmp_path) -> None:
    (tmp_path / "clap").mkdir()
    assert licence_of_folder(tmp_path / "clap") == "unknown"
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\n# A model\nlicense: mit\n")
    assert licence_of_folder(tmp_path / "clap") == "cc-by-nc-4.0"
    (tmp_path / "clap" / "README.md").write_text("# No head\nlicense: mit\n")
    assert licence_of_folder(tmp_path / "clap") == "cc-by-nc-4.0"


def fake_audiobox(monkeypatch: pytest.MonkeyPatch, *, as_text: bool = False) -> list:
    asked: list = []

    class Predictor:
        def forward(self, batch):
            asked.append(batch)
            rows = [{"CE": 1.0, "CU": 2.0, "PC": 3.0, "PQ": float(item["path"].abs().max())} for item in batch]
            return [__import__("json").dumps(row) for row in rows] if as_text else rows

    def initialize_predictor(ckpt=None):
        if "bad" in ckpt:
            raise RuntimeError("not a checkpoint")
        return Predictor()

    infer = SimpleNamespace(initialize_predictor=initialize_predictor)
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", SimpleNamespace(infer=infer))
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics.infer", infer)
    return asked


@pytest.mark.parametrize("as_text", [False, True])
def test_audiobox_is_asked_in_batches_for_one_axis(monkeypatch, tmp_path, as_text: bool) -> None:
    asked = fake_audiobox(monkeypatch, as_text=as_text)
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    scorer = AudioboxAesthetics(tmp_path / "checkpoint.pt", batch_size=2)
    found = scorer.score(["up"] * 3, clips((0.5, 0), (0.25, 0), (0, 1)), RATE)
    assert found.values == pytest.approx([0.5, 0.25, 1.0]) and found.values.dtype == np.float64
    assert [len(batch) for batch in asked] == [2, 1]
    assert asked[0][0]["path"].shape == (1, 3) and asked[0][0]["sample_rate"] == RATE
    assert (scorer.name, scorer.licence) == ("audiobox_pq", "CC-BY-4.0")
    assert AudioboxAesthetics(tmp_path / "checkpoint.pt", axis="CE").score(["up"], clips((1, 0)), RATE).values == [1.0]


def test_audiobox_that_is_missing_unknown_or_broken_is_one_sentence(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    with pytest.raises(ConfigError, match="not installed .*pip install audiobox_aesthetics"):
        AudioboxAesthetics(tmp_path / "checkpoint.pt")
    fake_audiobox(monkeypatch)
    with pytest.raises(ConfigError, match=r"no aesthetics axis 'XX'; known: CE \(content enjoyment\)"):
        AudioboxAesthetics(tmp_path / "checkpoint.pt", axis="XX")
    with pytest.raises(NotFoundError, match="no such file; fetch checkpoint.pt"):
        AudioboxAesthetics(tmp_path / "checkpoint.pt")
    (tmp_path / "bad.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be loaded as Audiobox-Aesthetics"):
        AudioboxAesthetics(tmp_path / "bad.pt")


def test_codes_are_decoded_and_scored_whatever_the_batch() -> None:
    from music_support import make_tiny_music

    from alignment.music.codec import decode

    model = make_tiny_music()
    codes = torch.randint(model.codebook_size, (5, model.codebooks, 6), generator=torch.Generator().manual_seed(0))
    prompts = ["a calm piano", "a calm piano", "fast drums", "fast drums", "fast drums"]
    loud = CallableScorer(lambda p, audio, rate: np.abs(audio).mean(1) * rate, name="loud")
    last = CallableScorer(lambda p, audio, rate: audio[:, -1], name="last")
    reward = base_reward(model, [(loud, 2.0), (last, -1.0)], prompts, codes)
    audio = decode(model, codes)
    expected, parts = reward.scorer.score_parts(prompts, audio, model.sample_rate_hz)
    for batch_size in (2, 5, 64):
        found = CodesReward(model, reward.scorer, batch_size=batch_size)(prompts, codes)
        assert found.total == pytest.approx(expected, abs=1e-3)
        assert found.total == pytest.approx(2 * found.parts["loud"] - found.parts["last"], abs=1e-9)
        assert found.parts["last"] == pytest.approx(parts["last"], abs=1e-3)
    assert list(found.parts) == ["loud", "last"] and found.total.shape == (5,)
    none = reward([], codes[:0])
    assert none.total.shape == (0,) and none.parts["loud"].shape == (0,)
