"""MusicRL's report as one HTML page in the style of every report: nothing fetched, every inserted text escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from types import SimpleNamespace

from alignment.evaluation import page, plots
from alignment.evaluation.intervals import Interval
from alignment.evaluation.metrics import bootstrap_mean
from alignment.evaluation.musicrl_plots import runs_chart
from alignment.evaluation.musicrl_report import (
    BASE,
    PUBLISHED_ACCURACY,
    PUBLISHED_RATINGS,
    PUBLISHED_SCORES,
    PUBLISHED_STEPS,
    SHOWN,
    Meeting,
    MusicRlReport,
)  # fmt: skip
from alignment.evaluation.terminal import number, percent
from alignment.evaluation.writing import write_page

TITLE = "MusicRL in simulation"
NAMES = {
    "preference": "users' preference", "quality": "quality", "text_adherence": "text adherence",
    "clap_cosine": "CLAP cosine of clip and caption",
    "caption_contrast": "CLAP cosine above that with other captions",
}  # fmt: skip
GLOSSARY = (
    ("Win rate", "wins / (wins + losses), as in MusicRL: ties do not count. Both-bad votes stand among the ties."),
    ("With ties", "wins plus half of ties and of both-bad votes, over all counted votes: Attune's usual win rate."),
    (
        "Interval",
        "95%, two-way clustered: votes of one listener, and votes on one prompt, are not independent, so whole "
        "listeners and whole prompts are resampled (Cameron, Gelbach and Miller 2011), inside Wilson's interval.",
    ),
    ("R, U, RU", "trained on text and quality; on users' preference; on R's rewards and then on U's, from R."),
    ("joint", "R's and U's rewards at once, from the base: what RU has to beat."),
    ("Deviation", "one deviation of a reward among the base's clips of one prompt; 0 is the base's level."),
    (
        "Held-out reward",
        "the run's own weights on reward models of other listeners' votes on other prompts. It chooses which adapter "
        "of a run is kept, and trains nothing.",
    ),
    (
        "Judge",
        "the gold judge behind the simulated listeners. Its reward is a clip's mean utility to the panel that "
        "compares, without their noise. It hears every run's clips once, after all training.",
    ),
    (
        "Over-optimised",
        "the trained reward still rises while the judge's falls (Gao, Schulman and Hilton 2022). The peak is sought on "
        "one half of the prompts and the fall measured on the other.",
    ),
    ("KL", "nats a clip between a run and the base, on clips that the run sang."),
    (
        "Simulated listeners",
        "programs with noisy tastes that vote through the same service as people. They show whether the method works "
        "here; they say nothing of how people hear the music.",
    ),
)


def render(report: MusicRlReport) -> str:
    """The page's HTML."""
    script = (page.TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    flags = SimpleNamespace(simulated=report.simulated)  # all that the shared parts ask of a report
    badge = page._badge(flags)
    sections = [
        _headline(report, badge), _table(report, badge), _claims(report, badge), _curves(report, badge),
        _accuracy(report, badge), _heard(report), page._stages(report), page._lineage(_Lineage(report)), _glossary(),
    ]  # fmt: skip
    style = "".join((page.TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "musicrl.css"))
    return Template((page.TEMPLATES / "report.html").read_text(encoding="utf-8")).substitute(
        title=TITLE, script_hash=f"'sha256-{digest}'", style=style, script=script, created=escape(report.created_at),
        banner=page._banner(flags), body="\n".join(section for section in sections if section),
        data=page._json_for_html(report.to_json()),
    )  # fmt: skip


def write(report: MusicRlReport, path: Path) -> Path:
    """Writes the page in one move and returns its path. Raises StoreError when the folder cannot be written."""
    return write_page(render(report), path)


class _Lineage(SimpleNamespace):
    """What the shared table of origins reads."""

    def __init__(self, report: MusicRlReport) -> None:
        super().__init__(traces=report.traces, run=report.run, simulated=report.simulated)


def _headline(report: MusicRlReport, badge: str) -> str:
    best = report.meeting("RU", BASE) or report.meeting("R", BASE) or report.meetings[0]
    gain = best.decisive is not None and best.decisive.low > 0.5
    tiles = [
        page._figure(
            percent(m.decisive.value), m.label,
            f"{page._range(m.decisive)} · {m.decisive.n:,}\u00a0decisive", badge,
        )
        for m in report.meetings
        if m.headline and m is not best and m.decisive is not None
    ]  # fmt: skip
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in [*report.aims, *report.notes])
    value = percent(best.decisive.value) if best.decisive else "–"
    name = escape(SHOWN.get(best.candidate, best.candidate))
    title = f"{name[:1].upper()}{name[1:]} {'is preferred to' if gain else 'shows no gain over'} the base"
    published = best.published.win_rate if best.published else None
    beside = f" MusicRL reports {percent(published)}, from people." if published else ""
    return (
        f'<section id="verdict" class="hero {"gain" if gain else "no-gain"}"><p class="verdict"><span class="chip">'
        f"{'Gain' if gain else 'No gain'}</span>{badge}</p><h1>{title}</h1>"
        f'<p class="hero-figure"><strong>{value}</strong> <span>of decisive votes for {name} over the base, '
        f"95% interval {page._range(best.decisive) if best.decisive else 'unknown'}, from {best.rate.votes:,} blind "
        f"votes by {best.rate.raters:,} held-out listeners on {best.rate.prompts:,} held-out prompts.{beside}"
        "</span></p>"
        f'{notes}<dl class="figures">{"".join(tiles)}</dl></section>'
    )


