"""A night of the circle as one HTML page: what came out, why, and what every number rests on."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from alignment.evaluation import page, plots
from alignment.evaluation.intervals import Interval
from alignment.evaluation.report import FigureTrace, MetricRow, _plain
from alignment.evaluation.terminal import number, percent
from alignment.evaluation.win_rate import WinRate
from alignment.evaluation.writing import write_page

CHIPS = {"promoted": "Promoted", "rejected": "Rejected", "undecided": "Undecided", "ended": "Ended early"}
STATES = {"pass": ("Passed", "gain"), "fail": ("Failed", "failed"), "open": ("Open", "no-gain")}
GLOSSARY = (
    ("Candidate", "the version that this night trained."),
    ("Champion", "the version that is heard now; the base while none was promoted."),
    ("E-value", "how far listeners' votes speak against “the candidate does not win more than half”. It is looked at "
                "after every vote at no cost: under that hypothesis it ever exceeds 1 / alpha with chance alpha at "
                "most (Waudby-Smith and Ramdas 2024)."),
    ("Alpha", "what this candidate's test may spend of the budget for all candidates together."),
    ("Win rate", "wins plus half of ties and of both-bad votes over all counted votes of the bets, with the confidence "
                 "sequence that belongs to the test."),
    ("Interval", "95%; votes of one rater, and on one prompt, are not independent, and metrics resample prompts."),
    ("Undecided", "the study ended before the gate decided; nothing was promoted."),
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One check of the gate: its name, pass, fail or open, and the sentence that says why."""

    name: str
    state: str
    sentence: str


@dataclass(frozen=True)
class NightPage:
    """Everything a night's page shows. ``outcome`` is one of CHIPS; ``tests`` (opponent, win rate of the sequential
    test, votes by outcome), the champion first. ``simulated`` has no default: whoever builds it says who listened."""

    title: str
    created_at: str
    simulated: bool
    outcome: str
    headline: str
    candidate: str | None
    champion: str
    base: str
    said: str = ""  # the decision's own sentence
    checks: Sequence[Check] = ()
    tests: Sequence[tuple[str, Interval, WinRate | None]] = ()
    e_value: float | None = None
    alpha: float | None = None
    metrics: Sequence[MetricRow] = ()
    reward: Mapping[str, Interval] = field(default_factory=dict)
    reward_said: str = ""
    reward_card: str = ""  # a file beside the page
    traces: Sequence[FigureTrace] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The whole page as JSON; what is not finite is null."""
        return json.dumps(_plain(self), ensure_ascii=False, allow_nan=False)


def render_night(night: NightPage) -> str:
    """The page's HTML. Script and style are inlined; a content policy forbids every request."""
    read = {name: (page.TEMPLATES / name).read_text(encoding="utf-8")
            for name in ("report.html", "report.css", "nightly.css", "report.js")}  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(read["report.js"].encode()).digest()).decode()
    body = [_head(night), _checks(night), _tests(night), _metrics(night), _reward(night), _lineage(night), _words()]
    return Template(read["report.html"]).substitute(
        title=escape(night.title), script_hash=f"'sha256-{digest}'", style=read["report.css"] + read["nightly.css"],
        script=read["report.js"], created=escape(night.created_at), banner=page._banner(night),
        body="\n".join(part for part in body if part), data=page._json_for_html(night.to_json()),
    )  # fmt: skip


def write_night_page(night: NightPage, path: str | Path) -> Path:
    """The page at ``path``, there whole or not at all. Raises StoreError when it cannot be written."""
    return write_page(render_night(night), path)


def _head(night: NightPage) -> str:
    css = "gain" if night.outcome == "promoted" else "no-gain"
    tiles, hero = [], ""
    if night.tests:
        opponent, rate, _ = night.tests[0]
        hero = (
            f'<p class="hero-figure"><strong>{percent(rate.value)}</strong> <span>win rate of {escape(night.candidate)}'
            f" over {escape(opponent)}, anytime-valid 95% interval {page._range(rate)}, n = {rate.n:,} bets.</span></p>"
        )
    if night.e_value is not None and night.alpha:
        needed = f"{number(1 / night.alpha)} needed at alpha {number(night.alpha)}"
        tiles.append(page._figure(number(night.e_value), "E-value", needed, page._badge(night)))
    for opponent, rate, _ in night.tests[1:]:
        tiles.append(page._figure(percent(rate.value), f"Win rate over {opponent}", f"{page._range(rate)} · "
                                  f"n\u00a0=\u00a0{rate.n:,}", page._badge(night)))  # fmt: skip
    if "preference" in night.reward:
        found = night.reward["preference"]
        tiles.append(page._figure(percent(found.value), "Reward accuracy", f"{page._range(found)} · "
                                  f"n\u00a0=\u00a0{found.n:,} votes", page._badge(night)))  # fmt: skip
    return (
        f'<section id="verdict" class="hero {css}"><p class="verdict"><span class="chip">{CHIPS[night.outcome]}</span>'
        f"{page._badge(night)}</p><h1>{escape(night.headline)}</h1>{hero}"
        + (f'<p class="note">{escape(night.said)}</p>' if night.said else "")
        + (f'<dl class="figures">{"".join(tiles)}</dl>' if tiles else "")
        + "</section>"
    )


