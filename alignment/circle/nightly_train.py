"""From the night's snapshot to a candidate: a reward model that the votes taught something, alignment, registration."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alignment.circle import learn, rewarding
from alignment.circle.night import Night
from alignment.circle.reward_card import make_reward_card
from alignment.circle.trust import REFUSAL, measure_trust
from alignment.db import runs
from alignment.errors import DataError, NotFoundError, TrainingError
from alignment.jobs import Command, Finish


def teach(night: Night) -> Mapping[str, Any] | Finish:
    """Two reward models of the snapshot, one to train on and one to watch with; the night ends here when the votes
    teach nothing, or the card says that the model hears nothing but a simple rule.

    Models that are recorded already are not trained again, and a step that came to its end is read."""
    from alignment.circle.nightly_report import write_night
    from alignment.evaluation.reward_card_page import write_card
    from alignment.evaluation.writing import write_page

    kept = night.run_dir / "reward.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    recipe, snapshot = night.recipe, learn.load_snapshot(night.ws, night.name)
    trust = measure_trust(
        night.ws, snapshot, recipe.rewards, recipe.reward.folds, night.progress("can the votes be learnt?")
    )
    accuracy = trust.accuracy["preference"]
    found: dict[str, Any] = {
        "accuracy": {name: _plain(one) for name, one in trust.accuracy.items()}, "folds": trust.folds,
        "simulated": snapshot.frozen.simulated,
    }  # fmt: skip
    if not trust.passed:
        said = f"accuracy {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] on {accuracy.n:,} votes"
        return write_night(night, ended=f"{REFUSAL} ({said}.)", more={"reward": found})
    models = rewarding.two_reward_models(
        night.ws, night.name, snapshot, recipe.rewards, share=recipe.align.watch.held_out_share,
        seed=recipe.align.seed, progress=night.progress("two reward models"),
    )  # fmt: skip
    card = make_reward_card(night.ws, models.names[0], folds=recipe.reward.folds, curve=False)
    page = write_card(card, night.run_dir / "reward-card.html")
    found |= {"models": list(models.names), "verdict": card.verdict, "headline": card.headline, "card": str(page)}
    wanted = recipe.reward.card
    if (wanted == "sound" and card.verdict != "sound") or (wanted == "not exposed" and card.verdict == "exposed"):
        said = f"The reward model's card is {card.verdict} and the recipe wants it {wanted}: {card.headline}."
        return write_night(night, ended=f"{said} Nothing was trained on it.", more={"reward": found})
    write_page(json.dumps(found), kept, what="result")
    return found


def align_command(night: Night) -> Command:
    """``attune align run`` with the recipe's own stages: what is trained and registered already is not done again, and
    a training that was killed goes on from its last checkpoint."""
    stages = _write_recipe(night)
    models = night.results["reward"]["models"]
    return Command(
        argv=(
            sys.executable, "-m", "alignment.cli", "align", "run", str(stages), night.name, "--snapshot", night.name,
            "--parent", night.results["votes"]["parent"], "--reward", models[0], "--watch", models[1], "--resume",
            "--job", night.job_id, "--json",
        ),
        run_dir=Path(night.store).parent / "runs" / night.name,  # where the command writes
        result=lambda said: {key: said[key] for key in ("versions", "report", "figures", "finding", "simulated")},
        # Not on the command line: the address may hold a password.
        environment={"ATTUNE_DATABASE": night.ws.database.url, "ATTUNE_STORE": night.store},
        several_gpus=True,
    )  # fmt: skip


def _write_recipe(night: Night) -> Path:
    """The align recipe as a file in the run folder, written in one move."""
    from alignment.evaluation.writing import write_page

    text = yaml.safe_dump(night.recipe.align.model_dump(mode="json"), sort_keys=False)
    return write_page(text, night.run_dir / "align.yaml", what="recipe")


def candidate(night: Night) -> Mapping[str, Any]:
    """The registered candidate, looked over before anybody hears it.

    Raises TrainingError when the adapter holds what is no number, ModelError when its base is another one now,
    DataError when the version of this name was not made by this night."""
    import numpy as np
    from safetensors.numpy import load_file

    try:
        version = night.ws.version(night.name)
    except NotFoundError:
        raise TrainingError(f"The training ended without a version {night.name}; its log says why.") from None
    with night.ws.database.session(write=False) as s:
        run = runs.get_train_run(s, version.train_run_id)
    if run.job_id != f"{night.job_id}/{night.name}":
        raise DataError(
            f"Version {night.name} was made by {run.job_id or 'hand'}, not by job {night.job_id}; give the recipe "
            "another name."
        )
    night.ws.policy(version)  # its base is the registered one
    files = sorted(Path(night.ws.store.path_of(version.adapter_uri)).glob("*.safetensors"))
    broken = [name for file in files for name, value in load_file(file).items() if not np.isfinite(value).all()]
    if broken:
        raise TrainingError(
            f"Version {night.name}'s adapter holds values that are no numbers ({broken[0]}, {len(broken)} tensors); "
            "lower the learning rate in the recipe's align section."
        )
    return {
        "version": version.name, "adapter_sha256": version.adapter_sha256, "parent": version.parent,
        "base": version.base, "base_sha256": version.base_sha256, "train_run": str(version.train_run_id),
        "commit": version.commit, "simulated": version.simulated,
    }  # fmt: skip


def _plain(interval: Any) -> dict[str, float | int]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
