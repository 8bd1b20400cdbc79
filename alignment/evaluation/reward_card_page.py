"""A reward model's card as one HTML page and as lines for a terminal; every inserted text is escaped."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from alignment.evaluation import page, plots
from alignment.evaluation.intervals import Interval
from alignment.evaluation.level_probe import QUIETER_DB
from alignment.evaluation.reward_card import CardRow, RewardCard
from alignment.evaluation.terminal import clean, number, percent
from alignment.evaluation.writing import write_page

HEIGHT = 260  # of a plot, in CSS pixels
CHIPS = {"sound": "Sound", "unproven": "Unproven", "exposed": "Exposed"}
GLOSSARY = (
    ("Accuracy", "share of decisive votes in which the model scores the chosen clip higher; equal scores count half. "
                 "Ties and both-bad votes do not count."),
    ("Interval", "95%, two-way clustered by rater and by prompt (Cameron, Gelbach and Miller 2011): votes of one "
                 "rater, and votes on one prompt, are not independent."),
    ("Baseline", "a scorer that knows nothing of the votes but, for loudness, level and length, whether more or less "
                 "is liked. A reward model has to beat each, vote by vote."),
    ("Follows", "share of pairs on which the model prefers the same clip as the baseline does."),
    ("With it taken out", "accuracy of what is left of the model's scores when a cubic of the baseline's values is "
                          "taken out of them, by least squares and blind to the votes. A model that hears nothing but "
                          "loudness is left with noise, so 50%, however well it did before."),
    ("Calibration", "of the votes to which the model gives 70%, seven in ten should come true. ECE is the mean "
                    "distance from that, weighted by votes."),
    ("Within one version", "both clips by the same version. Across versions a model may win by telling versions apart, "
                           "which alignment cannot use."),
    ("Raters' agreement", "two raters on the same pair of clips, both decisive: the share that choose the same clip. "
                          "No model can be expected to agree with raters much more than they do with each other."),
    ("Krippendorff's alpha", "agreement of all answers (this clip, that clip, tie, both bad) beyond chance: 1 is "
                             "perfect, 0 is chance."),
    ("Level probe", f"the same clip scored again {QUIETER_DB:g} dB quieter, beside how much less a clip scores that is "
                    "so much quieter by nature. Alike: the model hears level, which raters do not, as they hear clips "
                    "at one loudness. The second alone: it hears something that goes with level."),
)  # fmt: skip


def render_card(card: RewardCard) -> str:
    """The card's HTML. Its scripts and styles are inlined; a content policy forbids every request."""
    read = {name: (page.TEMPLATES / name).read_text(encoding="utf-8")
            for name in ("report.html", "report.css", "report.js", "reward_card.css")}  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(read["report.js"].encode()).digest()).decode()
    words = "".join(f"<div><dt>{escape(word)}</dt><dd>{escape(text)}</dd></div>" for word, text in GLOSSARY)
    sections = [
        _headline(card),
        _baselines(card),
        _accuracy(card),
        _calibration(card),
        _raters(card),
        _curve(card),
        page._section("facts", "The model", page._facts(dict(card.facts))) if card.facts else "",
        page._section("words", "Words", f'<dl class="glossary">{words}</dl>'),
    ]
    return Template(read["report.html"]).substitute(
        title=escape(f"Reward card: {card.name}"),
        script_hash=f"'sha256-{digest}'",
        style=read["report.css"] + read["reward_card.css"],
        script=read["report.js"],
        created=escape(card.created_at),
        banner=page._banner(card),
        body="\n".join(section for section in sections if section),
        data=page._json_for_html(card.to_json()),
    )


def write_card(card: RewardCard, path: str | Path) -> Path:
    """Write the page in one move and return its path. Raises StoreError when it cannot be written."""
    return write_page(render_card(card), path, what="card")


def card_text(card: RewardCard) -> str:
    """The card for a terminal."""
    rows = [(row.group, row.label, row.accuracy) for row in card.rows]
    rows += [("Baselines", row.label, row.accuracy) for row in card.baselines]
    if card.raters is not None:
        rows.append(("Raters", "Two raters chose the same clip", card.raters.same))
        rows += [("Raters", "The model, on such pairs", card.raters.model)] if card.raters.model else []
    rows += [("Learning curve", f"{votes:,} votes", share) for votes, share in card.curve]
    width = max(len(clean(label)) for _, label, _ in rows)
    lines = [f"{CHIPS[card.verdict]}: {clean(card.headline)}", f"Asked of {card.asked}."]
    if card.simulated:
        lines.append("SIMULATED LISTENERS: these votes come from a program, not from people.")
    lines += ["", *(f"- {clean(finding)}" for finding in card.findings), ""]
    group = None
    for heading, label, found in rows:
        if heading != group:
            lines.append(heading)
            group = heading
        lines.append(f"  {clean(label):<{width}}  {percent(found.value):>6}  {page._range(found)}, n {found.n}")
    ece = card.calibration.ece
    lines.append(f"ECE {ece.value:.3f} ({ece.low:.3f} to {ece.high:.3f}); a perfectly calibrated model would show "
                 f"{card.calibration.by_chance:.3f} on as many votes")  # fmt: skip
    if card.raters is not None and card.raters.alpha is not None:
        alpha = card.raters.alpha
        lines.append(f"Krippendorff's alpha of raters {number(alpha.value)} ({page._range(alpha, number)}), "
                     f"{alpha.clusters} pairs heard twice or more")  # fmt: skip
    return "\n".join([*lines, *(clean(note) for note in card.notes)])


