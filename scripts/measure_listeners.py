"""Measure how simulated listeners vote on generated clips, or calibrate a profile on them.

python -m scripts.measure_listeners --home data/demo/001 --json
python -m scripts.measure_listeners --prompts 120 --clips 4 --write docs/listeners.md
python -m scripts.measure_listeners --home data/demo/001 --calibrate default --agreement 0.70 --ties 0.28
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from alignment.errors import AttuneError, ConfigError, DataError
from alignment.evaluation.intervals import Interval
from alignment.simulation.agreement import HeardPair, PanelFigures, PerfectScorer, measure_panel
from alignment.simulation.calibration import calibrate
from alignment.simulation.captions import draw_captions
from alignment.simulation.judge import Judge, Judgement
from alignment.simulation.listeners import LISTENERS_YAML, Listener, Listeners, draw_population, load_listeners

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLUMNS = (
    "simulated listeners", "tie", "both bad", "tie or both bad", "agreement with a perfect scorer", "left share",
    "same clip again", "same answer again", "two listeners, same clip",
)  # fmt: skip
Group = tuple[dict[str, str], list[Judgement]]  # what one prompt asks for, and its clips


@dataclass(frozen=True)
class Heard:
    """Judged clips by prompt, and where they come from."""

    groups: list[Group]
    origin: str


def hear_home(home: Path, versions: Sequence[str]) -> Heard:
    """The generated clips of a home whose prompts carry tags, as the judge hears them."""
    from alignment.circle.listen import judge_clips
    from alignment.circle.workspace import Workspace
    from alignment.config import Settings
    from alignment.db.clips import list_clips
    from alignment.db.prompts import get_prompts

    ws = Workspace.open(
        Settings.from_environment(database=f"sqlite:///{home / 'attune.db'}", store=str(home / "store"))
    )
    try:
        with ws.database.session(write=False) as s:
            clips = [clip for clip in list_clips(s) if not versions or clip.version in versions]
            prompts = get_prompts(s, list({clip.prompt_id for clip in clips}))
        clips = [clip for clip in clips if prompts[clip.prompt_id].tags]
        names = sorted({clip.version for clip in clips})
        bases = ", ".join(sorted({ws.version(name).base_sha256[:12] for name in names}))
        heard = judge_clips(ws, Judge(), clips)
    finally:
        ws.database.close()
    groups: dict[Any, Group] = {}
    for clip in {(clip.prompt_id, clip.audio_sha256): clip for clip in clips}.values():
        tags = dict(prompts[clip.prompt_id].tags)
        groups.setdefault((clip.prompt_id, clip.facts.seconds), (tags, []))[1].append(heard[clip.audio_sha256])
    return Heard(list(groups.values()), f"Clips of {' and '.join(names)} (base {bases}) from a database")


def hear_new(prompts: int, clips: int, seed: int) -> Heard:
    """Clips that attune-tiny sings now for captions that it never saw, as the judge hears them."""
    from alignment.domain import GenerationConfig
    from alignment.music.codec import decode
    from alignment.music.model import MusicModel
    from alignment.music.sampler import sample

    model, judge = MusicModel.load("tiny"), Judge()
    asked = draw_captions(prompts, 700_000 + seed, reserved=True)
    jobs = [(number, text) for number, (text, _) in enumerate(asked) for _ in range(clips)]
    groups: list[Group] = [(attributes.as_tags(), []) for _, attributes in asked]
    for start in range(0, len(jobs), 64):
        part = jobs[start : start + 64]
        seeds = [seed * 1_000_003 + start + i for i in range(len(part))]
        codes = sample(model, [text for _, text in part], generation=GenerationConfig(), seeds=seeds).codes  # (B, K, T)
        for (number, _), judgement in zip(part, judge(decode(model, codes)), strict=True):
            groups[number][1].append(judgement)
        print(f"sung {start + len(part)} of {len(jobs)}", file=sys.stderr, flush=True)
    base = model.base_sha256[:12]
    return Heard(groups, f"Clips of attune-tiny (base {base}), {clips} for each of {prompts} unseen captions")


def pairs_of(groups: Sequence[Group], most: int, seed: int) -> list[HeardPair]:
    """Pairs within prompts, all of them or ``most`` drawn from all. Raises DataError when there are none."""
    pairs = [
        HeardPair(number, tags, a, b)
        for number, (tags, own) in enumerate(groups)
        for a, b in itertools.combinations(own, 2)
    ]
    if not pairs:
        raise DataError("There are no two clips for any prompt with tags; sing some with `attune generate --captions`.")
    return random.Random(seed).sample(pairs, min(most, len(pairs)))


def spread_of(heard: Heard, pairs: Sequence[HeardPair]) -> dict[str, float]:
    """Mean and deviation of what the judge heard, and of the differences within prompts that votes are about."""
    each = [(j.adherence(tags), j.cleanliness) for tags, own in heard.groups for j in own]
    adherence, cleanliness = (np.array(column) for column in zip(*each, strict=True))
    within = [(p.left.adherence(p.tags) - p.right.adherence(p.tags), p.left.cleanliness - p.right.cleanliness)
              for p in pairs]  # fmt: skip
    differences = np.array(within)
    values = {
        "adherence_mean": adherence.mean(), "adherence_deviation": adherence.std(),
        "cleanliness_mean": cleanliness.mean(), "cleanliness_deviation": cleanliness.std(),
        "adherence_difference": np.sqrt((differences[:, 0] ** 2).mean()),
        "cleanliness_difference": np.sqrt((differences[:, 1] ** 2).mean()),
    }  # fmt: skip
    return {name: round(float(value), 4) for name, value in values.items()}


def measure(
    listeners: Listeners, pairs: Sequence[HeardPair], *, panel: int, hearings: int, seed: int
) -> dict[str, dict[str, PanelFigures]]:
    """Figures of every profile and of every population."""
    profiles, populations = {}, {}
    for name, profile in listeners.profiles.items():
        drawn = [Listener(profile, seed * 10_007 + number) for number in range(panel)]
        profiles[name] = measure_panel(drawn, pairs, PerfectScorer.of_profile(profile), hearings=hearings, seed=seed)
    for name in listeners.populations:
        drawn = [listener for _, listener in draw_population(listeners, name, panel, seed)]
        scorer = PerfectScorer.of_population(listeners, name)
        populations[name] = measure_panel(drawn, pairs, scorer, hearings=hearings, seed=seed)
    return {"profiles": profiles, "populations": populations}


def table(figures: dict[str, dict[str, PanelFigures]]) -> str:
    """A Markdown table, readable in a terminal as well."""

    def cell(interval: Interval | None, *, bare: bool = False) -> str:
        if interval is None:
            return "–"
        low = "" if bare else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        return f"{100 * interval.value:.1f}%{low}"

    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for kind, rows in figures.items():
        for name, found in rows.items():
            lines.append(
                f"| {kind.removesuffix('s')} `{name}` | {cell(found.ties, bare=True)} | "
                f"{cell(found.both_bad, bare=True)} | {cell(found.undecided)} | {cell(found.agreement)} | "
                f"{cell(found.left)} | {cell(found.repeat)} | {cell(found.repeat_answer, bare=True)} | "
                f"{cell(found.between)} |"
            )
    return "\n".join(lines)


def setting_of(heard: Heard, pairs: Sequence[HeardPair], args: argparse.Namespace) -> dict[str, Any]:
    """What the figures rest on: clips, votes, seed, machine, versions."""
    return {
        "clips": heard.origin, "prompts": len({pair.prompt for pair in pairs}), "pairs": len(pairs),
        "listeners": args.listeners, "votes": len(pairs) * args.hearings, "seed": args.seed,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{n: metadata.version(n) for n in ("torch", "numpy")}},
        **spread_of(heard, pairs),
    }  # fmt: skip


def section(setting: dict[str, Any], shown: str) -> str:
    """What stands between the markers of docs/listeners.md."""
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    return (
        f"**Simulated listeners**, every row. {setting['clips']}; {setting['pairs']:,} pairs on {setting['prompts']:,} "
        f"prompts; {setting['listeners']} listeners and {setting['votes']:,} votes a row, every pair heard again with "
        f"its sides swapped; seed {setting['seed']}; {setting['machine']}; {versions}. In brackets: 95% intervals, "
        "clustered by listener and prompt.\n\n"
        f"{shown}\n\n"
        f"On these clips adherence is {setting['adherence_mean']:.2f} on average (deviation "
        f"{setting['adherence_deviation']:.2f}) and cleanliness {setting['cleanliness_mean']:.2f} "
        f"({setting['cleanliness_deviation']:.2f}); two clips of one prompt differ by "
        f"{setting['adherence_difference']:.2f} and {setting['cleanliness_difference']:.2f} (root mean square)."
    )


def write_section(path: Path, text: str) -> None:
    """Put ``text`` between the markers of ``path``. Raises ConfigError when it has not got both, in order."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    start, end = old.find(BEGIN), old.find(END)
    if not 0 <= start < end:
        raise ConfigError(f"{path}: the lines {BEGIN} and {END} are not there, in this order; add them and run again.")
    path.write_text(f"{old[: start + len(BEGIN)]}\n{text}\n{old[end:]}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="take the clips of this home (folder with attune.db and store)")
    parser.add_argument("--version", action="append", default=[], help="with --home: clips of this version; repeatable")
    parser.add_argument("--prompts", type=int, default=120, help="without --home: captions to sing")
    parser.add_argument("--clips", type=int, default=4, help="without --home: clips a caption")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs at most")
    parser.add_argument("--listeners", type=int, default=40, help="listeners a profile or population")
    parser.add_argument("--hearings", type=int, default=4, help="listeners who hear a pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=LISTENERS_YAML)
    parser.add_argument("--calibrate", metavar="PROFILE", help="solve for this profile's noise and indifference")
    parser.add_argument("--agreement", type=float, default=0.70, help="wished agreement of decisive votes")
    parser.add_argument("--ties", type=float, default=0.28, help="wished share of ties and both-bad together")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args(arguments)
    try:
        result = run(args)
    except AttuneError as error:
        sys.exit(f"measure_listeners: {error}")
    if args.json:
        print(json.dumps(result), flush=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure or calibrate, print it for people and return it for scripts."""
    listeners = load_listeners(args.config)
    if args.calibrate is not None and args.calibrate not in listeners.profiles:
        raise ConfigError(f"no profile {args.calibrate}; {args.config} has {', '.join(listeners.profiles)}.")
    heard = hear_home(args.home, args.version) if args.home else hear_new(args.prompts, args.clips, args.seed)
    pairs = pairs_of(heard.groups, args.pairs, args.seed)
    setting = setting_of(heard, pairs, args)
    result: dict[str, Any] = {"simulated": True, "setting": setting}
    if args.calibrate is not None:
        profile, found = calibrate(
            listeners.profiles[args.calibrate], pairs, agreement=args.agreement, undecided=args.ties, seed=args.seed
        )
        changed = profile.model_dump(exclude_defaults=True)
        pasted = f"  {args.calibrate}: {{{', '.join(f'{name}: {value:g}' for name, value in changed.items())}}}"
        print(f"SIMULATED listeners, {setting['clips']}, {len(pairs)} pairs: expected agreement {found.agreement:.3f}, "
              f"undecided {found.undecided:.3f}. For {args.config.name}:\n{pasted}")  # fmt: skip
        result["calibration"] = {"profile": args.calibrate, **changed, "expected": asdict(found)}
        listeners = Listeners(profiles={args.calibrate: profile}, populations={args.calibrate: {args.calibrate: 1.0}})
    figures = measure(listeners, pairs, panel=args.listeners, hearings=args.hearings, seed=args.seed)
    if args.calibrate is not None:
        del figures["populations"]
    text = section(setting, table(figures))
    print(text, flush=True)
    if args.write:
        write_section(args.write, text)
    plain = {kind: {name: asdict(found) for name, found in rows.items()} for kind, rows in figures.items()}
    return result | plain


if __name__ == "__main__":
    main()