def _checks(night: NightPage) -> str:
    if not night.checks:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(one.name[:1].upper() + one.name[1:])}</th>'
        f'<td class="{STATES[one.state][1]}"><span class="chip">{STATES[one.state][0]}</span></td>'
        f"<td>{escape(one.sentence)}</td></tr>"
        for one in night.checks
    )
    table = _table("Checks", ("Check", "State", "Why"), rows, css="checks")
    return page._section("gate", "The gate", table, page._badge(night),
                         "Rejected when a check fails, promoted when all have passed.")  # fmt: skip


def _tests(night: NightPage) -> str:
    if not night.tests:
        return ""
    domain = plots.share_domain([rate for _, rate, _ in night.tests])
    rows, votes = [], []
    for opponent, rate, told in night.tests:
        css = "good" if rate.low > 0.5 else "bad" if rate.high < 0.5 else "even"
        said = page._range(rate)
        label = f"over {opponent}: {percent(rate.value)}, {said}"
        rows.append(
            f'<div class="forest-row"><div class="forest-label">over {escape(opponent)}</div>'
            f"{plots.track([(rate, css)], domain, reference=0.5, label=label)}"
            f'<div class="forest-value"><b>{percent(rate.value)}</b><small>{said} · n&nbsp;=&nbsp;{rate.n:,} bets'
            "</small></div></div>"
        )
        if told is not None:
            left = "–" if told.left_share is None else f"{percent(told.left_share.value)}"
            cells = (told.wins, told.ties, told.both_bad, told.losses, told.raters, told.prompts)
            votes.append(f'<tr><th scope="row">over {escape(opponent)}</th>'
                         + "".join(f"<td>{x:,}</td>" for x in cells) + f"<td>{left}</td></tr>")  # fmt: skip
    axis = f'<div class="forest-row axis-row"><div></div>{plots.axis(domain)}<div></div></div>'
    heads = ("Votes", "Wins", "Ties", "Both bad", "Losses", "Raters", "Prompts", "Left share")
    return page._section(
        "win-rates", "What was heard",
        f'<div class="forest">{"".join(rows)}{axis}</div>' + (_table("Votes", heads, "".join(votes)) if votes else ""),
        page._badge(night), "Blind votes on one pair of clips a prompt; the dashed line is an even match.",
    )  # fmt: skip


def _metrics(night: NightPage) -> str:
    if not night.metrics:
        return ""

    def cell(found: Interval | None, version: str) -> str:
        column = f'data-column="{escape(version)}"'
        if found is None:
            return f"<td {column}>–</td>"
        return f"<td {column}>{number(found.value)}<small>{page._range(found, number)} · n = {found.n:,}</small></td>"

    rows = "".join(
        f'<tr><th scope="row">{escape(m.label)}<small>{escape(m.definition)}</small></th>'
        f"{cell(m.base, night.champion)}{cell(m.aligned, night.candidate or '')}</tr>"
        for m in night.metrics
    )
    table = _table("Metrics", ("Quantity", night.champion, night.candidate or ""), rows, css="metrics")
    return page._section("metrics", "What was measured", table, lead="On the same prompts, with equally many clips.")


def _reward(night: NightPage) -> str:
    if not night.reward:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(head.replace("_", " "))}</th><td>{percent(found.value)}</td>'
        f"<td>{page._range(found)}</td><td>{found.n:,}</td></tr>"
        for head, found in night.reward.items()
    )
    card = f' <a href="{escape(night.reward_card)}">Its card</a> has more.' if night.reward_card else ""
    return page._section(
        "reward", "The reward model",
        _table("Reward model", ("Head", "Accuracy", "Interval", "Decisive votes"), rows),
        page._badge(night), f"Share of decisive votes it predicts on prompts that it never saw. "
        f"{escape(night.reward_said)}{card}",
    )  # fmt: skip


def _lineage(night: NightPage) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(t.figure)}</th><td>{escape(t.study) or "–"}</td>'
        f"<td>{'–' if t.votes is None else format(t.votes, ',')}</td><td>{page._hash(t.snapshot_sha256)}</td>"
        f"<td>{escape(t.reward_model) or '–'}</td><td>{page._hash(t.adapter_sha256)}</td>"
        f"<td>{page._hash(t.config_sha256)}</td></tr>"
        for t in night.traces
    )
    heads = ("Figure", "Study or comparison", "Votes", "Snapshot", "Reward model", "Adapter", "Config")
    table = _table("Lineage", heads, rows, css="lineage") if rows else ""
    return page._section(
        "lineage", "Where every number comes from", table + page._facts(dict(night.facts)),
        lead="Hashes in tables are shortened; they stand in full in the data of this page.",
    )  # fmt: skip


def _words() -> str:
    words = "".join(f"<div><dt>{escape(word)}</dt><dd>{escape(text)}</dd></div>" for word, text in GLOSSARY)
    return page._section("words", "Words", f'<dl class="glossary">{words}</dl>')


def _table(label: str, heads: Sequence[str], rows: str, *, css: str = "votes") -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="{css}"><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def interval_of(values: Mapping[str, Any]) -> Interval:
    """An interval from the plain values of a record; what is null there is nan."""
    read = {key: float("nan") if values.get(key) is None else float(values[key]) for key in ("value", "low", "high")}
    return Interval(**read, n=int(values["n"]))
