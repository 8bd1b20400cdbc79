"""Studies in every mode over fake clips, and a worker that sings without a model, for the tests of the journey."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from app_support import CLIP_SECONDS, PROMPTS, RATE_HZ, SECRET, Site, fake_music, filled_folder

from alignment.clips import ClipStore
from alignment.db.clips import NewClip
from alignment.db.engine import open_database
from alignment.requests import RequestQueue
from alignment.studies import StudyRecipe, create_study_from_recipe
from rating_app.app import create_app

VERSIONS = ("secret-base", "secret-aligned")
NOTHING_BEFORE = {"level_check": False, "headphone_check": "off", "practice_pairs": 0}


def a_recipe(name: str, **changes: object) -> StudyRecipe:
    """A study of both fake versions; ``changes`` go over a recipe with little to hear and nothing asked beforehand."""
    told = {
        "name": name,
        "versions": VERSIONS[:2],
        "minimum_listening_seconds": 0.4,
        "onboarding": NOTHING_BEFORE,
        "pacing": {"break_every": 0},
        **changes,
    }
    return StudyRecipe.model_validate(told)


@contextmanager
def open_studies(
    folder: Path, *recipes: StudyRecipe, with_page: bool = False, seconds: float = CLIP_SECONDS,
    prompts: tuple[str, ...] = PROMPTS, **options: object,
) -> Iterator[Site]:  # fmt: skip
    """A fresh database with these studies, all open, and the app over them; the first one is the default."""
    shutil.copytree(filled_folder(seconds, prompts), folder, dirs_exist_ok=True)
    database, store = open_database(f"sqlite:///{folder / 'attune.db'}"), ClipStore(str(folder / "store"))
    try:
        for recipe in recipes:
            create_study_from_recipe(database, store, recipe, actor="tests", state="open")
        app = create_app(database, store, secret=SECRET, study_name=recipes[0].name, with_page=with_page, **options)
        yield Site(database, store, recipes[0].name, app)
    finally:
        database.close()


class FakeWorker:
    """Takes requests as a worker does, step by step, and sings them with arithmetic."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.queue = RequestQueue(site.database, worker="a worker of the tests")
        self.request = None

    def claim(self) -> bool:
        """Takes the next request; False when none waits."""
        self.request = self.queue.claim()
        return self.request is not None

    def progress(self, share: float) -> None:
        assert self.queue.beat(self.request, share)

    def finish(self) -> None:
        """Sings both clips, the same ones for the same prompt."""
        clips = []
        for number, version in enumerate(self.request.versions):
            seed = self.request.seed % 1000 + number
            audio: np.ndarray = fake_music(seed, self.request.generation.clip_seconds)
            sha256, facts = self.site.store.put_audio(audio, RATE_HZ)
            clips.append(NewClip(self.request.prompt_id, version, self.request.generation, seed, sha256, None, facts))
        assert self.queue.finish(self.request, clips)

    def fail(self) -> None:
        assert self.queue.give_up(self.request, "out of memory", for_good=True) == "failed"
