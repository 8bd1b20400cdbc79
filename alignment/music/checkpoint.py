"""Reading a MusicGen checkpoint from a folder or the hub: safetensors only, every fault one sentence.

What a hub calls ``owner/name`` is looked for in ATTUNE_MODELS (by default ``models`` in ATTUNE_HOME), then in the hub's
own cache, then on the hub itself, unless HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import ModelError
from alignment.music import memory

if TYPE_CHECKING:
    from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

    Hf = MusicgenForConditionalGeneration | MusicgenMelodyForConditionalGeneration

TINY = Path(__file__).resolve().parent / "tiny"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "README.md")  # nothing pickled
TOKENIZERS = ("tokenizer.json", "spiece.model")
MUSICGEN, MELODY = "musicgen", "musicgen_melody"  # transformers' names of the two architectures
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read(source: str | Path) -> tuple[Hf, Any, str]:
    """(model in float32, tokenizer, short name). Raises ModelError."""
    if str(source) == "tiny":
        if not (TINY / "config.json").is_file():
            raise ModelError(
                "The embedded model attune-tiny is not in this checkout (alignment/music/tiny has no config.json); "
                "fetch the whole repository or build it with the scripts in scripts/tiny."
            )
        return *_from_folder(TINY), "tiny"
    folder = Path(source)
    if folder.is_dir():
        return *_from_folder(folder), folder.name
    if folder.exists():
        raise ModelError(f"{source}: is a file; give the folder that holds config.json and model.safetensors.")
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        return *_from_folder(locate(source, what="the model")), source
    raise ModelError(f"{source}: no such folder; give a MusicGen folder, 'tiny', or a hub id like owner/name.")


def models_folder() -> Path:
    """Where checkpoints are put by hand: ATTUNE_MODELS, or ``models`` in ATTUNE_HOME."""
    return Path(os.environ.get("ATTUNE_MODELS") or Path(os.environ.get("ATTUNE_HOME") or "data") / "models")


def locate(source: str, *, what: str, option: str | None = None) -> Path:
    """The folder on this machine of a folder or hub name, fetched first where that is possible.

    ``what`` and ``option`` name it, and the option that can give its folder, in the ModelError raised without it."""
    if Path(source).is_dir():
        return Path(source)
    placed = models_folder() / source
    if placed.is_dir():
        return placed
    if not HUB_NAME.fullmatch(source):
        raise ModelError(f"{source}: no such folder; give {what} as a folder or a hub name.")

    from huggingface_hub import snapshot_download

    reason = "HF_HUB_OFFLINE is set"
    for here_only in (True, False):
        try:
            with quiet():
                found = snapshot_download(source, allow_patterns=list(FETCHED), local_files_only=here_only)
            return Path(found)
        except Exception as error:  # the hub's client raises many kinds; all mean that it is not here
            if not here_only and not os.environ.get("HF_HUB_OFFLINE"):
                reason = line_of(error)
    instead = f", or give its folder with {option}" if option else ", or give its folder"
    raise ModelError(
        f"{source}: {what} is not on this machine and cannot be fetched ({reason}); put its config.json, safetensors "
        f"and tokenizer files into {placed}{instead}."
    )


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into, which takes its place at the end; nothing stays after an error.

    Raises ModelError when ``folder`` is there and not empty, or is a file."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ModelError(f"{folder}: is there already; give a folder that is new or empty.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_supported(hf: Any, source: str) -> None:
    """Raise ModelError unless ``hf`` is a mono or stereo MusicGen, of a melody or not, whose parts fit together."""
    if not isinstance(hf, (architecture(MUSICGEN), architecture(MELODY))):
        raise ModelError(f"{source}: is a {type(hf).__name__}; needs a MusicgenForConditionalGeneration.")
    decoder, codec = hf.config.decoder, hf.config.audio_encoder
    channels, books = decoder.audio_channels, decoder.num_codebooks
    if channels not in (1, 2) or books % channels:
        raise ModelError(f"{source}: has {channels} channels with {books} codebooks; needs 1, or 2 that share them.")
    if hf.config.model_type == MELODY:
        frames, classes = hf.config.chroma_length, hf.config.num_chroma
        if min(frames, classes) < 1 or classes == decoder.hidden_size:
            raise ModelError(
                f"{source}: a melody has {frames} frames of {classes} pitch classes (chroma_length, num_chroma); needs "
                "at least 1 of each, fewer classes than the decoder is wide, and the published ones have 235 of 12."
            )
    if codec.audio_channels != 1 or codec.normalize:
        raise ModelError(
            f"{source}: its codec has {codec.audio_channels} channels (normalize: {codec.normalize}); MusicGen's has "
            "one, without a scale beside its codes, and stereo is two of its streams."
        )
    if codec.codebook_size != decoder.vocab_size:
        raise ModelError(
            f"{source}: the codec has {codec.codebook_size} codes a book and the decoder {decoder.vocab_size}; "
            "they must be equal."
        )
    if bandwidth_kbps(hf) == 0:
        raise ModelError(f"{source}: the codec offers no bandwidth with the decoder's {books // channels} codebooks.")


def melody_frames(hf: Hf) -> int:
    """How many places a melody takes ahead of the prompt; 0 of a checkpoint that hears none."""
    return int(hf.config.chroma_length) if hf.config.model_type == MELODY else 0


def bandwidth_kbps(hf: Hf) -> float:
    """The codec bandwidth whose number of codebooks is the decoder's for one channel; the nearest above it, or 0
    without one."""
    quantizer, decoder = hf.audio_encoder.quantizer, hf.config.decoder
    for bandwidth in sorted(hf.config.audio_encoder.target_bandwidths):
        if quantizer.get_num_quantizers_for_bandwidth(bandwidth) >= decoder.num_codebooks // decoder.audio_channels:
            return float(bandwidth)
    return 0.0


def _from_folder(folder: Path) -> tuple[Hf, Any]:
    kind = _checked_kind(folder)
    _check_weights(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        # transformers would make up a tokenizer of its own.
        raise ModelError(f"{folder}: has no tokenizer ({' or '.join(TOKENIZERS)}); fetch the whole folder.")
    size = 4 * sum(_numbers(path) for path in folder.glob("*.safetensors"))
    memory.require_room(size, device="cpu", what=f"{folder}: reading it in float32")
    try:
        return _load(str(folder), kind)
    except ModelError:
        raise
    # transformers raises many kinds for a checkpoint whose parts disagree; all mean the same to the reader.
    except Exception as error:
        reason = line_of(error)
        raise ModelError(f"{folder}: cannot be loaded as a MusicGen ({reason}); fetch or save it again.") from error


def architecture(kind: str) -> type[Hf]:
    """transformers' class of MUSICGEN or MELODY."""
    from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

    return MusicgenMelodyForConditionalGeneration if kind == MELODY else MusicgenForConditionalGeneration


