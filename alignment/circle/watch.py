"""The watch over a run: at each look the policy sings held-out prompts, and everything heard of them is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from alignment.circle.generate import clip_seed
from alignment.domain import GenerationConfig, Prompt
from alignment.errors import DataError, StoreError
from alignment.evaluation.metrics import bootstrap_mean
from alignment.evaluation.music_metrics import sound_metrics, twins
from alignment.evaluation.overoptimisation import Look

if TYPE_CHECKING:
    from alignment.music.model import MusicModel
    from alignment.rewards.scorers import SharedEncoder, WeightedScorer

BATCH = 32
LOOK_SEED = 7_000_000  # other clips than training's: its seeds are small


@dataclass(frozen=True)
class Scorers:
    """The reward that is optimised, the same reward learnt from others, and the encoder that both share."""

    proxy: WeightedScorer
    held_out: WeightedScorer
    encoder: SharedEncoder


class RunWatch:
    """A ``Watch`` that sings the same held-out prompts with the same random numbers at every look.

    Each look is written to ``folder`` with its codes, so that the gold judge may hear them once, at the end. What it
    returns: held_out_reward and proxy_reward (with their intervals, ..._low and ..._high) and each of their parts,
    kl (nats a clip, to the base), diversity, duplicates, and the ``sound_metrics``, means over clips."""

    def __init__(
        self, prompts: Sequence[Prompt], scorers: Scorers, generation: GenerationConfig, folder: Path, *,
        clips_per_prompt: int, seed: int,
    ) -> None:  # fmt: skip
        if not prompts:
            raise DataError("There are no held-out prompts to watch; the snapshot's other half has none.")
        self.prompts, self.scorers, self.generation, self.folder = list(prompts), scorers, generation, folder
        self.clips_per_prompt, self.seed = clips_per_prompt, seed

    def __call__(self, step: int, model: MusicModel) -> Mapping[str, float]:
        look = self.look(step, model)
        write_look(look, self.folder)
        texts = [prompt.text for prompt in self.prompts]
        out = {name: float(values.mean()) for name, values in look.values.items()}
        for name in ("held_out_reward", "proxy_reward"):
            clusters = [text for text in texts for _ in range(look.values[name].shape[1])]
            found = bootstrap_mean(look.values[name].ravel(), clusters)
            out |= {f"{name}_low": found.low, f"{name}_high": found.high}
        return out

    def look(self, step: int, model: MusicModel, *, clips_per_prompt: int | None = None) -> Look:
        """Everything heard of the policy as it is now; the pool of best-of-N is a look with more clips a prompt."""
        from alignment.music.codec import decode
        from alignment.music.sampler import sample
        from alignment.music.text import encode_prompts

        each = clips_per_prompt or self.clips_per_prompt
        asked = [prompt for prompt in self.prompts for _ in range(each)]
        texts = [prompt.text for prompt in asked]
        seeds = [clip_seed(LOOK_SEED + self.seed, prompt, index % each) for index, prompt in enumerate(asked)]
        found: dict[str, list[np.ndarray]] = {}
        codes = []
        for start in range(0, len(asked), BATCH):
            part = slice(start, start + BATCH)
            rollout = sample(model, texts[part], generation=self.generation, seeds=seeds[part])
            audio = decode(model, rollout.codes)  # (b, samples)
            with torch.no_grad(), model.reference():
                text = encode_prompts(model, texts[part])
                base = model.logprobs(rollout.codes, text, generation=self.generation).cpu()  # (b, K, T)
            measured = self._scores(texts[part], audio, model.sample_rate_hz) | sound_metrics(
                audio, model.sample_rate_hz
            )
            # Sampler and trainer agree to some 1e-5 nats a clip; finer digits would be theirs, not the policy's.
            measured["kl"] = (rollout.logprobs.double() - base.double()).sum((1, 2)).numpy().round(3)
            measured["embedding"] = self.scorers.encoder.audio(audio, model.sample_rate_hz)
            for name, values in measured.items():
                found.setdefault(name, []).append(values)
            codes.append(rollout.codes.numpy())
        whole = {name: np.concatenate(values) for name, values in found.items()}
        shape = (len(self.prompts), each)
        sung = np.concatenate(codes)
        embedding = whole.pop("embedding").reshape(*shape, -1).astype(np.float64)
        values = {name: values.reshape(shape) for name, values in whole.items()}
        values["diversity"] = _distances(embedding)
        values["duplicates"] = twins(sung).reshape(shape)
        return Look(step, values, sung.reshape(*shape, *sung.shape[1:]))

    def _scores(self, texts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> dict[str, np.ndarray]:
        out = {}
        for name, scorer in (("proxy", self.scorers.proxy), ("held_out", self.scorers.held_out)):
            total, parts = scorer.score_parts(texts, audio, sample_rate_hz)
            out[f"{name}_reward"] = total
            out |= {f"{name}/{part}": values for part, values in parts.items()} if len(parts) > 1 else {}
        return out


def _distances(embedding: np.ndarray) -> np.ndarray:
    """(P, n): mean cosine distance of each clip to the others of its prompt, embedding (P, n, D)."""
    units = embedding / np.maximum(np.linalg.norm(embedding, axis=-1, keepdims=True), 1e-12)
    others = units.shape[1] - 1
    cosine = np.einsum("pnd,pmd->pnm", units, units).sum(-1) - 1.0
    return 1.0 - cosine / others if others else np.zeros(units.shape[:2])


def write_look(look: Look, folder: Path) -> None:
    """One look as ``look-STEP.npz``, whole or not at all. Raises StoreError when there is no room."""
    path = folder / f"look-{look.step:06d}.npz"
    temporary = folder / f".{path.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            names = json.dumps(sorted(look.values))
            arrays = {f"value{i}": look.values[name] for i, name in enumerate(sorted(look.values))}
            np.savez_compressed(file, codes=look.codes.astype(np.uint16), names=np.array(names), **arrays)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: what the watch heard cannot be written ({error}); free space.") from None


def read_looks(folder: Path, *, up_to: int | None = None) -> list[Look]:
    """The looks of a run in the order of their steps. Raises StoreError when one is damaged."""
    looks = []
    for path in sorted(folder.glob("look-*.npz")):
        try:
            with np.load(path) as file:
                names = json.loads(str(file["names"]))
                values = {name: file[f"value{i}"] for i, name in enumerate(names)}
                looks.append(Look(int(path.stem.removeprefix("look-")), values, file["codes"].astype(np.int64)))
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{path}: damaged ({error}); run the stage again in an empty folder.") from None
    return [look for look in looks if up_to is None or look.step <= up_to]
