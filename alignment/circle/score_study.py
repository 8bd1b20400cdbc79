"""What a reward model makes of a study's clips, kept in the database: the web process loads no model."""

from __future__ import annotations

from collections import defaultdict

from alignment.circle.learn import load_reward_model, score_each
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.db import figures, runs
from alignment.db.base import utcnow
from alignment.db.clips import get_clips
from alignment.db.prompts import get_prompts
from alignment.db.studies import get_study
from alignment.errors import DataError


def score_study(ws: Workspace, reward_name: str, study_name: str, progress: Progress = no_progress) -> int:
    """How many clips of the study were scored; earlier scores of the same model are replaced.

    Raises NotFoundError for an unknown model or study, DataError when the study plays no clip."""
    with ws.database.session(write=False) as s:
        record = runs.get_reward_model(s, reward_name)
        clips = get_clips(s, figures.study_clip_ids(s, get_study(s, study_name).id))
        by_prompt = defaultdict(list)
        for clip in clips.values():
            by_prompt[clip.prompt_id].append(clip)
        prompts = list(get_prompts(s, list(by_prompt)).values())
    if not prompts:
        raise DataError(f"Study {study_name} plays no clip yet; there is nothing to score.")
    scores = score_each(ws, load_reward_model(ws, reward_name), prompts, by_prompt, progress)
    ordered = [clip.id for prompt in prompts for clip in by_prompt[prompt.id]]
    told = {
        clip: (float(preference), float(uncertainty))
        for clip, preference, uncertainty in zip(ordered, scores.preference, scores.uncertainty, strict=True)
    }
    with ws.database.session() as s:
        figures.set_clip_scores(s, record.id, told, utcnow())
    return len(told)
