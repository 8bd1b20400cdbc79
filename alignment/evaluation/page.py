"""The report as one HTML page: sections in reading order, every inserted text escaped, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template

from alignment.evaluation import plots
from alignment.evaluation.intervals import Interval
from alignment.evaluation.report import Contest, MethodRow, ReportData
from alignment.evaluation.terminal import duration, number, percent
from alignment.evaluation.win_rate import WinRate

TEMPLATES = Path(__file__).resolve().parent / "templates"

GLOSSARY = (
    ("Win rate", "wins plus half of ties and of both-bad votes, over all counted votes. Skips and faults never count."),
    ("Decisive vote", "a vote for one of the two clips; ties and both-bad votes are not decisive."),
    (
        "Interval",
        "two-way clustered bootstrap: votes of one rater, and votes on one prompt, are not independent, so whole "
        "raters and whole prompts are resampled (Cameron, Gelbach and Miller 2011) and the win rate's interval is "
        "Wilson's with the effective number of votes. Few raters give wide intervals.",
    ),
    (
        "Verdict",
        "“gain” when the lower bound of the first win rate is above 50%, else “no gain”; “not trained” when the "
        "trust gate refused.",
    ),
    ("Blind", "listeners never see which version sings; sides are drawn anew for each assignment."),
    ("Left share", "share of decisive votes won by the clip shown left; near 50% when position does not matter."),
    (
        "Reward accuracy",
        "share of decisive votes on held-out prompts in which the reward model scores the chosen clip higher.",
    ),
    (
        "KL",
        "how far the aligned version has moved from its base, in nats per clip: the mean, over clips it sang, of the "
        "log-probability under itself minus that under the base.",
    ),
    (
        "Diversity",
        "mean pairwise cosine distance, in CLAP's audio space, among the clips one version sings for one prompt; 0 "
        "means that it always sings the same.",
    ),
    (
        "Best of N",
        "the base sings N clips and the reward model picks one; no training. It costs ln N − (N−1)/N nats of KL and "
        "shows what the reward model alone can give.",
    ),
    (
        "Expert iteration",
        "the adapter learns, by maximum likelihood, to sing the clips that the reward model likes best of N.",
    ),
    (
        "Judge reward",
        "mean utility of a clip to the comparing listeners, as the gold judge hears it and without their noise; in "
        "the unit of that noise. The judge trains nothing.",
    ),
    (
        "Trust gate",
        "nothing is aligned unless a reward model predicts votes on prompts it never saw better than chance: the "
        "lower bound of its cross-validated accuracy must be above 50%.",
    ),
    ("DPO", "direct preference optimisation (Rafailov et al. 2023), here on a LoRA adapter; the base never changes."),
    (
        "Simulated listeners",
        "programs with noisy tastes that vote through the same service as people. They show that the circle works; "
        "they say nothing of how people hear the music.",
    ),
)


def render_page(data: ReportData) -> str:
    """The page's HTML. Its scripts and styles are inlined; a content policy forbids every request."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sections = [
        _headline(data),
        _win_rates(data),
        _methods(data),
        _examples(data),
        _reward(data),
        _training(data),
        _metrics(data),
        _adherence(data),
        _stages(data),
        _lineage(data),
        _glossary(),
    ]
    return Template((TEMPLATES / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(data.title),
        script_hash=f"'sha256-{digest}'",
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        created=escape(data.created_at),
        banner=_banner(data),
        body="\n".join(section for section in sections if section),
        data=_json_for_html(data.to_json()),
    )


def _json_for_html(text: str) -> str:
    """JSON that cannot end its script element or start a comment."""
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _banner(data: ReportData) -> str:
    if not data.simulated:
        return ""
    return (
        '<div class="banner" role="note"><strong>Simulated listeners.</strong> The votes behind this report come from '
        "a program, not from people. Figures that rest on them carry this mark: "
        f"{_badge(data)}</div>"
    )


def _badge(data: ReportData) -> str:
    return '<span class="badge">Simulated listeners</span>' if data.simulated else ""


def _section(identifier: str, title: str, body: str, badge: str = "", lead: str = "") -> str:
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{identifier}"><h2><span>{title}</span>{badge}</h2>{lead}{body}</section>'


def _range(interval: Interval, show=percent) -> str:
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "interval unknown"
    return f"{show(interval.low)} to {show(interval.high)}"


def _confidence(data: ReportData) -> str:
    return f"{100 * data.contests[0].rate.confidence:g}%" if data.contests else "95%"


def _figure(value: str, label: str, detail: str, badge: str = "") -> str:
    return (
        f'<div class="figure"><dt>{escape(label)}</dt><dd><span class="figure-value">{escape(value)}</span>'
        f'<span class="figure-detail">{escape(detail)}</span>{badge}</dd></div>'
    )


def _headline(data: ReportData) -> str:
    rate = data.contests[0].rate if data.contests else None
    gain = data.verdict == "gain"
    word, _, rest = data.headline.partition(": ")
    title = escape(rest[:1].upper() + rest[1:])
    if len(data.candidate) <= 24:  # a short name is not broken at its hyphens
        title = title.replace(escape(data.candidate), f'<span class="name">{escape(data.candidate)}</span>')
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in data.notes)
    tiles = [
        _figure(
            percent(contest.rate.value),
            contest.label,
            f"{_range(contest.rate.interval)} · {contest.rate.votes:,}\u00a0votes",
            _badge(data),
        )
        for contest in data.contests[1:3]
    ]
    if data.reward and data.reward.heads:
        head = data.reward.heads[0]
        accuracy = head.accuracy
        detail = f"{_range(accuracy)} · {accuracy.n:,}\u00a0pairs"
        tiles.append(_figure(percent(accuracy.value), f"Reward accuracy, {head.head}", detail, _badge(data)))
    for metric in data.metrics[:2]:
        if metric.aligned is not None:
            before = f" · base {number(metric.base.value)}" if metric.base else ""
            value = f"{number(metric.aligned.value)}{' ' + metric.unit if metric.unit else ''}"
            detail = f"{_range(metric.aligned, number)} · n\u00a0=\u00a0{metric.aligned.n:,}{before}"
            tiles.append(_figure(value, metric.label, detail))
    return (
        f'<section id="verdict" class="hero {"gain" if gain else "no-gain"}">'
        f'<p class="verdict"><span class="chip">{escape(word)}</span>{_badge(data)}</p>'
        f"<h1>{title}</h1>"
        + _hero_figure(data, rate)
        + notes
        + (f'<dl class="figures">{"".join(tiles)}</dl>' if tiles else "")
        + (
            f'<p class="next">Listen and vote on this very database: <code>{escape(data.next_command)}</code></p>'
            if data.next_command
            else ""
        )
        + "</section>"
    )


