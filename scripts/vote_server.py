"""The server that load tests run, in a process of its own: the app as `attune serve` runs it, or a Gradio queue.

    python -m scripts.vote_server --database sqlite:///load.db --store store --port 7861 [--bare | --queue]

``--bare`` leaves the Gradio page out: the server starts in a fifth of the time, its routes are the same.
``--queue`` is the rival of scripts/bench_votes.py: one queued Gradio event that calls the same VoteService.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import uuid
from typing import Any

from alignment.clips import ClipStore
from alignment.db.engine import open_database
from alignment.domain import Axis, Outcome, VoteDraft
from alignment.votes import VoteService
from scripts.vote_load import SECRET, STUDY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--queue", type=int, metavar="WORKERS", help="serve a Gradio queue with this many workers")
    options = parser.parse_args()
    if options.queue:
        return serve_queue(options.database, port=options.port, workers=options.queue)

    from rating_app.app import create_app
    from rating_app.logs import configure_logging
    from rating_app.perimeter import Perimeter
    from rating_app.server import make_server, settle

    database = open_database(options.database)
    # All raters of a load test share one address, and each of them is faster than a person.
    perimeter = Perimeter(rate_scale=1e6)
    app = create_app(
        database, ClipStore(options.store), secret=SECRET, study_name=STUDY, with_page=not options.bare,
        perimeter=perimeter,
    )  # fmt: skip
    configure_logging()
    settle()
    make_server(app, port=options.port).run()


def serve_queue(url: str, *, port: int, workers: int) -> None:
    """A Gradio app with one queued event that saves a vote through VoteService."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    votes = VoteService(open_database(url), secret=SECRET, assignment_seconds=24 * 3600, require_fetch=True)

    def save(vote: dict[str, Any]) -> dict[str, Any]:
        receipt = votes.record_vote(
            uuid.UUID(vote["session"]),
            VoteDraft(
                assignment_id=uuid.UUID(vote["pair"]),
                idempotency_key=vote["key"],
                outcome=Outcome(vote["outcome"]),
                axes={Axis(axis): value for axis, value in vote["axes"].items()},
                confidence=vote["confidence"],
                comment=vote["comment"],
                heard_left_seconds=vote["heard"]["left"],
                heard_right_seconds=vote["heard"]["right"],
                switches=vote["switches"],
                decision_ms=vote["decision_ms"],
            ),
        )
        progress = receipt.progress
        told = {"done": progress.done, "available": progress.available} if progress else None
        return {"saved": True, "repeated": receipt.repeated, "progress": told}

    with gr.Blocks(analytics_enabled=False) as blocks:
        asked, answered = gr.JSON(), gr.JSON()
        gr.Button().click(save, asked, answered, concurrency_limit=workers, api_name="vote")
    blocks.queue(max_size=None, default_concurrency_limit=workers)
    app = gr.mount_gradio_app(FastAPI(), blocks, path="/", ssr_mode=False)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, timeout_keep_alive=65)


if __name__ == "__main__":
    sys.exit(main())
