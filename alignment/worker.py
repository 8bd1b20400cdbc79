"""The generation worker: takes typed prompts from the queue, lets both versions sing them, hands the clips over.

The web process only asks; every model lives here. A worker may be killed at any moment: a request belongs to it only
while it gives signs of life, and clips, battle and assignment are recorded together or not at all.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from alignment.circle.workspace import Workspace
from alignment.db.clips import NewClip
from alignment.db.requests import SingingRequest, arena_versions
from alignment.domain import Version
from alignment.errors import DatabaseError, DataError, ModelError, NotFoundError, StoreError
from alignment.requests import RequestQueue

SAMPLING_SHARE = 0.9  # of a clip's progress; decoding and storing are the rest
LONGEST_REQUEST_SECONDS = 900.0  # then a worker counts as stuck, though its heart still beats
LONGEST_OUTAGE_SECONDS = 300.0  # how long finished clips wait for the database
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class Log(Protocol):
    def __call__(self, event: str, **fields: Any) -> None: ...


class Stopped(Exception):
    """The worker was told to stop while it sang."""


class Lost(Exception):
    """Another worker has the request now."""


def worker_name() -> str:
    """Host, process and a random word: no two workers ever share a name."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def clip_seed(seed: int, place: int) -> int:
    """The sampling seed of the version at this place: two versions of one base must not sing the same clip."""
    return int(hashlib.sha256(f"arena:{seed}:{place}".encode()).hexdigest()[:12], 16)


def sing(
    ws: Workspace, request: SingingRequest, versions: Sequence[Version], *, on_progress: Callable[[float], None]
) -> list[NewClip]:
    """One clip of each of the request's ``versions``, stored, not yet recorded, all equally long.

    One base is in memory and adapters take turns on it. ``on_progress`` gets the share done, 0 to 1, at every step
    of the sampler; what it raises ends the singing. Raises ModelError for a version that cannot be loaded, StoreError
    when a clip cannot be stored, DataError when the clips differ in length. Asks nothing of the database."""
    from alignment.music.codec import render
    from alignment.music.sampler import sample

    clips, count = [], len(versions)
    for place, version in enumerate(versions):
        policy, began = ws.policy(version), time.monotonic()

        def told(done: int, total: int, place: int = place) -> None:
            on_progress((place + SAMPLING_SHARE * done / total) / count)

        seed = clip_seed(request.seed, place)
        codes = sample(
            policy, [request.prompt_text], generation=request.generation, seeds=[seed], on_step=told
        ).codes  # (1, K, T)
        audio_sha256, facts = ws.store.put_audio(render(policy, codes)[0], policy.sample_rate_hz)
        codes_sha256 = ws.store.put_codes(codes[0].numpy())
        clips.append(
            NewClip(
                request.prompt_id, version.name, request.generation, seed, audio_sha256, codes_sha256, facts,
                time.monotonic() - began,
            )
        )  # fmt: skip
        on_progress((place + 1) / count)
    if len({(clip.facts.sample_rate_hz, clip.facts.seconds) for clip in clips}) > 1:
        raise DataError(
            f"{' and '.join(request.versions)} sing clips of different length or rate; compare versions of one base."
        )
    return clips