def _headline(card: RewardCard) -> str:
    overall = card.rows[0].accuracy
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in card.findings)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in card.notes)
    return (
        f'<section id="verdict" class="hero {card.verdict}"><p class="verdict"><span class="chip">'
        f"{CHIPS[card.verdict]}</span>{page._badge(card)}</p><h1>{escape(card.headline)}</h1>"
        f'<p class="hero-figure"><strong>{percent(overall.value)}</strong> <span>of {overall.n:,} decisive votes '
        f"predicted, 95% interval {page._range(overall)}. Asked of {escape(card.asked)}.</span></p>"
        f'<ul class="findings">{findings}</ul>{notes}</section>'
    )


def _forest(rows: Sequence[CardRow], domain: tuple[float, float]) -> str:
    lines, group = [], None
    for row in rows:
        if row.group != group:
            lines.append(f'<p class="group">{escape(row.group)}</p>')
            group = row.group
        found = row.accuracy
        css = "good" if found.low > 0.5 else "bad" if found.high < 0.5 else "even"
        label = f"{row.label}: {percent(found.value)}, interval {page._range(found)}, {found.n} votes"
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        lines.append(
            f'<div class="forest-row"><div class="forest-label">{escape(row.label)}{note}</div>'
            f"{plots.track([(found, css)], domain, reference=0.5, label=label)}"
            f'<div class="forest-value"><b>{percent(found.value)}</b><small>{page._range(found)} · '
            f"n&nbsp;=&nbsp;{found.n:,}</small></div></div>"
        )
    axis = f'<div class="forest-row axis-row"><div></div>{plots.axis(domain)}<div></div></div>'
    return f'<div class="forest">{"".join(lines)}{axis}</div>'


def _accuracy(card: RewardCard) -> str:
    return page._section(
        "accuracy", "Accuracy, and where it comes from",
        _forest(card.rows, plots.share_domain([row.accuracy for row in card.rows])), page._badge(card),
        "Share of decisive votes predicted. The dashed line is chance.",
    )  # fmt: skip


def _baselines(card: RewardCard) -> str:
    def points(found: Interval) -> str:
        low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in (found.low, found.high))
        return f"{100 * found.value:+.1f}".replace("-", "−") + f"<small>{low} to {high}</small>"

    rows = "".join(
        f'<tr><th scope="row">{escape(row.label)}<small>prefers {escape(row.prefers)}</small></th>'
        f"<td>{percent(row.accuracy.value)}<small>{page._range(row.accuracy)}</small></td>"
        f"<td>{points(row.advantage)}</td>"
        f"<td>{percent(row.follows.value)}<small>{page._range(row.follows)}</small></td>"
        f"<td>{percent(row.beyond.value)}<small>{page._range(row.beyond)}</small></td>"
        f"<td>{row.accuracy.n:,}</td></tr>"
        for row in card.baselines
    )
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in (
            "Baseline",
            "Its accuracy",
            "The model's lead, points",
            "The model follows it",
            "With it taken out",
            "Votes",
        )
    )
    probe = ""
    if card.level is not None:
        probe = f'<p class="legend">{card.level.sentence}; {card.level.shift.n:,} clips.</p>'
    return page._section(
        "baselines", "What it has to beat",
        '<div class="scroll" tabindex="0" role="region" aria-label="Baselines"><table class="baselines"><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>{probe}",
        page._badge(card), "The same votes, asked of scorers that learnt nothing of the music.",
    )  # fmt: skip


