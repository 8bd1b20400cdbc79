"""A frozen snapshot for others: as it is read here, or as TRL's preference rows, with its clips."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.clips import ClipStore
from alignment.db.engine import Database
from alignment.db.external import licences_of_clips, licences_of_votes
from alignment.db.figures import publication_consents
from alignment.db.publication import Whose, whose
from alignment.db.snapshots import Snapshot, get_snapshot
from alignment.domain import ClipRef, Pair, RatedClip, Split
from alignment.errors import DataError
from alignment.licences import is_known, listed
from alignment.preferences import FrozenSnapshot, chosen_and_rejected, part_of, read_snapshot, write_snapshot
from alignment.releases.bundle import Bundle, readme
from alignment.releases.consent import (
    DEFAULT_LICENCE,
    NO_CONSENT,
    NO_LICENCE,
    WITHDRAWN,
    Pseudonyms,
    require_licence,
)

PRIVACY = (
    "Raters, votes, prompts and clips carry names keyed for this export alone; the key was not kept. Only answers "
    "whose raters agreed to publication are here, and none of raters who withdrew since."
)
AUDIO = (
    "Clips are FLAC with a tag that says who made them; their names begin with the sha256 that they are stored under."
)


@dataclass(frozen=True)
class Leaving:
    """What of a snapshot may leave, under names of this export, with the licence of each answer (by its new name)."""

    record: Snapshot
    frozen: FrozenSnapshot
    licences: Mapping[str, str]
    withheld: Mapping[str, int]
    answers: int  # of the whole snapshot


def export_snapshot(
    database: Database,
    store: ClipStore,
    name: str,
    folder: Path,
    *,
    actor: str,
    licence: str = DEFAULT_LICENCE,
    audio: bool = True,
) -> dict[str, Any]:
    """The data card of a new folder with snapshot.jsonl, which ``preferences.read_snapshot`` reads and checks, its
    clips and their sampled codes.

    Answers that may not be published stay (``releases.consent``); the card says whether any did, and the sha256 of the
    snapshot as it was frozen. Raises NotFoundError for an unknown snapshot, DataError when nothing may leave,
    StoreError when the folder exists or a file is missing."""
    licence = require_licence(licence)
    with Bundle(database, store, folder) as bundle:
        leaving = _leaving(database, store, name, licence)
        frozen = leaving.frozen
        write_snapshot(frozen, bundle.path("snapshot.jsonl"))
        with bundle.lines("licences.jsonl") as add:
            for answer, own in sorted(leaving.licences.items()):
                add({"answer": answer, "licence": own})
        for clip in _clips(frozen) if audio else ():
            bundle.audio(clip.audio_sha256, clip.version)
            if clip.codes_sha256 is not None:
                (key,) = (key for key in store.files_of_clip(clip.audio_sha256, clip.codes_sha256) if "codes/" in key)
                bundle.path(key).write_bytes(store.read_file(key, clip.codes_sha256))
        card = _card(leaving, licence) | {
            "content_sha256": frozen.content_sha256, "snapshot_counts": dict(frozen.counts),
        }  # fmt: skip
        told = [
            "`snapshot.jsonl`: a header, then a pair a line (`a` was shown left; `preference` is its credit, 0.5 for a "
            "tie), then ratings of single clips. Its splits are by prompt. `licences.jsonl` has each answer's licence; "
            "`codes/` holds what a model sampled, codebooks by frames.",
            PRIVACY,
            AUDIO,
        ]
        return bundle.finish(card, readme(f"Snapshot: {name}", card, told), actor, "export.snapshot", name)


def export_trl(
    database: Database,
    store: ClipStore,
    name: str,
    folder: Path,
    *,
    actor: str,
    licence: str = DEFAULT_LICENCE,
    unpaired: bool = False,
    audio: bool = True,
) -> dict[str, Any]:
    """The data card of a new folder with train.jsonl, valid.jsonl ... of the snapshot's decisive votes in TRL's form:
    prompt, chosen, rejected; or, ``unpaired``, prompt, completion, label. Clips are paths inside the folder.

    The same rules as for ``export_snapshot``; ties are left out and counted, because TRL's rows have a winner."""
    licence = require_licence(licence)
    with Bundle(database, store, folder) as bundle:
        leaving = _leaving(database, store, name, licence)
        decided = [pair for pair in leaving.frozen.pairs if chosen_and_rejected(pair) is not None]
        if not decided:
            raise DataError(f"No vote of snapshot {name} that may be published was decisive; nothing was written.")
        for split in Split:
            own = [pair for pair in decided if pair.split == split]
            if own:
                with bundle.lines(f"{split.value}.jsonl") as add:
                    for pair in own:
                        for row in _trl_rows(pair, leaving, bundle if audio else None, unpaired):
                            add(row)
        card = _card(leaving, licence)
        card["counts"] |= {"pairs": len(decided), "left_out_undecided": len(leaving.frozen.pairs) - len(decided)}
        form = "prompt, completion (a clip) and label" if unpaired else "prompt, chosen and rejected (clips)"
        told = [
            f"One file a split, with {form}; the other fields are id, rater, split, licence, simulated and who made "
            'the clips. `datasets.load_dataset("json", data_files=...)` loads them.',
            PRIVACY,
            AUDIO,
        ]
        return bundle.finish(card, readme(f"Preferences: {name}", card, told), actor, "export.trl", name)


