"""One night of the circle: its workspace, its recipe, and the names and seeds that follow from them."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment import versions
from alignment.circle.nightly_recipe import NightlyRecipe
from alignment.circle.workspace import Progress, Workspace
from alignment.config import Settings, parse_recipe
from alignment.db import gates, new_votes, snapshots, studies
from alignment.db.gates import RecordedDecision
from alignment.db.snapshots import Snapshot
from alignment.db.studies import Study
from alignment.db.version_changes import studies_heard_by_people
from alignment.domain import RaterKind
from alignment.errors import ConfigError, DataError, NotFoundError
from alignment.jobs import StepContext
from alignment.versions import BASE_NAME, register_base


@dataclass
class Night:
    """What every step of one night works with. The same job is the same night, however often its steps run."""

    ws: Workspace
    recipe: NightlyRecipe
    job_id: str
    store: str
    run_dir: Path
    results: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None
    tell: Callable[[float, str], None] = lambda *_: None

    @property
    def name(self) -> str:
        """Names the night's snapshot, reward models, version and study; the same for ever for this job."""
        return f"{self.recipe.name}-{hashlib.sha256(self.job_id.encode()).hexdigest()[:8]}"

    @property
    def study(self) -> str:
        return f"{self.name}-contest"

    @property
    def kind(self) -> RaterKind:
        return RaterKind.SIMULATED if self.recipe.simulated else RaterKind.HUMAN

    @property
    def actor(self) -> str:
        """Who the audit log names."""
        return f"job:{self.job_id}"

    def progress(self, text: str) -> Progress:
        """A progress bar's callback that tells the share of this step."""
        return lambda done, total: self.tell(done / max(1, total), text)

    def base(self) -> None:
        """Registers attune-tiny in a home that has no version yet; any other base is registered by hand."""
        try:
            self.ws.version(self.recipe.base)
        except NotFoundError:
            if self.recipe.base != BASE_NAME:
                raise
            sha256 = self.ws.base_model("tiny").base_sha256
            register_base(self.ws.database, name=BASE_NAME, base="tiny", base_sha256=sha256)

    def champion(self) -> str:
        """Who a candidate must win over: the promoted version, or the base while there is none."""
        found = versions.champion(self.ws.database)
        return found.name if found is not None else self.recipe.base

    def earlier(self) -> list[Snapshot]:
        """The snapshots of this recipe's other nights, in the order in which they were taken."""
        pattern = re.compile(rf"{re.escape(self.recipe.name)}-[0-9a-f]{{8}}")
        with self.ws.database.session(write=False) as s:
            known = snapshots.list_snapshots(s)
        return [one for one in known if pattern.fullmatch(one.name) and one.name != self.name]

    @property
    def seed(self) -> int:
        """Other random numbers every night, the same in a night that starts again."""
        known = self.results.get("votes", {}).get("seed")
        return self.recipe.seed + 1000 * len(self.earlier()) if known is None else known

    def training_studies(self) -> list[Study]:
        """The studies whose votes train. Raises DataError when one of them is for other listeners."""
        with self.ws.database.session(write=False) as s:
            if not self.recipe.studies:
                return [study for study in new_votes.studies_of(s, self.kind) if study.mode != "rating"]
            found = [studies.get_study(s, name) for name in self.recipe.studies]
        if other := [study.name for study in found if study.rater_kind != self.kind]:
            raise DataError(
                f"Study {other[0]} is for {('people' if self.recipe.simulated else 'simulated listeners')}, and this "
                f"recipe says simulated: {str(self.recipe.simulated).lower()}; the two never train together."
            )
        return found

    def refuse_people(self) -> None:
        """Raises ConfigError when simulated votes would decide what people hear."""
        if not self.recipe.simulated:
            return
        with self.ws.database.session(write=False) as s:
            heard = studies_heard_by_people(s)
        if heard:
            raise ConfigError(
                f"People listen in this home (study {heard[0]}), and the recipe is simulated: simulated votes promote "
                "nothing that people hear. Use another --home for simulations, or a recipe without listeners and "
                "simulated."
            )

    def open_contest(self) -> RecordedDecision | None:
        """The other night whose candidate is still being heard, if there is one."""
        with self.ws.database.session(write=False) as s:
            return open_contest(s, besides=self.job_id)


def open_contest(s: Any, *, besides: str) -> RecordedDecision | None:
    """The newest decision of another job that is open: nothing was decided since and its study takes votes."""
    newest: dict[str, RecordedDecision] = {}
    for made in gates.list_decisions(s):
        if made.evidence.get("job_id"):
            newest[made.candidate] = made
    for made in newest.values():
        if made.outcome != "undecided" or made.evidence["job_id"] == besides:
            continue
        try:
            study = studies.get_study(s, made.evidence["study"])
        except NotFoundError:
            continue
        if study.state != "closed":
            return made
    return None


@contextmanager
def opened(context: StepContext) -> Iterator[Night]:
    """The night of a step. The database is closed at the end, and what the step had in memory goes with it."""
    recipe = parse_recipe(dict(context.recipe), NightlyRecipe, origin="recipe of the night")
    store = context.store or str(context.home / "store")
    settings = Settings.from_environment(database=context.database_url, store=store)
    ws = Workspace.open(settings)
    try:
        yield Night(ws, recipe, context.job_id, store, context.run_dir, context.results, context.say, context.progress)
    finally:
        ws.database.close()


def high_water(snapshot: Snapshot | None) -> uuid.UUID | None:
    """The last vote that a snapshot considered."""
    return uuid.UUID(snapshot.high_water_mark) if snapshot is not None and snapshot.high_water_mark else None
