"""A database with studies that have lived, and the admin pages over it, for the tests of the organisers' side."""

from __future__ import annotations

import random
import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from argon2 import PasswordHasher
from database_support import FACTS
from fastapi import FastAPI
from fastapi.testclient import TestClient

from alignment.clips import ClipStore
from alignment.db import clips, migrate, prompts, runs, studies, versions
from alignment.db.base import utcnow, uuid7
from alignment.db.engine import Database, open_database
from alignment.db.figures import set_clip_scores
from alignment.db.listening import add_session
from alignment.db.tables import (
    AssignmentRow,
    BattleRepeatRow,
    ClipRatingRow,
    ConsentRow,
    ListeningSessionRow,
    RaterRow,
    RatingItemRow,
)
from alignment.db.votes import insert_vote
from alignment.domain import Axis, BattleKind, GenerationConfig, Outcome, RaterKind, Side, Split, VoteDraft
from alignment.studies import StudyRecipe
from rating_app.admin import mount_admin

SECRET = "a secret for tests only"
PASSWORD = "four words easily kept"
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
WORDS = ("slow piano waltz", "bright marimba", "driving techno", "soft choir", "solo cello", "brass fanfare")
HOSTILE = "<script>window.injected=1</script><img src=x onerror=window.injected=1>"


@dataclass
class AdminSite:
    """The admin pages with what lies behind them."""

    database: Database
    store: ClipStore
    app: FastAPI
    admin: FastAPI
    study_id: uuid.UUID | None = None
    rating_id: uuid.UUID | None = None

    def client(self, name: str | None = "ada", *, scheme: str = "http") -> TestClient:
        """A browser; logged in unless ``name`` is None."""
        client = TestClient(self.app, base_url=f"{scheme}://admin.test", follow_redirects=False)
        if name is not None:
            answer = log_in(client, name)
            assert answer.status_code == 303, answer.text
        return client


def token_in(html: str) -> str:
    """The token of the page's forms."""
    return re.search(r'name="token" value="([0-9a-f]+)"', html)[1]


def log_in(client: TestClient, name: str, password: str = PASSWORD):
    page = client.get("/admin/login")
    return client.post("/admin/login", data={"token": token_in(page.text), "name": name, "password": password})


def post(client: TestClient, page: str, to: str, /, **values):
    """Posts to an address with the token that stands on ``page``."""
    return client.post(to, data={"token": token_in(client.get(page).text), **values})


def form_values(html: str) -> dict[str, list[str] | str]:
    """What a browser would send of the recipe form on a page as it stands."""
    form = html[html.index('class="recipe"') :]
    values: dict[str, list[str]] = {}
    for tag in re.findall(r"<input[^>]*>", form):
        name, kind = re.search(r'name="([^"]*)"', tag), re.search(r'type="([^"]*)"', tag)
        if name and (kind is None or kind[1] != "checkbox" or " checked" in tag) and " disabled" not in tag:
            value = re.search(r'value="([^"]*)"', tag)
            values.setdefault(name[1], []).append(value[1] if value else "on")
    for name, rest, options in re.findall(r'<select[^>]*name="([^"]*)"([^>]*)>(.*?)</select>', form, re.S):
        chosen = re.search(r'value="([^"]*)" selected', options) or re.search(r'value="([^"]*)"', options)
        if " disabled" not in rest:
            values[name] = [chosen[1]]
    for name, rest, text in re.findall(r'<textarea[^>]*name="([^"]*)"([^>]*)>(.*?)</textarea>', form, re.S):
        if " disabled" not in rest:
            values[name] = [text]
    return values


def admin_site(folder: Path, *, filled: bool = True, **options) -> AdminSite:
    """A fresh database under ``folder`` with accounts ada (admin) and olga (organiser), perhaps with studies."""
    url = f"sqlite:///{folder / 'attune.db'}"
    migrate.upgrade(url)
    database, store = open_database(url), ClipStore(str(folder / "store"))
    app = FastAPI()
    admin = mount_admin(app, database, store, secret=SECRET, **{"hasher": QUICK, **options})
    admin.state.accounts.add("ada", "admin", PASSWORD, actor="tests")
    admin.state.accounts.add("olga", "organiser", PASSWORD, actor="tests")
    site = AdminSite(database, store, app, admin)
    if filled:
        site.study_id, site.rating_id = fill_studies(database)
    return site


