"""Every table, in one place: the metadata that migrations are compared with."""

from __future__ import annotations

from alignment.db.base import Base
from alignment.db.tables_catalogue import (
    ClipRow,
    GenerationConfigRow,
    PromptRow,
    PromptSetMemberRow,
    PromptSetRow,
    RenditionRow,
    VersionRow,
)
from alignment.db.tables_listening import (
    EVENT_TYPES,
    AccountRow,
    AssignmentRow,
    BattleRow,
    BattleTallyRow,
    ClipRatingRow,
    GenerationRequestRow,
    InviteRow,
    ListenEventRow,
    ListeningSessionRow,
    RaterRow,
    StudyRow,
    StudyVersionRow,
    VoteAxisRow,
    VoteCommentRow,
    VoteFlagRow,
    VoteTable,
    WithdrawalRow,
)
from alignment.db.tables_results import (
    AuditLogRow,
    ExternalRecordRow,
    GateDecisionRow,
    LeaderboardEntryRow,
    LeaderboardRunRow,
    MetricResultRow,
    RewardModelRow,
    SnapshotMemberRow,
    SnapshotRow,
    TrainRunRow,
)

metadata = Base.metadata

# A trigger refuses UPDATE and DELETE on these.
APPEND_ONLY = ("clip", "battle", "listen_event", "vote", "vote_axis", "clip_rating", "vote_flag", "audit_log")

__all__ = [
    "APPEND_ONLY",
    "EVENT_TYPES",
    "AccountRow",
    "AssignmentRow",
    "AuditLogRow",
    "Base",
    "BattleRow",
    "BattleTallyRow",
    "ClipRatingRow",
    "ClipRow",
    "ExternalRecordRow",
    "GateDecisionRow",
    "GenerationConfigRow",
    "GenerationRequestRow",
    "InviteRow",
    "LeaderboardEntryRow",
    "LeaderboardRunRow",
    "ListenEventRow",
    "ListeningSessionRow",
    "MetricResultRow",
    "PromptRow",
    "PromptSetMemberRow",
    "PromptSetRow",
    "RaterRow",
    "RenditionRow",
    "RewardModelRow",
    "SnapshotMemberRow",
    "SnapshotRow",
    "StudyRow",
    "StudyVersionRow",
    "TrainRunRow",
    "VersionRow",
    "VoteAxisRow",
    "VoteCommentRow",
    "VoteFlagRow",
    "VoteTable",
    "WithdrawalRow",
    "metadata",
]
