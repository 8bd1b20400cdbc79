"""The scripts that build attune-tiny: compositions have their attributes, the gate closes, codes are delayed right."""

from __future__ import annotations

import random

import pytest
import torch

from alignment.music.delay import apply_delay, delay_labels
from alignment.simulation.captions import Attributes, draw_attributes, write_caption
from scripts.tiny.render import CLIP_SECONDS, compose
from scripts.tiny.train_clap import quality_words
from scripts.tiny.train_codec import si_sdr
from scripts.tiny.train_decoder import PAD, build_tokenizer, delayed
from scripts.tiny.train_judge import lost_in_codec


def attributes(**given: str) -> Attributes:
    return Attributes(
        **{"lead": "piano", "tempo": "medium", "mode": "major", "accompaniment": "none", "drums": "no"} | given
    )


def channels(composed: list) -> set[int]:
    return {channel for _, channel, *_ in composed}


@pytest.mark.parametrize("seed", range(20))
def test_a_composition_has_the_parts_its_attributes_name_and_no_others(seed: int) -> None:
    assert channels(compose(attributes(), random.Random(seed))) == {0}
    assert channels(compose(attributes(drums="yes", accompaniment="strings"), random.Random(seed))) == {0, 1, 9}
    assert channels(compose(attributes(accompaniment="chords"), random.Random(seed))) == {0, 1}


@pytest.mark.parametrize("seed", range(20))
def test_a_melody_stays_in_seven_pitch_classes_and_plays_to_the_end_of_the_clip(seed: int) -> None:
    notes = compose(draw_attributes(random.Random(seed)), random.Random(seed))
    pitched = [note for note in notes if note[1] != 9]
    assert len({key % 12 for _, _, key, _, _ in pitched}) <= 7
    assert all(21 <= key <= 108 and 1 <= velocity <= 127 and length > 0 for _, _, key, velocity, length in pitched)
    assert max(start for start, *_ in notes) > CLIP_SECONDS - 1.1


def test_a_fast_melody_has_more_notes_than_a_slow_one() -> None:
    def onsets(tempo: str) -> float:
        counts = [
            sum(start < CLIP_SECONDS for start, *_ in compose(attributes(tempo=tempo), random.Random(s)))
            for s in range(30)
        ]
        return sum(counts) / len(counts)

    assert onsets("slow") < onsets("medium") < onsets("fast")
    # Beats a minute are drawn around 65 and 156: 2.4 times as many beats in the same time.
    assert onsets("fast") / onsets("slow") == pytest.approx(2.4, abs=0.4)


def test_a_caption_says_every_attribute_in_one_of_its_wordings() -> None:
    text = write_caption(attributes(lead="synth", drums="yes"), random.Random(1))
    assert "synth" in text
    assert any(words in text for words in ("with drums", "drum kit", "a steady beat"))
    assert any(words in text for words in ("alone", "unaccompanied", "no accompaniment"))


def test_training_delays_codes_exactly_as_the_sampler_does() -> None:
    codes = torch.randint(0, PAD, (2, 4, 7), generator=torch.Generator().manual_seed(0))
    inputs, targets = delayed(codes)
    ours = apply_delay(codes, PAD)  # (B, K, S), what the decoder reads
    assert torch.equal(inputs.view(2, 4, -1), ours[..., : inputs.shape[-1]])
    labels = delay_labels(codes)  # (B, S, K)
    assert torch.equal(targets.transpose(1, 2)[labels != -100], labels[labels != -100])
    assert (targets != -100).sum() == codes.numel()


def test_the_tokenizer_splits_words_it_knows_and_spells_those_it_does_not() -> None:
    tokenizer = build_tokenizer(["slow piano, with drums", "fast piano, no drums"] * 50)
    assert tokenizer.tokenize("Piano") == ["piano"]
    ids = tokenizer("xylophone").input_ids
    assert tokenizer.unk_token_id not in ids and ids[-1] == tokenizer.eos_token_id
    assert len(tokenizer) <= 600


def test_the_gate_names_what_the_codec_loses() -> None:
    """Above chance a lead read 100% leaves 0.9; six tenths of it is 0.54, so 0.64 passes and 0.63 does not."""
    real = {"lead": 1.0, "tempo": 1.0, "mode": 1.0, "accompaniment": 1.0, "drums": 1.0}
    assert lost_in_codec(real, real | {"lead": 0.641}) == []
    assert lost_in_codec(real, real | {"lead": 0.639, "drums": 0.79}) == ["lead", "drums"]


def test_si_sdr_is_twenty_decibels_for_a_tenth_of_orthogonal_noise_whatever_the_level() -> None:
    tone = torch.tensor([[1.0, -1.0] * 8])
    noise = torch.tensor([[1.0, 1.0, -1.0, -1.0] * 4])
    assert si_sdr(3 * (tone + 0.1 * noise), tone).item() == pytest.approx(20.0, abs=1e-3)


def test_words_about_quality_follow_the_share_of_replaced_codes() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    said = {share: {quality_words(share, rng) for _ in range(50)} for share in (0.0, 0.15, 0.4)}
    assert said == {0.0: {"", ", clean recording"}, 0.15: {""}, 0.4: {"", ", noisy recording"}}
