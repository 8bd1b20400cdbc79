"""The page of an alignment run: proxy, held-out and gold reward over training, what the clips became, best-of-N."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template

from alignment.evaluation import plots, writing
from alignment.evaluation.curves import Curve, curves_chart
from alignment.evaluation.intervals import Interval
from alignment.evaluation.overoptimisation import (
    FELL,
    GOLD,
    HELD_OUT,
    NOT_SEEN,
    OVER,
    PROXY,
    Finding,
    Row,
    RunPage,
    StageLooks,
)
from alignment.evaluation.terminal import number, percent

TEMPLATES = Path(__file__).resolve().parent / "templates"
REWARDS = ((PROXY, "proxy reward (optimised)", "proxy"), (HELD_OUT, "held-out reward (other raters and prompts)",
           "held-out"), (GOLD, "gold judge (read once, at the end)", "gold"))  # fmt: skip
SOUND = (
    ("kl", "KL to the base", "nats a clip", None),
    ("diversity", "Diversity", "mean CLAP distance between clips of a prompt", 0.0),
    ("duplicates", "Duplicates", "share of clips with a twin", 0.0),
    ("level_lufs", "Level", "LUFS", None),
    ("silence", "Silence", "share of 20 ms below −60 dBFS", 0.0),
    ("onset_rate_hz", "Onset rate", "onsets a second", 0.0),
    ("pitch_class_entropy_bits", "Pitch-class entropy", "bits, at most 3.58", 0.0),
)
WORDS = {OVER: "Over-optimised", FELL: "Fell", NOT_SEEN: "Not seen"}
GLOSSARY = (
    ("Proxy reward", "the reward that training maximises, on clips of prompts it never sang. All rewards are on the "
     "base's scale: 0 is its mean, 1 the deviation between its clips of one prompt."),
    ("Held-out reward", "the same heads with the same weights, in a reward model that learnt from other raters and "
     "other prompts. It chooses the step whose adapter is kept."),
    ("Gold judge", "what 24 simulated listeners make of a clip, without their noise; on the scale of the start's "
     "clips. It is read once, after training, and chooses nothing."),
    ("Over-optimised", "from the look with the highest judging reward to the last look, that reward fell and the "
     "proxy rose, both by more than their intervals, compared prompt by prompt. The highest of several noisy looks "
     "is somewhat too high, so the fall's interval is Bonferroni's over the looks."),
    ("Intervals", "95%, from resampled prompts: they speak of other prompts, not of other reward models or seeds."),
    ("Best of N", "the start sings N clips and the proxy picks one; no training. It costs at most ln N − (N−1)/N "
     "nats of KL (arXiv:2401.01879)."),
    ("Duplicates", "clips that have the same first-codebook code as another one in more than half of all frames."),
)  # fmt: skip


def write_page(page: RunPage, path: Path) -> Path:
    """The page as one HTML file, written in one move. Raises StoreError when the folder cannot be written."""
    return writing.write_page(render(page), path, what="page")


def render(page: RunPage) -> str:
    """The page's HTML: styles inlined, no script, no request; every figure embedded as JSON."""
    styles = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "overoptimisation.css"))
    sections = [_headline(page), *(_stage(page, stage) for stage in page.stages), _against_kl(page), _comparison(page),
                _about(page)]  # fmt: skip
    banner = (
        '<div class="banner" role="note"><strong>Simulated listeners.</strong> The votes behind these reward models '
        "come from a program, not from people. They say nothing of how people hear the music.</div>"
    )
    figures = json.dumps(page.as_json(), allow_nan=False, ensure_ascii=False)
    for char in "<>&\u2028\u2029":  # JSON that cannot end its script element
        figures = figures.replace(char, f"\\u{ord(char):04x}")
    return Template((TEMPLATES / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(page.title), script_hash="'none'", style=styles, script="", created=escape(page.created_at),
        banner=banner if page.simulated else "", body="\n".join(sections), data=figures,
    )  # fmt: skip


def _headline(page: RunPage) -> str:
    finding = page.headline
    kept, start = page.rows[-1], page.rows[0]
    last = page.stages[-1]
    for row in page.rows:
        kept = row if row.name == last.version else kept
    tiles = [_tile(title.partition(" (")[0].capitalize(), kept.figures[name], start.figures[name])
             for name, title, _ in REWARDS if name in kept.figures]  # fmt: skip
    tiles.append(_tile("KL, nats a clip", kept.figures["kl"], None))
    tiles.append(_tile("Diversity", kept.figures["diversity"], start.figures["diversity"]))
    word = WORDS.get(finding.kind, "One look")
    title = {OVER: "This run over-optimised its reward", FELL: "The reward that judges fell"}.get(
        finding.kind, "No over-optimisation seen"
    )
    all_findings = "".join(
        f'<p class="note">{escape(found.sentence[:1].upper() + found.sentence[1:])}</p>'
        for found in page.findings[last.name]
    )
    return (
        f'<section id="verdict" class="hero {"over" if finding.kind in (OVER, FELL) else "fine"}"><p class="verdict">'
        f'<span class="chip">{word}</span></p><h1>{title}</h1><p class="lead">Version {escape(last.version)} is the '
        f"adapter of step {last.kept_step}, {_why_kept(last)}.</p>{all_findings}"
        f'<dl class="figures">{"".join(tiles)}</dl>'
        + (
            f'<p class="next">Compare it blind: <code>{escape(page.next_command)}</code></p>'
            if page.next_command
            else ""
        )
        + "</section>"
    )


def _why_kept(stage: StageLooks) -> str:
    """Why the adapter of this step was kept."""
    best = max(stage.looks, key=lambda look: float(look.values[HELD_OUT].mean()))
    if stage.kept_step == 0:
        return "as the stage found it: no later look had a higher held-out reward"
    if stage.kept_step == best.step:
        return "where the held-out reward was highest"
    return "its last; the held-out reward chose nothing, since eval_steps is 0"


def _tile(label: str, found: Interval, start: Interval | None) -> str:
    before = f" · start {number(start.value)}" if start else ""
    return (
        f'<div class="figure"><dt>{escape(label)}</dt><dd><span class="figure-value">{number(found.value)}</span>'
        f'<span class="figure-detail">{number(found.low)} to {number(found.high)} · n&nbsp;=&nbsp;{found.n}{before}'
        "</span></dd></div>"
    )


def _stage(page: RunPage, stage: StageLooks) -> str:
    looks = stage.looks

    def curve(name: str, title: str, css: str) -> Curve:
        return Curve(title, css, [(look.step, look.mean(name)) for look in looks])

    kept = (stage.kept_step, "adapter kept")
    rewards = [curve(name, title, css) for name, title, css in REWARDS if name in looks[0].values]
    levels = []
    if stage is page.stages[-1]:  # the pool is scored by the last stage's reward
        levels = [(row.figures[PROXY].value, row.name) for row in page.rows if row.kl_bound is not None]
    main = curves_chart(
        "Rewards over training", rewards, marked=kept, levels=levels,
        note="Base's scale: 0 is its mean, 1 the deviation between its clips of one prompt."
        + (" Dotted: what best-of-N reaches on the proxy, without training." if levels else ""),
    )  # fmt: skip
    small = "".join(
        curves_chart(title, [curve(name, title, "plain")], unit=unit, marked=kept, floor=floor)
        for name, title, unit, floor in SOUND
    )
    weights = " + ".join(f"{weight:g} {name}" for name, weight in stage.reward.items() if weight)
    facts = f"{stage.method}, reward {weights}, KL to {stage.reference}, {looks[-1].step} steps"
    findings = "".join(f'<p class="finding">{_finding(found)}</p>' for found in page.findings[stage.name])
    return (
        f'<section><h2 class="stage-head"><span>Stage {escape(stage.name)}</span></h2><p class="lead">{escape(facts)}'
        f'</p>{findings}<div class="wide">{main}</div><h3>What the clips became</h3><div class="charts">{small}</div>'
        "</section>"
    )


def _finding(found: Finding) -> str:
    text = f"<b>{WORDS.get(found.kind, 'One look')}</b>: {escape(found.sentence)}"
    if found.judged is not None and found.proxy is not None:
        name = "gold judge" if found.judged_by == GOLD else "held-out reward"
        text += (
            f" From step {found.peak_step} to {found.last_step}: {name} {_signed(found.judged)}, "
            f"proxy {_signed(found.proxy)}, paired by {found.judged.n} prompts."
        )
    return text


def _signed(found: Interval) -> str:
    sign = "+" if found.value > 0 else ""
    return f"{sign}{number(found.value)} [{number(found.low)}, {number(found.high)}; {100 * found.confidence:.3g}%]"


def _against_kl(page: RunPage) -> str:
    last = page.stages[-1]
    charts = []
    for name, title, css in REWARDS:
        if name not in page.pool.values:
            continue
        points = [(look.values["kl"].mean(), look.mean(name), f"step {look.step}", css) for look in last.looks]
        points += [(row.kl_bound, row.figures[name], row.name, "pool") for row in page.rows if row.kl_bound is not None]
        charts.append(plots.kl_chart(f"{title[:1].upper()}{title[1:]} against KL", points, reference=0.0))
    return (
        '<section id="kl"><h2><span>What a nat buys</span></h2><p class="lead">Every look of the last stage and '
        "best-of-N out of one pool of the start's clips, at the most that it can cost; the square root of KL across. "
        f'A curve that bends down is over-optimisation (arXiv:2210.10760).</p><div class="charts">{"".join(charts)}'
        "</div></section>"
    )


def _comparison(page: RunPage) -> str:
    shown: list[tuple[str, str, Callable[[float | None], str]]] = [
        (PROXY, "Proxy", number), (HELD_OUT, "Held-out", number), (GOLD, "Gold", number),
        ("gold_adherence", "Gold: follows caption", percent), ("kl", "KL", number), ("diversity", "Diversity", number),
        ("duplicates", "Duplicates", percent), ("level_lufs", "LUFS", number), ("silence", "Silence", percent),
        ("onset_rate_hz", "Onsets/s", number), ("pitch_class_entropy_bits", "Pitch bits", number),
    ]  # fmt: skip
    columns = [column for column in shown if column[0] in page.pool.values]

    def cell(row: Row, name: str, show: Callable[[float | None], str]) -> str:
        if name == "kl" and row.kl_bound is not None:
            return f"<td>≤ {number(row.kl_bound)}</td>"
        found = row.figures.get(name)
        if found is None:
            return "<td>–</td>"
        return f"<td>{show(found.value)}<small>{show(found.low)} to {show(found.high)}</small></td>"

    head = "".join(f'<th scope="col">{title}</th>' for _, title, _ in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}<small>{row.figures[PROXY].n} clips</small></th>'
        + "".join(cell(row, name, show) for name, _, show in columns)
        + "</tr>"
        for row in page.rows
    )
    return (
        '<section id="comparison"><h2><span>Beside best-of-N and expert iteration</span></h2><p class="lead">The same '
        'held-out prompts for all, scored by the last stage\'s reward.</p><div class="scroll" tabindex="0" '
        'role="region" aria-label="Comparison"><table class="comparison"><thead><tr><th scope="col">Clips of</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _about(page: RunPage) -> str:
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.about.items())
    words = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in GLOSSARY)
    return (
        f'<section id="about"><h2><span>The run</span></h2><dl class="facts">{facts}</dl>'
        f'<h3>Words</h3><dl class="glossary">{words}</dl></section>'
    )