def _table(report: MusicRlReport, badge: str) -> str:
    rows = "".join(_row(meeting) for meeting in report.meetings)
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Win", "Tie", "Loss", "Win rate", "MusicRL's", "With ties", "Votes")
    )
    key = "".join(f'<span><i class="key {css}"></i>{css}</span>' for css in ("win", "tie", "loss"))
    return page._section(
        "table", "MusicRL's table beside ours",
        f'<p class="legend">{key}</p><div class="scroll" tabindex="0" role="region" aria-label="Comparisons"><table '
        f'class="meetings"><thead><tr><th scope="col">Comparison</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>",
        badge,
        f"Win, tie and loss are shares of all votes; the win rate leaves ties out, as MusicRL's does. MusicRL asked "
        f"people, {PUBLISHED_RATINGS} ratings a comparison (win / tie / loss where it gives them); these are programs.",
    )  # fmt: skip


def _row(meeting: Meeting) -> str:
    rate, found, published = meeting.rate, meeting.decisive, meeting.published
    ties = rate.ties + rate.both_bad
    bar = plots.vote_bar([("wins", rate.wins, "win"), ("ties", ties, "tie"), ("losses", rate.losses, "loss")])
    cells = "".join(f"<td>{percent(meeting.share(count))}</td>" for count in (rate.wins, ties, rate.losses))
    theirs = percent(published.win_rate) if published else "–"
    if published and published.win is not None:
        theirs += f"<small>{' / '.join(f'{100 * x:g}' for x in (published.win, published.tie, published.loss))}</small>"
    return (
        f'<tr><th scope="row">{escape(meeting.label)}<small>by {escape(meeting.judges)} listeners</small>{bar}</th>'
        f'{cells}{_cell(found, percent)}<td class="theirs">{theirs}</td>{_cell(rate.interval, percent)}<td>'
        f"{rate.votes:,}<small>{rate.raters:,} listeners, {rate.prompts:,} prompts</small></td></tr>"
    )


def _cell(found: Interval | None, show=number) -> str:
    return "<td>–</td>" if found is None else f"<td>{show(found.value)}<small>{page._range(found, show)}</small></td>"


def _claims(report: MusicRlReport, badge: str) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(claim.text)}</th><td class="{claim.outcome.replace(" ", "-")}">{claim.outcome}'
        f"</td><td>{escape(claim.figures)}</td></tr>"
        for claim in report.claims
    )
    return page._section(
        "claims", "What reproduces and what does not",
        '<div class="scroll" tabindex="0" role="region" aria-label="Claims"><table class="claims"><thead><tr><th '
        'scope="col">MusicRL found</th><th scope="col">Here</th><th scope="col">Figures</th></tr></thead><tbody>'
        f"{rows}</tbody></table></div>",
        badge,
        "“Reproduced” when the whole interval is on the claimed side, “contradicted” when it is on the other, else "
        "“not shown”.",
    )  # fmt: skip


