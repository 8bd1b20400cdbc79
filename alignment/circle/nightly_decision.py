"""The night's decision: looks at the contest's votes until the gate decides; then promotes the candidate or not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from alignment import versions
from alignment.circle import listen
from alignment.circle.evidence import gather_evidence
from alignment.circle.night import Night
from alignment.circle.nightly_contest import is_decision, keep_decision, pair_count
from alignment.db import gates, studies
from alignment.db.base import utcnow
from alignment.db.clips import get_clips
from alignment.db.gates import RecordedDecision
from alignment.domain import VersionStatus
from alignment.evaluation.gate import Decision, Evidence, decide
from alignment.jobs import Skip, Wait
from alignment.simulation.judge import Judge, Judgement
from alignment.simulation.listeners import load_listeners
from alignment.studies import set_study_state


def look(night: Night) -> Mapping[str, Any] | Skip | Wait:
    """The gate's decision on the votes so far: it waits while the test is open, and ends when the gate decides, when
    the study is closed by hand, when another version became champion, or when the recipe's days are over.

    Simulated listeners vote in between; people are waited for. A decision is recorded once and then stands. A look
    that was interrupted is made whole before anything is judged, so that it is judged on the same votes."""
    if "study" not in night.results:
        return Skip("There is no study to look at.")
    begun = night.results["study"]
    if (made := _decided(night)) is not None:
        return _outcome(night, made)
    heard: dict[str, Judgement] = {}
    voted = int(night.recipe.simulated and _whole_look(night))
    while True:
        state = _state(night)
        if (now := night.champion()) != begun["champion"]:
            return _stop(
                night, f"{now} became champion while {night.name} was compared with {begun['champion']}; a comparison "
                "with a former champion promotes nothing.",
            )  # fmt: skip
        if night.recipe.simulated and state == "open":
            voted = voted or _listen(night, heard)
        evidence, decision = _judge(night)
        if decision.outcome != "undecided":
            return _outcome(night, _record(night, evidence, decision))
        test = evidence.over_champion
        so_far = f"{0 if test is None else test.votes:,} votes, " + _open_checks(decision)
        if state == "closed":
            return _stop(night, f"The study was closed by hand after {so_far}")
        if night.recipe.simulated:
            if state != "open" or not voted:
                return _stop(night, f"The simulated listeners have nothing left to say after {so_far}")
            night.say(f"Not decided yet: {so_far}")
            voted = 0
            continue
        if utcnow() - datetime.fromisoformat(begun["opened"]) > timedelta(days=night.recipe.contest.days):
            return _stop(night, f"Nothing was decided in {night.recipe.contest.days:g} days: {so_far}")
        return Wait(f"Listening: {so_far}", night.recipe.contest.look_seconds)


def _open_checks(decision: Decision) -> str:
    return " ".join(reason.sentence for reason in decision.reasons if reason.state == "open")


def _state(night: Night) -> str:
    with night.ws.database.session(write=False) as s:
        return studies.get_study(s, night.study).state


def _judge(night: Night) -> tuple[Evidence, Decision]:
    """The evidence and what the gate makes of it. No more votes are asked of a test than there are bets to settle."""
    begun, rules = night.results["study"], night.recipe.rules
    most = min(rules.most_votes, pair_count(begun) * rules.votes_per_bet)
    rules = rules.model_copy(update={"most_votes": most})
    evidence = gather_evidence(
        night.ws.database, night.name, begun["champion"], night.recipe.base, [night.study], rules,
        alpha=begun["alpha"], reward=night.results["reward"]["models"][0],
    )  # fmt: skip
    return evidence, decide(evidence, rules)


def _whole_look(night: Night) -> bool:
    """Whether there are votes, and just as many as some looks take: an earlier run died before it had judged them, or
    after it had found them undecided."""
    saved = len(listen.votes_of(night.ws, night.study))
    return saved > 0 and saved % night.recipe.panel.look_votes == 0


def _listen(night: Night, heard: dict[str, Judgement]) -> int:
    """Simulated votes up to the next look; the number cast. Each look has a panel of its own; one that was interrupted
    casts what is missing of its votes, and no pair gets more votes than its bet takes."""
    rules, saved = night.recipe.panel, len(listen.votes_of(night.ws, night.study))
    turn = saved // rules.look_votes
    wanted = sum(night.results["study"]["pairs"].values()) * night.recipe.rules.votes_per_bet
    if min((turn + 1) * rules.look_votes, wanted) <= saved:
        return 0
    if not heard:
        with night.ws.database.session(write=False) as s:
            battles = studies.list_battles(s, studies.get_study(s, night.study).id)
            clips = get_clips(s, {clip for one in battles for clip in (one.clip_1_id, one.clip_2_id)})
        alike = sorted(clips.values(), key=lambda clip: clip.audio_sha256)  # in the same order in every home
        heard |= listen.judge_clips(night.ws, Judge(), alike, night.progress("the judge listens"))
    return listen.simulate_votes(
        night.ws, night.study, load_listeners(), judge=Judge(), population=rules.population, raters=rules.raters,
        votes=min(rules.look_votes, wanted - turn * rules.look_votes), seed=2 * (night.seed + 7919 * (turn + 1)) + 1,
        heard=heard, resume=True, progress=night.progress(f"simulated votes, look {turn + 1}"),
    )  # fmt: skip


def _decided(night: Night) -> RecordedDecision | None:
    """What this job decided already."""
    with night.ws.database.session(write=False) as s:
        made = [one for one in gates.list_decisions(s, candidate=night.name) if is_decision(one, night)]
    return made[0] if made else None


def _record(night: Night, evidence: Evidence, decision: Decision) -> RecordedDecision:
    """The decision as recorded, with all that it rests on."""
    return _keep(night, decision.outcome, decision.sentence, evidence, decision)


def _stop(night: Night, why: str) -> Mapping[str, Any]:
    """The contest ended without a decision of the gate: nothing is promoted."""
    return _outcome(night, _keep(night, "undecided", why, *_judge(night), ended=True))


def _keep(
    night: Night, outcome: str, said: str, evidence: Evidence, decision: Decision, **more: Any
) -> RecordedDecision:
    begun = night.results["study"]
    told = evidence.to_json() | {
        "recipe": night.recipe.rules.model_dump(mode="json"), "reasons": [vars(one) for one in decision.reasons],
        "reward_model": night.results["reward"]["models"][0],
    }  # fmt: skip
    for own in ("candidate", "champion"):  # columns of the record
        told.pop(own)
    with night.ws.database.session() as s:
        return keep_decision(s, night, outcome, said, champion=begun["champion"], alpha=begun["alpha"], **told, **more)


def _outcome(night: Night, made: RecordedDecision) -> Mapping[str, Any]:
    """The step's result. The study is closed: its votes have decided."""
    if _state(night) != "closed":
        set_study_state(night.ws.database, night.study, "closed", actor=night.actor)
    return {
        "decision": str(made.id), "outcome": made.outcome, "champion": made.champion, "alpha": made.alpha_spent,
        "reasons": list(made.evidence.get("reasons", ())), "said": made.evidence["said"],
        "simulated": bool(made.evidence.get("simulated")),
    }  # fmt: skip


