"""A workspace with a tiny random base, an adapter on it, simulated votes on the base's clips and a reward model."""

from __future__ import annotations

from pathlib import Path

from music_support import make_tiny_music, randomise_adapter, save_tiny_music

from alignment.circle import learn, listen
from alignment.circle.generate import generate_clips
from alignment.circle.workspace import Workspace
from alignment.config import LoraSettings, RewardSettings, Settings
from alignment.db import migrate, prompts
from alignment.domain import GenerationConfig, Prompt, RaterKind, Split
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import load_listeners
from alignment.versions import register_adapter, register_base

SECONDS = 0.5
TRAINED_ON = ("a calm piano melody", "a fast organ song", "slow bright strings", "a dark synth tune")
ASKED = ("a lively flute song", "a gentle guitar melody", "a trumpet piece in minor", "a slow marimba tune")


def open_home(folder: Path) -> Workspace:
    settings = Settings.from_environment(database=f"sqlite:///{folder / 'attune.db'}", store=str(folder / "store"))
    migrate.upgrade(settings.database_url)
    return Workspace.open(settings)


def make_home(folder: Path) -> tuple[Workspace, list[Prompt]]:
    """(the workspace, prompts to compare on): versions base and v1, snapshot votes-1, reward model likes-1."""
    ws = open_home(folder)
    base = save_tiny_music(folder / "base")
    sha256 = ws.base_model(str(base)).base_sha256
    parent = register_base(ws.database, name="base", base=str(base), base_sha256=sha256)
    with ws.database.session() as s:
        seen = prompts.add_prompts(s, [(text, "test", Split.TRAIN, {"mode": "minor"}) for text in TRAINED_ON])
        asked = prompts.add_prompts(s, [(text, "test", Split.LEADERBOARD, {}) for text in ASKED])
    clips = generate_clips(ws, "base", seen, GenerationConfig(clip_seconds=SECONDS), per_prompt=3, seed=0)
    listen.open_study(ws, "first", listen.pairs_within(clips, 12, 0), rater_kind=RaterKind.SIMULATED)
    listen.simulate_votes(ws, "first", load_listeners(), judge=Judge(), raters=2, votes=24, seed=0)
    snapshot = learn.take_snapshot(ws, "votes-1", ["first"])
    learn.train_reward_model(ws, "likes-1", snapshot, RewardSettings(epochs=2, ensemble=2, hidden=8))
    model = make_tiny_music()
    model.add_adapter(LoraSettings(r=2, lora_alpha=4))
    randomise_adapter(model)
    model.save_adapter(folder / "adapter")
    register_adapter(
        ws.database, ws.store, name="v1", parent=parent, adapter=folder / "adapter", commit=None, simulated=True,
        run={"kind": "dpo", "snapshot_id": snapshot.id, "config": {}, "metrics": {}, "seconds": 1.0},
    )  # fmt: skip
    return ws, asked
