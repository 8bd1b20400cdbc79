"""The page of a night, gathered from the database and from what the steps returned; written again at will."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from alignment.circle import listen
from alignment.circle.night import Night
from alignment.circle.nightly_contest import is_decision
from alignment.circle.workspace import current_commit
from alignment.db import comparisons, gates, runs, snapshots
from alignment.db.engine import shown
from alignment.db.gates import RecordedDecision
from alignment.domain import canonical_sha256
from alignment.errors import DataError, NotFoundError
from alignment.evaluation.intervals import Interval
from alignment.evaluation.metric_words import METRICS
from alignment.evaluation.nightly_page import Check, NightPage, interval_of, write_night_page
from alignment.evaluation.report import FigureTrace, MetricRow
from alignment.evaluation.win_rate import WinRate, win_rate
from alignment.jobs import Finish

PAGE = "report.html"


def report(night: Night) -> Mapping[str, Any]:
    """Writes the page of a night that came to its end."""
    made = page_of(night, night.results)
    path = write_night_page(made, night.run_dir / PAGE)
    said = made.said if made.outcome == "rejected" else made.headline
    if made.outcome == "undecided" and made.said:
        said = f"{said}: {made.said}"
    night.say(said)
    return {"page": str(path), "outcome": made.outcome, "said": said, "simulated": made.simulated}


def write_night(night: Night, *, ended: str, more: Mapping[str, Any]) -> Finish:
    """Writes the page of a night that ends before a contest, and ends it with that reason."""
    write_night_page(page_of(night, {**night.results, **more}, ended=ended), night.run_dir / PAGE)
    return Finish(ended)


def page_of(night: Night, results: Mapping[str, Any], *, ended: str = "") -> NightPage:
    """Everything that the night's page shows, as recorded so far."""
    made = _decision(night)
    evidence = made.evidence if made is not None else {}
    version = results.get("candidate")
    promoted = "promote" in results
    outcome = "ended" if made is None else "promoted" if promoted else made.outcome
    if made is not None and made.outcome == "promoted" and not promoted:
        outcome = "undecided"  # the gate said yes, and something spoke against it since
    champion = results["votes"]["champion"]
    reward = results.get("reward", {})
    return NightPage(
        title=f"{night.name}: a night of the circle", created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        simulated=night.recipe.simulated or bool(version and version["simulated"]), outcome=outcome,
        headline=ended or _headline(night, made, outcome), said=made.evidence["said"] if made is not None else "",
        candidate=version["version"] if version else None,
        champion=champion, base=night.recipe.base,
        checks=[Check(**{"name": one["check"], "state": one["state"], "sentence": one["sentence"]})
                for one in evidence.get("reasons", ())],
        tests=_tests(night, evidence, champion), e_value=(evidence.get("over_champion") or {}).get("e_value"),
        alpha=made.alpha_spent if made is not None else None, metrics=_metrics(night, champion),
        reward={head: interval_of(one) for head, one in reward.get("accuracy", {}).items()},
        reward_said=f"{reward['headline']}." if "headline" in reward else "",
        reward_card="reward-card.html" if "card" in reward else "",
        traces=_traces(night, results, made), facts=_facts(night, results, made),
    )  # fmt: skip


def _decision(night: Night) -> RecordedDecision | None:
    """The night's last decision; the opening of its study is none."""
    try:
        with night.ws.database.session(write=False) as s:
            mine = [one for one in gates.list_decisions(s, candidate=night.name) if is_decision(one, night)]
    except NotFoundError:
        return None
    return mine[-1] if mine else None


def _headline(night: Night, made: RecordedDecision | None, outcome: str) -> str:
    if made is None:
        return f"{night.name} was trained, and nothing was decided"
    if outcome == "promoted":
        who = "Simulated listeners" if night.recipe.simulated else "Listeners"
        return f"{night.name} is the new champion: {who.lower()} prefer it to {made.champion}"
    if made.outcome == "promoted":
        return f"{night.name} won over {made.champion} and was not promoted"
    kept = night.champion()
    if outcome == "rejected":
        return f"{night.name} is rejected, and {kept} stays champion"
    return f"Nothing was decided on {night.name}, and {kept} stays champion"


