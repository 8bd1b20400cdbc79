"""Which version is champion: promoted by a decision of the gate, or by force with a reason; rolled back; retired."""

from __future__ import annotations

import uuid

from sqlalchemy.orm import Session

from alignment.clips import ClipStore
from alignment.db import gates, version_changes, versions
from alignment.db.engine import Database
from alignment.db.gates import RecordedDecision
from alignment.db.people import add_audit
from alignment.domain import Version, VersionStatus
from alignment.errors import DataError


def champion(database: Database) -> Version | None:
    """The version that was promoted last and not rolled back; None before the first promotion."""
    with database.session(write=False) as s:
        return versions.get_champion(s)


def promote(
    database: Database,
    name: str,
    *,
    actor: str,
    decision: uuid.UUID | None = None,
    force: bool = False,
    reason: str | None = None,
    store: ClipStore | None = None,
) -> Version:
    """Make the version champion; the champion before becomes a candidate again and is what ``rollback`` goes back to.

    It takes the gate's newest decision on it over the present champion (over its base where there is none), and that
    one must be "promoted", not used before and, where ``decision`` names one, that one. ``force`` needs no decision and
    takes a reason instead. Neither lets simulated votes promote what people hear. With ``store`` the adapter's files
    are looked at first. The champion itself is returned as it is.

    Raises DataError naming what is missing, NotFoundError for an unknown version, StoreError for a missing adapter."""
    if force:
        _require_reason(reason, "Promoting without the gate")
    with database.session(write=False) as s:
        wanted = versions.get_version(s, name)
    if store is not None and wanted.adapter_uri is not None:
        store.path_of(wanted.adapter_uri)
    with database.session() as s:
        before = versions.get_champion(s, lock=True)
        version = versions.get_version(s, name)
        if before is not None and before.id == version.id:
            return version
        if not version.is_model:
            raise DataError(f"{name} is audio and no model that could sing; promote a version.")
        if version.status == VersionStatus.RETIRED and not force:
            raise DataError(f"Version {name} is retired; promote it with --force and a reason, or choose another.")
        used = _named(s, name, decision) if force else _standing(s, version, before, decision)
        _refuse_simulated(s, version, used)
        _crown(s, version, before)
        version_changes.add_change(
            s, version=version, action="promote", actor=actor, replaced=before, forced=force,
            decision_id=used.id if used else None, reason=reason,
        )  # fmt: skip
        add_audit(
            s, actor=actor, action="version.promote.forced" if force else "version.promote", subject=name,
            before={"champion": before.name if before else None},
            after={"champion": name, "decision": str(used.id) if used else None},
            reason=reason or (f"gate decision {used.id}" if used else None),
        )  # fmt: skip
        return versions.get_version(s, name)


def rollback(database: Database, *, actor: str, reason: str) -> Version:
    """Make the champion before the present one champion again, and return it; retired ones are passed over.

    Raises DataError without a reason, and when there is no champion or none before it."""
    _require_reason(reason, "A rollback")
    with database.session() as s:
        present = versions.get_champion(s, lock=True)
        if present is None:
            raise DataError("There is no champion to roll back; promote a version first.")
        target = next(
            (one for one in _earlier_champions(s) if one.status != VersionStatus.RETIRED and one.id != present.id), None
        )
        if target is None:
            raise DataError(
                f"No champion stands before {present.name}; promote another version instead, with --force and a reason."
            )
        _refuse_simulated(s, target, None)
        _crown(s, target, present)
        version_changes.add_change(s, version=target, action="rollback", actor=actor, replaced=present, reason=reason)
        add_audit(
            s, actor=actor, action="version.rollback", subject=target.name, before={"champion": present.name},
            after={"champion": target.name}, reason=reason,
        )  # fmt: skip
        return versions.get_version(s, target.name)


def retire(database: Database, name: str, *, actor: str, reason: str) -> Version:
    """Take the version out of what may be promoted and studied anew; nothing of it is deleted. One that is retired
    already is returned as it is. Raises DataError without a reason and for the champion."""
    _require_reason(reason, "Retiring a version")
    with database.session() as s:
        present = versions.get_champion(s, lock=True)
        version = versions.get_version(s, name)
        if version.status == VersionStatus.RETIRED:
            return version
        if present is not None and present.id == version.id:
            raise DataError(f"Version {name} is the champion; promote another or roll back before it is retired.")
        version_changes.add_change(s, version=version, action="retire", actor=actor, reason=reason)
        add_audit(
            s, actor=actor, action="version.retire", subject=name, before={"status": version.status.value},
            after={"status": VersionStatus.RETIRED.value}, reason=reason,
        )  # fmt: skip
        return versions.set_status(s, version, VersionStatus.RETIRED)


