"""The model card of a version that leaves the house: how to load it, what trained it, what was measured of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from alignment.evaluation.terminal import clean, number

Form = Literal["merged", "adapter", "audio"]
SIMULATED = (
    "**SIMULATED.** Programs voted, not people: simulated listeners trained this version. It says nothing about what "
    "people like."
)


@dataclass(frozen=True)
class MeasuredFigure:
    """A metric with its interval (None: not recorded), its n and what measured it."""

    metric: str
    model: str | None
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class GateResult:
    """One decision of the gate: over whom, how it came out, and the win rate that it saw."""

    champion: str | None
    outcome: str
    date: str
    simulated: bool
    win_rate: tuple[float, float, float, int] | None = None  # value, low, high, bets


@dataclass(frozen=True)
class CardFacts:
    """What a card tells. ``lineage`` is the version's tree as nested JSON; ``clips`` counts exported clips."""

    name: str
    form: Form
    lineage: Mapping[str, Any]
    figures: Sequence[MeasuredFigure] = ()
    decisions: Sequence[GateResult] = ()
    clips: int = 0
    versions: Mapping[str, str] | None = None  # of the libraries that wrote it


def version_card(facts: CardFacts) -> str:
    """The card as Markdown with a hub's front matter."""
    return "\n".join([*_head(facts), *_use(facts), *_origin(facts), *_results(facts), *_licence(facts), ""])


def _head(facts: CardFacts) -> Iterator[str]:
    version = facts.lineage
    simulated = bool(version.get("simulated"))
    tags = ["music", "musicgen", "preference-tuning", "ai-generated", *(["simulated-listeners"] if simulated else [])]
    yield "---"
    yield f"license: {_licence_id(version.get('licence'))}"
    if facts.form != "audio":
        yield f"library_name: {'transformers' if facts.form == 'merged' else 'peft'}"
        yield "pipeline_tag: text-to-audio"
    yield f"base_model: {json.dumps(base_name(version['base']))}"
    yield f"tags: {json.dumps(tags)}"
    yield "---"
    yield f"# {facts.name}"
    yield ""
    what = {
        "merged": "A text-to-music model, its adapter merged into the base.",
        "adapter": "An adapter (PEFT) for a text-to-music model.",
        "audio": f"{facts.clips} clips of a text-to-music model. Every file carries the tag "
        f'"AI-generated, version {facts.name}".',
    }[facts.form]
    yield what + " What it makes is AI-generated music."
    if simulated:
        yield ""
        yield SIMULATED


def _use(facts: CardFacts) -> Iterator[str]:
    version = facts.lineage
    if facts.form == "audio":
        return
    yield ""
    yield "## Use"
    yield ""
    yield "```python"
    yield "from transformers import AutoModelForTextToWaveform, AutoTokenizer"
    if facts.form == "adapter":
        yield "from peft import PeftModel"
        yield ""
        yield f'base = "FOLDER OR HUB ID"  # {base_name(version["base"])}, its weights {version["base_sha256"][:12]}'
        yield "model = AutoModelForTextToWaveform.from_pretrained(base)"
        yield 'model = PeftModel.from_pretrained(model, "THIS FOLDER")'
        yield "tokenizer = AutoTokenizer.from_pretrained(base)"
    else:
        yield ""
        yield 'model = AutoModelForTextToWaveform.from_pretrained("THIS FOLDER")'
        yield 'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")'
    yield 'audio = model.generate(**tokenizer(["a slow waltz"], return_tensors="pt"))  # (1, channels, samples)'
    yield "```"
    if (listening := version.get("listening")) is not None:
        yield ""
        said = {"temperature": "temperature", "top_k": "top_k", "guidance": "guidance_scale"}
        told = ", ".join(f"`{theirs}={listening[ours]:g}`" for ours, theirs in said.items())
        yield f"People hear it with {told}, {listening['clip_seconds']:g} seconds a clip; ratings hold for that."


def _origin(facts: CardFacts) -> Iterator[str]:
    yield ""
    yield "## Data and votes"
    yield ""
    yield from _below(facts.lineage, 0)


def _below(node: Mapping[str, Any], depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}- {describe(node)}"
    for child in node.get("from", ()):
        yield from _below(child, depth + 1)


def describe(node: Mapping[str, Any]) -> str:
    """One node of a lineage in a line, as cards and terminals show it."""
    kind, name = node["kind"], clean(str(node["name"]))
    if node.get("seen"):
        return f"{kind} {name}: as above"
    return {
        "version": _version_line, "training": _training_line, "reward model": _reward_line,
        "snapshot": _snapshot_line, "votes": _votes_line,
    }[kind](node, name)  # fmt: skip