def _load(source: str, kind: str) -> tuple[Hf, Any]:
    import torch
    from transformers import AutoTokenizer

    with quiet():
        hf, info = architecture(kind).from_pretrained(
            source,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would go on with random weights in their place.
        raise ModelError(f"{source}: its weights lack {len(missing)} tensors, first {missing[0]}; fetch it again.")
    broken = [name for name, tensor in hf.named_parameters() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(f"{source}: {broken[0]} holds values that are not numbers; take another checkpoint.")
    return hf, tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar of its own and no advice: callers show progress, and faults are raised as ModelError."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _checked_kind(folder: Path) -> str:
    """Which of the two architectures config.json names. Raises ModelError for anything else."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder}: has no config.json, so it is not a model; give a MusicGen folder.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({line_of(error)}); fetch the model again.") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in (MUSICGEN, MELODY):
        raise ModelError(f"{folder}: is a {kind or 'model of no known type'}, not a MusicGen; give a MusicGen folder.")
    return kind


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
        if pickled:
            raise ModelError(
                f"{folder}: its weights are pickled ({pickled[0]}), which can run code when opened; "
                "convert them to safetensors first."
            )
        raise ModelError(f"{folder}: has no model.safetensors; fetch the model's weights too.")
    for path in files:
        try:
            with safe_open(path, framework="pt") as handle:
                handle.keys()
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path}: is damaged ({line_of(error)}); fetch it again.") from None


def _numbers(path: Path) -> int:
    """How many numbers a safetensors file holds, by its head."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        return sum(math.prod(handle.get_slice(name).get_shape()) for name in handle.keys())


def decoder_parameters(folder: Path) -> int | None:
    """How many parameters the decoder of the folder's checkpoint has, by the heads of its files."""
    from safetensors import SafetensorError, safe_open

    count = 0
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="np") as handle:
                names = [name for name in handle.keys() if name.startswith("decoder.")]
                count += sum(math.prod(handle.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError, ValueError):
        return None
    return count or None


def line_of(error: BaseException) -> str:
    """The first line of what an error says, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
