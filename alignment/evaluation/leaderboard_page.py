"""The leaderboard as one HTML page: inline SVG, every inserted text escaped, no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Collection
from html import escape
from string import Template

from alignment.evaluation import plots
from alignment.evaluation.intervals import Interval
from alignment.evaluation.leaderboard import FEWEST_RATERS, FEWEST_VOTES, Entry, Leaderboard
from alignment.evaluation.page import TEMPLATES

_SLICE_WORDS = {"studies": "studies", "tag": "prompts tagged", "cohort": "cohort", "since": "since", "until": "before"}

GLOSSARY = (
    (
        "Rating",
        "strength on an Elo-like scale around 1000: 400 points are odds of ten to one. Davidson's model (1970), which "
        "knows ties, with the advantage of the left clip taken out and a weak pull of each rating to the mean.",
    ),
    (
        "Interval",
        "two-way clustered bootstrap: votes of one rater, and votes on one prompt, are not independent, so whole "
        "raters and whole prompts are resampled (Cameron, Gelbach and Miller 2011). Each bounds its own version's "
        "rating; two that overlap may still be told apart.",
    ),
    (
        "Rank",
        "the places that the votes leave open: a version is above another only when the interval of their difference, "
        "widened for all the comparisons made, lies above zero.",
    ),
    (
        "Provisional",
        f"fewer than {FEWEST_VOTES} votes or {FEWEST_RATERS} raters, or a version that never lost, or never won, "
        "against the rest. It stands after the others and has no say in who is first.",
    ),
    ("Decisive vote", "a vote for one of the two clips; ties and both-bad votes are not decisive."),
    (
        "More votes",
        "decisive votes between the two for a test at 5% to have 80% power if the ratings are right; votes of one "
        "rater or prompt count as less than one each.",
    ),
    (
        "Votes that would flip",
        "decisive votes, those that move most first, which would put another version first had they said the opposite.",
    ),
    (
        "Simulated listeners",
        "programs with noisy tastes that vote through the same service as people. Their votes and people's are never "
        "on one leaderboard.",
    ),
)


def render_leaderboard(board: Leaderboard, *, simulated_versions: Collection[str] = ()) -> str:
    """The page's HTML; ``simulated_versions`` are marked as trained on simulated votes."""
    body = [_head(board), _ratings(board, simulated_versions), _hangs_on(board), _neighbours(board), _glossary()]
    page = Template((TEMPLATES / "leaderboard.html").read_text(encoding="utf-8"))
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "leaderboard.css"))
    return page.substitute(
        style=style, created=f"{board.made_at:%Y-%m-%d %H:%M} UTC", banner=_banner(board),
        body="\n".join(part for part in body if part),
    )  # fmt: skip


def _banner(board: Leaderboard) -> str:
    if not board.simulated:
        return ""
    return (
        '<div class="banner" role="note"><strong>Simulated listeners.</strong> The votes behind this leaderboard come '
        "from programs, not from people; they say nothing of how people hear the music.</div>"
    )


def _badge(board: Leaderboard) -> str:
    return '<span class="badge">Simulated listeners</span>' if board.simulated else ""


def _elo(value: float) -> str:
    return f"{value:.0f}"


def _rank(entry: Entry) -> str:
    return str(entry.rank_low) if entry.rank_low == entry.rank_high else f"{entry.rank_low}–{entry.rank_high}"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def _head(board: Leaderboard) -> str:
    first, r = board.entries[0], board.ratings
    settled = [e for e in board.entries if not e.provisional] or board.entries
    sharing = [e.version for e in settled if e.rank_low == 1]
    if len(sharing) == 1:
        title = f"{first.version} is first"
    elif len(sharing) <= 3:
        title = f"{', '.join(sharing[:-1])} and {sharing[-1]} share first place"
    else:
        title = f"{len(sharing)} versions share first place"
    asked = "; ".join(
        f"{_SLICE_WORDS.get(name, name)} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in board.slice.items()
    )
    note = f'<p class="note">Only {escape(asked)}.</p>' if asked else ""
    return (
        f'<section class="hero"><h1>{escape(title)}</h1><p class="lead">{_plural(r.votes, "blind vote")} by '
        f"{_plural(r.raters, 'rater')} on {_plural(r.prompts, 'prompt')}; {100 * r.confidence:g}% intervals, clustered "
        f"by rater and prompt.</p>{note}</section>"
    )


def _domain(entries: tuple[Entry, ...]) -> tuple[float, float]:
    edges = [x for e in entries for x in (e.rating.elo.low, e.rating.elo.high) if math.isfinite(x)]
    ticks = plots.nice_ticks(min([950.0, *edges]), max([1050.0, *edges]), 6)
    return ticks[0], ticks[-1]