def base_name(base: str) -> str:
    """A hub id as it is; of a folder its last part, for where it lies on this machine is nobody's business."""
    return base if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else PurePath(base).name


def _version_line(node: Mapping[str, Any], name: str) -> str:
    simulated = ", trained on simulated votes (SIMULATED listeners)" if node["simulated"] else ""
    base = f"base {base_name(node['base'])} {node['base_sha256'][:12]}"
    adapter = f", adapter {node['adapter_sha256'][:12]}" if node["adapter_sha256"] else ""
    return (
        f"{name}  ({node['status']}{simulated}): {base}{adapter}, commit {(node['commit'] or 'not recorded')[:12]}, "
        f"licence {node['licence'] or 'not stated'}"
    )


def _training_line(node: Mapping[str, Any], name: str) -> str:
    on = next((child["name"] for child in node.get("from", ()) if child["kind"] == "snapshot"), None)
    spent = f", {node['seconds']:.0f} s" if node["seconds"] is not None else ""
    job = f", job {node['job']}" if node["job"] else ""
    return f"{name}{f' on snapshot {clean(on)}' if on else ''}{spent}{job}, run {node['id']}"


def _reward_line(node: Mapping[str, Any], name: str) -> str:
    simulated = "SIMULATED votes, " if node["simulated"] else ""
    return (
        f"reward model {name}: {simulated}heads {', '.join(node['heads'])} on {node['encoder']}, "
        f"sha256 {node['artefact_sha256'][:12]}"
    )


def _snapshot_line(node: Mapping[str, Any], name: str) -> str:
    splits = ", ".join(f"{count} {split}" for split, count in node["splits"].items())
    return (
        f"snapshot {name}: {node['votes']} {'SIMULATED' if node['simulated'] else 'human'} votes"
        f"{f' ({splits})' if splits else ''}, sha256 {node['content_sha256'][:12]}, licence "
        f"{node['licence'] or 'not stated'}"
    )


def _votes_line(node: Mapping[str, Any], name: str) -> str:
    gone = f"; {node['withdrawn']} of raters who have withdrawn since" if node["withdrawn"] else ""
    kind = "SIMULATED" if node["rater_kind"] == "simulated" else node["rater_kind"]
    return (
        f"study {name}: {node['votes']} votes of {node['raters']} {kind} raters on {node['prompts']} prompts, "
        f"{node['first_at'][:10]} to {node['last_at'][:10]}{gone}"
    )


def _results(facts: CardFacts) -> Iterator[str]:
    yield ""
    yield "## Results"
    yield ""
    if not facts.figures and not facts.decisions:
        yield "Nothing was measured of this version."
        return
    if facts.figures:
        yield "| metric | value | 95% interval | n | measured by |"
        yield "|---|---|---|---|---|"
        for one in facts.figures:
            span = "not recorded" if one.low is None or one.high is None else f"{number(one.low)} to {number(one.high)}"
            yield f"| {clean(one.metric)} | {number(one.value)} | {span} | {one.n:,} | {clean(one.model or '–')} |"
    for one in facts.decisions:
        marked = " (SIMULATED listeners)" if one.simulated else ""
        won = ""
        if one.win_rate is not None:
            value, low, high, bets = one.win_rate
            won = f", win rate {value:.1%} [{low:.1%}, {high:.1%}] in {bets:,} bets"
        yield ""
        yield f"The gate, {one.date}, over {one.champion or 'nobody'}{marked}: {one.outcome}{won}."


def _licence(facts: CardFacts) -> Iterator[str]:
    named = _licences(facts.lineage)
    yield ""
    yield "## Licence"
    yield ""
    yield f"This version: {facts.lineage.get('licence') or 'not stated; ask who trained it'}."
    yield from (f"Votes of snapshot {clean(name)}: {licence or 'not stated'}." for name, licence in named.items())
    if facts.versions:
        yield ""
        yield "Written with " + ", ".join(f"{name} {number_}" for name, number_ in facts.versions.items()) + "."


def _licences(node: Mapping[str, Any]) -> dict[str, str | None]:
    found = {node["name"]: node.get("licence")} if node["kind"] == "snapshot" and not node.get("seen") else {}
    for child in node.get("from", ()):
        found |= _licences(child)
    return found


def _licence_id(licence: str | None) -> str:
    """A hub's identifier: lower case, "other" for what it cannot name."""
    text = (licence or "other").lower()
    return text if all(c.isalnum() or c in ".-" for c in text) else "other"
