"""audiocraft's checkpoints as folders in transformers' format, and back with the adapter merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignment.errors import ModelError
from alignment.music import checkpoint
from alignment.music.audiocraft import PROJECTION, from_audiocraft_state, merged_tensors, to_audiocraft_state
from alignment.music.audiocraft_codec import PREFIX, from_audiocraft_codec_state, to_audiocraft_codec_state
from alignment.music.audiocraft_config import VERSION, read_codec, read_lm, write_codec, write_lm
from alignment.music.audiocraft_files import CODEC_FILE, LM_FILE, read_native, write_native
from alignment.music.audiocraft_melody import WINDOW, read_melody, window, without_window, write_melody

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

TEXT_FOLDER = "text_encoder"
TEXT_PREFIX = "text_encoder."
# audiocraft's T5Conditioner takes these by name only: name -> (width, layers, words).
T5 = {"t5-small": (512, 6, 32128), "t5-base": (768, 12, 32128), "t5-large": (1024, 24, 32128)}
LISTENING = {"do_sample": True, "guidance_scale": 3.0, "top_k": 250, "max_length": 1500}  # as MusicGen is heard


def import_checkpoint(
    source: str | Path,
    folder: str | Path,
    *,
    text_encoder: str | Path | None = None,
    codec: str | Path | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Write the native checkpoint in ``source`` (a folder, or its language model's file) to ``folder`` in transformers'
    format, whole or not at all; what was written, in figures.

    ``text_encoder`` is a folder or hub name of its T5, by default the one its config names; ``codec`` a native file or
    an EnCodec in transformers' format where the checkpoint has none of its own. Raises ModelError in one sentence."""
    source = Path(source)
    lm_file = source / LM_FILE if source.is_dir() else source
    weights, config = read_native(lm_file)
    if weights is None or isinstance(config, str):
        raise ModelError(f"{lm_file}: is the name of a codec, not a language model; give the folder of both.")
    (decoder, text_name), melody = read_lm(config), read_melody(config)
    codec_config, codec_state = _codec(lm_file.parent / CODEC_FILE, codec)
    t5, tokenizer = _text_encoder(text_encoder or text_name, lm_file)
    state = from_audiocraft_state(without_window(weights, config) if melody else weights)
    _drop_identity(state, t5.config.d_model, decoder.hidden_size)

    from transformers import GenerationConfig, MusicgenConfig, MusicgenMelodyConfig

    parts = {"text_encoder": t5.config, "audio_encoder": codec_config, "decoder": decoder}
    if melody:
        whole = MusicgenMelodyConfig(**parts, num_chroma=melody[0], chroma_length=melody[1])
    else:
        whole = MusicgenConfig(**parts)
    state |= codec_state | {f"{TEXT_PREFIX}{name}": tensor for name, tensor in _own_tensors(t5).items()}
    _check_fit(whole, state, lm_file)
    first = next(iter(weights.values()))
    whole.dtype = first.dtype
    start = {name: decoder.pad_token_id for name in ("pad_token_id", "bos_token_id", "decoder_start_token_id")}
    with checkpoint.new_folder(folder) as partial:
        from safetensors.torch import save_file

        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            partial / "model.safetensors",
            metadata={"format": "pt"},
        )
        whole.save_pretrained(partial)
        GenerationConfig(**LISTENING, **start).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(_imported_card(source, licence), encoding="utf-8")
    return {
        "folder": str(folder),
        "parameters": sum(tensor.numel() for name, tensor in state.items() if name.startswith("decoder.")),
        "codebooks": decoder.num_codebooks,
        "channels": decoder.audio_channels,
        "sample_rate_hz": codec_config.sampling_rate,
        "text_encoder": text_name,
        "text_only": melody is not None,
    }


def export_checkpoint(model: MusicModel, folder: str | Path, *, note: str = "") -> dict[str, Any]:
    """Write ``model``, its adapter merged, to ``folder`` as audiocraft loads it; what was written.

    In float32, whatever the model is held in; ``note`` ends its card. A text encoder that audiocraft does not know by
    name is written beside. Raises ModelError when the folder is not empty."""
    state, hf = merged_tensors(model.hf), model.hf
    transposed = frozenset(
        name for name, module in hf.audio_encoder.named_modules() if isinstance(module, nn.ConvTranspose1d)
    )
    lm = {name: tensor.float() for name, tensor in to_audiocraft_state(state).items()}
    if f"{PROJECTION}.weight" not in lm:  # transformers has none between equal widths, audiocraft always has
        lm |= {f"{PROJECTION}.weight": torch.eye(model.width), f"{PROJECTION}.bias": torch.zeros(model.width)}
    if model.melody_frames:
        lm[WINDOW] = window()
    t5 = hf.config.text_encoder
    shape = (t5.d_model, t5.num_layers, t5.vocab_size)
    known = next((name for name, its in T5.items() if its == shape), None)
    with checkpoint.new_folder(folder) as partial:
        config = write_melody(model, write_lm(model, known or TEXT_FOLDER))
        write_native(partial / LM_FILE, lm, config, VERSION)
        codec = to_audiocraft_codec_state(state, transposed=transposed)
        write_native(partial / CODEC_FILE, codec, write_codec(model), VERSION)
        if known is None:
            hf.text_encoder.save_pretrained(partial / TEXT_FOLDER)
            model.tokenizer.save_pretrained(partial / TEXT_FOLDER)
        (partial / "README.md").write_text(_exported_card(model, known, note), encoding="utf-8")
    return {
        "folder": str(folder),
        "parameters": sum(tensor.numel() for tensor in lm.values()),
        "merged": model.has_adapter,
        "text_encoder": known or TEXT_FOLDER,
    }


