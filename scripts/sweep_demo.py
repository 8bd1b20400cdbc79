"""Recipes for the demo side by side: one seed, one pool of clips, one reward model, many ways to train on them.

    python -m scripts.sweep_demo --out data/sweep --jobs 2 \
        --grid "align.method=dpo dpo.learning_rate=3e-4,1e-3 dpo.beta=0.03,0.1" \
        --grid "align.method=expert expert.learning_rate=3e-4,1e-3 expert.keep=1,2"

Keys are the recipe's (alignment/config.py); every --grid is the product of its values, and --points FILE adds a YAML
list of mappings. The prompts and listeners of the comparison are not the demo's, so that no recipe is chosen on the
demo's test. best-of-2, -4, ... come from one pool beside them. Run again, it goes on where it stopped. Writes
sweep.csv, sweep.json and curves.svg: win rate and judge reward against KL.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.demo_run import (
    ROOT,
    call,
    collect_pool,
    copy_database,
    finished,
    in_parallel,
    load_pool,
    open_folder,
    quiet_bar,
    use_recipe,
    write_json,
)
from scripts.sweep_plot import write_curves

CAPTIONS, LISTENERS = 900_000, 1_000_001  # seeds that no demo uses
DEMO_SEEDS = range(20)  # whose captions the sweep's prompts keep away from


def parse_grid(text: str) -> list[dict[str, Any]]:
    """The points of "key=a,b key=c": every combination. Raises ConfigError when a part is no key=values."""
    import yaml

    from alignment.errors import ConfigError

    axes = []
    for part in text.split():
        key, equals, values = part.partition("=")
        if not (key and equals and values):
            raise ConfigError(f"--grid {text!r}: {part!r} is not key=value or key=value,value.")
        axes.append([(key, _number(yaml.safe_load(value))) for value in values.split(",")])
    return [dict(chosen) for chosen in itertools.product(*axes)]


def _number(value: Any) -> Any:
    """YAML reads 3e-4 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def name_of(point: Mapping[str, Any]) -> str:
    """A point as a folder's name: its keys with their values."""
    return ",".join(f"{key.removeprefix('align.')}={value}" for key, value in point.items()) or "recipe"


def settings_of(recipe: Path, seed: int, point: Mapping[str, Any]):
    """The recipe with the point's values in it. Raises ConfigError naming every fault."""
    from alignment.config import DemoSettings, load_recipe, parse_recipe

    values = load_recipe(recipe, DemoSettings).model_dump(mode="json") | {"seed": seed}
    for key, value in point.items():
        *path, last = key.split(".")
        inner = values
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return parse_recipe(values, DemoSettings, origin=name_of(point))


def other_prompts(ws, settings, count: int) -> list:
    """Held-out prompts that no demo compares or votes on, recorded. Deterministic in the seed."""
    from alignment.db.prompts import add_prompts
    from alignment.domain import Split
    from alignment.simulation.captions import draw_captions

    size = settings.train_prompts + settings.test_prompts
    taken = {text for s in {*DEMO_SEEDS, settings.seed} for text, _ in draw_captions(size, 1000 + s, reserved=True)}
    drawn, wanted = [], count
    while len(drawn) < count:
        found = draw_captions(wanted, CAPTIONS + settings.seed, reserved=True)
        drawn, wanted = [(text, a) for text, a in found if text not in taken], 2 * wanted
    items = [(text, "attune-tiny captions", Split.LEADERBOARD, a.as_tags()) for text, a in drawn[:count]]
    with ws.database.session() as s:
        return add_prompts(s, items)


class Comparison:
    """What every point of a sweep is measured with: prompts, base clips and listeners of its own."""

    def __init__(self, ws, settings, *, prompts: int, votes: int, spare: int) -> None:
        from alignment.circle.contest import Panel
        from alignment.circle.methods import firsts, sing_base
        from alignment.simulation.judge import Judge

        self.ws, self.settings, self.votes = ws, settings, min(votes, 3 * prompts)
        self.generation, self.seed = settings.generation.to_domain(), CAPTIONS + settings.seed
        self.prompts = other_prompts(ws, settings, prompts)
        self.base_clips = sing_base(ws, self.prompts, self.generation, spare=spare, seed=self.seed)
        self.first = firsts(self.prompts, self.base_clips)
        self.panel = Panel(ws, Judge(), settings.test_raters, seed=LISTENERS + 2 * settings.seed)

    def best_of(self, reward) -> list[dict[str, Any]]:
        """Figures of the base and of best-of-2, -4, ...; each meets the base."""
        from alignment.circle.align import score_pool
        from alignment.circle.methods import SIZES, base_contestant, best_of_contestants

        spare = score_pool(self.ws, reward, self.prompts, {p.id: self.base_clips[p.id][1:] for p in self.prompts})
        field = best_of_contestants(self.panel, spare, self.first, votes=self.votes, meet=SIZES, prefix="sweep")
        base = base_contestant(self.ws, self.panel, self.prompts, self.base_clips)
        return [one.figures() for one in (base, *field)]

    def version(self, aligned, label: str) -> dict[str, Any]:
        """Figures of a trained version."""
        from alignment.circle.methods import sing_version, version_contestant

        own = sing_version(self.ws, aligned.version.name, self.prompts, self.generation, seed=self.seed)
        return version_contestant(
            self.ws, self.panel, aligned, label, self.prompts, own, self.first, votes=self.votes, prefix="sweep"
        ).figures()


