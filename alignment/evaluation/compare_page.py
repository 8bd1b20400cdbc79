"""The page of a comparison: versions side by side, what listeners said, metrics with intervals, clips to hear."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import TYPE_CHECKING

from alignment.evaluation import page, writing
from alignment.evaluation.intervals import Interval
from alignment.evaluation.metric_words import METRICS, words_of
from alignment.evaluation.report import Contest
from alignment.evaluation.terminal import number, percent

if TYPE_CHECKING:
    from alignment.db.comparisons import Comparison, Difference, Measured

GROUPS = {
    "What the clips are like": ("clap_score", "fad", "kernel_distance"),
    "What reward models say": ("reward_preference", "reward_text_adherence", "reward_quality"),
    "What alignment cost": ("kl", "diversity", "duplicates", "nearest_training", "copied"),
    "Sound": ("level_lufs", "silence", "clipping", "onset_rate_hz", "pitch_class_entropy_bits"),
}
GLOSSARY = (
    ("Interval", "from resampled prompts, all clips of a prompt together: it speaks of other prompts of this kind, not "
     "of other seeds of training or other models behind a metric. Shares that are all alike have Wilson's interval."),
    ("Equal n", "every version sang the same prompts, as many clips of each, with the same seeds and settings. Some "
     "metrics change with the number of clips alone; figures of another n stand on another page."),
    ("Difference", "the first version's figure less this one's, prompt by prompt: narrower than the two intervals "
     "suggest. In bold where its interval leaves 0 out; with this many rows one in twenty does by chance."),
    ("Reference", "what FAD and the kernel distance are measured to. Clips of a version say how far from that version "
     "a version has gone, not how good it is; a folder of recordings says how near it comes to them."),
    ("Not judged by listening", "no metric here is a listener. Promotion rests on blind votes; metrics show what went "
     "wrong on the way."),
    ("Win rate", "wins plus half of ties and of both-bad votes, over all counted votes, clustered by rater and "
     "prompt."),
)  # fmt: skip


@dataclass(frozen=True)
class HeardClip:
    """A clip that can be played: ``source`` is a data: URI or the path of a file beside the page."""

    version: str
    source: str
    lufs: float | None = None


@dataclass(frozen=True)
class HeardPrompt:
    """A prompt with one clip of each version, in the versions' order."""

    text: str
    clips: Sequence[HeardClip]


@dataclass(frozen=True)
class ComparePage:
    """Everything the page shows. ``simulated_votes``: programs voted in the contests; ``simulated_versions`` were
    trained on votes of programs."""

    comparison: Comparison
    contests: Sequence[Contest] = ()
    heard: Sequence[HeardPrompt] = ()
    simulated_votes: bool = False
    simulated_versions: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> str:
        """The comparison and its contests as JSON text, audio left out."""
        contests = [
            {"label": c.label, "candidate": c.rate.candidate, "opponents": c.rate.opponents, "win_rate": c.rate.value,
             "low": c.rate.low, "high": c.rate.high, "votes": c.rate.votes, "decisive": c.rate.decisive}
            for c in self.contests
        ]  # fmt: skip
        values = {
            **self.comparison.to_json(), "contests": contests, "simulated_votes": self.simulated_votes,
            "simulated_versions": list(self.simulated_versions), "prompts": [one.text for one in self.heard],
        }  # fmt: skip
        return json.dumps(values, ensure_ascii=False, allow_nan=False)


def write_page(shown: ComparePage, path: str | Path) -> Path:
    """The page as one HTML file, written in one move. Raises StoreError when the folder cannot be written."""
    return writing.write_page(render(shown), path, what="page")