def _hero_figure(data: ReportData, rate: WinRate | None) -> str:
    if rate is None:
        return ""
    return (
        f'<p class="hero-figure"><strong>{percent(rate.value)}</strong> <span>win rate of {escape(data.candidate)} '
        f"against {escape(', '.join(rate.opponents))}, {_confidence(data)} interval "
        f"{_range(rate.interval)}, from {rate.votes:,} blind votes ({rate.decisive:,} decisive) by {rate.raters:,} "
        f"{_plural(rate.raters, 'rater')} on {rate.prompts:,} held-out {_plural(rate.prompts, 'prompt')}.</span></p>"
    )


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + "s"


def _win_rates(data: ReportData) -> str:
    if not data.contests:
        return ""
    domain = plots.share_domain([c.rate.interval for c in data.contests])
    rows = []
    for contest in data.contests:
        rate = contest.rate
        css = "good" if rate.low > 0.5 else "bad" if rate.high < 0.5 else "even"
        label = f"{contest.label}: {percent(rate.value)}, interval {_range(rate.interval)}, {rate.votes} votes"
        note = f"<small>{escape(contest.note)}</small>" if contest.note else ""
        rows.append(
            f'<div class="forest-row"><div class="forest-label">{escape(contest.label)}{note}</div>'
            f"{plots.track([(rate.interval, css)], domain, reference=0.5, label=label)}"
            f'<div class="forest-value"><b>{percent(rate.value)}</b><small>{_range(rate.interval)} · '
            f"n&nbsp;=&nbsp;{rate.votes:,}</small></div></div>"
        )
    axis = f'<div class="forest-row axis-row"><div></div>{plots.axis(domain)}<div></div></div>'
    forest = f'<div class="forest">{"".join(rows)}{axis}</div>'
    return _section(
        "win-rates",
        "Win rates",
        forest + _votes_table(data.contests, data),
        _badge(data),
        f"Share of blind comparisons won, ties and both-bad votes counted half, with {_confidence(data)} intervals. "
        "The dashed line is an even match.",
    )


