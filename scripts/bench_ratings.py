"""Times the ratings of versions from very many votes, beside evalica and choix on the same votes, and compares them.

    python -m scripts.bench_ratings --json
    python -m scripts.bench_ratings --votes 200000 --versions 20 --sql-votes 0

Votes are drawn from Davidson's model with ties, a side effect and raters and prompts in unequal numbers. Timed from
arrays in memory: the fit (counting included) and the two-way clustered bootstrap (by rater, by prompt and by both).
The peers get the same votes as the lists or arrays that they ask for, made beforehand. Loading votes from SQL is timed
apart. choix is no dependency: install it to have its times (pip install choix). docs/ratings.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from alignment.evaluation import davidson
from alignment.evaluation.ratings import rate_votes
from alignment.evaluation.vote_arrays import LEFT_WON, TIED, VoteArrays


def draw_votes(count: int, versions: int, *, raters: int, prompts: int, seed: int, side: float = 0.1) -> VoteArrays:
    """Votes on random pairs: strengths are normal with standard deviation 0.6 nats, and about one vote in five ties."""
    rng = np.random.default_rng(seed)
    strengths = rng.normal(0, 0.6, versions)
    left = rng.integers(0, versions, count)
    right = (left + rng.integers(1, versions, count)) % versions
    u = (strengths[left] - strengths[right] + side) / 2
    odds = np.stack([np.exp(u), np.exp(-u), np.full(count, math.exp(-0.7))])
    outcome = (rng.random(count) > np.cumsum(odds / odds.sum(axis=0), axis=0)).sum(axis=0).clip(0, TIED)
    # A few raters and prompts have most of the votes, as Zipf's law has it.
    who = rng.choice(raters, count, p=_zipf(raters))
    what = rng.choice(prompts, count, p=_zipf(prompts))
    names = tuple(f"v{i:03d}" for i in range(versions))
    return VoteArrays(names, left, right, outcome.astype(np.int8), who, what)


def _zipf(count: int) -> np.ndarray:
    weights = 1 / (10 + np.arange(count))
    return weights / weights.sum()


@dataclass(frozen=True)
class Time:
    """Seconds on the clock, and of the process on all cores: on a busy machine only the second says much."""

    wall: float
    cpu: float


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[Time, Any]:
    """(least time of the repeats, what the work gave)."""
    least, found = Time(math.inf, math.inf), None
    for _ in range(repeats):
        began, busy = time.perf_counter(), time.process_time()
        found = work()
        wall, cpu = time.perf_counter() - began, time.process_time() - busy
        least = Time(min(least.wall, wall), min(least.cpu, cpu))
    return least, found


def strengths_of(votes: VoteArrays, *, side: bool, ridge: float = 0.1) -> np.ndarray:
    """(versions,) strengths in nats around their mean: what ``rate_votes`` fits, without its bootstrap."""
    matchups, columns = davidson.aggregate(votes, side=side)
    counts = davidson.count_columns(columns, matchups)
    pull = davidson.penalty(matchups, ridge)
    beta = davidson.fit(np.zeros(matchups.dimensions), matchups, counts[None], pull)[0, : matchups.versions]
    return beta - beta.mean()


def against_evalica(votes: VoteArrays, rounds: int, repeats: int) -> dict[str, Any]:
    """evalica's times, and the largest difference in nats of its Newman fit, which is Davidson's model without side."""
    import evalica
    import pandas as pd

    left, right = votes.left.tolist(), votes.right.tolist()
    winners = [(evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw)[o] for o in votes.outcome]
    index = pd.Index(range(len(votes.versions)))
    options = {"index": index, "tolerance": 1e-10, "limit": 100_000}
    seconds, fitted = timed(lambda: evalica.newman(left, right, winners, **options), repeats)
    theirs = np.log(fitted.scores.loc[list(index)].to_numpy())
    ours = strengths_of(votes, side=False, ridge=1e-9)
    few = max(2, rounds // 50)
    bootstrap_seconds, _ = timed(
        lambda: evalica.bootstrap(
            evalica.newman, left, right, winners, index=index, n_resamples=few, bootstrap_method="percentile",
            random_state=0,
        )
    )  # fmt: skip
    return {
        "fit_seconds": seconds.wall,
        "fit_cpu_seconds": seconds.cpu,
        "bootstrap_seconds": bootstrap_seconds.wall / few * rounds,
        "bootstrap_cpu_seconds": bootstrap_seconds.cpu / few * rounds,
        "bootstrap_rounds_run": few,
        "bootstrap": "votes one by one: evalica resamples no raters or prompts; scaled from the rounds run",
        "largest_difference": float(np.abs(ours - (theirs - theirs.mean())).max()),
    }


def against_choix(votes: VoteArrays, repeats: int) -> dict[str, Any] | None:
    """choix's times on the decisive votes (it knows no ties), and the largest difference in nats; None without it."""
    try:
        import choix
    except ImportError:
        return None
    kept = votes.take(votes.decisive)
    won = kept.outcome == LEFT_WON
    winner, loser = np.where(won, kept.left, kept.right), np.where(won, kept.right, kept.left)
    pairs, size = list(zip(winner.tolist(), loser.tolist(), strict=True)), len(votes.versions)
    wins = np.bincount(winner * size + loser, minlength=size * size).reshape(size, size).astype(float)
    seconds, found = timed(lambda: choix.ilsr_pairwise(size, pairs), 1)
    dense_seconds, _ = timed(lambda: choix.ilsr_pairwise_dense(wins), repeats)
    own_seconds, ours = timed(lambda: strengths_of(kept, side=False, ridge=1e-9), repeats)
    return {
        "fit_seconds": seconds.wall,
        "fit_cpu_seconds": seconds.cpu,
        "fit_seconds_from_counts": dense_seconds.wall,
        "ours_on_the_same_votes_seconds": own_seconds.wall,
        "bootstrap_seconds": None,
        "largest_difference": float(np.abs(ours - (found - found.mean())).max()),
    }