def render(shown: ComparePage) -> str:
    """The page's HTML: scripts and styles inlined, every text escaped, nothing fetched but clips beside it."""
    script = (page.TEMPLATES / "compare.js").read_text(encoding="utf-8")
    styles = "".join((page.TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "compare.css"))
    inlined = all(clip.source.startswith("data:") for one in shown.heard for clip in one.clips)
    sections = [
        _hero(shown), _battles(shown), _metrics(shown), _listen(shown), _about(shown.comparison),
        page._section("words", "Words", '<dl class="glossary">'
                      + "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in GLOSSARY) + "</dl>"),
    ]  # fmt: skip
    return Template((page.TEMPLATES / "compare.html").read_text(encoding="utf-8")).substitute(
        title=escape(" and ".join(shown.comparison.versions)), style=styles, script=script,
        script_hash=f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
        media="data:" if inlined else "'self' file:", created=f"{shown.comparison.created_at:%Y-%m-%d %H:%M} UTC",
        banner=_banner(shown), body="\n".join(part for part in sections if part),
        data=page._json_for_html(shown.to_json()),
    )  # fmt: skip


def _banner(shown: ComparePage) -> str:
    said = []
    if shown.simulated_votes:
        said.append("The votes on this page come from programs, not from people.")
    if shown.simulated_versions:
        names = ", ".join(escape(name) for name in shown.simulated_versions)
        said.append(f"Simulated votes trained {names}.")
    if not said:
        return ""
    return f'<div class="banner" role="note"><strong>Simulated listeners.</strong> {" ".join(said)}</div>'


def _hero(shown: ComparePage) -> str:
    found = shown.comparison
    others = found.versions[1:]
    names = [f'<span class="name">{escape(name)}</span>' for name in found.versions]
    title = f"{', '.join(names[:-1])} and {names[-1]}, side by side" if others else f"{names[0]}, measured"
    confidence = f"{100 * float(found.settings.get('confidence', 0.95)):g}%"
    prompts, clips = found.about.get("prompts"), found.about.get("clips")
    lead = (
        f"{prompts} prompts, {clips} clips of every version, sung with the same seeds; {confidence} intervals from "
        "resampled prompts."
    )
    body = "".join(_clear(found, other) for other in others)
    body = f'<ul class="clear-list">{body}</ul>' if body else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in shown.notes)
    return f'<section class="hero"><h1>{title}</h1><p class="lead">{escape(lead)}</p>{body}{notes}</section>'


def _clear(found: Comparison, other: str) -> str:
    """What differs clearly from one of the others, in one item of a list: the better, the worse, the rest."""
    sorted_out: dict[str, list[str]] = {"better": [], "worse": [], "also": []}
    for one in found.differences:
        if one.against == other and one.is_clear:
            words, sign = words_of(one.metric), "+" if one.value > 0 else ""
            wanted = _better(found, one.metric)
            kind = "also" if wanted is None else "better" if (wanted == "higher") == (one.value > 0) else "worse"
            unit = f" {words.unit}" if words.unit else ""
            sorted_out[kind].append(f"{words.label} {sign}{number(one.value)}{unit}")
    told = [f"{kind}: {', '.join(names)}" for kind, names in sorted_out.items() if names]
    said = "; ".join(told) if told else "no clear difference in any metric"
    return f"<li><b>Beside {escape(other)}</b>, {escape(said)}.</li>"


def _better(found: Comparison, metric: str) -> str | None:
    """Which way is better; neither for the distance to a version's clips, which says how far and not how good."""
    reference = found.about.get("reference") or {}
    if metric in ("fad", "kernel_distance") and reference.get("kind") != "folder":
        return None
    return words_of(metric).better


def _span(one: Measured | Difference) -> str:
    return page._range(Interval(one.value, one.low, one.high, one.n), number)


def _battles(shown: ComparePage) -> str:
    if not shown.contests:
        return ""
    return page._win_rates(SimpleNamespace(contests=list(shown.contests), simulated=shown.simulated_votes))


def _metrics(shown: ComparePage) -> str:
    found = shown.comparison
    keys = list(dict.fromkeys((one.metric, one.model) for one in found.metrics))
    groups = {**GROUPS, "Others": tuple(dict.fromkeys(name for name, _ in keys if name not in METRICS))}
    rows = []
    for title, names in groups.items():
        mine = [key for name in names for key in keys if key[0] == name]
        if mine:
            span = len(found.versions) + 1
            rows.append(f'<tr class="group"><th colspan="{span}" scope="colgroup">{escape(title)}</th></tr>')
            rows += [_row(found, *key) for key in mine]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in found.versions)
    return page._section(
        "metrics", "Metrics",
        f'<div class="scroll" tabindex="0" role="region" aria-label="Metrics"><table class="compared" '
        f'style="--versions: {len(found.versions)}"><thead><tr><th scope="col">Metric</th>{head}</tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table></div>",
        lead=f"Equal n for all. Δ: how far {escape(found.versions[0])} lies above (+) or below (−) this version, "
        "prompt by prompt; bold where that is clear.",
    )  # fmt: skip


