"""The night's contest: candidate, champion and base sing held-out prompts, are measured, and are heard blind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa

from alignment.circle import listen
from alignment.circle.captions import add_captions
from alignment.circle.checks import automatic_checks, failures
from alignment.circle.compare_recipe import MetricSettings
from alignment.circle.evidence import candidate_alpha
from alignment.circle.generate import Clips
from alignment.circle.measure_version import measure_versions, sing_all
from alignment.circle.night import Night, open_contest
from alignment.db import gates, people, studies
from alignment.db.gates import RecordedDecision
from alignment.db.prompts import get_prompts, list_prompts
from alignment.db.studies import NewBattle
from alignment.domain import Axis, Prompt, Split
from alignment.errors import DataError, NotFoundError
from alignment.jobs import Skip, Wait
from alignment.studies import StudyRecipe

CAPTION_SEED = 800_000  # other captions than those that are trained on
BUSY_SECONDS = 600.0  # between two looks at whether another night's contest is over


def contest_prompts(night: Night) -> list[Prompt]:
    """The prompts that the night's versions are compared on, the same whenever it is asked; nothing trained on them.

    Raises DataError without held-out prompts, or when a named set holds prompts that train."""
    rules, most = night.recipe.contest, night.recipe.gate.most_votes
    with night.ws.database.session(write=False) as s:
        try:
            return _by_text(get_prompts(s, studies.prompts_of_set(s, night.study)).values())
        except NotFoundError:
            pass
    if rules.captions:
        chosen = add_captions(night.ws, rules.captions, CAPTION_SEED + night.seed, lambda _: Split.LEADERBOARD)
    else:
        with night.ws.database.session(write=False) as s:
            if rules.prompt_set is None:
                known = list_prompts(s, split=Split.LEADERBOARD)
            else:
                known = list(get_prompts(s, studies.prompts_of_set(s, rules.prompt_set)).values())
        train = sum(prompt.split in (Split.TRAIN, Split.VALID) for prompt in known)
        if train:
            raise DataError(
                f"{train} of {len(known)} prompts in the set {rules.prompt_set} train models; a contest needs prompts "
                "that nothing was trained on. Name a set of the leaderboard or test split."
            )
        known.sort(key=lambda prompt: prompt.text)
        order = np.random.default_rng(night.seed).permutation(len(known))[:most]
        chosen = [known[i] for i in sorted(order)]
    if len(chosen) < 2:
        raise DataError(
            f"{len(chosen)} prompts of the leaderboard split are on record, and a contest needs 2 at the least, "
            "hundreds to decide: name contest.prompt_set, or contest.captions for attune-tiny."
        )
    with night.ws.database.session() as s:
        studies.add_prompt_set(s, night.study, [prompt.id for prompt in chosen])
    return _by_text(chosen)


def _by_text(prompts: Iterable[Prompt]) -> list[Prompt]:
    """In the same order in every home; what is sung together depends on it, and with it the last digits."""
    return sorted(prompts, key=lambda prompt: prompt.text)


def singers(night: Night) -> list[str]:
    """Candidate, champion and, where it is another, the fixed base."""
    return list(dict.fromkeys([night.name, night.results["votes"]["champion"], night.recipe.base]))


def metric_settings(night: Night) -> MetricSettings:
    """How the night's singers are sung and measured: all alike, with the night's own random numbers."""
    models = night.results["reward"]["models"]
    own = {"generation": night.recipe.generation, "seed": CAPTION_SEED + night.seed, "reward_models": tuple(models)}
    return night.recipe.metrics.model_copy(update=own)


def clips_of(night: Night) -> tuple[list[Prompt], dict[str, Clips]]:
    """The contest's prompts and each singer's clips of them; those there already are not sung again."""
    prompts = contest_prompts(night)
    return prompts, sing_all(night.ws, singers(night), prompts, metric_settings(night), night.progress("singing"))


def sing(night: Night) -> Mapping[str, Any]:
    """Every singer's clips of the contest's prompts."""
    prompts, sung = clips_of(night)
    return {"prompts": len(prompts), "prompt_set": night.study, "clips": {
        name: sum(len(own) for own in clips.values()) for name, clips in sung.items()
    }}  # fmt: skip


def check(night: Night) -> Mapping[str, Any]:
    """Measures the singers on equal terms and looks whether the candidate's figures lie within the gate's bounds.

    A candidate that fails is rejected here, and nobody is asked to listen to it."""
    prompts = contest_prompts(night)
    found = measure_versions(
        night.ws, singers(night), prompts=prompts, settings=metric_settings(night), name=f"{night.name}-metrics",
        job_id=night.job_id, progress=night.progress("metrics"),
    )  # fmt: skip
    with night.ws.database.session(write=False) as s:
        measured = gates.latest_metrics(s, night.name)
    champion = night.results["votes"]["champion"]
    reasons = automatic_checks(night.name, champion, measured, night.recipe.rules)
    said = failures(reasons)
    out = {"comparison": found.name, "reasons": [vars(reason) for reason in reasons], "passed": not said}
    if said:
        said = f"{night.name} is rejected by the automatic checks, and nobody was asked to listen: {said}"
        with night.ws.database.session() as s:
            keep_decision(s, night, "rejected", said, champion=champion, reasons=out["reasons"])
    return out


def keep_decision(
    s: Any, night: Night, outcome: str, said: str, *, champion: str, alpha: float = 0.0, **evidence: Any
) -> RecordedDecision:
    """The night's decision as recorded: the first one stands, however often the step runs."""
    known = [made for made in gates.list_decisions(s, candidate=night.name) if is_decision(made, night)]
    if not known:
        gates.record_decision(
            s, candidate=night.name, champion=champion, outcome=outcome, alpha_spent=alpha,
            evidence={"simulated": night.recipe.simulated, **evidence, "said": said, "job_id": night.job_id,
                      "study": night.study, "studies": [night.study]},
        )  # fmt: skip
        known = gates.list_decisions(s, candidate=night.name)[-1:]
    return known[0]