def _ticks(domain: tuple[float, float]) -> list[float]:
    return plots.nice_ticks(*domain)


def _line(interval: Interval, domain: tuple[float, float], css: str, label: str) -> str:
    """One version's interval and point over grid lines at the round ratings and a dashed one at the mean, 1000."""

    def at(value: float) -> str:
        return f"{100 * (value - domain[0]) / (domain[1] - domain[0]):.2f}%"

    grid = "".join(
        f'<line class="grid" x1="{at(t)}" x2="{at(t)}" y1="-99" y2="199"/>' for t in _ticks(domain) if t != 1000
    )
    mean = f'<line class="reference" x1="{at(1000)}" x2="{at(1000)}" y1="-99" y2="199"/>'
    low, high, middle = at(interval.low), at(interval.high), 15
    caps = "".join(f'<line class="cap" x1="{x}" x2="{x}" y1="{middle - 4}" y2="{middle + 4}"/>' for x in (low, high))
    return (
        f'<svg class="track" width="100%" height="30" role="img" aria-label="{escape(label)}">{grid}{mean}'
        f'<g class="{css}"><line class="whisker" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>{caps}'
        f'<circle class="point" cx="{at(interval.value)}" cy="{middle}" r="6"/></g></svg>'
    )


def _ratings(board: Leaderboard, simulated_versions: Collection[str]) -> str:
    domain = _domain(board.entries)
    rows = []
    for e in board.entries:
        elo = e.rating.elo
        said = f"{_elo(elo.low)} to {_elo(elo.high)}"
        label = f"{e.version}: rating {_elo(elo.value)}, interval {said}, {e.votes} votes, rank {_rank(e)}"
        marks = '<span class="badge">provisional</span>' if e.provisional else ""
        if e.version in simulated_versions:
            marks += '<span class="badge">trained on simulated votes</span>'
        why = f"<small>{escape('; '.join(e.provisional))}</small>" if e.provisional else ""
        record = f"{e.wins:,} won · {e.losses:,} lost · {e.ties + e.both_bad:,} even"
        rows.append(
            f'<div class="forest-row" role="listitem"><div class="forest-label"><span class="rank">{_rank(e)}</span>'
            f"<span>{escape(e.version)} {marks}<small>{record}</small>{why}</span></div>"
            f"{_line(elo, domain, 'even' if e.provisional else 'plain', label)}"
            f'<div class="forest-value"><b>{_elo(elo.value)}</b><small>{said} · n&nbsp;=&nbsp;{e.votes:,}</small></div>'
            "</div>"
        )
    ticks = "".join(
        f'<span style="left:{100 * (t - domain[0]) / (domain[1] - domain[0]):.2f}%">{_elo(t)}</span>'
        for t in _ticks(domain)
    )
    axis = f'<div class="forest-row axis-row"><div></div><div class="axis">{ticks}</div><div></div></div>'
    return (
        f'<section id="ratings"><h2><span>Ratings</span>{_badge(board)}</h2><div class="forest board" role="list">'
        f"{''.join(rows)}{axis}</div></section>"
    )


def _hangs_on(board: Leaderboard) -> str:
    gaps = {gap.sentence for gap in board.gaps}
    said = [sentence for sentence in board.sentences() if sentence not in gaps]
    if not said:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    return f'<section id="hangs-on"><h2><span>What it hangs on</span>{_badge(board)}</h2><ul>{items}</ul></section>'


def _neighbours(board: Leaderboard) -> str:
    if not board.gaps:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(g.better)} over {escape(g.worse)}</th>'
        f"<td>{'separated' if g.difference.low > 0 else _more(g.more)}</td><td>{g.share:.1%}</td>"
        f"<td>{g.design_effect:.1f}</td></tr>"
        for g in board.gaps
    )
    return (
        f'<section id="neighbours"><h2><span>Telling neighbours apart</span>{_badge(board)}</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Neighbours"><table><thead><tr>'
        '<th scope="col">Neighbours</th><th scope="col">More decisive votes, '
        f'{board.gaps[0].power:.0%} power</th><th scope="col">Expected share won</th>'
        f'<th scope="col">Design effect</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _more(count: int | None) -> str:
    return "out of reach" if count is None else f"{count:,}"


def _glossary() -> str:
    words = "".join(f"<div><dt>{escape(word)}</dt><dd>{escape(text)}</dd></div>" for word, text in GLOSSARY)
    return f'<section id="words"><h2><span>Words</span></h2><dl class="glossary">{words}</dl></section>'