def _row(found: Comparison, metric: str, model: str | None) -> str:
    words = words_of(metric)
    by = f" {model}." if model else ""
    cells = []
    for name in found.versions:
        one = found.of(name, metric, model)
        column = f'data-column="{escape(name)}"'
        if one is None:
            cells.append(f"<td {column}><span>–</span></td>")
            continue
        gap = next(
            (d for d in found.differences if (d.against, d.metric, d.model) == (name, metric, model)), None
        )  # fmt: skip
        told = ""
        if gap is not None:
            css, sign = ("gap clear" if gap.is_clear else "gap"), ("+" if gap.value > 0 else "")
            told = f'<small class="{css}">Δ {sign}{number(gap.value)}, {_span(gap)}</small>'
        cells.append(
            f"<td {column}><span>{number(one.value)}</span><small>{_span(one)} · n = {one.n:,}</small>{told}</td>"
        )
    unit = f", {words.unit}" if words.unit else ""
    note = f"{words.definition[:1].upper()}{words.definition[1:]}." if words.definition else ""
    return (
        f'<tr><th scope="row">{escape(words.label + unit)}<small>{escape(note + by)}</small></th>{"".join(cells)}</tr>'
    )


def _listen(shown: ComparePage) -> str:
    if not shown.heard:
        return ""
    first, cards = shown.comparison.versions[0], []
    for index, one in enumerate(shown.heard):
        clips = "".join(
            f'<div class="clip {"aligned" if clip.version == first else "base"}"><div class="clip-head">'
            f'<span class="clip-version">{escape(clip.version)}</span>'
            f"<small>{'silent' if clip.lufs is None else f'{number(clip.lufs)} LUFS as sung'}</small></div>"
            f'<audio controls preload="metadata" src="{escape(clip.source)}" '
            f'aria-label="{escape(f"{clip.version}: {one.text}")}"></audio></div>'
            for clip in one.clips
        )
        cards.append(
            f'<article class="example" aria-labelledby="prompt-{index}"><h3 id="prompt-{index}">'
            f'<q>{escape(one.text)}</q></h3><div class="clips">{clips}</div></article>'
        )
    return page._section(
        "listen", "Hear them", f'<div class="examples">{"".join(cards)}</div>',
        lead="AI-generated music, one take of each version at the same loudness. Starting one clip stops the other and "
        "goes on at the same moment.",
    )  # fmt: skip


def _about(found: Comparison) -> str:
    about, settings = found.about, found.settings
    reference = about.get("reference")
    rewards = [f"{one['name']}{' (simulated votes)' if one['simulated'] else ''}" for one in about["reward_models"]]
    sung = settings.get("generation", {})
    facts = {
        "Name": found.name,
        "CLAP": str(about.get("clap")),
        "Reference": "none" if reference is None else f"{reference['clips']} clips of {reference['name']}",
        "Reward models": ", ".join(rewards) or "none",
        "Training clips": f"{about.get('training_clips', 0):,} of {', '.join(about['snapshots']) or 'no votes'}",
        "Sampling": ", ".join(
            f"{name.replace('_', ' ')} {value:g}" for name, value in sung.items() if value is not None
        ),
        "Studies": ", ".join(found.studies) or "none",
        "Seed": str(settings.get("seed")),
        "Commit": found.commit or "not a checkout",
    }
    return page._section("about", "What it rests on", page._facts(facts))


def win_rate_line(contest: Contest) -> str:
    """One contest as a line of text."""
    rate = contest.rate
    return (
        f"{contest.label}: {percent(rate.value)} [{percent(rate.low)}, {percent(rate.high)}], {rate.votes:,} votes, "
        f"{rate.decisive:,} decisive; {contest.note}"
    )


def metric_lines(found: Comparison) -> list[Mapping[str, str]]:
    """The metrics as rows of text for a table in a terminal, one column a version."""
    rows = []
    for metric, model in dict.fromkeys((one.metric, one.model) for one in found.metrics):
        row = {"metric": words_of(metric).label}
        for name in found.versions:
            one = found.of(name, metric, model)
            gap = next((d for d in found.differences if (d.against, d.metric, d.model) == (name, metric, model)), None)
            row[name] = "–" if one is None else f"{number(one.value)} [{number(one.low)}, {number(one.high)}]"
            row[name] += " *" if gap is not None and gap.is_clear else ""
            row["n"] = str(one.n) if one is not None else row.get("n", "")
        rows.append(row)
    return rows
