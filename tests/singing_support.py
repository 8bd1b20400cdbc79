"""A store with short clips of several versions, for studies that are made from recipes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignment.clips import ClipStore
from alignment.db import clips, prompts, versions
from alignment.db.engine import Database
from alignment.domain import Clip, ClipSource, GenerationConfig, Split

RATE_HZ = 16000


def sing(
    database: Database,
    folder: Path,
    *,
    names: Sequence[str] = ("base", "tuned"),
    prompt_count: int = 6,
    per_prompt: int = 1,
    seconds: Sequence[float] = (0.5,),
    cutoff: bool = False,
    external: Sequence[str] = (),
) -> tuple[ClipStore, list[Clip]]:
    """Noise of each version for each prompt; ``seconds`` by version in turn; ``cutoff``: nothing above 3 kHz."""
    store = ClipStore(folder / "store")
    rng = np.random.default_rng(1)
    new = []
    with database.session() as s:
        made = prompts.add_prompts(s, [(f"prompt {i}", "test", Split.TEST, {}) for i in range(prompt_count)])
        for name in names:
            versions.add_version(s, name=name, base="tiny", base_sha256="0" * 64)
    for prompt in made:
        for number, name in enumerate(names):
            for seed in range(per_prompt):
                length = seconds[number % len(seconds)]
                audio = rng.normal(0, 0.1, round(length * RATE_HZ))
                if cutoff:
                    spectrum = np.fft.rfft(audio)
                    spectrum[np.fft.rfftfreq(audio.size, 1 / RATE_HZ) > 2500] = 0
                    audio = np.fft.irfft(spectrum, audio.size)
                sha256, facts = store.put_audio(audio.astype(np.float32), RATE_HZ)
                source = ClipSource.EXTERNAL if name in external else ClipSource.GENERATED
                new.append(
                    clips.NewClip(
                        prompt.id, name, GenerationConfig(clip_seconds=length), seed, sha256, None, facts, source=source
                    )
                )
    with database.session() as s:
        return store, clips.add_clips(s, new)


def of(made: Sequence[Clip], version: str) -> list[uuid.UUID]:
    return [clip.id for clip in made if clip.version == version]
