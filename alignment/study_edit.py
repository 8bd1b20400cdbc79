"""Changing a study that nobody has heard yet."""

from __future__ import annotations

import sqlalchemy as sa

from alignment.db.engine import Database
from alignment.db.figures import count_sessions
from alignment.db.people import add_audit
from alignment.db.studies import get_study
from alignment.db.tables import StudyRow
from alignment.errors import DataError
from alignment.studies import StudyRecipe, rules_of

# What the pairs were drawn by: another choice is another study.
FIXED = ("name", "mode", "versions", "prompt_set", "pairs", "shares")


def edit_draft(database: Database, name: str, recipe: StudyRecipe, *, actor: str) -> None:
    """Gives a draft another recipe, but for what its pairs were drawn by; writes an audit line.

    Raises DataError when the study is no draft, has been heard, or one of FIXED would change, and NotFoundError."""
    with database.session() as s:
        study = get_study(s, name)
        old = rules_of(study)
        if study.state != "draft" or count_sessions(s, study.id)[0]:
            raise DataError(f"Study {name} is {study.state} and may have been heard; copy it to a new study instead.")
        other = [field for field in FIXED if getattr(old, field) != getattr(recipe, field)]
        if other:
            raise DataError(
                f"The pairs of {name} were drawn by its {', '.join(FIXED[1:])}; found another {', '.join(other)}. "
                "Copy it to a new study instead."
            )
        rules = recipe.model_dump(mode="json")
        s.execute(
            sa.update(StudyRow)
            .where(StudyRow.id == study.id)
            .values(
                rules=rules,
                questions=[axis.value for axis in recipe.questions],
                minimum_listening_seconds=recipe.minimum_listening_seconds,
                reveal=recipe.reveal,
            )
        )
        add_audit(s, actor=actor, action="study.edit", subject=name, before=old.model_dump(mode="json"), after=rules)