def _codec(native: Path, given: str | Path | None) -> tuple[Any, dict[str, Tensor]]:
    """(transformers' config, tensors as in a MusicGen) of the checkpoint's codec, or of the one given."""
    named: str | Path | None = given
    if given is None or Path(given).is_file():
        native = native if given is None else Path(given)
        weights, config = read_native(native)
        if weights is not None and not isinstance(config, str):
            return read_codec(config), from_audiocraft_codec_state(weights)
        named = str(config)
    from transformers import EncodecModel

    place = checkpoint.locate(str(named), what="the codec", option="--codec")
    try:
        with checkpoint.quiet():
            held = EncodecModel.from_pretrained(place, use_safetensors=True, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # transformers raises many kinds for one cause: not a usable folder
        raise ModelError(f"{place}: cannot be loaded as an EnCodec ({checkpoint.line_of(error)}).") from None
    return held.config, {f"{PREFIX}{name}": tensor for name, tensor in held.state_dict().items()}


def _text_encoder(named: str | Path, lm_file: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, T5EncoderModel

    if not Path(named).is_dir() and (lm_file.parent / str(named) / "config.json").is_file():
        named = lm_file.parent / str(named)  # what export_checkpoint wrote beside
    place = checkpoint.locate(str(named), what="the text encoder", option="--text-encoder")
    try:
        with checkpoint.quiet():
            t5 = T5EncoderModel.from_pretrained(place, use_safetensors=True, local_files_only=True)
            return t5, AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for one cause: not a usable folder
        reason = checkpoint.line_of(error)
        raise ModelError(f"{place}: cannot be loaded as a T5 with its tokenizer ({reason}).") from None


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's state with tensors that share memory named once, the first name in order."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen:
            kept[name] = tensor
        seen.add(tensor.data_ptr())
    return kept


def _drop_identity(state: dict[str, Tensor], text_width: int, width: int) -> None:
    """Take out a projection between equal widths, which transformers' MusicGen does not have. Raises ModelError when it
    is anything but the identity."""
    if text_width != width:
        return
    weight, bias = state.pop("enc_to_dec_proj.weight", None), state.pop("enc_to_dec_proj.bias", None)
    same = weight is None or (torch.equal(weight.float(), torch.eye(width)) and not bias.any())
    if not same:
        raise ModelError(
            f"The text encoder is as wide as the decoder ({width}), and transformers' MusicGen has no projection "
            "between them; this checkpoint has one, so it cannot be imported."
        )


def _check_fit(config: Any, state: Mapping[str, Tensor], path: Path) -> None:
    with torch.device("meta"):
        hf = checkpoint.architecture(config.model_type)(config)
    checkpoint.require_supported(hf, str(path))
    expected, tied = hf.state_dict(), set(hf.all_tied_weights_keys)
    strange = sorted(state.keys() - expected.keys())
    if strange:
        raise ModelError(f"{path}: has {strange[0]}, for which its own config has no place; export it again.")
    lacking = sorted(expected.keys() - state.keys() - tied)
    if lacking:
        raise ModelError(f"{path}: lacks {len(lacking)} tensors, first {lacking[0]}; export the whole checkpoint.")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{path}: {name} is {tuple(tensor.shape)}, its config says {tuple(expected[name].shape)}; weights and "
                "config do not belong together."
            )


def _imported_card(source: Path, licence: str | None) -> str:
    front = f"---\nlicense: {licence}\n---\n" if licence else ""
    said = (
        f"Licence: {licence}."
        if licence
        else "Its licence is not recorded. Meta's own MusicGen weights are CC BY-NC 4.0: not for commercial use."
    )
    return f"{front}# {source.name}\n\nA native audiocraft checkpoint, imported into transformers' format. {said}\n"


def _exported_card(model: MusicModel, known: str | None, note: str) -> str:
    text = (
        f"Its text encoder is {known}, which audiocraft fetches itself."
        if known
        else f"Its text encoder is its own, in `{TEXT_FOLDER}/`. audiocraft takes text encoders by name only: in "
        f"this folder, before loading, run `import transformers; from audiocraft.modules import conditioners as c; "
        f"c.T5Conditioner.MODELS.append('{TEXT_FOLDER}'); c.T5Conditioner.MODELS_DIMS['{TEXT_FOLDER}'] = "
        f"{model.hf.config.text_encoder.d_model}; c.T5Tokenizer = transformers.AutoTokenizer`."
    )
    merged = " with its adapter merged" if model.has_adapter else ""
    return (
        f"# {model.source}\n\nA MusicGen for audiocraft {VERSION}, exported{merged} from base {model.base_sha256}. "
        f"{text} {note or 'Its licence is that of the base it was made from.'}\n"
    )