def is_decision(made: RecordedDecision, night: Night) -> bool:
    """Whether this job came to that decision; setting alpha aside for the study is none."""
    return made.evidence.get("job_id") == night.job_id and not made.evidence.get("opened")


def open_study(night: Night) -> Mapping[str, Any] | Skip | Wait:
    """The blind study between candidate and champion, and candidate and base; the candidate's alpha is set aside with
    it, in one transaction, before the first vote.

    One candidate is heard at a time: while another night's study is open this one waits."""
    if not night.results["check"]["passed"]:
        return Skip("The automatic checks failed; nobody is asked to listen.")
    prompts, sung = clips_of(night)
    first = {name: {p.id: clips[p.id][0] for p in prompts} for name, clips in sung.items()}
    base, wants_base = night.recipe.base, night.recipe.gate.base_margin is not None
    with night.ws.database.session() as s:
        one_at_a_time(s)
        mine = opening_of(s, night)
        if mine is None:
            if (other := open_contest(s, besides=night.job_id)) is not None:
                return Wait(f"{other.candidate} is still being heard; one candidate at a time.", BUSY_SECONDS)
            champion = night.results["votes"]["champion"]
            if (now := night.champion()) != champion:
                said = f"{now} became champion while {night.name} was trained; it is not heard against {champion}."
                return Skip(keep_decision(s, night, "undecided", said, champion=champion, ended=True).evidence["said"])
            pairs = {champion: listen.pairs_across(first[champion], first[night.name])}
            if base != champion and wants_base:
                pairs[base] = listen.pairs_across(first[base], first[night.name])
            if not pairs[champion]:
                said = f"{night.name} is rejected: it sings every clip just as {champion} does."
                return Skip(keep_decision(s, night, "rejected", said, champion=champion).evidence["said"])
            rules = _rules(night, list(pairs))
            study = studies.create_study(
                s, name=night.study, versions=[night.name, *pairs], questions=[axis.value for axis in rules.questions],
                minimum_listening_seconds=rules.minimum_listening_seconds, rater_kind=night.kind,
                # Simulated listeners are asked nothing beforehand, so their study needs no recipe.
                rules={} if night.recipe.simulated else rules.model_dump(mode="json"),
                prompt_set_id=studies.get_prompt_set(s, night.study),
            )  # fmt: skip
            studies.add_battles(s, study, [
                NewBattle(a.prompt_id, a.id, b.id, propensity=chance) for own in pairs.values() for a, b, chance in own
            ])  # fmt: skip
            alpha = candidate_alpha(s, night.name, night.recipe.rules)
            gates.record_decision(
                s, candidate=night.name, champion=champion, outcome="undecided", alpha_spent=alpha,
                evidence={"job_id": night.job_id, "study": night.study, "opened": True,
                          "simulated": night.recipe.simulated,
                          "pairs": {name: len(own) for name, own in pairs.items()}},
            )  # fmt: skip
            about = {"job": night.job_id}
            people.add_audit(s, actor=night.actor, action="study.create", subject=night.study, after=about)
            mine = opening_of(s, night)
    night.say(f"Study {night.study} is open: {sum(mine.evidence['pairs'].values())} pairs.")
    return {
        "study": night.study, "champion": mine.champion, "alpha": mine.alpha_spent, "pairs": mine.evidence["pairs"],
        "opened": mine.created_at.isoformat(timespec="seconds"),
        "simulated": night.recipe.simulated,
    }  # fmt: skip


def opening_of(s: Any, night: Night) -> RecordedDecision | None:
    """The record that this job opened its study and set its alpha aside, if it did."""
    for made in gates.list_decisions(s, candidate=night.name):
        if made.evidence.get("job_id") == night.job_id and made.evidence.get("opened"):
            return made
    return None


def one_at_a_time(s: Any) -> None:
    """Two nights that open a study at the same moment do it one after the other; on SQLite a write always does."""
    if s.get_bind().dialect.name == "postgresql":
        s.execute(sa.text("LOCK TABLE gate_decision IN SHARE ROW EXCLUSIVE MODE"))


def _rules(night: Night, rivals: list[str]) -> StudyRecipe:
    """The study as raters meet it; its title tells nothing of what is compared."""
    contest, gate = night.recipe.contest, night.recipe.gate
    return StudyRecipe(
        name=night.study, title="Which clip do you prefer?", mode="ab", versions=(night.name, *rivals),
        prompt_set=night.study, votes_per_pair=gate.votes_per_bet, access=contest.access,
        questions=tuple(Axis(axis) for axis in gate.axes), onboarding=contest.onboarding, pacing=contest.pacing,
        minimum_listening_seconds=contest.minimum_listening_seconds,
    )  # fmt: skip


def pair_count(opening: Mapping[str, Any]) -> int:
    """Pairs between candidate and champion: as many bets as the test can ever settle."""
    return int(opening["pairs"][opening["champion"]])
