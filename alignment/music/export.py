"""A model with its adapter merged, as a folder that plain transformers loads."""

from __future__ import annotations

from pathlib import Path

from alignment.domain import GenerationConfig
from alignment.errors import ModelError
from alignment.music.checkpoint import quiet
from alignment.music.delay import delayed_steps
from alignment.music.model import MusicModel


def write_merged(model: MusicModel, folder: Path, *, listening: GenerationConfig | None = None) -> None:
    """Merge the adapter, if there is one, into ``model``'s own weights and save them with the tokenizer.

    The model is used up: load one for this alone, since merging alters the base. With ``listening`` the folder's
    generation config samples as people hear the version, for as many seconds. Raises ModelError when the merged weights
    are not finite."""
    hf = model.hf
    if model.peft is not None:
        try:
            hf = model.peft.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"The adapter cannot be merged into {model.source} ({error}); train it again.") from None
    if listening is not None:
        config = hf.generation_config
        config.do_sample = True
        config.temperature, config.top_k = listening.temperature, listening.top_k
        config.guidance_scale = listening.guidance
        # The delay of the codebooks takes more steps than there are frames.
        config.max_length = None
        config.max_new_tokens = delayed_steps(model.frames(listening.clip_seconds), model.codebooks, model.channels)
    with quiet():
        hf.save_pretrained(folder, safe_serialization=True)
        model.tokenizer.save_pretrained(folder)
