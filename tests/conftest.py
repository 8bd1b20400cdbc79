"""Every test runs without a network, without a model hub and on one thread of torch; what browser tests share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", ACCELERATE_USE_CPU="1",
    OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1",  # sums in another order are other bits
)  # fmt: skip
for name in ("ATTUNE_HOME", "ATTUNE_DATABASE", "ATTUNE_STORE", "ATTUNE_SECRET"):
    os.environ.pop(name, None)
sys.path.insert(0, str(Path(__file__).parent))  # the *_support modules


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that serves sets up the logging of its process, onto a stream that is closed when its test is over."""
    loggers = [logging.getLogger(name) for name in (None, "rating_app", "alignment", "uvicorn", "uvicorn.error")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture(scope="module")
def address(site: Any) -> Iterator[str]:
    """Where the module's own ``site`` is served."""
    from app_support import running

    with running(site.app) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    from browser_support import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page of a new rater on a small phone."""
    from browser_support import visitor

    with visitor(browser, address) as context:
        yield context.new_page()
