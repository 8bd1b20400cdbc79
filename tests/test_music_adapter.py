"""Adapters: only they train, the base stays as it was, and they go to disk and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from alignment.config import LoraSettings
from alignment.errors import ModelError
from alignment.music.model import MusicModel
from alignment.music.text import encode_prompts
from tests.music_support import make_tiny_music, randomise_adapter

CODES = torch.randint(64, (2, 4, 8), generator=torch.Generator().manual_seed(0))
PROMPTS = ["calm piano", "fast dark organ with drums"]


def scores(model: MusicModel) -> torch.Tensor:
    with torch.no_grad():
        return model.logprobs(CODES, encode_prompts(model, PROMPTS))


@pytest.fixture
def adapted() -> MusicModel:
    model = make_tiny_music()
    model.add_adapter(LoraSettings(r=4), seed=1)
    randomise_adapter(model)
    return model


def test_the_reference_is_the_base_exactly_and_the_adapter_comes_back(adapted: MusicModel):
    policy = scores(adapted)
    with adapted.reference():
        assert torch.equal(scores(adapted), scores(make_tiny_music()))
        with adapted.reference():
            assert torch.equal(scores(adapted), scores(make_tiny_music()))
        assert torch.equal(scores(adapted), scores(make_tiny_music()))  # the inner block did not end the outer
    assert torch.equal(scores(adapted), policy)
    assert adapted.trainable_parameters()


def test_an_error_inside_reference_does_not_leave_the_adapter_off(adapted: MusicModel):
    policy = scores(adapted)
    with pytest.raises(RuntimeError), adapted.reference():
        raise RuntimeError
    assert torch.equal(scores(adapted), policy)


def test_training_moves_every_adapter_weight_and_nothing_else(adapted: MusicModel):
    before = {name: tensor.clone() for name, tensor in adapted.hf.state_dict().items()}
    optimizer = torch.optim.AdamW(adapted.trainable_parameters(), lr=0.01)
    adapted.hf.train()
    (-adapted.logprobs(CODES, encode_prompts(adapted, PROMPTS)).mean()).backward()
    optimizer.step()
    for name, tensor in adapted.hf.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".lora_" not in name), name
    assert adapted.checksum() == adapted.base_sha256 == make_tiny_music().base_sha256


def test_the_checksum_sees_a_change_in_any_part():
    for part in ("decoder.lm_heads.0.weight", "text_encoder.shared.weight", "audio_encoder.decoder.layers.0.conv.bias"):
        model = make_tiny_music()
        model.hf.get_parameter(part).data.view(-1)[0] += 0.001
        assert model.checksum() != model.base_sha256, part
    assert make_tiny_music(1).base_sha256 != make_tiny_music(0).base_sha256


@pytest.mark.parametrize(
    ("groups", "layers"),
    [
        (("self_attention",), 8),
        (("cross_attention",), 8),
        (("feed_forward",), 4),
        (("self_attention", "cross_attention", "feed_forward"), 20),
    ],
)
def test_adapters_sit_on_the_named_layers_of_the_decoder_only(groups: tuple[str, ...], layers: int):
    model = make_tiny_music()
    model.add_adapter(LoraSettings(r=2, target_modules=groups), seed=0)
    names = [name for name, parameter in model.hf.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * layers  # A and B, two decoder layers
    assert all(name.startswith("decoder.model.decoder.layers.") for name in names)
    assert all(parameter.dtype == torch.float32 for parameter in model.trainable_parameters())


def test_the_same_seed_makes_the_same_adapter_and_leaves_the_global_generator_alone():
    models = [make_tiny_music() for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.add_adapter(LoraSettings(r=2), seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = ([p.detach() for p in model.trainable_parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_saved_adapter_loads_into_a_fresh_base_and_trains_on(adapted: MusicModel, tmp_path: Path):
    adapted.save_adapter(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]  # nothing half-written beside it
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    fresh = make_tiny_music()
    fresh.load_adapter(tmp_path / "adapter")
    assert torch.equal(scores(fresh), scores(adapted))
    assert len(fresh.trainable_parameters()) == len(adapted.trainable_parameters())


def test_peft_itself_reads_a_saved_adapter(adapted: MusicModel, tmp_path: Path):
    from peft import PeftModel

    adapted.save_adapter(tmp_path / "adapter")
    plain = make_tiny_music()
    PeftModel.from_pretrained(plain.hf, tmp_path / "adapter")
    assert torch.equal(scores(plain), scores(adapted))


def test_saving_twice_replaces_the_first(adapted: MusicModel, tmp_path: Path):
    adapted.save_adapter(tmp_path / "adapter")
    randomise_adapter(adapted, seed=5)
    adapted.save_adapter(tmp_path / "adapter")
    fresh = make_tiny_music()
    fresh.load_adapter(tmp_path / "adapter")
    assert torch.equal(scores(fresh), scores(adapted))


def test_removing_the_adapter_leaves_the_base_as_it_was(adapted: MusicModel):
    adapted.remove_adapter()
    assert not adapted.has_adapter and not adapted.trainable_parameters()
    assert list(adapted.hf.state_dict()) == list(make_tiny_music().hf.state_dict())
    assert torch.equal(scores(adapted), scores(make_tiny_music()))
    adapted.add_adapter(LoraSettings(r=2), seed=0)  # and another may follow
    assert adapted.has_adapter


def test_a_second_adapter_is_refused_and_a_missing_one_cannot_be_saved(adapted: MusicModel, tmp_path: Path):
    with pytest.raises(ModelError, match="already has an adapter"):
        adapted.add_adapter(LoraSettings(), seed=0)
    with pytest.raises(ModelError, match="has no adapter"):
        make_tiny_music().save_adapter(tmp_path / "adapter")


def test_an_adapter_for_another_base_is_refused(adapted: MusicModel, tmp_path: Path):
    adapted.save_adapter(tmp_path / "adapter")
    other = make_tiny_music(1)
    with pytest.raises(ModelError, match="another base"):
        other.load_adapter(tmp_path / "adapter")
    assert not other.has_adapter


def test_damaged_adapter_folders_are_refused_in_one_sentence(adapted: MusicModel, tmp_path: Path):
    good = tmp_path / "good"
    adapted.save_adapter(good)

    def damage(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    truncated = damage("truncated")
    weights = truncated / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    pickled = damage("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    without_config = damage("without_config")
    (without_config / "adapter_config.json").unlink()
    without_base = damage("without_base")
    (without_base / "base.json").unlink()
    bad_json = damage("bad_json")
    (bad_json / "adapter_config.json").write_text("{")
    other_kind = damage("other_kind")
    (other_kind / "adapter_config.json").write_text(json.dumps({"peft_type": "VERA"}))
    other_rank = damage("other_rank")
    config = json.loads((good / "adapter_config.json").read_text())
    (other_rank / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    other_layers = damage("other_layers")
    (other_layers / "adapter_config.json").write_text(json.dumps(config | {"target_modules": "nothing"}))
    expected = {
        truncated: "damaged",
        pickled: "pickled",
        without_config: "no adapter_config.json",
        without_base: "no base.json",
        bad_json: "cannot be read",
        other_kind: "of a known kind",
        other_rank: "do not fit",
        other_layers: "not a LORA adapter for this decoder",
        tmp_path / "nowhere": "no such adapter folder",
    }
    model = make_tiny_music()
    for folder, words in expected.items():
        with pytest.raises(ModelError, match=words) as caught:
            model.load_adapter(folder)
        assert "\n" not in str(caught.value)
        assert not model.has_adapter and not model.trainable_parameters()
    model.load_adapter(good)  # and none of them left anything behind
    assert torch.equal(scores(model), scores(adapted))