def promote(night: Night) -> Mapping[str, Any] | Skip:
    """Makes the candidate champion where the gate said so and nothing has spoken against it since; once."""
    found = night.results.get("decide")
    if found is None or found["outcome"] != "promoted":
        made = _decided(night)
        return Skip(made.evidence["said"] if made is not None else "There was no contest.")
    night.refuse_people()
    candidate = night.ws.version(night.name)
    if candidate.status is VersionStatus.CHAMPION:
        return {"promoted": night.name, "former": found["champion"], "decision": found["decision"]}
    if candidate.status is VersionStatus.RETIRED:
        return Skip(f"{night.name} was retired meanwhile and is not promoted.")
    with night.ws.database.session(write=False) as s:
        last = gates.list_decisions(s, candidate=night.name)[-1]
    if last.outcome != "promoted":
        return Skip(
            f"A later look at the gate, decision {last.id}, says {last.outcome}; nothing is promoted while decisions "
            f"contradict each other. Look at both with attune versions show {night.name}."
        )
    if (now := night.champion()) != found["champion"]:
        return Skip(f"{now} became champion after {night.name} had won over {found['champion']}; nothing is promoted.")
    versions.promote(night.ws.database, night.name, actor=night.actor, decision=last.id)
    return {"promoted": night.name, "former": found["champion"], "decision": str(last.id)}