def _calibration(card: RewardCard) -> str:
    found, ece = card.calibration, card.calibration.ece
    chart = _point_chart(
        "Share that came true against predicted probability",
        [(one.predicted, one.came_true, f"{one.came_true.n} votes") for one in found.bins],
        x_ticks=[(x / 10, f"{10 * x}%") for x in range(5, 11)], diagonal=True,
    )  # fmt: skip
    return page._section(
        "calibration", "Calibration", chart, page._badge(card),
        f"Expected calibration error {ece.value:.3f} ({ece.low:.3f} to {ece.high:.3f}), {ece.n:,} votes in "
        f"{len(found.bins)} {page._plural(len(found.bins), 'bin')}; a perfectly calibrated model would show "
        f"{found.by_chance:.3f} on as many independent votes. Dashed: perfect calibration.",
    )  # fmt: skip


def _raters(card: RewardCard) -> str:
    if card.raters is None:
        return page._section("raters", "Raters among themselves",
                             '<p class="note">No pair was heard by two raters who both chose a clip, so nothing is '
                             "known of how far raters agree.</p>")  # fmt: skip
    found = card.raters
    rows = [CardRow("", "Two raters, the same clip", found.same, "both decisive on one pair of clips")]
    if found.model is not None:
        rows.append(CardRow("", "The model and a rater", found.model, "votes on such pairs"))
    rows.append(CardRow("", "The model and a rater, all pairs", card.rows[0].accuracy))
    alpha = ""
    if found.alpha is not None:
        alpha = (
            f"<p class=\"legend\">Krippendorff's alpha of the raters' answers: {number(found.alpha.value)} "
            f"({page._range(found.alpha, number)}), {found.alpha.n:,} answers on {found.alpha.clusters:,} pairs.</p>"
        )
    body = _forest(rows, plots.share_domain([row.accuracy for row in rows])).replace('<p class="group"></p>', "")
    return page._section("raters", "Raters among themselves", body + alpha, page._badge(card),
                         "How often two raters agree bounds what any model can do.")  # fmt: skip


def _curve(card: RewardCard) -> str:
    if len(card.curve) < 2:
        return ""
    first, last = card.curve[0][0], card.curve[-1][0]
    chart = _point_chart(
        "Accuracy against votes learnt from",
        [(math.log2(votes / first), share, f"{votes:,} votes") for votes, share in card.curve],
        x_ticks=[(math.log2(votes / first), f"{votes:,}") for votes, _ in card.curve], reference=0.5,
    )  # fmt: skip
    return page._section(
        "learning-curve", "Learning curve", chart, page._badge(card),
        f"Accuracy of models that learnt from a share of the votes, {first:,} to {last:,}, doubling to the right. "
        "Still rising at the right end: more votes will help.",
    )  # fmt: skip


def _point_chart(
    label: str,
    points: Sequence[tuple[float, Interval, str]],
    *,
    x_ticks: Sequence[tuple[float, str]],
    diagonal: bool = False,
    reference: float | None = None,
) -> str:
    """Shares with their intervals over x; a dashed diagonal, or a dashed level."""
    edges = [edge for _, share, _ in points for edge in (share.low, share.high, share.value)]
    edges += [reference] if reference is not None else [0.5, 1.0]
    ticks = plots.nice_ticks(max(0.0, min(edges)), min(1.0, max(edges)))
    bottom, top = ticks[0], ticks[-1]
    left, right = x_ticks[0][0], x_ticks[-1][0]

    def x(value: float) -> str:
        return f"{10 + 84 * (value - left) / ((right - left) or 1.0):.2f}%"

    def y(value: float) -> float:
        return round(14 + (HEIGHT - 44) * (top - value) / (top - bottom), 1)

    parts = [f'<svg class="pointchart" width="100%" height="{HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="8%" x2="100%" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text class="tick" x="0" y="{y(tick) - 3}">{100 * tick:.0f}%</text>')
    for value, name in x_ticks:
        parts.append(f'<text class="tick" x="{x(value)}" y="{HEIGHT - 4}" text-anchor="middle">{escape(name)}</text>')
    if diagonal:
        parts.append(f'<line class="diagonal" x1="{x(left)}" x2="{x(right)}" y1="{y(left)}" y2="{y(right)}"/>')
    if reference is not None:
        parts.append(f'<line class="reference" x1="8%" x2="100%" y1="{y(reference)}" y2="{y(reference)}"/>')
    for value, share, name in points:
        at = x(value)
        title = f"{name}: {percent(share.value)}, {page._range(share)}"
        parts.append(f'<line class="whisker plain" x1="{at}" x2="{at}" y1="{y(share.low)}" y2="{y(share.high)}"/>'
                     f'<circle class="point plain" cx="{at}" cy="{y(share.value)}" r="5"><title>{escape(title)}</title>'
                     "</circle>")  # fmt: skip
    return (
        f'<figure class="chart"><figcaption><span class="chart-label">{escape(label)}</span></figcaption>'
        f"{''.join(parts)}</svg></figure>"
    )