class Worker:
    """Sings request after request, one at a time. ``stop`` may be called from any thread."""

    def __init__(
        self,
        ws: Workspace,
        *,
        log: Log,
        name: str | None = None,
        poll_seconds: float = 0.5,
        takeover_seconds: float = 30.0,
    ) -> None:
        self.ws, self.log = ws, log
        self.name = name or worker_name()
        self.queue = RequestQueue(ws.database, worker=self.name, takeover_seconds=takeover_seconds)
        self.poll_seconds = poll_seconds
        self.beat_seconds = min(0.5, takeover_seconds / 5)
        self.ended = threading.Event()
        self._stop = threading.Event()
        self._held: SingingRequest | None = None

    def stop(self) -> None:
        """Ends the run soon: the request in hand is handed back, unless it is all but done."""
        self._stop.set()

    def preload(self) -> tuple[str, ...]:
        """Loads what the open arena studies compare, so that the first rater waits for singing alone; their names.

        Raises ModelError, NotFoundError or StoreError when one cannot be loaded."""
        with self.ws.database.session(write=False) as s:
            names = arena_versions(s)
        for name in names:
            self.ws.policy(self.ws.version(name))
        return names

    def run(self, *, once: bool = False) -> int:
        """The number of requests that failed, after ``stop``, or with ``once`` as soon as nothing waits.

        An outage of the database is waited out, except with ``once``. Raises StoreError when clips cannot be
        stored, and whatever else ends a singing unexpectedly; the request then waits for its next attempt."""
        pause, failed = _FIRST_PAUSE, 0
        try:
            while not self._stop.is_set():
                try:
                    request = self.queue.claim()
                except DatabaseError as error:
                    if once:
                        raise
                    self.log("no-database", error=str(error), next_try_seconds=pause)
                    self._stop.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                pause = _FIRST_PAUSE
                if request is not None:
                    failed += not self._serve(request)
                elif once:
                    break
                else:
                    self._stop.wait(self.poll_seconds)
        finally:
            self.ended.set()
        return failed

    def hand_back_now(self) -> None:
        """Hands the request in hand back, from another thread, while the singer cannot listen."""
        request = self._held
        if request is not None:
            self._hand_back(request)

    def _serve(self, request: SingingRequest) -> bool:
        """Sings one request; False when it failed for good."""
        began = time.monotonic()
        about = {"request": str(request.id), "attempt": request.attempts}
        self._held = request
        self.log("singing", **about)
        lease = _Lease(self.queue, request, every=self.beat_seconds, stop=self._stop)
        try:
            with lease:
                versions = self._insist(lambda: [self.ws.version(name) for name in request.versions])
                clips = sing(self.ws, request, versions, on_progress=lease.tell)
                held = self._insist(lambda: self.queue.finish(request, clips))
            self.log("sung" if held else "lost", **about, seconds=round(time.monotonic() - began, 2))
        except Stopped:
            self._hand_back(request)
        except Lost:
            self.log("lost", **about)
        except (ModelError, NotFoundError, DataError) as error:
            # Another attempt would end the same way.
            state = self._insist(lambda error=error: self.queue.give_up(request, str(error), for_good=True))
            self.log("failed", **about, error=str(error))
            return state != "failed"
        except BaseException as error:
            self._let_go(request, error)
            raise
        finally:
            self._held = None
        return True

    def _let_go(self, request: SingingRequest, error: BaseException) -> None:
        said = str(error) if isinstance(error, StoreError | DatabaseError) else f"{type(error).__name__}: {error}"
        try:
            state = self.queue.give_up(request, said)
        except DatabaseError:
            state = "left for another worker"  # whoever claims next finds it silent
        self.log("gave-up", request=str(request.id), attempt=request.attempts, state=state, error=said)

    def _hand_back(self, request: SingingRequest) -> None:
        try:
            given = self.queue.hand_back(request)
        except DatabaseError:
            given = False
        self.log("handed-back" if given else "left", request=str(request.id), attempt=request.attempts)

    def _insist(self, step: Callable[[], Any]) -> Any:
        """The step's answer, tried again while the database is away: what was sung is not sung again for that."""
        pause, until = _FIRST_PAUSE, time.monotonic() + LONGEST_OUTAGE_SECONDS
        while True:
            try:
                return step()
            except DatabaseError as error:
                if time.monotonic() > until:
                    raise
                self.log("no-database", error=str(error), next_try_seconds=pause)
                if self._stop.wait(pause):
                    raise Stopped from error
                pause = min(2 * pause, _LONGEST_PAUSE)


class _Lease:
    """Signs of life for one request, from a thread of its own, so that neither a slow step nor a slow database stops
    the other. ``tell`` is what the sampler calls."""

    def __init__(self, queue: RequestQueue, request: SingingRequest, *, every: float, stop: threading.Event) -> None:
        self._queue, self._request, self._every, self._stop = queue, request, every, stop
        self._share, self._lost, self._end = 0.0, False, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> _Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(2.0)  # not for ever: its transaction may hang in a dead connection

    def tell(self, share: float) -> None:
        """Raises Stopped or Lost when singing on is of no use."""
        self._share = share
        if self._stop.is_set():
            raise Stopped
        if self._lost:
            raise Lost

    def _beat(self) -> None:
        until = time.monotonic() + LONGEST_REQUEST_SECONDS
        while not self._end.wait(self._every) and time.monotonic() < until:
            try:
                if not self._queue.beat(self._request, self._share):
                    self._lost = True
                    return
            except DatabaseError:
                continue  # it may be back before anyone takes over
