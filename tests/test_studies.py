"""Studies from recipes: what is compared, what checks the rater, who may hear it and what was agreed to."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from alignment import absolute, anchors
from alignment.db import ratings, studies, versions, votes
from alignment.db.base import utcnow
from alignment.db.clips import get_clips
from alignment.db.figures import study_ratings
from alignment.db.people import get_consent
from alignment.db.ratings import rated_often
from alignment.db.studies import list_battles
from alignment.db.tables import (
    AssignmentRow,
    AuditLogRow,
    BattleRow,
    ClipRatingRow,
    ClipRow,
    InviteRow,
    InviteUseRow,
    ListeningSessionRow,
    RaterRow,
    VersionRow,
    VoteCommentRow,
    VoteFlagRow,
    VoteTable,
)
from alignment.domain import (
    BattleKind,
    ClipSource,
    Consent,
    Outcome,
    RaterKind,
    RatingDraft,
    RatingOutcome,
    Side,
    VersionStatus,
    VoteDraft,
)
from alignment.errors import DataError, ListeningTooShort, NotFoundError, VoteRejected
from alignment.studies import (
    ArenaRules,
    Onboarding,
    Pacing,
    Shares,
    StudyRecipe,
    create_study_from_recipe,
    rules_of,
    set_study_state,
)
from alignment.study_figures import study_figures
from alignment.votes import VoteService
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    fill,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)
from tests.listening_support import Clock
from tests.singing_support import RATE_HZ, sing

YES = Consent("1", training=True, publication=True)


def _recipe(**fields) -> StudyRecipe:
    fields.setdefault("minimum_listening_seconds", 0.0)
    return StudyRecipe(**{"name": "study", "versions": ("base", "tuned"), **fields})


def _made(database, tmp_path, *, singing=None, state="open", gold=(), **fields):
    store, clips = sing(database, tmp_path, **(singing or {}))
    return create_study_from_recipe(database, store, _recipe(**fields), actor="ann", state=state, gold=gold), clips


def _service(database, clock=None) -> VoteService:
    return VoteService(database, secret="a secret for tests", clock=clock or Clock())


def _session(service, who="rater", study="study", **more) -> uuid.UUID:
    more.setdefault("consent", YES)
    return service.open_session(service.enrol_rater(who, kind=RaterKind.HUMAN), study, **more)


def _draft(assignment, outcome=Outcome.A, **more) -> VoteDraft:
    return VoteDraft(assignment.id, f"key-{uuid.uuid4()}", outcome, **more)


def _battles(database, study) -> list[BattleRow]:
    with database.session(write=False) as s:
        return list(s.scalars(sa.select(BattleRow).where(BattleRow.study_id == study.id)))


def test_every_prompt_and_pair_of_versions_gives_one_pair_of_equal_clips(any_database, tmp_path):  # noqa: F811
    study, clips = _made(
        any_database, tmp_path, singing={"names": ("a", "b", "c"), "prompt_count": 4}, versions=("a", "b", "c")
    )
    by_id = {clip.id: clip for clip in clips}
    found = Counter()
    for battle in _battles(any_database, study):
        one, two = by_id[battle.clip_1_id], by_id[battle.clip_2_id]
        assert one.prompt_id == two.prompt_id == battle.prompt_id
        assert one.facts.seconds == two.facts.seconds and one.audio_sha256 != two.audio_sha256
        assert battle.kind is BattleKind.NORMAL and battle.propensity == 1.0
        found[frozenset((one.version, two.version))] += 1
    assert found == {frozenset(pair): 4 for pair in (("a", "b"), ("a", "c"), ("b", "c"))}
    assert study.rules == _recipe(versions=("a", "b", "c")).model_dump(mode="json")
    assert rules_of(study) == _recipe(versions=("a", "b", "c"))


@pytest.mark.parametrize(("wanted", "made", "chance"), [(4, 4, 4 / 24), (6, 6, 0.25), (9, 9, 9 / 24), (99, 24, 1.0)])
def test_the_pairs_wanted_are_spread_over_prompts_and_each_knows_its_chance(
    sqlite_database,  # noqa: F811
    tmp_path,
    wanted,
    made,
    chance,
):
    # Six prompts, two clips a version each: 4 pairs of clips a prompt.
    study, _ = _made(sqlite_database, tmp_path, singing={"per_prompt": 2}, pairs=wanted)
    battles = _battles(sqlite_database, study)
    assert len(battles) == made == len({(b.clip_1_id, b.clip_2_id) for b in battles})
    assert [b.propensity for b in battles] == pytest.approx([chance] * made)
    per_prompt = Counter(b.prompt_id for b in battles).values()
    assert max(per_prompt) - min(per_prompt) <= 1 or wanted < 6


def test_one_version_is_compared_with_itself(sqlite_database, tmp_path):  # noqa: F811
    study, _ = _made(sqlite_database, tmp_path, singing={"names": ("base",), "per_prompt": 2}, versions=("base",))
    assert len(_battles(sqlite_database, study)) == 6


@pytest.mark.parametrize(
    ("singing", "fields", "message"),
    [
        ({"seconds": (0.5, 0.7)}, {}, "no prompt has two different clips of one length.*attune generate"),
        ({"names": ("base",)}, {"versions": ("base",)}, "no prompt has two different clips"),
        ({"prompt_count": 0}, {}, "base has sung no prompt; run `attune generate --version base`"),
        ({"cutoff": True}, {"shares": Shares(gold=0.1)}, "above 3.5 kHz.*set shares.gold"),
    ],
)
def test_where_there_is_nothing_to_compare_the_next_step_is_named(
    sqlite_database,  # noqa: F811
    tmp_path,
    singing,
    fields,
    message,
):
    with pytest.raises(DataError, match=message):
        _made(sqlite_database, tmp_path, singing=singing, **fields)
    with sqlite_database.session(write=False) as s:
        assert studies.list_studies(s) == []


def test_unknown_versions_and_prompt_sets_are_told_with_the_known_ones(sqlite_database, tmp_path):  # noqa: F811
    store, clips = sing(sqlite_database, tmp_path)
    with pytest.raises(NotFoundError, match="No version is called gone; known: base, tuned"):
        create_study_from_recipe(sqlite_database, store, _recipe(versions=("base", "gone")), actor="ann")
    with pytest.raises(NotFoundError, match="No prompt set is called few; known: none yet"):
        create_study_from_recipe(sqlite_database, store, _recipe(prompt_set="few"), actor="ann")
    with sqlite_database.session() as s:
        studies.add_prompt_set(s, "few", {clips[0].prompt_id})
    study = create_study_from_recipe(sqlite_database, store, _recipe(prompt_set="few"), actor="ann")
    assert {battle.prompt_id for battle in _battles(sqlite_database, study)} == {clips[0].prompt_id}


def test_the_same_recipe_again_is_the_same_study_and_another_one_needs_another_name(
    sqlite_database,  # noqa: F811
    tmp_path,
):
    study, _ = _made(sqlite_database, tmp_path, shares=Shares(gold=0.2, anchors=0.1))
    store, _ = sing(sqlite_database, tmp_path)
    recipe = _recipe(shares=Shares(gold=0.2, anchors=0.1))
    before = len(_battles(sqlite_database, study))
    assert create_study_from_recipe(sqlite_database, store, recipe, actor="bob") == study
    assert len(_battles(sqlite_database, study)) == before
    with pytest.raises(DataError, match="exists with another recipe"):
        create_study_from_recipe(sqlite_database, store, _recipe(reveal=True), actor="bob")
    set_study_state(sqlite_database, "study", "paused", actor="bob")
    set_study_state(sqlite_database, "study", "paused", actor="bob")
    with sqlite_database.session(write=False) as s:
        log = [(row.actor, row.action, row.subject) for row in s.scalars(sa.select(AuditLogRow))]
    assert log == [("ann", "study.create", "study"), ("bob", "study.state", "study")]


def test_gold_and_anchor_pairs_stand_between_a_clip_and_its_low_anchor(any_database, tmp_path):  # noqa: F811
    study, clips = _made(any_database, tmp_path, singing={"prompt_count": 12}, shares=Shares(gold=0.25, anchors=0.25))
    checks = [battle for battle in _battles(any_database, study) if battle.kind is not BattleKind.NORMAL]
    # Half of all that a rater hears is ordinary: 12 pairs, 6 gold, 6 anchors.
    assert Counter(battle.kind for battle in checks) == {BattleKind.GOLD: 6, BattleKind.ANCHOR: 6}
    known = {clip.id for clip in clips}
    with any_database.session(write=False) as s:
        heard = get_clips(s, {battle.clip_2_id for battle in checks})
        row = s.scalars(sa.select(VersionRow).where(VersionRow.name == anchors.LOW_ANCHOR)).one()
        listed = [version.name for version in versions.list_versions(s)]
    for battle in checks:
        assert battle.expected_winner == (1 if battle.kind is BattleKind.GOLD else None)
        assert battle.clip_1_id in known
        low = heard[battle.clip_2_id]
        assert (low.version, low.source, low.codes_sha256) == (anchors.LOW_ANCHOR, ClipSource.EXTERNAL, None)
        assert low.prompt_id == battle.prompt_id
    assert row.status is VersionStatus.RETIRED
    assert listed == ["base", "tuned"]  # nobody takes the anchor for a policy


def test_a_known_winner_can_be_given_as_gold(sqlite_database, tmp_path):  # noqa: F811
    store, clips = sing(sqlite_database, tmp_path)
    winner, loser = clips[1], clips[0]
    recipe = _recipe(shares=Shares(gold=0.1))
    study = create_study_from_recipe(sqlite_database, store, recipe, actor="ann", gold=[(winner.id, loser.id)])
    gold = [battle for battle in _battles(sqlite_database, study) if battle.kind is BattleKind.GOLD]
    assert [(b.clip_1_id, b.clip_2_id, b.expected_winner) for b in gold] == [(winner.id, loser.id, 1)]


def _response_db(frequency: float, rate: int) -> float:
    t = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * frequency * t)
    passed = anchors.low_pass(tone, rate)[rate // 4 : -rate // 4]
    return 20 * np.log10(np.sqrt(np.mean(passed**2) / 0.5))


@pytest.mark.parametrize("rate", [16000, 32000, 44100])
def test_the_low_anchor_has_the_response_that_bs_1534_asks_for(rate):
    for frequency in (100, 1000, 3000, 3500):
        assert abs(_response_db(frequency, rate)) < 0.1
    assert _response_db(4000, rate) < -25
    assert _response_db(4500, rate) < -50
    assert _response_db(6000, rate) < -50


def test_a_low_anchor_is_as_long_as_its_clip_and_not_shifted():
    click = np.zeros(1000)
    click[400] = 1.0
    assert np.argmax(anchors.low_pass(click, RATE_HZ)) == 400
    assert anchors.low_pass(click, RATE_HZ).shape == click.shape
    with pytest.raises(DataError, match="above 8000 Hz"):
        anchors.low_pass(click, 8000)


def test_a_rating_study_asks_of_clips_hidden_references_and_low_anchors(any_database, tmp_path):  # noqa: F811
    study, clips = _made(
        any_database,
        tmp_path,
        singing={"names": ("base", "tuned", "records"), "external": ("records",), "prompt_count": 4},
        versions=("base", "tuned", "records"),
        mode="rating",
        shares=Shares(anchors=0.25),
    )
    with any_database.session(write=False) as s:
        items = ratings.list_items(s, study.id)
        heard = get_clips(s, {item.clip_id for item in items})
        assert list_battles(s, study.id) == []
    assert Counter(item.kind for item in items) == {"normal": 8, "reference": 4, "anchor": 4}
    for item in items:
        version = heard[item.clip_id].version
        assert version == {"reference": "records", "anchor": anchors.LOW_ANCHOR}.get(item.kind, version)


@pytest.mark.parametrize(("share", "clips", "made"), [(0.4, 6, 4), (0.1, 9, 1), (0.1, 10, 2), (0.3, 7, 3), (0.2, 8, 2)])
def test_the_low_anchors_are_the_share_of_all_clips_whatever_floats_make_of_it(
    sqlite_database,  # noqa: F811
    tmp_path,
    share,
    clips,
    made,
):
    study, _ = _made(
        sqlite_database, tmp_path, singing={"prompt_count": 5}, mode="rating", shares=Shares(anchors=share), pairs=clips
    )
    with sqlite_database.session(write=False) as s:
        kinds = Counter(item.kind for item in ratings.list_items(s, study.id))
    assert kinds == {"normal": clips, "anchor": made}  # anchors / (clips + anchors) >= share, and no anchor more


def test_a_study_serves_only_while_it_is_open_and_takes_votes_given_before(any_database, tmp_path):  # noqa: F811
    _made(any_database, tmp_path, state="draft")
    service = _service(any_database)
    with pytest.raises(VoteRejected, match="has not begun"):
        _session(service)
    set_study_state(any_database, "study", "open", actor="ann")
    session = _session(service)
    pair = service.next_assignment(session, rng=random.Random(1))
    for state, said in (("paused", "is paused"), ("closed", "has ended")):
        set_study_state(any_database, "study", state, actor="ann")
        with pytest.raises(VoteRejected, match=said):
            _session(service)
        with pytest.raises(VoteRejected, match=said):
            service.next_assignment(session, rng=random.Random(1))
    assert service.record_vote(session, _draft(pair)).revision == 1
    with pytest.raises(DataError, match="no state of a study"):
        set_study_state(any_database, "study", "gone", actor="ann")


def _invite(database, study, **more) -> uuid.UUID:
    new = uuid.uuid4()
    with database.session() as s:
        values = {"id": new, "study_id": study.id, "token_sha256": uuid.uuid4().hex * 2, "created_at": utcnow(), **more}
        s.execute(sa.insert(InviteRow).values(values))
    return new


def test_an_invited_study_opens_to_whoever_holds_an_invitation_as_often_as_it_says(
    any_database,  # noqa: F811
    tmp_path,
):
    study, _ = _made(any_database, tmp_path, access="invited")
    clock = Clock()
    service = _service(any_database, clock)
    with pytest.raises(VoteRejected, match="by invitation"):
        _session(service)
    twice = _invite(any_database, study, most_uses=2)
    sessions = [_session(service, who, invite_id=twice) for who in ("ann", "bob")]
    with pytest.raises(VoteRejected, match="used as often"):
        _session(service, "eve", invite_id=twice)
    with pytest.raises(VoteRejected, match="not for this study"):
        _session(service, invite_id=uuid.uuid4())
    with pytest.raises(VoteRejected, match="has expired"):
        _session(service, invite_id=_invite(any_database, study, expires_at=clock() - timedelta(seconds=1)))
    with pytest.raises(VoteRejected, match="taken back"):
        _session(service, invite_id=_invite(any_database, study, revoked_at=clock()))
    with any_database.session(write=False) as s:
        uses = {(row.session_id, row.invite_id) for row in s.scalars(sa.select(InviteUseRow))}
    assert uses == {(session, twice) for session in sessions}
    service.finish_session(sessions[0])
    again = _session(service, "ann")  # who was let in may go on after a pause, without another invitation
    assert service.next_assignment(again, rng=random.Random(1)) is not None
    with pytest.raises(VoteRejected, match="by invitation"):
        _session(service, "eve")
    with any_database.session() as s:
        s.execute(sa.update(InviteRow).where(InviteRow.id == twice).values(revoked_at=clock()))
    with pytest.raises(VoteRejected, match="by invitation"):  # it opens nothing new any more
        _session(service, "ann")


def test_consent_is_recorded_with_each_session_and_the_newest_counts(any_database, tmp_path):  # noqa: F811
    study, _ = _made(any_database, tmp_path, onboarding=Onboarding(consent_version="2"))
    service = _service(any_database)
    rater = service.enrol_rater("ann", kind=RaterKind.HUMAN)
    with pytest.raises(VoteRejected, match="consent text has changed"):
        service.open_session(rater, "study", consent=YES)
    for training in (True, False):
        service.open_session(rater, "study", consent=Consent("2", training=training, publication=True))
    with any_database.session(write=False) as s:
        assert get_consent(s, rater, study.id) == Consent("2", training=False, publication=True)
        assert get_consent(s, uuid.uuid4(), study.id) is None


def test_background_is_kept_and_becomes_the_cohort(sqlite_database, tmp_path):  # noqa: F811
    _made(sqlite_database, tmp_path, onboarding=Onboarding(background=("musical_training", "culture")))
    service = _service(sqlite_database)
    session = _session(service, background={"culture": "Welsh", "musical_training": " 5 years "}, headphone_check=True)
    with sqlite_database.session(write=False) as s:
        rater = s.scalars(sa.select(RaterRow)).one()
        assert s.get(ListeningSessionRow, session).headphone_check is True
    assert rater.background == {"culture": "Welsh", "musical_training": "5 years"}
    assert rater.cohort == "musical_training: 5 years, culture: Welsh"
    with pytest.raises(VoteRejected, match="does not ask about 'income'"):
        _session(service, background={"income": "1"})


def test_whoever_refused_training_counts_in_comparisons_and_trains_nothing(any_database, tmp_path):  # noqa: F811
    study, _ = _made(any_database, tmp_path, singing={"prompt_count": 2})
    service = _service(any_database)
    for who, training in (("ann", True), ("bob", False)):
        session = _session(service, who, consent=Consent("1", training=training, publication=True))
        while (pair := service.next_assignment(session, rng=random.Random(1))) is not None:
            service.record_vote(session, _draft(pair))
    ann = str(service.enrol_rater("ann", kind=RaterKind.HUMAN))
    with any_database.session(write=False) as s:
        assert len(votes.counted_votes(s, study_ids=[study.id])) == 4
        assert {row.rater_id for row in votes.counted_votes(s, study_ids=[study.id], for_training=True)} == {ann}
    # Consent taken back later counts for what was said before.
    _session(service, "ann", consent=Consent("1", training=False, publication=True))
    with any_database.session(write=False) as s:
        assert votes.counted_votes(s, study_ids=[study.id], for_training=True) == []


def test_checks_of_the_rater_and_anchors_count_in_no_comparison_and_train_nothing(
    sqlite_database,  # noqa: F811
    tmp_path,
):
    study, _ = _made(sqlite_database, tmp_path, shares=Shares(gold=0.25, anchors=0.25, repeats=0.0), choice="random")
    service = _service(sqlite_database)
    rng = random.Random(2)
    for who in ("ann", "bob", "eve"):
        session = _session(service, who)
        while (pair := service.next_assignment(session, rng=rng)) is not None:
            service.record_vote(session, _draft(pair))
    with sqlite_database.session(write=False) as s:
        every = votes.counted_votes(s, study_ids=[study.id], kinds=list(BattleKind))
        counted = votes.counted_votes(s, study_ids=[study.id])
        trains = votes.counted_votes(s, study_ids=[study.id], kinds=list(BattleKind), for_training=True)
    assert len(counted) == 18 and {row.kind for row in counted} == {BattleKind.NORMAL}
    assert {row.kind for row in every} > {BattleKind.NORMAL}
    assert all(anchors.LOW_ANCHOR not in (row.left.version, row.right.version) for row in trains)


def test_confidence_is_optional_as_the_page_says_where_the_study_asks_for_it(sqlite_database, tmp_path):  # noqa: F811
    _made(sqlite_database, tmp_path, ask_confidence=True)
    service = _service(sqlite_database)
    session = _session(service)
    pair = service.next_assignment(session, rng=random.Random(1))
    assert service.record_vote(session, _draft(pair)).revision == 1
    assert service.record_vote(session, _draft(pair, confidence=2)).revision == 2
    with sqlite_database.session(write=False) as s:
        assert list(s.scalars(sa.select(VoteTable.confidence).order_by(VoteTable.revision))) == [None, 2]


def test_a_comment_can_be_tied_to_a_stretch_of_one_clip(sqlite_database, tmp_path):  # noqa: F811
    _made(sqlite_database, tmp_path)
    service = _service(sqlite_database)
    session = _session(service)
    pair = service.next_assignment(session, rng=random.Random(1))
    where = {"comment": "a click", "comment_side": Side.RIGHT}
    for start, end, said in ((0.4, 0.2, "before it begins"), (0.1, 9.0, "the clip has 0.5 s"), (-1.0, None, "0 s or")):
        with pytest.raises(VoteRejected, match=said):
            service.record_vote(session, _draft(pair, comment_start_seconds=start, comment_end_seconds=end, **where))
    with pytest.raises(VoteRejected, match="needs the clip"):
        service.record_vote(session, _draft(pair, comment="a click", comment_start_seconds=0.1))
    service.record_vote(session, _draft(pair, comment_start_seconds=0.1, comment_end_seconds=0.3, **where))
    with sqlite_database.session(write=False) as s:
        row = s.scalars(sa.select(VoteCommentRow)).one()
    assert (row.text, row.side, row.start_seconds, row.end_seconds) == ("a click", Side.RIGHT, 0.1, 0.3)


def test_a_broken_clip_is_flagged_by_its_rater_and_the_vote_is_an_ordinary_one(sqlite_database, tmp_path):  # noqa: F811
    study, _ = _made(sqlite_database, tmp_path)
    service = _service(sqlite_database)
    session = _session(service)
    pair = service.next_assignment(session, rng=random.Random(1))
    receipt = service.record_vote(session, _draft(pair, Outcome.A, broken=Side.RIGHT, heard_right_seconds=0.5))
    with sqlite_database.session(write=False) as s:
        flag = s.scalars(sa.select(VoteFlagRow)).one()
        (row,) = votes.counted_votes(s, study_ids=[study.id])
        assert votes.chain_faults(s, session) == []
    assert (flag.vote_id, flag.detector, flag.verdict, flag.detail) == (
        receipt.vote_id, "rater", "ok", {"broken": "right"},
    )  # fmt: skip
    assert row.outcome is Outcome.A and row.flags == (("rater", "ok"),)


def test_the_versions_are_told_after_the_vote_and_only_where_the_study_reveals(sqlite_database, tmp_path):  # noqa: F811
    study, clips = _made(sqlite_database, tmp_path, reveal=True)
    service = _service(sqlite_database)
    session = _session(service)
    pair = service.next_assignment(session, rng=random.Random(1))
    with pytest.raises(VoteRejected, match="after your vote"):
        service.reveal(session, pair.id)
    service.record_vote(session, _draft(pair))
    by_id = {clip.id: clip.version for clip in clips}
    assert service.reveal(session, pair.id) == {
        "left": by_id[pair.left_clip_id], "right": by_id[pair.right_clip_id],
    }  # fmt: skip
    with pytest.raises(VoteRejected, match="not served to this session"):
        service.reveal(_session(service, "eve"), pair.id)
    store, _ = sing(sqlite_database, tmp_path)
    create_study_from_recipe(sqlite_database, store, _recipe(name="blind"), actor="ann", state="open")
    blind = _session(service, study="blind")
    pair = service.next_assignment(blind, rng=random.Random(1))
    service.record_vote(blind, _draft(pair))
    with pytest.raises(VoteRejected, match="does not say"):
        service.reveal(blind, pair.id)


def test_a_session_hears_as_many_pairs_as_the_study_says_and_its_end_is_noted_once(
    sqlite_database,  # noqa: F811
    tmp_path,
):
    _made(sqlite_database, tmp_path, pacing=Pacing(pairs_per_session=2))
    clock = Clock()
    service = _service(sqlite_database, clock)
    session = _session(service)
    assert (service.progress(session).done, service.progress(session).available) == (0, 2)
    first = service.next_assignment(session, rng=random.Random(1))
    second = service.next_assignment(session, rng=random.Random(1), in_hand=[first.id])
    assert service.next_assignment(session, rng=random.Random(1), in_hand=[first.id, second.id]) is None
    assert service.record_vote(session, _draft(first)).progress.available == 1
    done = service.record_vote(session, _draft(second)).progress
    assert (done.done, done.available) == (2, 0)
    assert service.next_assignment(session, rng=random.Random(1)) is None
    service.finish_session(session)
    clock.seconds += 60
    service.finish_session(session)
    with sqlite_database.session(write=False) as s:
        assert s.get(ListeningSessionRow, session).finished_at == Clock()()
    again = _session(service)  # a later session goes on where this one ended
    assert (service.progress(again).done, service.progress(again).available) == (2, 2)
    with pytest.raises(NotFoundError):
        service.finish_session(uuid.uuid4())


def test_the_receipt_carries_the_progress_that_a_question_would_give(any_database, tmp_path):  # noqa: F811
    _made(any_database, tmp_path, shares=Shares(gold=0.2))
    service = _service(any_database)
    session = _session(service)
    rng = random.Random(4)
    while (pair := service.next_assignment(session, rng=rng)) is not None:
        draft = _draft(pair)
        receipt = service.record_vote(session, draft)
        assert receipt.progress == service.progress(session)
        assert service.record_vote(session, draft).progress == receipt.progress
    assert receipt.progress.available == 0
    assert receipt.progress.done >= 6


def test_an_arena_serves_only_what_was_sung_for_the_session(sqlite_database, tmp_path):  # noqa: F811
    store, clips = sing(sqlite_database, tmp_path)
    recipe = _recipe(mode="arena", arena=ArenaRules())
    study = create_study_from_recipe(sqlite_database, store, recipe, actor="ann", state="open")
    service = _service(sqlite_database)
    mine, other = _session(service), _session(service, "eve")
    with sqlite_database.session() as s:
        (battle,) = studies.add_battles(s, study.id, [studies.NewBattle(clips[0].prompt_id, clips[0].id, clips[1].id)])
        from alignment.db.listening import serve

        served = serve(
            s, session_id=mine, battle_id=battle.id, left_is_clip_1=True, first_side=Side.LEFT, nonce="n" * 20,
            now=Clock()(), expires_at=Clock()() + timedelta(hours=1),
        )  # fmt: skip
    assert service.next_assignment(other, rng=random.Random(1)) is None
    assert service.next_assignment(mine, rng=random.Random(1)) == served
    assert service.progress(mine).available == 1
    assert service.record_vote(mine, _draft(served)).progress.available == 0


def _rating(assignment, **more) -> RatingDraft:
    more = {"idempotency_key": f"key-{uuid.uuid4()}", "quality": 70, "relevance": 40, **more}
    return RatingDraft(assignment.id, **more)


def test_a_rating_is_saved_once_and_the_least_rated_clips_come_first(any_database, tmp_path):  # noqa: F811
    study, _ = _made(any_database, tmp_path, singing={"prompt_count": 3}, mode="rating", shares=Shares(anchors=0.25))
    service = _service(any_database)
    rng = random.Random(1)
    heard = Counter()
    for who in ("ann", "bob"):
        session = _session(service, who)
        while (item := service.next_rating(session, rng=rng)) is not None:
            assert service.next_rating(session, rng=rng) == item
            draft = _rating(item)
            receipt = service.record_rating(session, draft)
            heard[item.clip_id] += 1
            again = service.record_rating(session, draft)
            assert (again.rating_id, again.repeated) == (receipt.rating_id, True)
            with pytest.raises(VoteRejected, match="rated this clip already"):
                service.record_rating(session, _rating(item))
            with pytest.raises(VoteRejected, match="Another answer"):
                service.record_rating(session, _rating(item, idempotency_key=draft.idempotency_key, quality=71))
        assert receipt.progress == service.progress(session)
        assert (receipt.progress.done, receipt.progress.available) == (8, 0)
    assert set(heard.values()) == {2} and len(heard) == 8
    with any_database.session(write=False) as s:
        assert s.scalar(sa.select(sa.func.count()).select_from(ClipRatingRow)) == 16


@pytest.mark.parametrize("outcome", [RatingOutcome.SKIP, RatingOutcome.FAULT])
def test_a_clip_without_a_rating_is_answered_unheard_once_and_has_no_figure(any_database, tmp_path, outcome):  # noqa: F811
    study, _ = _made(any_database, tmp_path, singing={"prompt_count": 2}, mode="rating", minimum_listening_seconds=2.0)
    service = _service(any_database)
    session = _session(service)
    item = service.next_rating(session, rng=random.Random(1))
    nothing = {"quality": None, "relevance": None, "heard_seconds": 0.0, "outcome": outcome}
    with pytest.raises(VoteRejected, match="has no answer about quality"):
        service.record_rating(session, _rating(item, **{**nothing, "quality": 50}))
    draft = _rating(item, **nothing)
    receipt = service.record_rating(session, draft)
    assert (receipt.progress.done, receipt.progress.available) == (1, 3)
    assert service.record_rating(session, draft).repeated
    other = next(one for one in RatingOutcome if one not in (outcome, RatingOutcome.RATED))
    with pytest.raises(VoteRejected, match="Another answer"):
        service.record_rating(session, replace(draft, outcome=other))
    with pytest.raises(VoteRejected, match="rated this clip already"):
        service.record_rating(session, _rating(item, heard_seconds=3.0))
    assert service.next_rating(session, rng=random.Random(1)).clip_id != item.clip_id
    with any_database.session(write=False) as s:
        (stored,) = study_ratings(s, study.id)
        assert rated_often(s, study.id)[item.item_id] == 1  # or it would be the least answered for everybody
    assert (stored.outcome, stored.quality, stored.relevance, stored.mos) == (outcome, None, None, None)
    figures = study_figures(any_database, study.id, recipe=rules_of(study), state="open", rater_kind=RaterKind.HUMAN)
    assert (figures.ratings_given, figures.had, figures.scales, figures.raters) == (0, 0, (), 1)
    assert (figures.passed_over, figures.faults) == ((1, 0) if outcome is RatingOutcome.SKIP else (0, 1))


@pytest.mark.parametrize("reread", [False, True])
def test_a_rating_raises_its_clips_tally_once_so_that_the_next_rater_hears_others(
    sqlite_database,  # noqa: F811
    tmp_path,
    monkeypatch,
    reread,
):
    study, _ = _made(sqlite_database, tmp_path, singing={"prompt_count": 3}, mode="rating")
    monkeypatch.setattr(absolute, "RELOAD_SECONDS", 1e9)
    service = _service(sqlite_database)
    session = _session(service)
    item = service.next_rating(session, rng=random.Random(1))
    if reread:  # in the very transaction that saves the rating
        service._ratings._pools.clear()
    service.record_rating(session, _rating(item))
    pool, clips = service._ratings._pools[study.id][1:]
    assert {clips[battle]: pool.votes(battle) for battle in clips} == {
        clip: int(clip == item.clip_id) for clip in clips.values()
    }


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"quality": None}, "quality is missing"),
        ({"quality": 0}, "from 1 to 100"),
        ({"quality": 101}, "from 1 to 100"),
        ({"relevance": 50.5}, "from 1 to 100"),
        ({"mos": 3}, "does not ask about mos"),
        ({"mos": 2.5}, "is 1, 2, 3, 4 or 5"),
        ({"heard_seconds": float("nan")}, "0 or more"),
        ({"idempotency_key": "short"}, "8 to 200"),
    ],
)
def test_a_rating_that_makes_no_sense_is_refused_whole(sqlite_database, tmp_path, fault, said):  # noqa: F811
    _made(sqlite_database, tmp_path, mode="rating")
    service = _service(sqlite_database)
    session = _session(service)
    item = service.next_rating(session, rng=random.Random(1))
    with pytest.raises(VoteRejected, match=said):
        service.record_rating(session, _rating(item, **fault))
    with pytest.raises(VoteRejected, match="not served to this session"):
        service.record_rating(_session(service, "eve"), _rating(item))
    with sqlite_database.session(write=False) as s:
        assert s.scalar(sa.select(sa.func.count()).select_from(ClipRatingRow)) == 0


def test_a_clip_is_heard_before_it_is_rated_and_all_clips_share_the_time(sqlite_database, tmp_path):  # noqa: F811
    _made(
        sqlite_database, tmp_path, singing={"seconds": (3.0,), "prompt_count": 2}, mode="rating",
        minimum_listening_seconds=2.0,
    )  # fmt: skip
    clock = Clock()
    service = VoteService(sqlite_database, secret="a secret", clock=clock, require_fetch=True)
    session = _session(service)
    one = service.next_rating(session, rng=random.Random(1))
    clock.seconds += 60
    with pytest.raises(ListeningTooShort, match="heard 0.0 s"):  # it was never sent
        service.record_rating(session, _rating(one, heard_seconds=2.0))
    two = service.next_rating(session, rng=random.Random(1), in_hand=[one.id])
    for item in (one, two):
        service.note_rating_fetched(session, item.id)
    clock.seconds += 2.5
    service.record_rating(session, _rating(one, heard_seconds=2.0))
    with pytest.raises(ListeningTooShort):  # two clips at once
        service.record_rating(session, _rating(two, heard_seconds=2.0))
    clock.seconds += 2.0
    service.record_rating(session, _rating(two, heard_seconds=99.0))
    with sqlite_database.session(write=False) as s:
        assert sorted(s.scalars(sa.select(ClipRatingRow.heard_seconds))) == [2.0, pytest.approx(3.0, abs=0.1)]


def test_a_study_without_a_recipe_keeps_its_old_rules(sqlite_database):  # noqa: F811
    filled = fill(sqlite_database, kind=RaterKind.HUMAN)
    with sqlite_database.session(write=False) as s:
        rules = rules_of(studies.get_study(s, filled.study))
    assert (rules.access, rules.choice, rules.ask_confidence) == ("open", "balanced", False)
    assert (rules.shares, rules.pacing.pairs_per_session, rules.versions) == (Shares(), None, ("base", "tuned"))
    service = _service(sqlite_database)
    session = service.open_session(service.enrol_rater("ann", kind=RaterKind.HUMAN), filled.study)
    service.next_assignment(session, rng=random.Random(1))
    with sqlite_database.session(write=False) as s:
        row = s.scalars(sa.select(AssignmentRow)).one()
    assert (row.policy, row.propensity) == ("balanced-1", 0.25)
    assert s.scalar(sa.select(sa.func.count()).select_from(ClipRow)) == 8