def fill_studies(database: Database, *, now: datetime | None = None, raters: int = 14) -> tuple[uuid.UUID, uuid.UUID]:
    """A pair study of three versions with checks of every kind, and a rating study; their ids."""
    now, rng = now or utcnow(), random.Random(11)
    skill = {"musicgen-small": 0.0, "dpo-7": 0.9, "expert-2": 0.35}
    names = list(skill)
    texts = [f"a {WORDS[i % 6]} in {'major' if i % 2 else 'minor'}, take {i // 6 + 1}" for i in range(18)] + [HOSTILE]
    with database.session() as s:
        for name in names:
            versions.add_version(s, name=name, base="folder", base_sha256="0" * 64)
        made = prompts.add_prompts(s, [(text, "tests", Split.TEST, {}) for text in texts])
        sung = {
            (clip.prompt_id, clip.version): clip
            for clip in clips.add_clips(
                s,
                [
                    clips.NewClip(p.id, v, GenerationConfig(), n, uuid.uuid5(p.id, v).hex * 2, None, FACTS)
                    for n, v in enumerate(names) for p in made
                ],
            )
        }  # fmt: skip
        recipe = StudyRecipe(
            name="Autumn listening", title="Which do you prefer?", versions=tuple(names), votes_per_pair=12,
            access="invited", onboarding={"background": ("musical_training",)},
        )  # fmt: skip
        study_id = _study(s, recipe)
        battles = studies.add_battles(
            s, study_id,
            [
                studies.NewBattle(p.id, sung[p.id, one].id, sung[p.id, two].id)
                for p in made for one, two in (names[:2], names[1:], names[::2])
            ]
            + [
                studies.NewBattle(p.id, sung[p.id, names[1]].id, sung[p.id, names[0]].id, BattleKind.GOLD, 1.0, 1)
                for p in made[:3]
            ],
        )  # fmt: skip
        version_of = {clip.id: clip.version for clip in sung.values()}
        taste = {clip.id: skill[clip.version] + rng.gauss(0, 0.8) for clip in sung.values()}
        for number in range(raters):
            rater = _rater(s, number, now, study_id)
            session = add_session(s, rater_id=rater, study_id=study_id, now=now - timedelta(hours=20))
            if number % 3:
                s.execute(
                    sa.update(ListeningSessionRow).where(ListeningSessionRow.id == session).values(finished_at=now)
                )
            when = now - timedelta(hours=rng.uniform(0.3, 18))
            heard = rng.sample(battles, 26)
            for count, battle in enumerate(heard):
                when += timedelta(seconds=rng.uniform(12, 40))
                lazy = number == raters - 1
                left_first = rng.random() < 0.5
                first = _vote(s, battle, session, left_first, taste, rng, when, lazy)
                if count % 9 == 4 and battle.kind == BattleKind.NORMAL:
                    again = studies.add_battles(
                        s, study_id,
                        [studies.NewBattle(battle.prompt_id, battle.clip_1_id, battle.clip_2_id, BattleKind.REPEAT)],
                    )[0]  # fmt: skip
                    s.execute(sa.insert(BattleRepeatRow).values(battle_id=again.id, assignment_id=first))
                    _vote(s, again, session, not left_first, taste, rng, when + timedelta(minutes=9), lazy)
        run_id = runs.add_train_run(s, kind="reward", snapshot_id=None, config={}, metrics={})
        model = runs.add_reward_model(
            s, name="reward-3", train_run_id=run_id, encoder="clap", heads=["preference"], calibration={},
            artefact_sha256="2" * 64, artefact_uri="rewards/3",
        )  # fmt: skip
        scores = {clip: (value * 0.6 + rng.gauss(0, 0.7), rng.uniform(0.2, 0.5)) for clip, value in taste.items()}
        set_clip_scores(s, model, scores, now)
        rating_id = _rating_study(s, names, sung, skill, made[:8], rng, now)
    assert set(version_of.values()) == set(names)
    return study_id, rating_id


def _study(s, recipe: StudyRecipe) -> uuid.UUID:
    return studies.create_study(
        s, name=recipe.name, versions=recipe.versions, questions=[axis.value for axis in recipe.questions],
        minimum_listening_seconds=recipe.minimum_listening_seconds, rater_kind=RaterKind.HUMAN, mode=recipe.mode,
        state="open", rules=recipe.model_dump(mode="json"),
    )  # fmt: skip