def _votes_table(contests: tuple[Contest, ...] | list[Contest], data: ReportData) -> str:
    rows = []
    for contest in contests:
        rate = contest.rate
        parts = [
            ("wins", rate.wins, "win"),
            ("ties", rate.ties, "tie"),
            ("both bad", rate.both_bad, "both-bad"),
            ("losses", rate.losses, "loss"),
        ]
        left = "–"
        if rate.left_share:
            left = f"{percent(rate.left_share.value)}<small>{_range(rate.left_share)}</small>"
        decisive = "–"
        if rate.decisive_value is not None:
            decisive = (
                f"{percent(rate.decisive_value)}<small>{percent(rate.decisive_low)} to {percent(rate.decisive_high)}"
                f" · n = {rate.decisive:,}</small>"
            )
        rows.append(
            f'<tr><th scope="row">{escape(contest.label)}{plots.vote_bar(parts)}</th>'
            + "".join(f"<td>{count:,}</td>" for _, count, _ in parts)
            + f"<td>{decisive}</td><td>{rate.raters:,}</td><td>{rate.prompts:,}</td><td>{left}</td></tr>"
        )
    key = "".join(
        f'<span><i class="key {css}"></i>{name}</span>'
        for name, css in (("wins", "win"), ("ties", "tie"), ("both bad", "both-bad"), ("losses", "loss"))
    )
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Wins", "Ties", "Both bad", "Losses", "Decisive only", "Raters", "Prompts", "Left share")
    )
    return (
        f'<h3>Votes</h3><p class="legend">{key}</p><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Votes by comparison"><table class="votes"><thead><tr><th scope="col">Comparison</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _methods(data: ReportData) -> str:
    if not data.methods:
        return ""

    def css(row: MethodRow) -> str:
        return "aligned" if row.headline else "base" if row.kl is None else "other"

    def cell(
        row: MethodRow, found: Interval | None, show: Callable[[float | None], str] = number, instead: str = "–"
    ) -> str:
        if found is None:
            return f"<td>{instead}</td>"
        count = "" if found.n == row.judge_reward.n else f" · n = {found.n:,}"  # else the row's own
        return f"<td>{show(found.value)}<small>{_range(found, show)}{count}</small></td>"

    base = data.methods[0]
    charts = [
        plots.kl_chart(
            "Win rate against KL", [(m.nats, m.win_rate, m.label, css(m)) for m in data.methods if m.win_rate],
            reference=0.5, show=percent, note="Best-of-N stands at the most that it can cost.",
        ),
        plots.kl_chart(
            "Judge reward against KL", [(m.nats, m.judge_reward, m.label, css(m)) for m in data.methods],
            reference=base.judge_reward.value, note="Dashed: the base. A fall at more KL is over-optimisation.",
        ),
    ]  # fmt: skip
    rows = "".join(
        f'<tr{" class=headline" if m.headline else ""}><th scope="row">{escape(m.label)}'
        f"<small>{m.judge_reward.n:,} {_plural(m.judge_reward.n, 'prompt')}</small></th>"
        f"{cell(m, m.win_rate, percent)}{cell(m, m.judge_reward)}"
        f"{cell(m, m.kl, instead='–' if m.kl_bound is None else f'≤ {number(m.kl_bound)}')}"
        f"{cell(m, m.cleanliness)}{cell(m, m.adherence)}{cell(m, m.diversity)}</tr>"
        for m in data.methods
    )
    names = ("Win rate", "Judge reward", "KL, nats a clip", "Cleanliness", "Follows caption", "Diversity")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return _section(
        "methods",
        "Methods side by side",
        f'<div class="charts">{"".join(charts)}</div><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Methods side by side"><table class="methods"><thead><tr><th scope="col">Method</th>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>",
        _badge(data),
        "The same held-out prompts, listeners and judge for all. The recipe chose the headline before any of them was "
        "compared.",
    )


def _examples(data: ReportData) -> str:
    if not data.examples:
        return ""
    cards = []
    for index, example in enumerate(data.examples):
        clips = []
        for clip in example.clips:
            role = "aligned" if clip.version == data.candidate else "base" if clip.version == data.base else "other"
            won = f"{clip.votes} {_plural(clip.votes, 'vote')}" if clip.votes is not None else ""
            label = f"{clip.version}: {example.prompt}"
            clips.append(
                f'<div class="clip {role}"><div class="clip-head"><span class="clip-version">{escape(clip.version)}'
                f'</span><span class="clip-votes">{escape(won)}</span></div>'
                f'<audio controls preload="metadata" src="{escape(clip.audio)}" '
                f'aria-label="{escape(label)}"></audio></div>'
            )
        outcome = f'<p class="outcome">{escape(example.outcome)}</p>' if example.outcome else ""
        cards.append(
            f'<article class="example" aria-labelledby="prompt-{index}"><h3 id="prompt-{index}">'
            f'<q>{escape(example.prompt)}</q></h3><div class="clips">{"".join(clips)}</div>{outcome}</article>'
        )
    return _section(
        "examples",
        "Hear it",
        f'<div class="examples">{"".join(cards)}</div>',
        _badge(data),
        "Held-out prompts, sung by both versions. Starting one clip stops the other.",
    )


def _reward(data: ReportData) -> str:
    if data.reward is None:
        return ""
    card = data.reward
    domain = plots.share_domain([h.accuracy for h in card.heads]) if card.heads else (0.0, 1.0)
    rows = []
    for head in card.heads:
        found = head.accuracy
        baseline = ""
        if head.baseline is not None:
            baseline = f"<small>{escape(head.baseline_label or 'baseline')} {percent(head.baseline)}</small>"
        label = f"{head.head}: accuracy {percent(found.value)}, interval {_range(found)}, {found.n} pairs"
        rows.append(
            f'<div class="forest-row"><div class="forest-label">{escape(head.head)}{baseline}</div>'
            f"{plots.track([(found, 'plain')], domain, reference=0.5, label=label)}"
            f'<div class="forest-value"><b>{percent(found.value)}</b><small>{_range(found)} · n&nbsp;=&nbsp;{found.n:,}'
            "</small></div></div>"
        )
    forest = ""
    if rows:
        axis = f'<div class="forest-row axis-row"><div></div>{plots.axis(domain)}<div></div></div>'
        forest = f'<div class="forest">{"".join(rows)}{axis}</div>'
    return _section(
        "reward",
        "Reward model",
        forest + _facts({"name": card.name, **card.facts}),
        _badge(data),
        "Share of decisive votes on prompts it never saw that each head orders as the rater did. The dashed line is "
        "chance.",
    )


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def _training(data: ReportData) -> str:
    charts = [plots.line_chart(c.label, c.points, unit=c.unit, reference=c.reference, note=c.note) for c in data.curves]
    if not any(charts):
        return ""
    body = f'<div class="charts">{"".join(charts)}</div>'
    return _section("training", "Training", body, _badge(data), "By optimizer step; the last value is named.")


def _metrics(data: ReportData) -> str:
    if not data.metrics:
        return ""

    def cell(interval: Interval | None, unit: str, version: str) -> str:
        column = f'data-column="{escape(version)}"'
        if interval is None:
            return f"<td {column}>–</td>"
        unit = f" {escape(unit)}" if unit else ""
        return (
            f"<td {column}>{number(interval.value)}{unit}"
            f"<small>{_range(interval, number)} · n = {interval.n:,}</small></td>"
        )

    rows = "".join(
        f'<tr><th scope="row">{escape(m.label)}<small>{escape(m.definition)}</small></th>'
        f"{cell(m.base, m.unit, data.base)}{cell(m.aligned, m.unit, data.candidate)}</tr>"
        for m in data.metrics
    )
    return _section(
        "distance",
        "Distance and diversity",
        '<div class="scroll" tabindex="0" role="region" aria-label="Distance and diversity"><table class="metrics">'
        f'<thead><tr><th scope="col">Quantity</th><th scope="col">{escape(data.base)}</th>'
        f'<th scope="col">{escape(data.candidate)}</th></tr></thead><tbody>{rows}</tbody></table></div>',
        lead="What alignment cost: how far the version moved from its base, and whether it still varies.",
    )


def _adherence(data: ReportData) -> str:
    if not data.adherence:
        return ""
    domain = (0.0, 1.0)
    rows = []
    for row in data.adherence:
        chance = f"chance {percent(row.chance)} · " if row.chance is not None else ""
        count = f"{row.base.n:,}" if row.base.n == row.aligned.n else f"{row.base.n:,} and {row.aligned.n:,}"
        label = f"{row.attribute}: base {percent(row.base.value)}, aligned {percent(row.aligned.value)}"
        rows.append(
            f'<div class="forest-row"><div class="forest-label">{escape(row.attribute)}'
            f"<small>{chance}n&nbsp;=&nbsp;{count}</small></div>"
            + plots.track([(row.base, "base"), (row.aligned, "aligned")], domain, reference=row.chance, label=label)
            + f'<div class="forest-value two"><span>{percent(row.base.value)} <small>{_range(row.base)}</small></span>'
            f"<span><b>{percent(row.aligned.value)}</b> "
            f"<small>{_range(row.aligned)}</small></span></div></div>"
        )
    axis = f'<div class="forest-row axis-row"><div></div>{plots.axis(domain)}<div></div></div>'
    key = (
        f'<p class="legend"><span><i class="key dot-base"></i>{escape(data.base)}</span>'
        f'<span><i class="key dot-aligned"></i>{escape(data.candidate)}</span></p>'
    )
    return _section(
        "adherence",
        "Following the caption",
        f'{key}<div class="forest">{"".join(rows)}{axis}</div>',
        lead="Share of clips in which a judge hears what the caption asked for. Dashed: chance.",
    )


def _stages(data: ReportData) -> str:
    if not data.stages:
        return ""
    longest = max(stage.seconds for stage in data.stages) or 1.0
    total = sum(stage.seconds for stage in data.stages)
    rows = "".join(
        f'<li><span class="stage-name">{escape(s.name)}</span><span class="stage-bar"><i style="width:'
        f'{max(0.4, 100 * s.seconds / longest):.2f}%"></i></span>'
        f'<span class="stage-time">{duration(s.seconds)}</span></li>'
        for s in data.stages
    )
    memory = f", peak memory {data.peak_memory_mb:,.0f} MB" if data.peak_memory_mb is not None else ""
    return _section("time", "Time", f'<ol class="stages">{rows}</ol>', lead=f"{duration(total)} in all{memory}.")


def _hash(value: str) -> str:
    if len(value) >= 32:
        return f'<code title="{escape(value)}">{escape(value[:12])}</code>'
    return f"<code>{escape(value)}</code>" if value else "–"


def _lineage(data: ReportData) -> str:
    if not data.traces and not data.run:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(t.figure)}</th><td>{escape(t.study) or "–"}</td>'
        f"<td>{'–' if t.votes is None else format(t.votes, ',')}</td><td>{_hash(t.snapshot_sha256)}</td>"
        f"<td>{escape(t.reward_model) or '–'}</td><td>{_hash(t.adapter_sha256)}</td>"
        f"<td>{_hash(t.config_sha256)}</td></tr>"
        for t in data.traces
    )
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Figure", "Study", "Votes", "Snapshot", "Reward model", "Adapter", "Config")
    )
    table = ""
    if rows:
        table = (
            '<div class="scroll" tabindex="0" role="region" aria-label="Lineage"><table class="lineage"><thead><tr>'
            f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
    return _section(
        "lineage",
        "Where every figure comes from",
        table + _facts(dict(data.run)),
        _badge(data) if rows else "",
        lead="Hashes are shortened here; they stand in full in the data embedded in this page.",
    )


def _glossary() -> str:
    rows = "".join(f"<div><dt>{escape(word)}</dt><dd>{escape(text)}</dd></div>" for word, text in GLOSSARY)
    return _section("words", "Words", f'<dl class="glossary">{rows}</dl>')
