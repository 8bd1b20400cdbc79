"""`attune`: the command line. Results go to stdout, progress to stderr; heavy imports happen inside commands."""

from __future__ import annotations

import errno
import os
import sys

import typer

from alignment.cli import (
    account,
    align,
    circle,
    clips,
    compare,
    database,
    demo,
    exports,
    gate,
    imports,
    jobs,
    leaderboard,
    model_files,
    models,
    reproduce,
    reward,
    serve,
    study,
    together,
    versions,
    worker,
)
from alignment.errors import AttuneError

# Nothing Attune runs reports home, and no model hub is asked behind a user's back.
for name in ("HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED", "TOKENIZERS_PARALLELISM"):
    os.environ.setdefault(name, "1" if name.startswith("HF") else "False")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Threads that spin while they wait starve each other on a busy machine (sampling 128 clips: 93 s against 5 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="attune",
    help="Align a text-to-music model to the people who listen to it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.add_typer(database.app, name="db")
app.command("generate")(circle.generate)
app.command("simulate-votes")(circle.simulate_votes)
app.command("snapshot")(circle.snapshot)
models.reward.command("card")(reward.card)
app.add_typer(models.reward, name="reward")
app.add_typer(align.align, name="align")
app.command("compare")(compare.compare)
app.command("leaderboard")(leaderboard.leaderboard)
app.add_typer(gate.app, name="gate")
app.add_typer(jobs.app, name="jobs")
app.add_typer(versions.app, name="versions")
app.add_typer(jobs.app, name="jobs")
app.add_typer(model_files.app, name="models")
app.add_typer(reproduce.app, name="reproduce")
app.add_typer(imports.app, name="import")
app.add_typer(exports.app, name="export")
app.add_typer(clips.app, name="clips")
app.command("serve")(serve.serve)
app.command("worker")(worker.worker)
app.add_typer(study.app, name="study")
app.add_typer(account.app, name="account")

INTERRUPTED = 130
STOPPED = (
    "Stopped. Everything saved so far is whole; run the same command again to go on "
    "(align: with --resume; the demo starts afresh)."
)


def main() -> None:
    """Runs a command; our errors become one line and exit 1, Ctrl-C one line and exit 130."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this status
            raise KeyboardInterrupt
    except AttuneError as error:
        code = _fail(str(error))
    except KeyboardInterrupt:
        code = _fail(STOPPED, INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            together.is_first_to_say()
            raise
        code = _fail(f"{error.filename or 'A file'} cannot be written ({error.strerror}); free space or choose --home.")
    except Exception as error:
        # Usage errors know how to show themselves; anything else keeps its traceback.
        show, status = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None:
            if type(error).__name__ == "Abort":
                code = _fail("Stopped.", INTERRUPTED)
            elif together.is_left_alone(error):
                code = _fail(together.LEFT_ALONE)
            else:
                together.is_first_to_say()  # the traceback does
                raise
        else:
            if together.is_first_to_say():
                show()
            code = status
    together.take_leave(code or 0)
    sys.exit(code or 0)


def _fail(message: str, code: int = 1) -> int:
    sys.stdout.flush()
    if together.is_first_to_say():
        print(f"attune: {message}", file=sys.stderr, flush=True)
    return code