def prepare(out: Path, settings, *, prompts: int, votes: int, spare: int) -> None:
    """prepared.db, the reward model in it, pool.npz and best-of.json, made from nothing unless they are there."""
    from alignment.circle import learn
    from alignment.circle.trust import measure_trust

    if finished(out / "best-of.json", "methods"):
        return
    shutil.rmtree(out / "preparing", ignore_errors=True)
    began, ws = time.monotonic(), open_folder(out / "preparing", out / "store")
    try:
        voted, snapshot = collect_pool(ws, settings)
        reward_settings = settings.reward.model_copy(update={"seed": settings.seed})
        with quiet_bar("reward model"):
            trust = measure_trust(ws, snapshot, reward_settings, settings.align.gate_folds).accuracy["preference"]
            reward = learn.train_reward_model(ws, "demo-reward", snapshot, reward_settings)
        load_pool(ws, reward, voted, out / "pool.npz")
        with quiet_bar("base clips"):
            comparison = Comparison(ws, settings, prompts=prompts, votes=votes, spare=spare)
        copy_database(out / "preparing" / "attune.db", out / "prepared.db")
        with quiet_bar("best of N"):
            methods = comparison.best_of(reward)
    finally:
        ws.database.close()
    about = {
        "reward_accuracy": trust.value, "reward_accuracy_low": trust.low, "reward_accuracy_high": trust.high,
        "reward_accuracy_n": trust.n, "seed": settings.seed, "seconds": round(time.monotonic() - began, 1),
        "prompts": prompts, "votes": votes, "spare": spare, "simulated": True,
    }  # fmt: skip
    write_json(out / "best-of.json", about | {"methods": methods})
    shutil.rmtree(out / "preparing")


def run_point(out: Path, point: Mapping[str, Any], settings, *, prompts: int, votes: int, spare: int) -> None:
    """Train one point on the prepared pool and measure it; point.json appears when it is done."""
    from alignment.circle import learn
    from alignment.circle.align import align

    home, began = out / "points" / name_of(point), time.monotonic()
    shutil.rmtree(home, ignore_errors=True)
    copy_database(out / "prepared.db", home / "attune.db")
    ws = open_folder(home, out / "store")
    try:
        voted, snapshot = collect_pool(ws, settings)
        reward = learn.load_reward_model(ws, "demo-reward")
        pool = load_pool(ws, reward, voted, out / "pool.npz")
        with quiet_bar("align"):
            aligned = align(
                ws, "point", settings, method=settings.align.method, rounds=settings.align.rounds, base=voted.base,
                snapshot=snapshot, reward=reward, pool=pool, run_dir=home / "runs",
            )  # fmt: skip
        with quiet_bar("compare"):
            comparison = Comparison(ws, settings, prompts=prompts, votes=votes, spare=spare)
            figures = comparison.version(aligned, name_of(point))
    finally:
        ws.database.close()
    last = aligned.stages[-1]
    about = {
        "point": dict(point), "settings": settings.model_dump(mode="json"), "examples": last.examples,
        "steps": sum(stage.steps for stage in aligned.stages), "best_step": last.best_step, "valid": last.valid,
        "seconds": round(time.monotonic() - began, 1), "simulated": True,
    }  # fmt: skip
    write_json(home / "point.json", figures | about)