def _curves(report: MusicRlReport, badge: str) -> str:
    if not report.curves:
        return ""
    kept = {curve.run: float(curve.kept_step) for curve in report.curves}

    def chart(figure: str, label: str, reference: float | None = None, unit: str = "", note: str = "") -> str:
        runs = {curve.run: curve.points(figure) for curve in report.curves if figure in curve.figures}
        return runs_chart(label, runs, kept=kept, reference=reference, unit=unit, note=note)

    def against_kl(figure: str, label: str, note: str = "") -> str:
        runs = {
            curve.run: [(kl, value) for (_, kl), (_, value) in
                        zip(curve.points("kl"), curve.points(figure), strict=True)]
            for curve in report.curves if figure in curve.figures
        }  # fmt: skip
        return runs_chart(label, runs, across="KL, nats", note=note)

    charts = [
        chart("proxy", "Trained reward", 0.0, "weighted deviations", "each run's own; not one scale for all"),
        chart("held_out_reward", "Held-out reward", 0.0, "weighted deviations", "ring: the adapter that was kept"),
        chart("gold", "Judge's reward", None, "utility", "read once, after all training"),
        chart("gold_cleanliness", "Quality, as the judge hears it"),
        chart("gold_adherence", "Text adherence, as the judge hears it"),
        chart("score/preference", "Users' preference reward", 0.0, "deviations"),
        chart("score/quality", "Quality reward", 0.0, "deviations"),
        chart("score/text_adherence", "Text reward", 0.0, "deviations"),
        chart("score/clap_cosine", "CLAP cosine", 0.0, "deviations"),
        chart("score/caption_contrast", "CLAP cosine above that with other captions", 0.0, "deviations"),
        chart("kl", "KL to the base", 0.0, "nats a clip"),
        against_kl("gold", "Judge's reward against KL", "a fall at more KL is over-optimisation"),
        against_kl("gold_adherence", "Text adherence against KL", "MusicRL draws its scores like this"),
    ]
    words = "; ".join(f"{run}: {text}" for run, text in PUBLISHED_SCORES.items())
    steps = ", ".join(f"{run} {count:,}" for run, count in PUBLISHED_STEPS.items())
    facts = {
        f"{curve.run}, weights": ", ".join(f"{NAMES.get(n, n)} {w:g}" for n, w in curve.weights.items())
        + f"; kept step {curve.kept_step} of {curve.steps[-1]}"
        for curve in report.curves
    }
    return page._section(
        "training", "Scores over training",
        f'<div class="charts">{"".join(charts)}</div>{page._facts(facts)}', badge,
        f"The same captions with the same random numbers at every step. MusicRL's samples: {words} (MOS and MuLan "
        f"cosine); the steps it kept: {steps}.",
    )  # fmt: skip


def _accuracy(report: MusicRlReport, badge: str) -> str:
    rows = [(NAMES.get(name, name), found, PUBLISHED_ACCURACY.get(name)) for name, found in report.accuracy.items()]
    if report.perfect is not None:
        rows.append(("a scorer that knows these listeners' mean taste", report.perfect, None))
    domain = plots.share_domain([found for _, found, _ in rows])
    lines = []
    for name, found, published in rows:
        theirs = f"<small>MusicRL {percent(published)}</small>" if published else ""
        label = f"{name}: {percent(found.value)}, interval {page._range(found)}, {found.n} votes"
        lines.append(
            f'<div class="forest-row"><div class="forest-label">{escape(name)}{theirs}</div>'
            f"{plots.track([(found, 'plain')], domain, reference=0.5, label=label)}"
            f'<div class="forest-value"><b>{percent(found.value)}</b><small>{page._range(found)} · n&nbsp;=&nbsp;'
            f"{found.n:,}</small></div></div>"
        )
    axis = f'<div class="forest-row axis-row"><div></div>{plots.axis(domain)}<div></div></div>'
    votes = page._facts({f"votes of {panel}": f"{count:,}" for panel, count in report.votes.items()})
    return page._section(
        "accuracy", "Reward accuracy", f'<div class="forest">{"".join(lines)}{axis}</div>{votes}', badge,
        "Share of decisive votes of users that each reward orders as they did, on prompts and by listeners that "
        "trained none of them. The dashed line is chance.",
    )  # fmt: skip


def _heard(report: MusicRlReport) -> str:
    if not report.heard:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(SHOWN.get(h.name, h.name))}<small>{len(h.reward):,} prompts</small></th>'
        f"{_cell(bootstrap_mean(h.reward))}{_cell(bootstrap_mean(h.cleanliness))}{_cell(bootstrap_mean(h.adherence))}"
        + (_cell(h.kl) if h.kl else f"<td>{'–' if h.kl_bound is None else f'≤ {number(h.kl_bound)}'}</td>")
        + f"{_cell(h.diversity)}</tr>"
        for h in report.heard
    )
    names = ("Judge's reward", "Quality", "Text adherence", "KL, nats a clip", "Diversity")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return page._section(
        "entrants", "Entrants side by side",
        '<div class="scroll" tabindex="0" role="region" aria-label="Entrants"><table class="methods"><thead><tr><th '
        f'scope="col">Entrant</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>',
        lead="To the gold judge, on the held-out prompts of the comparisons. Best-of-N trains nothing.",
    )  # fmt: skip


def _glossary(rows: Sequence[tuple[str, str]] = GLOSSARY) -> str:
    inside = "".join(f"<div><dt>{escape(word)}</dt><dd>{escape(text)}</dd></div>" for word, text in rows)
    return page._section("words", "Words", f'<dl class="glossary">{inside}</dl>')
