"""The nightly circle with half-second clips as a kind of job: `attune jobs run night`, for the slow tests."""

from __future__ import annotations

from dataclasses import replace

from alignment.circle import nightly, nightly_train
from alignment.circle.trust import Trust
from alignment.evaluation.intervals import Interval
from alignment.jobs.kinds import KindRef

# Sixty votes on half-second clips teach nothing that could be shown; whether they do is tested elsewhere.
nightly_train.measure_trust = lambda *_: Trust({"preference": Interval(0.7, 0.6, 0.8, n=60)}, 3)
NIGHT = replace(nightly.NIGHTLY, name="night")
KINDS = {"night": KindRef("tests.night_kind:NIGHT", "alignment.circle.nightly_recipe:NightlyRecipe", "for tests")}
