"""Metrics of versions, measured on the same prompts with equally many clips and recorded with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.circle import learn
from alignment.circle.compare_figures import Found, Key, figures_of, in_order
from alignment.circle.compare_recipe import MetricSettings, Sampling
from alignment.circle.generate import Clips, generate_clips
from alignment.circle.measure import logprobs_with_base
from alignment.circle.references import describe_reference, load_reference, sampling, training_clips
from alignment.circle.workspace import Progress, Workspace, current_commit, no_progress
from alignment.db import comparisons, figures, runs
from alignment.db.base import utcnow
from alignment.db.comparisons import Comparison, NewComparison
from alignment.domain import Clip, ClipRef, GenerationConfig, Prompt, Version, canonical_sha256
from alignment.errors import DataError
from alignment.evaluation.fidelity import frechet_figure, kernel_distance, nearest_other
from alignment.evaluation.metrics import prompt_diversity
from alignment.evaluation.music_metrics import copies, sound_metrics, twins

if TYPE_CHECKING:
    from alignment.db.runs import RewardModelRecord

AT_ONCE = 64  # clips decoded from the store together


def resolved(ws: Workspace, names: Sequence[str], settings: MetricSettings) -> MetricSettings:
    """The settings with the way of singing filled in: what they leave open is as in the listening config of the first
    version that has one, under which win rates are reported too, else the default. Raises NotFoundError for an unknown
    version."""
    heard = [version.listening for version in map(ws.version, names) if version.listening is not None]
    whole = sampling(settings, heard[0] if heard else GenerationConfig())
    return settings.model_copy(update={"generation": Sampling(**asdict(whole))})


def sing_all(
    ws: Workspace, names: Sequence[str], prompts: Sequence[Prompt], settings: MetricSettings,
    progress: Progress = no_progress,
) -> dict[str, Clips]:  # fmt: skip
    """Each version's clips by prompt, all with the same settings and seeds; what is there is not sung again."""
    generation = sampling(resolved(ws, names, settings))
    out: dict[str, Clips] = {}
    each = len(prompts) * settings.clips_per_prompt
    for number, name in enumerate(names):
        out[name] = generate_clips(
            ws, name, prompts, generation, per_prompt=settings.clips_per_prompt,
            seed=settings.seed, progress=lambda done, _, n=number: progress(n * each + done, len(names) * each),
        )  # fmt: skip
    return out


