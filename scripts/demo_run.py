"""One demo in a process of its own, on clips and votes that are made once a seed and then shared.

    SEED/prepared.db      the base's clips and the votes, before anything is trained
    SEED/store/           the clips of every run of that seed
    SEED/NAME/            one run: attune.db (begun as a copy of prepared.db), summary.json, report.html

Called by scripts/check_demo.py and scripts/sweep_demo.py, not by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def copy_database(source: Path, target: Path) -> None:
    """A whole copy of an SQLite database, write-ahead log included; it appears in one move."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(partial)) as new:
        old.backup(new)
    partial.replace(target)


def write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def open_folder(home: Path, store: Path):
    """The workspace of a run's folder, its database upgraded."""
    from alignment.circle.workspace import Workspace
    from alignment.config import Settings
    from alignment.db import migrate

    home.mkdir(parents=True, exist_ok=True)
    where = Settings.from_environment(database=f"sqlite:///{home / 'attune.db'}", store=str(store))
    migrate.upgrade(where.database_url)
    return Workspace.open(where)


@contextmanager
def quiet_bar(name: str):
    """No bar; a line on stderr when a stage is done."""
    began = time.monotonic()
    yield lambda done, total: None
    print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def use_recipe(out: Path, text: str) -> Path:
    """The recipe kept with the runs; ConfigError when the folder's runs were made with another."""
    from alignment.errors import ConfigError

    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.yaml"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{out} holds runs of another recipe ({path}); give another --out.")
    path.write_text(text, encoding="utf-8")
    return path


def prepare_seed(folder: Path, settings) -> None:
    """``prepared.db`` and ``prepared.json`` of a seed, made from nothing unless they are there."""
    from alignment.circle.demo import prepare

    if (folder / "prepared.json").exists():
        return
    shutil.rmtree(folder / "preparing", ignore_errors=True)
    ws = open_folder(folder / "preparing", folder / "store")
    began = time.monotonic()
    try:
        stages = prepare(ws, settings, quiet_bar)
    finally:
        ws.database.close()
    copy_database(folder / "preparing" / "attune.db", folder / "prepared.db")
    write_json(folder / "prepared.json", {"stages": stages, "seconds": time.monotonic() - began})
    shutil.rmtree(folder / "preparing")


def run_one(folder: Path, name: str, settings, *, shuffle_seed: int | None) -> dict[str, Any]:
    """The summary of one run of a prepared seed, from an empty folder; it is kept in summary.json.

    ``wall_seconds`` counts the shared preparation too: what the demo takes on its own."""
    from alignment.circle.demo import run_demo

    home = folder / name
    shutil.rmtree(home, ignore_errors=True)
    copy_database(folder / "prepared.db", home / "attune.db")
    ws = open_folder(home, folder / "store")
    try:
        summary = run_demo(ws, settings, home, shuffle_seed=shuffle_seed, bar=quiet_bar).summary
    finally:
        ws.database.close()
    prepared = json.loads((folder / "prepared.json").read_text())
    summary |= {
        "run": name, "shuffle_seed": shuffle_seed,
        "wall_seconds": round(summary["seconds"] + prepared["seconds"], 1),
    }  # fmt: skip
    write_json(home / "summary.json", summary)
    return summary


def collect_pool(ws, settings):
    """(what was voted on, the snapshot of its votes): made where they are missing, else found."""
    from alignment.circle import learn
    from alignment.circle.demo import Clock, collect_votes
    from alignment.db.snapshots import list_snapshots

    voted = collect_votes(ws, settings, Clock(quiet_bar))
    with ws.database.session(write=False) as s:
        known = {snapshot.name for snapshot in list_snapshots(s)}
    if "demo" in known:
        return voted, learn.load_snapshot(ws, "demo")
    return voted, learn.take_snapshot(ws, "demo", ["demo-votes"], both_bad=settings.reward.both_bad)


def load_pool(ws, reward, voted, path: Path):
    """The base's clips with their scores, read from a file of scores where there is one, else written to it."""
    import numpy as np

    from alignment.circle.align import Pool, score_pool

    if path.exists():
        with np.load(path) as saved:
            return Pool(voted.prompts, voted.clips, saved["scores"], saved["members"])
    pool = score_pool(ws, reward, voted.prompts, voted.clips)
    partial = path.with_name(f".{path.name}.partial.npz")
    np.savez(partial, scores=pool.scores, members=pool.members)
    partial.replace(path)
    return pool


def finished(path: Path, key: str = "wall_seconds") -> dict[str, Any] | None:
    """The JSON of a run that came to its end, else None."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if key in value else None


def call(module: str, arguments: Sequence[str | Path], *, threads: int, log: Path) -> None:
    """Run a script in a process of its own; its stderr goes to a log, whose end is told when it fails."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)], env=env, stdout=file, stderr=file, cwd=ROOT
        )
    if done.returncode:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-8:])
        raise RuntimeError(f"{log} ends with code {done.returncode}:\n{end}")


def in_parallel(first: Sequence[Any], work, follow, jobs: int) -> list[tuple[Any, Exception]]:
    """Do ``work(task)`` for every task, ``jobs`` at a time; ``follow(task)`` names the tasks that may start then.

    Returns the tasks that failed with their errors; what hangs on a failed one is not started."""
    failed: list[tuple[Any, Exception]] = []
    with ThreadPoolExecutor(jobs) as pool:
        running: dict[Future, Any] = {pool.submit(work, task): task for task in first}
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(done)
                if error := done.exception():
                    failed.append((task, error))
                    print(f"{task}: {error}", file=sys.stderr, flush=True)
                    continue
                running |= {pool.submit(work, more): more for more in follow(task)}
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="the seed's folder")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--shuffle-seed", type=int)
    parser.add_argument("--no-gate", action="store_true")
    chosen = parser.parse_args(arguments)

    from alignment.config import DemoSettings, load_recipe

    settings = load_recipe(chosen.recipe, DemoSettings).model_copy(update={"seed": chosen.seed})
    if chosen.no_gate:
        settings = settings.model_copy(update={"align": settings.align.model_copy(update={"gate": False})})
    prepare_seed(chosen.folder, settings)
    run_one(chosen.folder, chosen.name, settings, shuffle_seed=chosen.shuffle_seed)


if __name__ == "__main__":
    main()