def write_results(out: Path, best_of: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
    """sweep.csv and sweep.json (best-of-N, then points by judge reward) and curves.svg."""
    ordered = sorted(points, key=lambda p: -p["judge_reward"])
    write_json(out / "sweep.json", {"best_of": best_of, "points": ordered})
    keys = list(dict.fromkeys(key for p in ordered for key in p["point"]))
    columns = [key for key in best_of["methods"][0] if key != "name"]
    with (out / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "examples", "steps", "best_step", "seconds", *keys], restval="")
        writer.writeheader()
        for row in (*best_of["methods"], *ordered):
            values = {**row, **row.get("point", {})}
            writer.writerow({k: values[k] for k in writer.fieldnames if values.get(k) is not None})
    write_curves(out / "curves.svg", [*best_of["methods"], *ordered])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown line a way to sing."""
    head = ("recipe", "win rate", "n", "judge reward", "cleanliness", "adherence", "KL", "diversity", "training s")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        kl = row["kl_nats_per_clip"] if row["kl_nats_per_clip"] is not None else row["kl_bound_nats"]
        win = "–"
        if row["win_rate"] is not None:
            low, high = 100 * row["win_rate_low"], 100 * row["win_rate_high"]
            win = f"{100 * row['win_rate']:.1f}% [{low:.1f}%, {high:.1f}%]"
        cells = [row["label"], win, row["votes"] or "–"]
        for value, digits in ((row["judge_reward"], 3), (row["cleanliness"], 3), (row["adherence"], 3), (kl, 2),
                              (row["diversity"], 3), (row["train_seconds"], 0)):  # fmt: skip
            cells.append("–" if value is None else f"{value:.{digits}f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "tiny.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=A,B ...")
    parser.add_argument("--points", type=Path, help="YAML: a list of mappings of keys to values")
    parser.add_argument("--prompts", type=int, default=150, help="held-out prompts of the comparison")
    parser.add_argument("--votes", type=int, default=450, help="votes of each contest, at most 3 a prompt")
    parser.add_argument("--best-of", type=int, default=16, help="largest N of best-of-N")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of each job")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # JSON of the point that this process is to run; "" prepares
    chosen = parser.parse_args(arguments)

    from alignment.errors import AttuneError, ConfigError

    try:
        import yaml

        out = chosen.out.resolve()
        size = {"prompts": chosen.prompts, "votes": chosen.votes, "spare": chosen.best_of}
        if chosen.one is not None:
            point = json.loads(chosen.one or "{}")
            settings = settings_of(out / "recipe.yaml", chosen.seed, point)
            if chosen.one:
                run_point(out, point, settings, **size)
            else:
                prepare(out, settings, **size)
            return 0
        points = [point for grid in chosen.grid for point in parse_grid(grid)]
        if chosen.points:
            listed = yaml.safe_load(chosen.points.read_text(encoding="utf-8"))
            if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
                raise ConfigError(f"{chosen.points}: needs a YAML list of mappings, such as - align.method: dpo.")
            points += [{key: _number(value) for key, value in one.items()} for one in listed]
        points = list({name_of(point): point for point in points}.values())
        for point in points:  # every fault before anything is run
            settings_of(chosen.config, chosen.seed, point)
        use_recipe(out, chosen.config.read_text(encoding="utf-8"))
        kept = finished(out / "best-of.json", "methods")
        if kept and [kept[k] for k in ("seed", *size)] != [chosen.seed, *size.values()]:
            raise ConfigError(f"{out} was prepared with another seed, prompts, votes or best-of; give another --out.")
    except (AttuneError, OSError) as error:
        print(f"sweep_demo: {error}", file=sys.stderr)
        return 1

    writing = threading.Lock()

    def work(task: str) -> None:
        point = json.loads(task) if task else None
        if point is not None and finished(out / "points" / name_of(point) / "point.json", "settings"):
            return
        name = name_of(point) if point is not None else "prepare"
        print(f"{name} ...", file=sys.stderr, flush=True)
        options = ["--out", out, "--seed", str(chosen.seed), "--prompts", str(chosen.prompts), "--votes",
                   str(chosen.votes), "--best-of", str(chosen.best_of), "--one", task]  # fmt: skip
        threads = chosen.threads if task else chosen.threads * chosen.jobs  # nothing runs beside the preparation
        call("scripts.sweep_demo", options, threads=threads, log=out / "logs" / f"{name}.log")
        if task:
            with writing:
                write_results(out, finished(out / "best-of.json", "methods"), done_points())

    def done_points() -> list[dict[str, Any]]:
        found = (finished(out / "points" / name_of(point) / "point.json", "settings") for point in points)
        return [one for one in found if one]

    failed = in_parallel([""], work, lambda task: [] if task else [json.dumps(p) for p in points], chosen.jobs)
    best_of = finished(out / "best-of.json", "methods")
    if best_of is None:
        return 1
    write_results(out, best_of, done_points())
    accuracy = best_of["reward_accuracy"]
    print(f"SIMULATED LISTENERS. Reward model: {100 * accuracy:.1f}% of {best_of['reward_accuracy_n']} unseen votes.")
    print(table([*best_of["methods"], *sorted(done_points(), key=lambda p: -p["judge_reward"])]))
    if chosen.json:
        print((out / "sweep.json").read_text(encoding="utf-8").replace("\n", ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