def _require_reason(reason: str | None, what: str) -> None:
    if not (reason or "").strip():
        raise DataError(f'{what} takes a reason for the audit log; give one with --reason "...".')


def _crown(s: Session, version: Version, before: Version | None) -> None:
    if before is not None:
        versions.set_status(s, before, VersionStatus.CANDIDATE)
    versions.set_status(s, version, VersionStatus.CHAMPION)


def _earlier_champions(s: Session) -> list[Version]:
    """Those that a rollback may go back to, nearest first: each rollback takes one promotion off again."""
    stack: list[str] = []
    for change in version_changes.list_changes(s):
        if change.action == "promote":
            stack.append(change.version)
        elif change.action == "rollback":
            while stack and stack[-1] != change.version:
                stack.pop()
    return [versions.get_version(s, name) for name in reversed(stack)]


def _named(s: Session, name: str, decision: uuid.UUID | None) -> RecordedDecision | None:
    """The decision of this id on the version, whatever it says. Raises DataError when there is none."""
    if decision is None:
        return None
    for made in gates.list_decisions(s, candidate=name):
        if made.id == decision:
            return made
    raise DataError(f"No gate decision {decision} on {name} is on record; see attune versions show {name}.")


def _standing(s: Session, version: Version, before: Version | None, decision: uuid.UUID | None) -> RecordedDecision:
    """The newest decision on the version over the present champion, which must promote it."""
    named = _named(s, version.name, decision)
    over = {before.name} if before is not None else {None, *_bases(s, version)}
    rival = before.name if before is not None else min((name for name in over if name), default="its base")
    again = f"attune gate check {version.name} --champion {rival}"
    made = gates.list_decisions(s, candidate=version.name)
    standing = [one for one in made if one.champion in over]
    if named is not None and named.champion not in over:
        raise DataError(
            f"Decision {decision} is on {version.name} over {named.champion}, and the champion is {rival}; decide "
            f"again with {again}."
        )
    if not standing:
        last = f" (the last was over {made[-1].champion})" if made else ""
        raise DataError(
            f"The gate has not decided on {version.name} over {rival}{last}; run {again}, or promote with --force and "
            "a reason."
        )
    newest = standing[-1]
    if newest.outcome != "promoted":
        raise DataError(
            f"The gate's newest decision on {version.name} over {rival} is {newest.outcome!r}; collect more votes and "
            f"run {again}, or promote with --force and a reason."
        )
    if named is not None and named.id != newest.id:
        raise DataError(f"Decision {decision} is not the newest on {version.name} over {rival}; name {newest.id}.")
    if any(change.decision_id == newest.id for change in version_changes.list_changes(s, version=version.name)):
        raise DataError(
            f"Decision {newest.id} has promoted {version.name} before, and it is champion no more; decide again with "
            f"{again}, or promote with --force and a reason."
        )
    return newest


def _bases(s: Session, version: Version) -> list[str]:
    return [
        one.name
        for one in versions.list_versions(s)
        if one.adapter_sha256 is None and one.base_sha256 == version.base_sha256
    ]


def _refuse_simulated(s: Session, version: Version, used: RecordedDecision | None) -> None:
    """Simulated votes, in the training or in the comparison, promote nothing that people hear; no force helps."""
    judged = used is not None and bool(used.evidence.get("simulated"))
    if not version.simulated and not judged:
        return
    if used is not None and version.simulated and not judged:
        raise DataError(
            f"Decision {used.id} does not say that simulated votes trained {version.name}; decide again with attune "
            f"gate check {version.name}."
        )
    if heard := version_changes.studies_heard_by_people(s):
        did = "trained" if version.simulated else "chose"
        raise DataError(
            f"SIMULATED votes {did} {version.name}, and people listen here (study {heard[0]}); simulated votes promote "
            "nothing that people hear. Collect human votes, or promote in a home of simulations alone."
        )
