"""Whether the votes can be trusted to align anything: a reward model's accuracy on prompts it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alignment.circle.learn import NamedSnapshot, outside_contests
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.config import RewardSettings
from alignment.evaluation.intervals import Interval, clustered_share

NOT_TRAINED = "not trained"
REFUSAL = "The votes carry no signal the reward model can find, so nothing was trained."


@dataclass(frozen=True)
class Trust:
    """Cross-validated accuracy of each head over all decisive votes, clustered by rater and prompt."""

    accuracy: Mapping[str, Interval]
    folds: int

    @property
    def passed(self) -> bool:
        """Whether the preference head is better than chance: its interval lies above one half."""
        return self.accuracy["preference"].low > 0.5


def measure_trust(
    ws: Workspace, snapshot: NamedSnapshot, settings: RewardSettings, folds: int, progress: Progress = no_progress
) -> Trust:
    """Train a reward model a fold, each time on the other prompts, and ask it about the votes left out.

    All of the snapshot's votes take part, since a single test split has too few to tell a weak signal from none; only
    what was said in contests trains nothing, here neither."""
    from alignment.rewards.train import cross_validate

    pairs, ratings = outside_contests(snapshot.frozen.pairs), outside_contests(snapshot.frozen.ratings)
    heard = [ref for pair in pairs for ref in (pair.a, pair.b)] + [one.clip for one in ratings]
    audio = ws.embed_audio([ref.audio_sha256 for ref in heard])
    text = ws.embed_text([one.prompt_text for one in (*pairs, *ratings)])
    tested, agreement = cross_validate(pairs, audio, text, settings, folds=folds, ratings=ratings, on_progress=progress)
    raters, prompts = [pair.rater_id for pair in tested], [pair.prompt_id for pair in tested]
    return Trust({head: clustered_share(values, raters, prompts) for head, values in agreement.items()}, folds)
