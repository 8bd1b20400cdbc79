"""The demo on several seeds, and on shuffled votes as the control: does a gain come from what the votes say?

    python -m scripts.check_demo --seeds 0 1 2 3 4 --shuffles 4 --jobs 2 --threads 1 --out data/check

Each seed's clips and votes are made once; its controls train on the same votes with their winners permuted, each with
a shuffle of its own. Run again, it goes on where it stopped. Every run keeps its summary.json and report.html.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.demo_run import ROOT, call, finished, in_parallel, use_recipe

COLUMNS = (
    "seed", "run", "verdict", "win_rate", "win_rate_low", "win_rate_high", "votes", "decisive_votes",
    "reward_accuracy", "reward_accuracy_low", "reward_accuracy_high", "gate_passed", "kl_nats_per_clip",
    "best_of_4_win_rate", "wall_seconds", "peak_memory_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One run: a seed with its votes as cast, or shuffled."""

    seed: int
    shuffle: int | None = None
    gate: bool = True

    @property
    def name(self) -> str:
        if self.shuffle is None:
            return "as-cast"
        return f"shuffled-{self.shuffle}" + ("" if self.gate else "-no-gate")

    @property
    def shuffle_seed(self) -> int | None:
        return None if self.shuffle is None else 1000 * (self.seed + 1) + self.shuffle


def mean_with_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over runs with its 95% interval, t with n - 1 degrees of freedom; null bounds below two runs."""
    from scipy import stats

    n = len(values)
    if not n:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = math.fsum(values) / n
    if n == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def totals(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Runs, gains, runs that trained nothing, and the means of those that trained."""
    trained = [run for run in runs if run["aligned"]]
    return {
        "runs": len(runs), "gains": sum(run["verdict"] == "gain" for run in runs),
        "not_trained": len(runs) - len(trained),
        "win_rate": mean_with_interval([run["win_rate"] for run in trained]),
        "best_of_4_win_rate": mean_with_interval(
            [run["best_of_4_win_rate"] for run in trained if run["best_of_4_win_rate"] is not None]
        ),
        "reward_accuracy": mean_with_interval([run["reward_accuracy"] for run in runs]),
    }  # fmt: skip


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One Markdown line a run."""
    head = ("seed", "run", "verdict", "win rate", "n", "reward accuracy", "KL", "best-of-4", "s", "MB")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def share(run: dict[str, Any], key: str) -> str:
        if run[key] is None:
            return "–"
        low, high = run[f"{key}_low"], run[f"{key}_high"]
        return f"{100 * run[key]:.1f}% [{100 * low:.1f}%, {100 * high:.1f}%]"

    for run in runs:
        kl = run["kl_nats_per_clip"]
        cells = (
            run["seed"], run["run"], run["verdict"], share(run, "win_rate"), run["votes"] or "–",
            share(run, "reward_accuracy"), "–" if kl is None else f"{kl:.1f}", share(run, "best_of_4_win_rate"),
            f"{run['wall_seconds']:.0f}", run["peak_memory_mb"],
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--shuffles", type=int, default=4, help="controls a seed")
    parser.add_argument("--ungated", action="store_true", help="also train every control with the trust gate off")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "tiny.yaml")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of each job")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args(arguments)

    from alignment.config import DemoSettings, load_recipe
    from alignment.errors import AttuneError

    try:
        load_recipe(chosen.config, DemoSettings)
        out = chosen.out.resolve()
        recipe = use_recipe(out, chosen.config.read_text(encoding="utf-8"))
    except AttuneError as error:
        print(f"check_demo: {error}", file=sys.stderr)
        return 1

    def summary_of(task: Task) -> Path:
        return out / f"seed-{task.seed}" / task.name / "summary.json"

    def work(task: Task) -> None:
        if finished(summary_of(task)):
            return
        folder = out / f"seed-{task.seed}"
        print(f"seed {task.seed} {task.name} ...", file=sys.stderr, flush=True)
        more = ["--no-gate"] if not task.gate else []
        if task.shuffle_seed is not None:
            more += ["--shuffle-seed", str(task.shuffle_seed)]
        call(
            "scripts.demo_run",
            ["--recipe", recipe, "--folder", folder, "--seed", str(task.seed), "--name", task.name, *more],
            threads=chosen.threads, log=folder / f"{task.name}.log",
        )  # fmt: skip

    def controls(task: Task) -> list[Task]:
        if task.shuffle is not None:
            return []
        gates = (True, False) if chosen.ungated else (True,)
        return [Task(task.seed, n, gate) for n in range(1, chosen.shuffles + 1) for gate in gates]

    plain = [Task(seed) for seed in dict.fromkeys(chosen.seeds)]
    failed = in_parallel(plain, work, controls, chosen.jobs)
    every = [*plain, *(task for one in plain for task in controls(one))]
    found = {task: summary for task in every if (summary := finished(summary_of(task)))}
    runs = list(found.values())
    groups = {
        "as_cast": totals([s for t, s in found.items() if t.shuffle is None]),
        "shuffled": totals([s for t, s in found.items() if t.shuffle is not None and t.gate]),
    }
    if chosen.ungated:
        groups["shuffled_no_gate"] = totals([s for t, s in found.items() if not t.gate])
    print(table(runs))
    for name, total in groups.items():
        rate = total["win_rate"]
        shown = "–" if rate["mean"] is None else f"{100 * rate['mean']:.1f}%"
        if rate["low"] is not None:
            shown += f" [{100 * rate['low']:.1f}%, {100 * rate['high']:.1f}%]"
        counts = f"{total['gains']} gains in {total['runs']} runs, {total['not_trained']} not trained"
        print(f"{name}: {counts}; mean win rate of the trained {shown}")
    result = groups | {
        "runs": [{key: run.get(key) for key in COLUMNS} for run in runs], "simulated": True,
        "failed": sorted(f"seed {task.seed} {task.name}" for task, _ in failed),  # not in the order they ended
    }  # fmt: skip
    (out / "check.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if chosen.json:
        print(json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