def _tests(night: Night, evidence: Mapping[str, Any], champion: str) -> list[tuple[str, Interval, WinRate | None]]:
    found = []
    for opponent, key in ((champion, "over_champion"), (night.recipe.base, "over_base")):
        test = evidence.get(key)
        if test and test["n"]:
            found.append((opponent, interval_of(test), _win_rate(night, opponent)))
    return found


def _win_rate(night: Night, opponent: str) -> WinRate | None:
    rows = listen.comparisons(listen.votes_of(night.ws, night.study), lambda _, version: version)
    try:
        return win_rate(rows, night.name, opponent=opponent)
    except DataError:
        return None


def _metrics(night: Night, champion: str) -> list[MetricRow]:
    with night.ws.database.session(write=False) as s:
        found = comparisons.find_comparison(s, job_id=night.job_id)
    if found is None:
        return []
    rows: dict[tuple[str, str | None], dict[str, Interval]] = {}
    for one in found.metrics:
        rows.setdefault((one.metric, one.model), {})[one.version] = Interval(one.value, one.low, one.high, n=one.n)
    return [_metric_row(*key, own.get(champion), own.get(night.name)) for key, own in rows.items()]


def _metric_row(metric: str, model: str | None, champion: Interval | None, candidate: Interval | None) -> MetricRow:
    words = METRICS.get(metric)
    label = metric.replace("_", " ") if words is None else words.label + (f", {words.unit}" if words.unit else "")
    told = [part for part in (words.definition if words is not None else "", model) if part]
    return MetricRow(label, champion, candidate, definition="; ".join(told))


def _traces(night: Night, results: Mapping[str, Any], made: RecordedDecision | None) -> list[FigureTrace]:
    adapter = (results.get("candidate") or {}).get("adapter_sha256") or ""
    model = (results.get("reward", {}).get("models") or [""])[0]
    snapshot = results.get("snapshot", {}).get("content_sha256", "")
    config = canonical_sha256(night.recipe.model_dump(mode="json"))
    shared = {"snapshot_sha256": snapshot, "reward_model": model, "config_sha256": config}
    traces = []
    if "reward" in results:
        traces.append(FigureTrace("Reward accuracy", votes=results["snapshot"]["counts"]["pairs"], **shared))
    if "check" in results:
        traces.append(FigureTrace("Metrics", results["check"]["comparison"], adapter_sha256=adapter, **shared))
    for key, label in (("over_champion", "Win rate over the champion"), ("over_base", "Win rate over the base")):
        if made is not None and (test := made.evidence.get(key)):
            traces.append(FigureTrace(label, night.study, test["votes"], adapter_sha256=adapter, **shared))
    return traces


def _facts(night: Night, results: Mapping[str, Any], made: RecordedDecision | None) -> dict[str, str]:
    version, counts = results.get("candidate") or {}, results.get("snapshot", {}).get("counts", {})
    facts = {
        "Job": night.job_id, "Recipe": canonical_sha256(night.recipe.model_dump(mode="json")),
        "Studies": ", ".join(results["votes"]["studies"]),
        "New votes": f"{results['votes']['new_votes']:,} since {results['votes']['since'] or 'the beginning'}",
        "Snapshot": f"{night.name}, {results['snapshot']['content_sha256']}" if "snapshot" in results else "none",
        "Votes in it": ", ".join(f"{key.replace('_', ' ')} {count:,}" for key, count in counts.items()),
        "Champion": results["votes"]["champion"], "Base": night.recipe.base, "Trained from": results["votes"]["parent"],
    }  # fmt: skip
    with night.ws.database.session(write=False) as s:
        known = {one.name: one for one in runs.list_reward_models(s)}
        taken = {one.name: one for one in snapshots.list_snapshots(s)}
    for name in results.get("reward", {}).get("models", ()):
        facts[f"Reward model {name}"] = f"{known[name].artefact_sha256}, snapshot {taken[name].content_sha256[:12]}"
    if version:
        facts |= {
            "Candidate": version["version"], "Adapter": version["adapter_sha256"], "Training run": version["train_run"],
            "Base weights": version["base_sha256"], "Trained at commit": version["commit"] or "not a checkout",
        }  # fmt: skip
    if made is not None:
        facts |= {"Decision": f"{made.id}, {made.created_at:%Y-%m-%d %H:%M} UTC", "Study": night.study}
    facts |= {"Commit": current_commit() or "not a checkout", "Database": shown(night.ws.database.url)}
    return facts
