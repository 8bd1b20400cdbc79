"""A small kind of job whose effects can be counted, and its trainer: python -m tests.jobs_fake RUN_DIR STEPS PAUSE."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from alignment.config import Recipe
from alignment.errors import DataError
from alignment.jobs import Command, Finish, JobKind, Skip, Step, StepContext, Wait
from alignment.jobs.kinds import KindRef


class FakeRecipe(Recipe):
    """What the fake steps do."""

    votes: int = 5
    steps: int = Field(12, description="of the trainer")
    pause: float = Field(0.0, description="seconds a step of the trainer takes")
    wait: float = Field(0.0, description="seconds between two looks for the judge")
    judged: bool = Field(True, description="false: wait until the file `judged` lies in the run folder")
    fail: str = Field("", description="fail with this sentence while the file `mended` is missing")
    crash: bool = False
    stubborn: bool = Field(False, description="the trainer ignores SIGTERM")


def mark(context: StepContext) -> None:
    """One line for each time the step was run."""
    with (context.run_dir / "attempts.txt").open("a") as file:
        file.write(f"{context.step}\n")


def once(folder: Path, name: str, text: str) -> None:
    """An effect as effects have to be: keyed by name, done whole or not at all; done twice it leaves a trace."""
    folder.mkdir(exist_ok=True)
    target = folder / name
    if target.exists():
        return
    partial = target.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    try:
        os.link(partial, target)
    except FileExistsError:
        (folder / f"{name}.twice").touch()
    partial.unlink()


def collect(context: StepContext) -> Any:
    mark(context)
    if context.recipe["votes"] < 3:
        return Finish(f"{context.recipe['votes']} new votes, 3 are needed")
    once(context.run_dir / "effects", "snapshot", str(context.recipe["votes"]))
    context.say(f"{context.recipe['votes']} votes")
    return {"votes": context.recipe["votes"]}


def optional(context: StepContext) -> Any:
    mark(context)
    return Skip("nothing to warm up")


def train(context: StepContext) -> Command:
    mark(context)
    recipe = context.recipe
    more = ["stubborn"] if recipe["stubborn"] else []
    argv = [sys.executable, "-m", "tests.jobs_fake", str(context.run_dir / "train"), str(recipe["steps"]),
            str(recipe["pause"]), *more]  # fmt: skip
    return Command(tuple(argv), run_dir=context.run_dir / "train", result={"of": context.results["collect"]["votes"]})


def judge(context: StepContext) -> Any:
    mark(context)
    if context.recipe["crash"]:
        os.kill(os.getpid(), 11)
    if context.recipe["fail"] and not (context.home / "mended").exists():
        raise DataError(context.recipe["fail"])
    if not context.recipe["judged"] and not (context.home / "judged").exists():
        return Wait("waits for the judge", context.recipe["wait"])
    return {"won": True}


def register(context: StepContext) -> Any:
    mark(context)
    once(context.home / "versions", context.job_id, context.results["train"]["chain"])
    return {"version": context.job_id}


FAKE = JobKind(
    "fake", FakeRecipe,
    (Step("collect", collect), Step("optional", optional), Step("train", train), Step("judge", judge),
     Step("register", register)),
    "for tests",
)  # fmt: skip
OTHER = JobKind("fake", FakeRecipe, (Step("collect", collect), Step("new", optional)), "other code")
RETRIED = JobKind("retried", FakeRecipe, (Step("judge", judge, retries=2),), "for tests")
BRIEF = JobKind("brief", FakeRecipe, (Step("judge", judge),), "for tests")
KINDS = {
    "fake": KindRef(os.environ.get("ATTUNE_FAKE", "tests.jobs_fake:FAKE"), "tests.jobs_fake:FakeRecipe", "for tests"),
    "brief": KindRef("tests.jobs_fake:BRIEF", "tests.jobs_fake:FakeRecipe", "for tests"),
    "retried": KindRef("tests.jobs_fake:RETRIED", "tests.jobs_fake:FakeRecipe", "for tests"),
}


def trainer(run_dir: Path, steps: int, pause: float) -> None:
    """A chain of digests with a checkpoint every third step; it can be stopped anywhere and ends the same."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "trainers.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    checkpoint = run_dir / "checkpoint.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "chain": "start"}
    while state["step"] < steps:
        time.sleep(pause)
        state = {"step": state["step"] + 1, "chain": hashlib.sha256(state["chain"].encode()).hexdigest()[:16]}
        print(json.dumps({"step": state["step"], "steps": steps}), flush=True)
        if state["step"] % 3 == 0:
            partial = checkpoint.with_suffix(".partial")
            partial.write_text(json.dumps(state))
            partial.replace(checkpoint)
    print("trained")
    print(json.dumps({"chain": state["chain"], "steps_done": steps}), flush=True)


if __name__ == "__main__":
    if "stubborn" in sys.argv:
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trainer(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