def sql_load(votes: int, versions: int) -> dict[str, Any]:
    """Seconds to read that many votes from a fresh SQLite file into arrays, and to write them for it."""
    from alignment.db.engine import open_database
    from alignment.db.leaderboards import Slice, load_columns
    from scripts.vote_rows import filled_database

    def load(database: Any) -> VoteArrays:
        with database.session(write=False) as s:
            c = load_columns(s, Slice(), simulated=True)
        return VoteArrays.from_labels(c.left, c.right, c.outcome, c.rater, c.prompt, c.names)

    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        url = f"sqlite:///{Path(folder) / 'attune.db'}"
        given = draw_votes(votes, versions, raters=200, prompts=2000, seed=1)
        made, _ = timed(lambda: filled_database(url, given))
        database = open_database(url)
        seconds, found = timed(lambda: load(database))
        database.close()
    return {
        "votes": len(found),
        "seconds": seconds.wall,
        "cpu_seconds": seconds.cpu,
        "seconds_to_write_them": made.wall,
        "cpu_seconds_to_write_them": made.cpu,
        "database": "SQLite",
    }


def machine() -> str:
    """Processor, cores and system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or "unknown processor"
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    load = os.getloadavg()[0]
    votes = draw_votes(
        options.votes, options.versions, raters=options.raters, prompts=options.prompts, seed=options.seed
    )
    fit, _ = timed(lambda: strengths_of(votes, side=True), options.repeats)
    everything, fitted = timed(lambda: rate_votes(votes, rounds=options.rounds), options.repeats)
    say(f"fit {fit.wall:.2f} s, with {options.rounds} rounds of bootstrap {everything.wall:.2f} s")
    evalica = against_evalica(votes, options.rounds, options.repeats)
    say(f"evalica: fit {evalica['fit_seconds']:.2f} s, bootstrap {evalica['bootstrap_seconds']:.1f} s")
    choix = against_choix(votes, options.repeats)
    say(f"choix: {choix['fit_seconds']:.2f} s" if choix else "choix is not installed; its times are left out")
    return {
        "votes": len(votes),
        "versions": len(votes.versions),
        "raters": fitted.raters,
        "prompts": fitted.prompts,
        "bootstrap_rounds": options.rounds,
        "fit_seconds": fit.wall,
        "fit_cpu_seconds": fit.cpu,
        "bootstrap_seconds": max(0.0, everything.wall - fit.wall),
        "bootstrap_cpu_seconds": max(0.0, everything.cpu - fit.cpu),
        "evalica": evalica,
        "choix": choix,
        "largest_difference": evalica["largest_difference"],
        "largest_difference_is": "nats (1 nat is 174 Elo), against evalica's newman with ties, side and ridge off",
        "sql_load": sql_load(options.sql_votes, options.versions) if options.sql_votes else None,
        "machine": machine(),
        "load_average_before": round(load, 2),
        "package_versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("numpy", "scipy", "evalica", "choix", "sqlalchemy")},
        },
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench_ratings", description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=_count, default=1_000_000)
    parser.add_argument("--versions", type=_count, default=50)
    parser.add_argument("--raters", type=_count, default=2_000)
    parser.add_argument("--prompts", type=_count, default=5_000)
    parser.add_argument("--rounds", type=_count, default=200, help="of bootstrap, at least 100")
    parser.add_argument("--repeats", type=_count, default=3, help="the fastest counts")
    parser.add_argument("--sql-votes", type=_count, default=1_000_000, help="votes to load from SQL; 0 leaves it out")
    parser.add_argument("--seed", type=_count, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args(arguments)
    if options.versions < 2 or options.votes < 100 or options.rounds < 100 or options.repeats < 1:
        sys.exit("bench_ratings: it takes 2 versions, 100 votes, 100 rounds and 1 repeat at least; see --help.")
    report = measure(options)
    print(json.dumps(report) if options.json else json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
