"""Absolute ratings as a snapshot needs them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.tables import (
    ClipRatingRow,
    ClipRow,
    ListeningSessionRow,
    PromptRow,
    RaterRow,
    RatingItemRow,
    VersionRow,
)
from alignment.db.votes import may_train
from alignment.domain import ANCHOR_BASE, ClipRef, RatedClip


def counted_ratings(s: Session, *, study_ids: Sequence[uuid.UUID]) -> list[RatedClip]:
    """The studies' ratings that may train a model, in the order of their saving.

    Left out: raters who withdrew, raters whose last consent in the study refuses training, and the hidden references
    and anchors, which check the rater."""
    query = (
        sa.select(
            ClipRatingRow, PromptRow.id, PromptRow.text, PromptRow.split, ClipRow.id, VersionRow.name,
            ClipRow.audio_sha256, ClipRow.codes_sha256, RaterRow.id, RaterRow.kind, RaterRow.cohort,
        )
        .join(ListeningSessionRow, ClipRatingRow.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .join(ClipRow, ClipRatingRow.clip_id == ClipRow.id)
        .join(VersionRow, ClipRow.version_id == VersionRow.id)
        .join(
            RatingItemRow,
            sa.and_(RatingItemRow.clip_id == ClipRow.id, RatingItemRow.study_id == ListeningSessionRow.study_id),
        )
        .join(PromptRow, RatingItemRow.prompt_id == PromptRow.id)
        .where(
            ListeningSessionRow.study_id.in_(list(study_ids)),
            RatingItemRow.kind == "normal",
            VersionRow.base != ANCHOR_BASE,
            RaterRow.status != "withdrawn",
            sa.func.coalesce(may_train(RaterRow.id, ListeningSessionRow.study_id), sa.true()),
        )
        .order_by(ClipRatingRow.id)
    )  # fmt: skip
    return [
        RatedClip(
            str(row.id), str(prompt), text, split, ClipRef(str(clip), version, audio, codes), row.quality,
            row.relevance, row.mos, str(rater), kind, cohort,
        )
        for row, prompt, text, split, clip, version, audio, codes, rater, kind, cohort in s.execute(query)
    ]  # fmt: skip
