"""The panel of held-out listeners: few votes a pair, one taste for all contests, and what carries a gain in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from alignment.circle import demo_report, listen, measure, methods
from alignment.circle.align import Pool
from alignment.circle.contest import Panel
from alignment.circle.measure import Contestant
from alignment.circle.workspace import Workspace
from alignment.clips import ClipStore
from alignment.config import DemoSettings
from alignment.domain import RaterKind, Split
from alignment.errors import DataError
from alignment.simulation.captions import ATTRIBUTE_VALUES
from alignment.simulation.listeners import load_listeners
from tests.database_support import fill, sqlite_database, sqlite_url  # noqa: F401


@dataclass(frozen=True)
class Heard:
    """A judgement of a clip that is asked for nothing and as clean as given."""

    cleanliness: float

    @property
    def faults(self):
        return {"noise": 1 - self.cleanliness, "clipping": 0.0}

    @property
    def attributes(self):
        return {name: dict.fromkeys(values, 1 / len(values)) for name, values in ATTRIBUTE_VALUES.items()}

    def adherence(self, tags):
        return 0.5


def hall(database, tmp_path: Path, battles: int, clean: dict[str, float], **more) -> tuple[Panel, object]:
    """A panel that has heard ``battles`` prompts, each sung by "base" and "tuned" as clean as said."""
    filled = fill(database, battles=battles)
    ws = Workspace(database, ClipStore(str(tmp_path / "store")), "a secret for tests")
    heard = {clip.audio_sha256: Heard(clean[clip.version]) for clip in filled.clips}
    return Panel(ws, None, **({"raters": 5, "seed": 1, "heard": heard} | more)), filled


def sides(filled) -> tuple[dict, dict]:
    by_version = {name: {} for name in ("base", "tuned")}
    for clip in filled.clips:
        by_version[clip.version][clip.prompt_id] = clip
    return by_version["base"], by_version["tuned"]


def votes_a_pair(ws: Workspace, study: str) -> Counter:
    return Counter(frozenset((r.left.clip_id, r.right.clip_id)) for r in listen.votes_of(ws, study))


def test_no_pair_gets_more_votes_than_its_share_however_many_are_asked_for(sqlite_database, tmp_path):  # noqa: F811
    panel, filled = hall(sqlite_database, tmp_path, 4, {"base": 0.4, "tuned": 0.9})
    rate = panel.contest("contest", "tuned", *sides(filled), votes=20)
    assert rate.votes == 12 and set(votes_a_pair(panel.ws, "contest").values()) == {3}
    assert (rate.prompts, rate.opponents, rate.value > 0.6) == (4, ("tiny-base",), True)
    with pytest.raises(DataError, match="contest has votes already"):
        panel.contest("contest", "tuned", *sides(filled), votes=20)


def test_without_a_cap_every_listener_hears_every_pair(sqlite_database, tmp_path):  # noqa: F811
    panel, filled = hall(sqlite_database, tmp_path, 4, {"base": 0.5, "tuned": 0.5})
    listen.open_study(panel.ws, "open", listen.pairs_across(*sides(filled)), rater_kind=RaterKind.SIMULATED)
    saved = listen.simulate_votes(
        panel.ws, "open", load_listeners(), judge=None, raters=5, votes=99, seed=1, heard=panel.heard
    )
    assert saved == 20 and set(votes_a_pair(panel.ws, "open").values()) == {5}


def test_a_version_whose_clips_sound_as_the_bases_cannot_be_compared(sqlite_database, tmp_path):  # noqa: F811
    panel, filled = hall(sqlite_database, tmp_path, 4, {"base": 0.5, "tuned": 0.5})
    base, _ = sides(filled)
    with pytest.raises(DataError, match="has no pairs to compare"):
        panel.contest("same", "tuned", base, base, votes=8)


def test_judge_reward_is_the_panels_mean_utility_and_hears_no_clip_twice(sqlite_database, tmp_path):  # noqa: F811
    panel, filled = hall(sqlite_database, tmp_path, 3, {"base": 0.4, "tuned": 0.9})
    base, tuned = sides(filled)
    assert panel.cleanliness(filled.prompts, tuned) == pytest.approx([0.9] * 3)
    gained = panel.rewards(filled.prompts, tuned) - panel.rewards(filled.prompts, base)
    weights = [listener.profile.cleanliness_weight for listener in panel._members]
    assert gained == pytest.approx([0.5 * np.mean(weights)] * 3)  # all else is equal
    assert len(panel._members) == 5
    found = methods.judged(panel, "tuned", "tuned", filled.prompts, tuned).figures()
    assert (found["fault_noise"], found["fault_clipping"]) == (pytest.approx(0.1), 0.0)


def test_best_of_n_chooses_from_the_first_n_of_one_pool_and_only_the_largest_meets_the_base(
    sqlite_database,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    panel, filled = hall(sqlite_database, tmp_path, 2, {"base": 0.4, "tuned": 0.9})
    base, tuned = sides(filled)
    clips = {p.id: [base[p.id], tuned[p.id], base[p.id], tuned[p.id]] for p in filled.prompts}
    scores = np.array([[0.0, 1.0, 9.0, 2.0], [5.0, 1.0, 2.0, 9.0]])
    pool = Pool(filled.prompts, clips, scores, scores[None])
    met = []
    monkeypatch.setattr(Panel, "contest", lambda self, study, *_: met.append(study))
    two, four = methods.best_of_contestants(panel, pool, base, votes=4)
    one, other = (p.id for p in filled.prompts)
    assert (two.clips[one], two.clips[other]) == (tuned[one], base[other])
    assert (four.clips[one], four.clips[other]) == (base[one], tuned[other])
    assert (two.kl_bound, four.kl_bound) == pytest.approx((np.log(2) - 0.5, np.log(4) - 0.75))
    assert met == ["demo-best-of-4"]


def test_a_pool_of_one_split_keeps_rows_and_scores_together(sqlite_database, tmp_path):  # noqa: F811
    _, filled = hall(sqlite_database, tmp_path, 4, {"base": 0.4, "tuned": 0.9})
    prompts = [replace(p, split=Split.VALID if n % 2 else Split.TRAIN) for n, p in enumerate(filled.prompts)]
    scores = np.arange(8.0).reshape(4, 2)
    valid = Pool(prompts, {}, scores, np.stack([scores, -scores])).of(Split.VALID)
    assert valid.prompts == [prompts[1], prompts[3]]
    assert valid.scores.tolist() == [[2, 3], [6, 7]] and valid.members[1].tolist() == [[-2, -3], [-6, -7]]


def contestant(name: str, cleanliness: float, adherence: float, rate: float | None = None) -> Contestant:
    jitter = 0.01 * np.sin(np.arange(40))
    return Contestant(
        name, name, {}, np.zeros(40), adherence + 0 * jitter, cleanliness + jitter,
        faults={"noise": 1 - cleanliness - jitter, "clipping": 0 * jitter},
        rate=None if rate is None else SimpleNamespace(value=rate),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cleanliness", "adherence", "said"),
    [
        (0.7, 0.5, "cleanliness +0.100 [+0.100, +0.100], adherence +0.000"),
        (0.7, 0.5, "What improved is cleaner sound."),
        (0.7, 0.5, "Faults that changed: noise -0.100 [-0.100, -0.100]. Beside it"),
        (0.7, 0.6, "What improved is cleaner sound and following captions."),
        (0.6, 0.4, "Neither is shown to have improved."),
    ],
)
def test_the_report_says_what_carries_the_gain_and_how_the_others_fared(cleanliness, adherence, said):
    field = [contestant("tiny-base", 0.6, 0.5), contestant("best-of-4", 0.7, 0.5, 0.6),
             contestant("tiny-dpo", cleanliness, adherence, 0.65)]  # fmt: skip
    turned = demo_report.Turned(DemoSettings(), Path(), False, None, None, [], {}, 0.0, contestants=field)
    words = demo_report.carries(turned)
    assert said in words and "n = 40" in words and words.endswith("by the same listeners: best-of-4 60.0%.")


def test_an_attribute_that_no_caption_asks_for_has_no_figure(sqlite_database, tmp_path):  # noqa: F811
    _, filled = hall(sqlite_database, tmp_path, 2, {"base": 0.4, "tuned": 0.9})
    assert measure.followed("lead", filled.prompts, {}, {}) is None