def _trl_rows(pair: Pair, leaving: Leaving, bundle: Bundle | None, unpaired: bool) -> Iterator[dict[str, Any]]:
    chosen, rejected = chosen_and_rejected(pair) or (pair.a, pair.b)
    files = [
        f"{clip.audio_sha256}.flac" if bundle is None else bundle.audio(clip.audio_sha256, clip.version)
        for clip in (chosen, rejected)
    ]
    rest = {
        "id": pair.vote_id, "rater": pair.rater_id, "split": pair.split.value,
        "licence": leaving.licences[pair.vote_id], "simulated": leaving.frozen.simulated,
    }  # fmt: skip
    if not unpaired:
        systems = {"chosen_system": chosen.version, "rejected_system": rejected.version}
        yield {"prompt": pair.prompt_text, "chosen": files[0], "rejected": files[1], **rest, **systems}
        return
    for file, clip, label in ((files[0], chosen, True), (files[1], rejected, False)):
        yield {"prompt": pair.prompt_text, "completion": file, "label": label, **rest, "system": clip.version}


def _leaving(database: Database, store: ClipStore, name: str, licence: str) -> Leaving:
    with database.session(write=False) as s:
        record = get_snapshot(s, name)
    frozen = read_snapshot(store.path_of(record.uri))
    votes = [uuid.UUID(pair.vote_id) for pair in frozen.pairs]
    ratings = [uuid.UUID(one.rating_id) for one in frozen.ratings]
    with database.session(write=False) as s:
        gave = whose(s, [*votes, *ratings])
        agreed = {study: publication_consents(s, study) for study in {one.study_id for one in gave.values()}}
        came = dict(licences_of_votes(s, votes))
        of_clips = licences_of_clips(s, {one.clip.clip_id for one in frozen.ratings})
    for one in frozen.ratings:
        came[uuid.UUID(one.rating_id)] = of_clips.get(uuid.UUID(one.clip.clip_id), frozenset())
    withheld: Counter[str] = Counter()

    def leaves(answer: str) -> bool:
        reason = _reason(
            gave.get(uuid.UUID(answer)), agreed, came.get(uuid.UUID(answer), frozenset()), frozen.simulated
        )
        if reason is not None:
            withheld[reason] += 1
        return reason is None

    pairs = [pair for pair in frozen.pairs if leaves(pair.vote_id)]
    rated = [one for one in frozen.ratings if leaves(one.rating_id)]
    if not pairs and not rated:
        kept = ", ".join(f"{count} {reason}" for reason, count in sorted(withheld.items()))
        raise DataError(f"No answer of snapshot {name} may be published ({kept}); nothing was written.")
    names = Pseudonyms()
    licences = {
        names.of("answer", answer): listed(came.get(uuid.UUID(answer), ())) or licence
        for answer in [*(pair.vote_id for pair in pairs), *(one.rating_id for one in rated)]
    }
    renamed = part_of(frozen, [_pair(pair, names) for pair in pairs], [_rated(one, names) for one in rated])
    return Leaving(record, renamed, licences, withheld, len(frozen.pairs) + len(frozen.ratings))


def _reason(
    gave: Whose | None,
    agreed: Mapping[uuid.UUID, Mapping[uuid.UUID, bool]],
    licences: frozenset[str | None],
    simulated: bool,
) -> str | None:
    """Why the answer may not be published; None when it may."""
    if gave is None or gave.withdrawn:
        return WITHDRAWN
    if not simulated and agreed[gave.study_id].get(gave.rater_id) is not True:
        return NO_CONSENT
    return None if all(is_known(one) for one in licences) else NO_LICENCE


def _pair(pair: Pair, names: Pseudonyms) -> Pair:
    return replace(
        pair, vote_id=names.of("answer", pair.vote_id), prompt_id=names.of("prompt", pair.prompt_id),
        rater_id=names.of("rater", pair.rater_id), a=_clip(pair.a, names), b=_clip(pair.b, names),
    )  # fmt: skip


def _rated(one: RatedClip, names: Pseudonyms) -> RatedClip:
    return replace(
        one, rating_id=names.of("answer", one.rating_id), prompt_id=names.of("prompt", one.prompt_id),
        rater_id=names.of("rater", one.rater_id), clip=_clip(one.clip, names),
    )  # fmt: skip


def _clip(clip: ClipRef, names: Pseudonyms) -> ClipRef:
    return replace(clip, clip_id=names.of("clip", clip.clip_id))


def _clips(frozen: FrozenSnapshot) -> list[ClipRef]:
    both = [clip for pair in frozen.pairs for clip in (pair.a, pair.b)] + [one.clip for one in frozen.ratings]
    return list({clip.clip_id: clip for clip in both}.values())


def _card(leaving: Leaving, licence: str) -> dict[str, Any]:
    frozen, record = leaving.frozen, leaving.record
    return {
        "snapshot": record.name,
        "frozen_content_sha256": record.content_sha256,
        "frozen_under": dict(record.policy),
        "complete": len(frozen.pairs) + len(frozen.ratings) == leaving.answers,
        "simulated": frozen.simulated,
        "licence": licence,
        "licences": dict(Counter(leaving.licences.values())),
        "counts": {"pairs": len(frozen.pairs), "ratings": len(frozen.ratings), "raters": frozen.counts["raters"],
                   "prompts": frozen.counts["prompts"]},
        "withheld": dict(leaving.withheld),
    }  # fmt: skip
