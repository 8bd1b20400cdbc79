"""An honest listener: the page's player, its telemetry and its outbox, in simulated time over a real service."""

from __future__ import annotations

import math
import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from alignment.domain import Outcome, Side, VoteDraft
from alignment.votes import ListenEvent, VoteService

BIN_SECONDS = 0.05
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that moves only when told, in seconds since START."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


@dataclass
class Player:
    """The browser's player: two clips at one playhead, distinct ticks counted by their middles."""

    clock: Clock
    duration: float
    side: Side
    loop: bool = True
    playing_since: float | None = None
    at: float = 0.0
    counted: float = 0.0
    heard: dict[Side, list[bool]] = field(default_factory=dict)
    log: list[tuple[str, Side, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        bins = max(1, round(self.duration / BIN_SECONDS))
        self.heard = {side: [False] * bins for side in Side}

    def elapsed(self) -> float:
        assert self.playing_since is not None
        gone = self.at + self.clock.seconds - self.playing_since
        return gone if self.loop else min(gone, self.duration)

    @property
    def position(self) -> float:
        if self.playing_since is None:
            return self.at
        return self.elapsed() % self.duration if self.loop else self.elapsed()

    def count(self) -> None:
        if self.playing_since is None:
            return
        bins = self.heard[self.side]
        width = self.duration / len(bins)
        first = math.ceil(self.counted / width - 0.5)
        last = min(math.ceil(self.elapsed() / width - 0.5), first + len(bins))
        for one in range(first, last):
            bins[one % len(bins)] = True
        self.counted = self.elapsed()

    def seconds(self, side: Side) -> float:
        return sum(self.heard[side]) * self.duration / len(self.heard[side])

    def tell(self, what: str) -> None:
        self.log.append((what, self.side, self.position, self.clock.seconds))

    def play(self) -> None:
        if self.playing_since is None:
            if self.at >= self.duration - 0.02:
                self.at = 0.0
            self.playing_since, self.counted = self.clock.seconds, self.at
            self.tell("play")

    def pause(self) -> None:
        if self.playing_since is not None:
            self.count()
            self.at, self.playing_since = self.position, None
            self.tell("pause")

    def switch(self) -> None:
        self.count()
        self.side = Side.RIGHT if self.side is Side.LEFT else Side.LEFT
        self.tell("switch")

    def seek(self, share: float) -> None:
        self.count()
        self.at = share * (self.duration - 0.001)
        if self.playing_since is not None:
            self.playing_since, self.counted = self.clock.seconds, self.at
        self.tell("seek")

    def run(self, seconds: float) -> None:
        """Time passes; without a loop the clip may end."""
        if self.playing_since is not None and not self.loop:
            left = self.duration - self.elapsed()
            if left <= seconds:
                self.clock.seconds += max(0.0, left)
                self.count()
                self.at, self.playing_since = self.duration, None
                self.tell("ended")
                seconds -= max(0.0, left)
        self.clock.seconds += seconds
        self.count()


@dataclass
class Listener:
    """A page with one pair on it and perhaps the next one ready. ``rng`` decides latencies, losses and taste."""

    service: VoteService
    clock: Clock
    session: uuid.UUID
    rng: random.Random
    minimum: float
    lossy: float  # chance that a batch of events is lost
    offline: float  # chance that a vote waits for a later one
    clock_offset_ms: int = 0
    queue: list[tuple[VoteDraft, list[ListenEvent]]] = field(default_factory=list)
    late: list[tuple[uuid.UUID, list[ListenEvent]]] = field(default_factory=list)
    ready: tuple | None = None
    saved: int = 0
    receipts: list = field(default_factory=list)

    def wait(self, low: float, high: float) -> None:
        self.clock.seconds += self.rng.uniform(low, high)

    def fetch(self, held: list[uuid.UUID]) -> object | None:
        """The next pair, its clips on their way: the server notes each side when it sends it."""
        pair = self.service.next_assignment(self.session, rng=self.rng, in_hand=held)
        if pair is not None:
            sides = list(Side)
            self.rng.shuffle(sides)
            for side in sides:
                self.wait(0, 0.4)
                self.service.note_fetched(self.session, pair.id, side)
        return pair

    def rate(self, seconds: float = 4.0) -> bool:
        """Hears and votes on one pair; False when there is none."""
        held = [draft.assignment_id for draft, _ in self.queue]
        pair = self.ready or self.fetch(held)
        self.ready = None
        if pair is None:
            return False
        self.wait(0, 0.5)
        player = Player(self.clock, seconds, pair.first_side)
        told = 0  # events of the log that were sent or thrown away
        seq_base = 0
        prefetch_at = self.rng.choice([0, 3, 99])
        shown = self.clock.seconds
        for step in range(self.rng.randrange(0, 14)):
            if step == prefetch_at and self.ready is None:
                # Sent while this pair plays: time passes for the player too.
                before = self.clock.seconds
                self.ready = self.fetch([pair.id, *held])
                spent, self.clock.seconds = self.clock.seconds - before, before
                player.run(spent)
            action = self.rng.random()
            if action < 0.25:
                player.play()
            elif action < 0.45:
                player.switch()
            elif action < 0.6:
                player.seek(self.rng.random())
            elif action < 0.7:
                player.pause()
            elif action < 0.8:
                player.count()
                if player.playing_since is not None and player.loop:
                    player.at, player.playing_since = player.position, self.clock.seconds
                    player.counted = player.at
                player.loop = not player.loop
                player.tell("loop")
            elif action < 0.9:
                told = self.send(pair.id, player, told, seq_base)
            else:
                # Reload: what was heard and how far the events were numbered is restored, unsent ones are gone.
                told = self.send(pair.id, player, told, seq_base)
                heard = {side: list(own) for side, own in player.heard.items()}
                seq_base += len(player.log)
                self.wait(0.1, 3)
                player = Player(self.clock, seconds, pair.first_side)
                player.heard, told = heard, 0
            player.run(self.rng.choice([0.1, 0.3, 1.0, 2.5, 6.0]) * self.rng.uniform(0.5, 1))
        self.unlock(player)
        player.pause()
        # Pressing the key takes a moment; so short a one that nothing hides behind it.
        self.wait(0.05, 0.1)
        draft = VoteDraft(
            pair.id,
            f"honest/{pair.id}",
            self.rng.choice([Outcome.A, Outcome.B, Outcome.TIE]),
            heard_left_seconds=player.seconds(Side.LEFT),
            heard_right_seconds=player.seconds(Side.RIGHT),
            decision_ms=round(1000 * (self.clock.seconds - shown)),
        )
        self.queue.append((draft, self.events(player, told, seq_base)))
        if self.rng.random() >= self.offline:
            self.deliver()
        return True

    def unlock(self, player: Player) -> None:
        """Listens on until the page lets the vote through: its own rule, side by side."""
        needed = min(self.minimum, 0.95 * player.duration)
        for side in self.rng.sample(list(Side), 2):
            while player.seconds(side) < needed - 0.001:
                if player.side is not side:
                    player.switch()
                if player.playing_since is None:
                    player.play()
                player.run(0.05)

    def events(self, player: Player, told: int, base: int) -> list[ListenEvent]:
        return [
            ListenEvent(base + n, kind, side, round(at, 3), self.clock_offset_ms + math.floor(1000 * when))
            for n, (kind, side, at, when) in enumerate(player.log)
            if n >= told
        ]

    def send(self, pair: uuid.UUID, player: Player, told: int, base: int) -> int:
        batch = self.events(player, told, base)
        fate = self.rng.random()
        if batch and fate >= self.lossy:
            if fate < self.lossy + 0.3:
                self.late.append((pair, batch))
            else:
                self.service.record_events(self.session, pair, batch)
        return len(player.log)

    def deliver(self) -> None:
        """Everything that waits reaches the server, votes in their order, some of them twice."""
        for draft, events in self.queue:
            if self.late and self.rng.random() < 0.5:
                self.service.record_events(self.session, *self.late.pop(self.rng.randrange(len(self.late))))
            self.wait(0, 0.2)
            self.receipts.append((draft, self.service.record_vote(self.session, draft, events=events)))
            if self.rng.random() < 0.2:
                assert self.service.record_vote(self.session, draft, events=events).repeated
            self.saved += 1
        self.queue = []
