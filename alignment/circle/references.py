"""What clips are measured against: a reference set of audio, and the clips that votes were cast on in training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignment.audio_facts import mono
from alignment.circle.compare_recipe import VERSION, MetricSettings
from alignment.circle.generate import generate_clips
from alignment.circle.learn import load_snapshot
from alignment.circle.workspace import Progress, Workspace
from alignment.domain import ClipRef, GenerationConfig, Prompt, Split
from alignment.errors import DataError
from alignment.versions import lineage

SUFFIXES = (".flac", ".wav", ".ogg", ".mp3", ".aiff", ".aif")
OTHER_SEED = 600_000  # the reference's clips are other draws than those that are measured


@dataclass(frozen=True)
class Reference:
    """A reference set: embeddings (m, D) with the prompt of each (or its file), and what it is, in plain values."""

    embeddings: np.ndarray
    prompts: tuple[str, ...]
    about: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What it is, in a few words, as the model column of a metric has it."""
        return reference_label(self.about)


def reference_label(about: Mapping[str, Any]) -> str:
    """A reference's description in a few words."""
    return f"{about['clips']} clips of {about['name']}" + (f" {about['sha256'][:12]}" if "sha256" in about else "")


def describe_reference(
    ws: Workspace, names: Sequence[str], clips: int, settings: MetricSettings
) -> dict[str, Any] | None:
    """What the settings' reference is, without its audio; a version sings as many ``clips`` as are measured of each.
    None for none.

    Raises NotFoundError for an unknown version and DataError for a folder that is missing or holds under two clips."""
    wanted = settings.reference
    if wanted == "none":
        return None
    if wanted == "base":
        return {"kind": "version", "name": lineage(ws.database, names[0])[-1].version.name, "clips": clips}
    if wanted.startswith(VERSION):
        return {"kind": "version", "name": ws.version(wanted.removeprefix(VERSION)).name, "clips": clips}
    files = audio_files(Path(wanted))
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"kind": "folder", "name": Path(wanted).resolve().name, "clips": len(files), "sha256": digest.hexdigest()}


def sampling(settings: MetricSettings, usual: GenerationConfig | None = None) -> GenerationConfig:
    """How clips are sampled under the settings; what they leave open is as usual."""
    return replace(usual or GenerationConfig(), **settings.generation.model_dump(exclude_none=True))


def audio_files(folder: Path) -> list[Path]:
    """The audio files in a folder and below, sorted. Raises DataError when it is missing or has fewer than two."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; a reference is base, version:NAME, a folder of audio, or none.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if len(files) < 2:
        raise DataError(f"{folder}: {len(files)} audio files ({', '.join(SUFFIXES)}); a reference needs two or more.")
    return files


def load_reference(
    ws: Workspace, about: Mapping[str, Any], prompts: Sequence[Prompt], settings: MetricSettings, progress: Progress
) -> Reference:
    """The reference's embeddings; a version sings the same prompts with other seeds. Raises DataError for a file that
    is no audio."""
    if about["kind"] == "version":
        clips = generate_clips(
            ws, about["name"], prompts, sampling(settings), per_prompt=settings.clips_per_prompt,
            seed=OTHER_SEED + settings.seed, progress=progress,
        )  # fmt: skip
        flat = [(str(prompt.id), clip.audio_sha256) for prompt in prompts for clip in clips[prompt.id]]
        found = ws.embed_audio([sha for _, sha in flat])
        return Reference(np.stack([found[sha] for _, sha in flat]), tuple(prompt for prompt, _ in flat), about)
    files = audio_files(Path(settings.reference))
    vectors = []
    for done, file in enumerate(files, start=1):
        audio, rate = _read(file)
        vectors.append(ws.encoder.audio([audio], rate)[0])
        progress(done, len(files))
    return Reference(np.stack(vectors), tuple(str(file) for file in files), about)


def _read(file: Path) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:  # soundfile's own error is a RuntimeError
        raise DataError(f"{file}: no audio that can be read ({error}); take it out of the reference.") from None
    return mono(audio), int(rate)


def training_clips(ws: Workspace, names: Sequence[str], settings: MetricSettings) -> tuple[list[ClipRef], list[str]]:
    """(the clips that the versions' lineages were voted on in training, each once, and the snapshots they are from).

    More than the settings' most are thinned out evenly by their ids. What best-of-N or PPO sang on the way is in no
    snapshot and is not among them."""
    if not settings.training_clips:
        return [], []
    snapshots = {one.snapshot for name in names for one in lineage(ws.database, name) if one.snapshot}
    found: dict[str, ClipRef] = {}
    for snapshot in sorted(snapshots):
        frozen = load_snapshot(ws, snapshot).frozen
        for pair in frozen.split(Split.TRAIN):
            found |= {ref.clip_id: ref for ref in (pair.a, pair.b)}
        found |= {one.clip.clip_id: one.clip for one in frozen.ratings if one.split == Split.TRAIN}
    refs = [found[clip_id] for clip_id in sorted(found)]
    if len(refs) > settings.training_clips:
        refs = [refs[at] for at in np.linspace(0, len(refs) - 1, settings.training_clips).round().astype(int)]
    return refs, sorted(snapshots)