def measure_versions(
    ws: Workspace, names: Sequence[str], *, prompts: Sequence[Prompt], settings: MetricSettings,
    name: str | None = None, job_id: str | None = None, progress: Progress = no_progress,
) -> Comparison:  # fmt: skip
    """Every metric of every version with its bootstrap interval, recorded in metric_result; n is equal for all.

    The same job id, or the same content, gives the rows that are there. Prompts are resampled as wholes. Raises
    DataError for fewer than two different versions or prompts, NotFoundError for an unknown one."""
    prompts = list({prompt.id: prompt for prompt in prompts}.values())
    if not names or len(set(names)) < len(names):
        raise DataError(f"Found the versions {', '.join(names) or '(none)'}; name each once.")
    if len(prompts) < 2:
        raise DataError(f"Found {len(prompts)} prompt; metrics with intervals need two or more. Give more prompts.")
    if job_id is not None:
        with ws.database.session(write=False) as s:
            known = comparisons.find_comparison(s, job_id=job_id)
        if known is not None:
            return known
    versions, settings = [ws.version(one) for one in names], resolved(ws, names, settings)
    asked = _asked(ws, versions, prompts, settings)
    digest = canonical_sha256(asked.content)
    name = name or _name(names, digest)
    with ws.database.session(write=False) as s:
        known = comparisons.find_comparison(s, name=name)
    if known is not None:
        if known.content_sha256 != digest:
            raise DataError(f"Comparison {name} exists with other content; choose another name.")
        return known
    found = _measure(ws, versions, prompts, settings, asked, progress)
    metrics, differences = figures_of(found, len(prompts), settings)
    with ws.database.session() as s:
        for model in asked.rewards:
            _record_scores(s, model, found)
        return comparisons.save_comparison(
            s,
            NewComparison(
                name=name, versions=tuple(names), clips=in_order(found, prompts), metrics=metrics,
                differences=differences, settings=settings.model_dump(mode="json"), about=asked.about,
                content_sha256=digest, job_id=job_id, commit=current_commit(),
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """Everything that a comparison rests on, resolved."""

    ws: Workspace  # with the CLAP that was asked
    rewards: tuple[RewardModelRecord, ...]
    training: list[ClipRef]
    reference: dict[str, Any] | None
    about: dict[str, Any]
    content: dict[str, Any]


def _asked(ws: Workspace, versions: Sequence[Version], prompts: Sequence[Prompt], settings: MetricSettings) -> _Asked:
    names = [version.name for version in versions]
    hearing = ws if settings.clap is None else replace(ws, _encoder=_encoder(settings.clap), _embeddings={})
    with ws.database.session(write=False) as s:
        if settings.reward_models is None:
            rewards = [one for one in runs.list_reward_models(s) if one.encoder == ws.encoder.name][-1:]
        else:
            rewards = [runs.get_reward_model(s, one) for one in dict.fromkeys(settings.reward_models)]
    count = len(prompts) * settings.clips_per_prompt
    reference = describe_reference(ws, names, count, settings)
    training, snapshots = training_clips(ws, names, settings)
    about = {
        "clap": hearing.encoder.name,
        "reference": reference,
        "reward_models": [
            {"name": one.name, "sha256": one.artefact_sha256, "simulated": one.simulated} for one in rewards
        ],
        "training_clips": len(training),
        "snapshots": snapshots,
        "prompts": len(prompts),
        "clips": count,
    }
    content = {
        "versions": [[one.name, one.base_sha256, one.adapter_sha256] for one in versions],
        "prompts": [prompt.sha256 for prompt in prompts],
        "settings": settings.model_dump(mode="json", exclude={"reference"}),
        "about": about,
    }
    return _Asked(hearing, tuple(rewards), training, reference, about, content)


def _encoder(source: str) -> Any:
    from alignment.rewards.encoder import ClapEncoder

    return ClapEncoder(source)


def _name(names: Sequence[str], digest: str) -> str:
    whole = "-vs-".join(names)
    return f"{whole if len(whole) <= 120 else f'{names[0]}-and-{len(names) - 1}-others'}-{digest[:8]}"


def _measure(
    ws: Workspace, versions: Sequence[Version], prompts: Sequence[Prompt], settings: MetricSettings, asked: _Asked,
    progress: Progress,
) -> dict[str, Found]:  # fmt: skip
    stages = _Stages(progress, 2 * len(versions) + 1)
    clips = {one.name: Found([]) for one in versions}
    for version in versions:
        sung = sing_all(ws, [version.name], prompts, settings, stages.next())[version.name]
        clips[version.name].clips = [clip for prompt in prompts for clip in sung[prompt.id]]
    reference = None
    step = stages.next()
    if asked.reference is not None:
        reference = load_reference(asked.ws, asked.reference, prompts, settings, step)
    heard = asked.ws.embed_audio([one.audio_sha256 for one in asked.training])
    training = np.stack([heard[one.audio_sha256] for one in asked.training]) if asked.training else None
    clap, texts = asked.ws.encoder.name, [prompt.text for prompt in prompts for _ in range(settings.clips_per_prompt)]
    labels = [str(prompt.id) for prompt in prompts for _ in range(settings.clips_per_prompt)]
    text = asked.ws.embed_text(texts)
    options = {"confidence": settings.confidence, "rounds": settings.rounds, "seed": settings.seed}
    for version in versions:
        own, step = clips[version.name], stages.next()
        vectors = asked.ws.embed_audio([clip.audio_sha256 for clip in own.clips])
        audio = np.stack([vectors[clip.audio_sha256] for clip in own.clips]).astype(np.float64)  # (n, D)
        own.values["clap_score", clap] = _cosine(audio, np.stack([text[one] for one in texts]))
        own.values["diversity", clap] = prompt_diversity(audio.reshape(len(prompts), settings.clips_per_prompt, -1))
        if reference is not None:
            against = (audio, labels, reference.embeddings, reference.prompts)
            model = f"{clap}, reference {reference.label}"
            own.sets["fad", model] = frechet_figure(*against, **options)
            own.sets["kernel_distance", model] = kernel_distance(*against, **options)
        if training is not None:
            ids = [str(clip.id) for clip in own.clips]
            nearest = nearest_other(audio, ids, training, [one.clip_id for one in asked.training])
            own.values["nearest_training", f"{clap}, {len(training)} clips"] = nearest
        own.values |= {(metric, None): found for metric, found in _sounds(ws, own.clips).items()}
        own.values |= _of_codes(ws, own.clips, asked.training)
        own.values |= _kl(ws, version, texts, own.clips, step)
        for record in asked.rewards:
            own.values |= _rewards(ws, record, prompts, own.clips)
    return clips


class _Stages:
    """One progress for several stages that take about as long."""

    def __init__(self, progress: Progress, count: int) -> None:
        self.progress, self.count, self.begun = progress, count, 0

    def next(self) -> Progress:
        self.begun += 1
        before = self.begun - 1
        self.progress(1000 * before, 1000 * self.count)
        return lambda done, total: self.progress(1000 * before + 1000 * done // max(1, total), 1000 * self.count)


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.maximum(lengths, 1e-12)


def _sounds(ws: Workspace, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {"clipping": [np.array([clip.facts.clipping_ratio for clip in clips])]}
    for start in range(0, len(clips), AT_ONCE):
        loaded = [ws.store.get_audio(clip.audio_sha256) for clip in clips[start : start + AT_ONCE]]
        for metric, values in sound_metrics(np.stack([audio for audio, _ in loaded]), loaded[0][1]).items():
            parts.setdefault(metric, []).append(values)
    return {metric: np.concatenate(found) for metric, found in parts.items()}


def _of_codes(ws: Workspace, clips: Sequence[Clip], training: Sequence[ClipRef]) -> dict[Key, np.ndarray]:
    codes = np.stack([learn.codes_of(ws, clip) for clip in clips])
    out: dict[Key, np.ndarray] = {("duplicates", None): twins(codes)}
    sampled = [(one.clip_id, ws.store.get_codes(one.codes_sha256)) for one in training if one.codes_sha256]
    frames = min((found.shape[1] for _, found in sampled), default=0)
    if frames:
        theirs = np.stack([found[:, :frames] for _, found in sampled])
        found = copies(codes, theirs)
        own = {name: at for at, (name, _) in enumerate(sampled)}
        for row in [at for at, clip in enumerate(clips) if found[at] and str(clip.id) in own]:
            # The very clip that was voted on is no copy of itself.
            found[row] = copies(codes[row : row + 1], np.delete(theirs, own[str(clips[row].id)], axis=0))[0]
        out["copied", f"{len(sampled)} clips"] = found
    return out


def _kl(
    ws: Workspace, version: Version, texts: Sequence[str], clips: Sequence[Clip], progress: Progress
) -> dict[Key, np.ndarray]:
    if version.adapter_uri is None:
        return {}  # it is its own base
    ours, base = logprobs_with_base(ws, version, list(zip(texts, clips, strict=True)), progress)
    return {("kl", None): (ours.astype(np.float64) - base).sum((1, 2))}


def _rewards(
    ws: Workspace, record: RewardModelRecord, prompts: Sequence[Prompt], clips: Sequence[Clip]
) -> dict[Key, np.ndarray]:
    model = learn.load_reward_model(ws, record.name)
    by_prompt: Clips = {}
    for clip in clips:
        by_prompt.setdefault(clip.prompt_id, []).append(clip)
    scores = learn.score_each(ws, model, prompts, by_prompt)
    out: dict[Key, np.ndarray] = {
        (f"reward_{head}", _called(record)): getattr(scores, head) for head in model.trained_heads
    }
    out["reward_uncertainty", _called(record)] = scores.uncertainty
    return out


def _called(record: RewardModelRecord) -> str:
    return f"{record.name} {record.artefact_sha256[:12]}"


def _record_scores(s: Any, record: RewardModelRecord, found: Mapping[str, Found]) -> None:
    """Keeps the preference scores by clip, where the gate's sentinel and the dashboard look for them."""
    for own in found.values():
        keys = [("reward_preference", _called(record)), ("reward_uncertainty", _called(record))]
        if keys[0] in own.values:
            told = zip(own.clips, own.values[keys[0]], own.values[keys[1]], strict=True)
            scores = {clip.id: (float(value), float(doubt)) for clip, value, doubt in told}
            figures.set_clip_scores(s, record.id, scores, utcnow())
