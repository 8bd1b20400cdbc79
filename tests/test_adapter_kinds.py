"""Adapters of every kind and at every place: what they change, what a rollout sings with them, what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignment.config import DpoSettings, LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ModelError
from alignment.music.adapter import effective_weight
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from alignment.training.dpo import train_dpo
from tests.music_support import make_tiny_music, randomise_adapter
from tests.training_support import random_examples

KINDS = ("lora", "loha", "ia3")
PLACES = ("self_attention", "cross_attention", "feed_forward", "heads")
PROMPTS = ["calm piano", "fast dark organ with drums"]
CODES = torch.randint(64, (2, 4, 8), generator=torch.Generator().manual_seed(0))
# Of 2 layers of width 32 with 4 heads of 64 codes, by hand. LoRA of rank 4 on a layer (out, in): 4 * (out + in); four
# projections, or fc1 and fc2 of 32 by 128. LoHa: twice that. IA3: keys and values, what fc2 reads, the heads' codes.
PARAMETERS = {
    "lora": (2 * 4 * 4 * 64, 2 * 4 * 4 * 64, 2 * 2 * 4 * 160, 4 * 4 * 96),
    "loha": (2 * 4 * 8 * 64, 2 * 4 * 8 * 64, 2 * 2 * 8 * 160, 4 * 8 * 96),
    "ia3": (2 * 2 * 32, 2 * 2 * 32, 2 * 128, 4 * 64),
}


def scores(model: MusicModel) -> torch.Tensor:
    with torch.no_grad():
        return model.logprobs(CODES, encode_prompts(model, PROMPTS))


@pytest.mark.parametrize("place", range(4), ids=PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_as_nothing_sings_as_it_scores_and_leaves_the_base(
    tmp_path: Path, kind: str, place: int
) -> None:
    model = make_tiny_music()
    base = scores(model)
    model.add_adapter(LoraSettings(kind=kind, r=4, target_modules=(PLACES[place],)), seed=1)
    assert torch.equal(scores(model), base), "untrained it changes nothing"
    assert sum(value.numel() for value in model.trainable_parameters()) == PARAMETERS[kind][place]
    names = [name for name, value in model.hf.named_parameters() if value.requires_grad]
    inside = "decoder.lm_heads." if PLACES[place] == "heads" else "decoder.model.decoder.layers."
    assert all(name.startswith(inside) for name in names)

    randomise_adapter(model)
    policy = scores(model)
    assert (policy - base).abs().max() > 0.1
    sung = sample(model, PROMPTS, generation=GenerationConfig(clip_seconds=0.3), seeds=[1, 2])
    with torch.no_grad():
        scored = model.logprobs(sung.codes, encode_prompts(model, PROMPTS))
    torch.testing.assert_close(sung.logprobs, scored, rtol=0, atol=2e-4)
    with model.reference():
        assert torch.equal(scores(model), base)

    model.save_adapter(tmp_path / "adapter")
    fresh = make_tiny_music()
    fresh.load_adapter(tmp_path / "adapter")
    assert torch.equal(scores(fresh), policy)
    assert len(fresh.trainable_parameters()) == len(model.trainable_parameters()) > 0
    assert model.checksum() == fresh.base_sha256
    model.remove_adapter()
    assert torch.equal(scores(model), base)
    other = make_tiny_music(1)
    with pytest.raises(ModelError, match="another base"):
        other.load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_a_rollout_reads_is_the_one_peft_itself_merges(kind: str) -> None:
    model = make_tiny_music()
    model.add_adapter(LoraSettings(kind=kind, r=4, target_modules=PLACES), seed=1)
    randomise_adapter(model)
    layers = [layer for layer in model.hf.modules() if hasattr(layer, "merge") and hasattr(layer, "base_layer")]
    ours = [effective_weight(layer).detach().clone() for layer in layers]
    assert len(layers) == {"lora": 24, "loha": 24, "ia3": 14}[kind]
    model.peft.base_model.merge_adapter()
    for layer, weight in zip(layers, ours, strict=True):
        torch.testing.assert_close(weight, layer.base_layer.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["loha", "ia3"])
def test_other_kinds_train_by_dpo_alone_and_on_a_bfloat16_base(tmp_path: Path, kind: str) -> None:
    model = make_tiny_music()
    model.hf.decoder.to(torch.bfloat16)
    model.hf.text_encoder.to(torch.bfloat16)
    model.hf.enc_to_dec_proj.to(torch.bfloat16)
    lora = LoraSettings(kind=kind, r=4, target_modules=PLACES)
    run = DpoSettings(learning_rate=0.02, num_train_epochs=6, per_device_train_batch_size=2, warmup_ratio=0, lora=lora)
    frozen = {name: value.clone() for name, value in model.hf.state_dict().items()}
    result = train_dpo(model, random_examples(model, PROMPTS), run, tmp_path)
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 0.05
    assert all(value.dtype == torch.float32 for value in model.trainable_parameters())
    assert all(value.grad is None for value in model.hf.parameters() if not value.requires_grad)
    model.remove_adapter()
    assert all(torch.equal(value, frozen[name]) for name, value in model.hf.state_dict().items())


def test_a_loha_layer_is_never_skipped_in_training() -> None:
    model = make_tiny_music()
    model.add_adapter(LoraSettings(kind="loha", r=4), seed=1)
    randomise_adapter(model)
    policy = scores(model)
    model.hf.train()
    drawn = torch.rand
    try:
        torch.rand = lambda *shape, **more: drawn(*shape, **more) * 0  # the number PEFT draws, at its lowest
        assert torch.equal(scores(model), policy)
    finally:
        torch.rand = drawn


def test_a_kind_that_is_not_known_and_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    model = make_tiny_music()
    model.add_adapter(LoraSettings(kind="ia3"), seed=1)
    model.save_adapter(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    good = json.loads(path.read_text())
    for change, words in (
        ({"peft_type": "VERA"}, r"known kind \(LORA, LOHA, IA3\)"),
        ({"peft_type": "LORA"}, "is not a LORA adapter"),
        ({"target_modules": r"decoder\.lm_heads\.\d+"}, "do not fit"),
    ):
        path.write_text(json.dumps(good | change))
        fresh = make_tiny_music()
        with pytest.raises(ModelError, match=words):
            fresh.load_adapter(tmp_path / "adapter")
        assert not fresh.has_adapter and not fresh.trainable_parameters()