def _rater(s, number: int, now: datetime, study_id: uuid.UUID) -> uuid.UUID:
    rater = uuid.uuid5(uuid.NAMESPACE_OID, f"rater {number}")
    if s.get(RaterRow, rater) is None:
        training = ("none", "some", "professional")[min(number % 3, 2)] if number else "professional"
        s.add(
            RaterRow(
                id=rater, pseudonym=rater.hex * 2, cohort=None, consent_version="1", kind=RaterKind.HUMAN,
                status="active", created_at=now, background={"musical_training": training},
            )
        )  # fmt: skip
        s.flush()
    s.execute(
        sa.insert(ConsentRow).values(
            id=uuid7(), rater_id=rater, study_id=study_id, text_version="1", training=True,
            publication=number % 4 != 3, created_at=now,
        )
    )  # fmt: skip
    return rater


def _vote(s, battle, session, left_is_1, taste, rng, when, lazy) -> uuid.UUID:
    """One vote by someone who hears the clips' worth with noise; a lazy one picks A and is quick."""
    left, right = battle.clip_1_id, battle.clip_2_id
    left, right = (left, right) if left_is_1 else (right, left)
    gap = taste[left] - taste[right] + 0.12 + rng.gauss(0, 0.7)
    outcome = Outcome.A if gap > 0.2 else Outcome.B if gap < -0.2 else Outcome.TIE
    if rng.random() < 0.04:
        outcome = rng.choice([Outcome.BOTH_BAD, Outcome.SKIP, Outcome.FAULT])
    assignment = uuid7()
    s.execute(
        sa.insert(AssignmentRow).values(
            id=assignment, battle_id=battle.id, session_id=session, left_is_clip_1=left_is_1, first_side=Side.LEFT,
            nonce=uuid.uuid4().hex, served_at=when, expires_at=when + timedelta(days=1),
        )
    )  # fmt: skip
    draft = VoteDraft(
        assignment_id=assignment, idempotency_key=uuid.uuid4().hex, outcome=Outcome.A if lazy else outcome,
        axes={Axis.QUALITY: max(-2, min(2, round(-gap)))}, heard_left_seconds=3.5, heard_right_seconds=3.0, switches=3,
        decision_ms=900 + rng.randrange(300) if lazy else rng.randrange(6000, 30000),
        comment="The hi-hat hisses." if rng.random() < 0.1 else None,
    )  # fmt: skip
    insert_vote(s, draft, session_id=session, battle_id=battle.id, revision=1, now=when)
    return assignment


def _rating_study(s, names, sung, skill, made, rng, now) -> uuid.UUID:
    recipe = StudyRecipe(
        name="Absolute quality", mode="rating", versions=tuple(names), scales=("quality", "relevance", "mos"),
        votes_per_pair=6,
    )  # fmt: skip
    study_id = _study(s, recipe)
    kinds = {"musicgen-small": "normal", "dpo-7": "normal", "expert-2": "normal"}
    for prompt in made:
        for name in names:
            # Two prompts' clips stand in for reference and anchor.
            kind = {made[0].id: "reference", made[1].id: "anchor"}.get(prompt.id, kinds[name])
            s.add(
                RatingItemRow(
                    id=uuid7(), study_id=study_id, prompt_id=prompt.id, clip_id=sung[prompt.id, name].id, kind=kind,
                    created_at=now,
                )
            )  # fmt: skip
    s.flush()
    for number in range(6):
        rater = _rater(s, number, now, study_id)
        session = add_session(s, rater_id=rater, study_id=study_id, now=now - timedelta(hours=2))
        for prompt in made:
            for name in names:
                base = {made[0].id: 88, made[1].id: 25}.get(prompt.id, 52 + 18 * skill[name])
                if number == 5 and prompt.id in (made[0].id, made[1].id):
                    base = 50  # someone who hears no difference
                value = round(max(1, min(100, rng.gauss(base, 9))))
                s.execute(
                    sa.insert(ClipRatingRow).values(
                        id=uuid7(), session_id=session, clip_id=sung[prompt.id, name].id, quality=value,
                        relevance=max(1, min(100, value + rng.randrange(-9, 9))), mos=1 + round(4 * value / 100),
                        idempotency_key=uuid.uuid4().hex, created_at=now - timedelta(minutes=rng.randrange(200)),
                        heard_seconds=4.0, decision_ms=7000,
                    )
                )  # fmt: skip
    return study_id
