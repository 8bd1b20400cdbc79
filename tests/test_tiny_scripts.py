"""The scripts that build attune-tiny: compositions have their attributes, the gate closes, codes are delayed right."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from alignment.music.delay import apply_delay, delay_labels
from alignment.simulation.captions import (
    ACCOMPANIMENTS,
    DRUMS,
    LEADS,
    MODES,
    SAID,
    TEMPOS,
    Attributes,
    draw_attributes,
    draw_pieces,
    is_reserved,
)
from scripts.tiny.common import corrupt
from scripts.tiny.faults import FLAWED, FLAWED_TRAINING, apply_faults, draw_faults
from scripts.tiny.render import CLIP_SECONDS, compose
from scripts.tiny.train_clap import quality_words
from scripts.tiny.train_codec import si_sdr
from scripts.tiny.train_decoder import PAD, TELLINGS, build_tokenizer, delayed, tell
from scripts.tiny.train_judge import area_under_curve, lost_in_codec
from scripts.tiny.write_card import shared_codes


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


def test_a_caption_asks_for_part_of_what_the_piece_is_and_says_all_it_asks_for() -> None:
    pieces = draw_pieces(600, 3, reserved=False)
    for text, asked, whole in pieces:
        assert asked.as_tags().items() <= whole.as_tags().items()
        assert len(asked.as_tags()) >= 2
        assert asked.lead is None or any(words in text for words in LEADS[asked.lead][1])
        assert asked.tempo is None or any(words in text for words in TEMPOS[asked.tempo][1])
        assert asked.mode is None or any(words in text for kind in MODES[asked.mode] for words in kind)
        assert asked.accompaniment is None or any(words in text for words in ACCOMPANIMENTS[asked.accompaniment])
        assert asked.drums is None or any(words in text for words in DRUMS[asked.drums])
    for name, share in SAID.items():
        said = sum(getattr(asked, name) is not None for _, asked, _ in pieces) / len(pieces)
        assert said == pytest.approx(share, abs=0.06)  # "at least two" and chance


def test_no_wording_of_one_value_is_found_in_another_values_wording() -> None:
    """Else a caption that asks for one would be read as asking for the other."""
    for attribute in (
        {name: words for name, (_, words) in LEADS.items()},
        {name: words for name, (_, words) in TEMPOS.items()},
        {name: (*a, *b) for name, (a, b) in MODES.items()},
        ACCOMPANIMENTS,
        DRUMS,
    ):
        for name, own in attribute.items():
            for other in (words for key, values in attribute.items() if key != name for words in values):
                assert not any(other in words for words in own), (name, other)


def test_a_clip_is_told_in_several_captions_none_of_them_held_out() -> None:
    rows = [{"text": text, "tags": whole.as_tags()} for text, _, whole in draw_pieces(40, 5, reserved=False)]
    for row, texts in zip(rows, tell(rows, seed=1), strict=True):
        assert len(texts) == TELLINGS and texts[0] == row["text"]
        assert not any(is_reserved(text) for text in texts)
    assert tell(rows, seed=1) == tell(rows, seed=1) != tell(rows, seed=2)


def tone() -> np.ndarray:
    time = np.arange(16_000) / 16_000
    return (0.5 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3520 * time)).astype(np.float32)


def test_a_flawless_recording_is_left_alone() -> None:
    assert np.array_equal(apply_faults(tone(), {}, 1), tone())


def test_noise_stands_as_far_below_the_music_as_its_strength_says() -> None:
    """Strength 1 is 6 dB below, 0.5 is 14 dB: taken back out by projecting on the clean tone."""
    for strength, decibels in ((1.0, 6.0), (0.5, 14.0)):
        assert si_sdr(
            torch.from_numpy(apply_faults(tone(), {"noise": strength}, 3))[None], torch.from_numpy(tone())[None]
        ).item() == pytest.approx(decibels, abs=0.5)


def test_clipping_flattens_the_peaks_and_muffling_takes_the_treble() -> None:
    def at(audio: np.ndarray, hz: int) -> float:
        return float(np.abs(np.fft.rfft(audio))[hz])

    clipped = apply_faults(tone(), {"clipping": 0.5}, 1)
    assert (np.abs(clipped) > 0.99 * np.abs(clipped).max()).mean() > 0.4
    muffled = apply_faults(tone(), {"muffling": 1.0}, 1)
    assert at(muffled, 3520) / at(muffled, 440) < 0.01 < at(tone(), 3520) / at(tone(), 440)
    for audio in (clipped, muffled):
        assert np.abs(audio).max() == pytest.approx(0.708, abs=1e-3)


def test_flaws_come_one_at_a_time_in_their_shares() -> None:
    faults = draw_faults(4000, 1)
    assert all(len(fault) <= 1 and all(0.25 <= s <= 1 for s in fault.values()) for fault in faults)
    for name, share in FLAWED.items():
        assert np.mean([name in fault for fault in faults]) == pytest.approx(share, abs=0.02)
    heavy = draw_faults(4000, 1, training=True)  # what the music model learns from
    assert all(0.5 <= strength <= 1 for fault in heavy for strength in fault.values())
    for name, share in FLAWED_TRAINING.items():
        assert np.mean([name in fault for fault in heavy]) == pytest.approx(share, abs=0.02)


def test_corruption_replaces_the_share_asked_for_and_nothing_at_zero() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 512, (2, 4, 500)).astype(np.int16)
    changed = corrupt(codes, np.array([0.0, 0.4]), rng)
    assert np.array_equal(changed[0], codes[0])
    assert (changed[1] != codes[1]).mean() == pytest.approx(0.4, abs=0.04)


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


def test_words_about_quality_name_the_strongest_fault() -> None:
    rng = np.random.default_rng(0)

    def said(faults: dict[str, float]) -> set[str]:
        return {quality_words(faults, rng) for _ in range(50)}

    assert said({"roughness": 0.0}) == {"", ", clean recording"}
    assert said({"noise": 0.5, "roughness": 0.3}) == {"", ", noisy recording"}
    assert said({"muffling": 0.5, "roughness": 0.9}) == {"", ", rough recording"}


def test_the_area_under_the_curve_counts_pairs_in_the_right_order_and_ties_as_half() -> None:
    assert area_under_curve(np.array([2.0, 1.0]), np.array([0.0, 1.0])) == pytest.approx(3.5 / 4)


def test_clips_share_codes_frame_by_frame() -> None:
    codes = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [7, 7, 7, 7]])
    assert shared_codes(codes, codes, apart=True) == pytest.approx([0.5, 0.5, 0.0])
    assert shared_codes(codes[:1], codes, apart=False) == pytest.approx([1.0])
