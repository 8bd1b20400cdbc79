"""What MusicRL found, one claim at a time, and what the figures here say of it: nothing is left out that failed."""

from __future__ import annotations

from collections.abc import Callable

from alignment.evaluation.intervals import Interval
from alignment.evaluation.musicrl_report import AIMS, BASE, Claim, Meeting, MusicRlReport, RunCurve
from alignment.evaluation.terminal import number, percent

REPRODUCED, NOT_SHOWN, CONTRADICTED = "reproduced", "not shown", "contradicted"


def in_words(found: Interval, show: Callable[[float | None], str] = number) -> str:
    """ "0.31 [0.2, 0.42]"."""
    return f"{show(found.value)} [{show(found.low)}, {show(found.high)}]"


def outcome_of(found: Interval | None, level: float, *, above: bool = True) -> str:
    """Reproduced when the interval lies wholly on the claimed side of ``level``, contradicted when on the other."""
    if found is None:
        return NOT_SHOWN
    low, high = (found.low, found.high) if above else (-found.high, -found.low)
    level = level if above else -level
    return REPRODUCED if low > level else CONTRADICTED if high < level else NOT_SHOWN


def aims(report: MusicRlReport) -> list[str]:
    """A sentence for each aim: the win rate over the base that was to be reached, and whether it was."""
    out = []
    for run, aim in AIMS.items():
        meeting = report.meeting(run, BASE)
        if meeting is None and report.curve(run) is not None:
            out.append(f"{run} sings exactly as the base does: the aim of more than {percent(aim)} is not reached.")
        if meeting is None:
            continue
        found = meeting.decisive
        if found is None:
            out.append(f"{run}: no decisive vote, so the aim of {percent(aim)} is not reached.")
            continue
        if found.low > aim:
            verdict = "reached, interval and all"
        elif found.value > aim:
            verdict = "reached by the estimate, though the interval includes it"
        else:
            verdict = "not reached"
        out.append(
            f"{run} wins {in_words(found, percent)} of decisive votes over the base; the aim of more than "
            f"{percent(aim)} is {verdict}. With ties as half a win it is {in_words(meeting.rate.interval, percent)}."
        )
    return out


def claims(report: MusicRlReport) -> list[Claim]:
    """Every claim that this run can speak of."""
    out = []
    for candidate, opponent, text in (
        ("R", BASE, "R (text and quality) is preferred to the base"),
        ("U", BASE, "U (users' preference) is preferred to the base"),
        ("RU", BASE, "RU (R, then U) is preferred to the base"),
        ("RU", "R", "RU is preferred to R"),
        ("RU", "U", "RU is preferred to U"),
        ("RU", "joint", "One reward after the other is preferred to all at once"),
    ):
        meeting = report.meeting(candidate, opponent)
        if meeting is not None:
            out.append(Claim(text, outcome_of(meeting.decisive, 0.5), _met(meeting)))
        elif report.curve(candidate) is not None and (opponent == BASE or report.curve(opponent) is not None):
            out.append(Claim(text, NOT_SHOWN, "both sing exactly alike"))
    best = _best(report)
    if best:
        out.append(best)
    out += [claim for run in ("R", "U") for claim in _scores(report.curve(run))]
    out += _over(report)
    return out


def _met(meeting: Meeting) -> str:
    found = meeting.decisive
    return "no decisive vote" if found is None else f"{in_words(found, percent)} of {found.n:,} decisive votes"


def _best(report: MusicRlReport) -> Claim | None:
    """RU is the best of the three over the base, by its estimate alone; the direct comparisons test more."""
    met = {run: report.meeting(run, BASE) for run in ("R", "U", "RU")}
    if None in met.values() or any(meeting.decisive is None for meeting in met.values()):
        return None
    rates = {run: meeting.decisive.value for run, meeting in met.items()}
    outcome = REPRODUCED if rates["RU"] >= max(rates.values()) else NOT_SHOWN
    if max(rates.values()) > met["RU"].decisive.high:
        outcome = CONTRADICTED
    figures = ", ".join(f"{run} {percent(value)}" for run, value in rates.items())
    return Claim("RU has the highest win rate over the base (order of the estimates)", outcome, figures)


def _scores(curve: RunCurve | None) -> list[Claim]:
    """Text and quality from the base to the kept adapter, as held-out reward models and the judge hear them."""
    if curve is None:
        return []
    out = []
    for figure, judged, words in (
        ("held_out/quality", "gold_cleanliness", "quality"),
        ("held_out/text_adherence", "gold_adherence", "text adherence"),
    ):
        if figure not in curve.figures:
            continue
        rises = not (curve.run == "U" and words == "text adherence")
        change, gold = curve.change(figure), curve.change(judged)
        text = f"{curve.run} {'raises' if rises else 'lowers'} {words}"
        figures = f"held-out reward {in_words(change)} deviations, judge {in_words(gold)}"
        out.append(Claim(text, outcome_of(gold, 0.0, above=rises), figures))
    return out


def _over(report: MusicRlReport) -> list[Claim]:
    u, r = report.curve("U"), report.curve("R")
    if u is None or u.over is None:
        return []
    over = u.over
    where = (
        f"judge's peak at step {over.peak_step} of {over.last_step}; from there the judge {in_words(over.gold_fall)}, "
        f"the trained reward {in_words(over.proxy_rise)} deviations"
    )
    out = [Claim("U over-optimises its reward", REPRODUCED if over.shown else NOT_SHOWN, where)]
    if r is not None and r.over is not None:
        outcome = NOT_SHOWN
        if over.shown:
            outcome = REPRODUCED if not r.over.shown or over.peak_step < r.over.peak_step else CONTRADICTED
        figures = f"judge's peak: U at step {over.peak_step}, R at step {r.over.peak_step} of {r.over.last_step}"
        out.append(Claim("U over-optimises sooner than R", outcome, figures))
    return out


def terminal_table(report: MusicRlReport) -> str:
    """The comparisons, aims and claims as plain text."""
    lines = [
        "MusicRL in simulation" + (": SIMULATED LISTENERS, programs and not people" if report.simulated else ""),
        "",
    ]
    head = ("comparison", "win", "tie", "loss", "win/(win+loss)", "95% interval", "MusicRL")
    rows = [head]
    for meeting in report.meetings:
        rate, found, published = meeting.rate, meeting.decisive, meeting.published
        note = "" if meeting.headline else f" ({meeting.judges})"
        rows.append((
            meeting.label + note, *(percent(meeting.share(n)) for n in
            (rate.wins, rate.ties + rate.both_bad, rate.losses)), percent(found.value) if found else "–",
            f"[{percent(found.low)}, {percent(found.high)}]" if found else "–",
            percent(published.win_rate) if published else "–",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *report.aims, ""]
    lines += [f"{claim.outcome:>12}  {claim.text}: {claim.figures}" for claim in report.claims]
    lines += ["", *report.notes]
    return "\n".join(lines).rstrip()
