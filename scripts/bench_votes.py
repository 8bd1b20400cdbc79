"""Times votes through the rating app's route against the same votes through a Gradio queue, and counts them all.

    python -m scripts.bench_votes --json
    python -m scripts.bench_votes --databases sqlite --seconds 20 --rounds 3 --sessions 0

Everything goes over HTTP to real server processes; the clients share the machine with them. On each database: raters
at study pace; closed-loop clients at full speed, our route and the queue in turns; the server's memory over many
sessions; and at the end every vote held against what was sent. docs/performance-votes.md says what is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import sqlalchemy as sa

from alignment.db.base import utcnow, uuid7
from alignment.db.engine import Database, create_engine, open_database
from alignment.db.tables import AssignmentRow, BattleRow
from alignment.domain import Side
from rating_app.tokens import Tokens
from scripts.throwaway_postgres import throwaway_postgres
from scripts.vote_load import SECRET, Connection, Ledger, Rater, count, free_port, prepare

ROOT = Path(__file__).resolve().parent.parent
DATABASES = ("sqlite", "postgresql")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench_votes: {message}; see --help.\n")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with ExitStack() as stack:
        postgres = stack.enter_context(throwaway_postgres()) if "postgresql" in options.databases else None
        results = {}
        for name in options.databases:
            if name == "postgresql" and postgres is None:
                sys.exit("bench_votes: there is no PostgreSQL; set ATTUNE_TEST_POSTGRES_URL or install Debian's.")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attune-bench-")))
            url = f"sqlite:///{folder / 'attune.db'}" if name == "sqlite" else _fresh_database(str(postgres))
            results[name] = asyncio.run(measure(url, folder, options))
    report = headline(results, options)
    print(json.dumps(report) if options.json else json.dumps(report, indent=1))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; exits with one sentence and status 2 on a bad one."""
    parser = _Parser(prog="bench_votes", description=__doc__.splitlines()[0])
    parser.add_argument("--databases", type=_databases, default=list(DATABASES), help="of sqlite, postgresql")
    parser.add_argument("--raters", type=_count, default=200, help="at study pace")
    parser.add_argument("--pace", type=_positive, default=20.0, help="seconds between two votes of a rater")
    parser.add_argument("--seconds", type=_positive, default=60.0, help="how long raters vote at study pace")
    parser.add_argument("--clients", type=_count, default=200, help="at full speed")
    parser.add_argument("--rounds", type=_count, default=5, help="turns of each contestant at full speed")
    parser.add_argument("--votes", type=_count, default=1000, help="in a round at full speed")
    parser.add_argument("--sessions", type=int, default=10_000, help="whose memory is watched; 0 leaves it out")
    parser.add_argument("--bare", action="store_true", help="our server without the Gradio page: it starts sooner")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


def headline(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The first database's figures on top, each database's under its own name, and the conditions."""
    first = results[options.databases[0]]
    return {
        **{key: first[key] for key in ("p50_ms", "p99_ms", "votes_per_second", "gradio_queue_votes_per_second")},
        "ratio": first["ratio"],
        "lost": sum(result["lost"] for result in results.values()),
        "doubled": sum(result["doubled"] for result in results.values()),
        "memory_growth": first["memory_growth"],
        "headline": options.databases[0],
        **results,
        "raters": options.raters,
        "pace_seconds": options.pace,
        "clients": options.clients,
        "rounds": options.rounds,
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "load_average_before": round(_LOAD_BEFORE, 2),
        "python": platform.python_version(),
        **{package: version(package) for package in ("gradio", "fastapi", "uvicorn", "sqlalchemy", "psycopg")},
    }


_LOAD_BEFORE = os.getloadavg()[0]


async def measure(url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one database."""
    per_client = math.ceil(options.votes / options.clients)
    battles = max(2 * options.rounds * per_client + per_client, math.ceil(options.seconds / options.pace) + 20)
    prepare(url, folder / "store", battles=battles)
    database, ledger = open_database(url), Ledger()
    name, bare = url.partition(":")[0], ["--bare"] if options.bare else []
    result: dict[str, Any] = {"database": _server_version(database)}
    try:
        with serving(url, folder, *bare) as ours:
            await ours.ready()
            tell(f"{name}: {options.raters} raters, a vote every {options.pace:g} s each, for {options.seconds:g} s")
            result |= await at_study_pace(ours.port, ledger, options)
            with serving(url, folder, "--queue", str(options.clients)) as queue:
                await queue.ready()
                tell(f"{name}: full speed, {options.rounds} rounds of {options.votes} votes each")
                result |= await at_full_speed(ours, queue, database, ledger, options)
        if options.sessions:
            with serving(url, folder, *bare) as ours:
                await ours.ready()
                tell(f"{name}: {options.sessions} sessions")
                result |= await over_sessions(ours, ledger, options.sessions)
        else:
            result |= {"memory_growth": None}
        counted = count(database, ledger)
    finally:
        database.close()
    return result | {
        "votes_counted": counted.votes,
        "lost": len(counted.lost),
        "doubled": len(counted.doubled),
        "altered": len(counted.altered) + len(counted.unknown) + len(counted.chain_faults),
        "retries": dict(ledger.reasons),
    }


@dataclass
class Process:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    async def ready(self) -> None:
        """Returns when it answers; exits with its log when it died."""
        connection = Connection(self.port)
        while True:
            if self.process.poll() is not None:
                sys.exit(f"bench_votes: the server stopped: {self.log.read_text()[-2000:]}")
            try:
                await connection.request("GET", "/")
                return connection.close()
            except (OSError, EOFError, ValueError):
                await asyncio.sleep(0.1)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(url: str, folder: Path, *options: str) -> Iterator[Process]:
    """A server process for the block."""
    port, log = free_port(), folder / f"server{len(options)}.log"
    command = ["-m", "scripts.vote_server", "--database", url, "--store", str(folder / "store"), "--port", str(port)]
    # As the systemd unit sets it: without it glibc keeps an arena for each thread.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, *command, *options], cwd=ROOT, env=environment, stdout=sink, stderr=sink
        )
    try:
        yield Process(process, port, log)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def at_study_pace(port: int, ledger: Ledger, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a vote request while many people rate: pairs and clips are fetched and events sent beside it."""
    spent: list[float] = []
    raters = [Rater(port, ledger, random.Random(seed)) for seed in range(options.raters)]
    gate = asyncio.Semaphore(8)

    async def fetch(rater: Rater) -> str:
        pair = await rater.next_pair()
        assert pair is not None, "the study has too few battles"
        for path in pair["clips"].values():
            await rater.ask("GET", path)
        return str(pair["id"])

    async def begin(rater: Rater) -> str:
        async with gate:
            await rater.start()
            return await fetch(rater)

    # Nobody votes in the second in which they open the page: what is timed begins with a first pair on every screen.
    first = await asyncio.gather(*(begin(rater) for rater in raters))
    began = time.perf_counter()

    async def rate(rater: Rater, pair: str) -> None:
        due = began + rater.rng.uniform(0, options.pace)
        while True:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if time.perf_counter() - began > options.seconds:
                return
            played = [
                {"seq": i, "side": side, "type": "play", "position": 0.0, "at_ms": i}
                for i, side in enumerate(("left", "right"))
            ]
            vote = {**rater.draw_vote(pair), "events": played}
            start = time.perf_counter()
            await rater.send(vote)
            spent.append(time.perf_counter() - start)
            pair = await fetch(rater)
            due += options.pace * rater.rng.uniform(0.7, 1.3)

    await asyncio.gather(*(rate(rater, pair) for rater, pair in zip(raters, first, strict=True)))
    for rater in raters:
        rater.connection.close()
    cuts = statistics.quantiles(spent, n=100, method="inclusive") if len(spent) > 1 else [spent[0]] * 99
    return {
        "p50_ms": round(1000 * cuts[49], 2),
        "p99_ms": round(1000 * cuts[98], 2),
        "slowest_ms": round(1000 * max(spent), 2),
        "study_pace_votes": len(spent),
        "study_pace_votes_per_second": round(len(spent) / options.seconds, 2),
    }


async def at_full_speed(
    ours: Process, queue: Process, database: Database, ledger: Ledger, options: argparse.Namespace
) -> dict[str, Any]:
    """Votes a second of closed-loop clients through our route and through the queue, in turns; medians."""
    clients = [Rater(ours.port, ledger, random.Random(1000 + i)) for i in range(options.clients)]
    for client in clients:
        await client.start()
    per_client = math.ceil(options.votes / options.clients)
    stock = _serve_assignments(database, clients, rounds=2 * options.rounds + 1, each=per_client)
    queue_lines = [(Connection(queue.port), Connection(queue.port)) for _ in clients]

    async def through_route(i: int, pairs: list[str]) -> None:
        for pair in pairs:
            await clients[i].send(clients[i].draw_vote(pair))

    async def through_queue(i: int, pairs: list[str]) -> None:
        session = _session_of(clients[i])
        for pair in pairs:
            vote = clients[i].draw_vote(pair)
            ledger.sent[vote["key"]] = vote
            await queue_vote(queue_lines[i], {**vote, "session": session.hex})
            ledger.acknowledged[vote["key"]] = 1

    async def round_of(way: Callable[[int, list[str]], Awaitable[None]], process: Process) -> tuple[float, float]:
        batch = stock.pop()
        cpu, start = process.cpu_seconds(), time.perf_counter()
        await asyncio.gather(*(way(i, pairs) for i, pairs in enumerate(batch)))
        done = sum(len(pairs) for pairs in batch)
        return done / (time.perf_counter() - start), (process.cpu_seconds() - cpu) / done

    last = stock.pop()  # warms both up
    await asyncio.gather(*(through_route(i, pairs[::2]) for i, pairs in enumerate(last)))
    await asyncio.gather(*(through_queue(i, pairs[1::2]) for i, pairs in enumerate(last)))
    route, rival = [], []
    for _ in range(options.rounds):
        route.append(await round_of(through_route, ours))
        rival.append(await round_of(through_queue, queue))
    for connection in [client.connection for client in clients] + [line for lines in queue_lines for line in lines]:
        connection.close()
    speed, rival_speed = (statistics.median(turn[0] for turn in turns) for turns in (route, rival))
    cpu, rival_cpu = (statistics.median(turn[1] for turn in turns) for turns in (route, rival))
    return {
        "votes_per_second": round(speed, 3),
        "gradio_queue_votes_per_second": round(rival_speed, 3),
        "ratio": round(speed / rival_speed, 3),
        "cpu_ms_per_vote": round(1000 * cpu, 2),
        "gradio_queue_cpu_ms_per_vote": round(1000 * rival_cpu, 2),
        "cpu_ratio": round(rival_cpu / cpu, 2) if cpu else None,
        "rounds_votes_per_second": [round(turn[0], 1) for turn in route],
        "rounds_gradio_queue_votes_per_second": [round(turn[0], 1) for turn in rival],
    }


async def queue_vote(lines: tuple[Connection, Connection], vote: dict[str, Any]) -> None:
    """A vote as Gradio's own page sends one: join the queue, then read the event stream to its end."""
    join, stream = lines
    session_hash = uuid.uuid4().hex
    body = {"data": [vote], "event_data": None, "fn_index": 0, "trigger_id": 3, "session_hash": session_hash}
    status, answer = await join.request("POST", "/gradio_api/queue/join", body)
    assert status == 200, answer
    status, data = await stream.request("GET", f"/gradio_api/queue/data?session_hash={session_hash}")
    done = [line for line in data.decode().split("\n") if "process_completed" in line]
    assert status == 200 and len(done) == 1, data[-1000:]
    message = json.loads(done[0].removeprefix("data: "))
    assert message["success"] and message["output"]["data"][0]["saved"] is True, message


def _session_of(client: Rater) -> uuid.UUID:
    cookie = Tokens(SECRET).read_cookie((client.connection.cookie or "").partition("=")[2])
    assert cookie is not None, "the server's cookie could not be read"
    return cookie.session_id


def _serve_assignments(database: Database, clients: list[Rater], *, rounds: int, each: int) -> list[list[list[str]]]:
    """For each round and client so many pairs ready to be voted on, written at once: only votes are to be timed."""
    now, rows, stock = utcnow(), [], []
    with database.session() as s:
        battles = list(s.scalars(sa.select(BattleRow.id).order_by(BattleRow.id)))
        for round_number in range(rounds):
            batch = []
            for client in clients:
                ids = [uuid7() for _ in range(each)]
                batch.append([assignment.hex for assignment in ids])
                rows += [
                    {
                        "id": assignment, "battle_id": battles[round_number * each + i],
                        "session_id": _session_of(client), "left_is_clip_1": True, "first_side": Side.LEFT,
                        "nonce": uuid.uuid4().hex, "served_at": now, "expires_at": now + timedelta(days=1),
                        "left_fetched_at": now, "right_fetched_at": now,
                    }
                    for i, assignment in enumerate(ids)
                ]  # fmt: skip
            stock.append(batch)
        s.execute(sa.insert(AssignmentRow), rows)
    return stock


async def over_sessions(ours: Process, ledger: Ledger, sessions: int) -> dict[str, Any]:
    """The server's resident memory at a tenth of the sessions and at their end; each hears a pair and votes."""
    first, done = max(1, sessions // 10), 0
    resident = {}
    waiting = iter(range(sessions))

    async def work() -> None:
        nonlocal done
        for number in waiting:
            rater = Rater(ours.port, ledger, random.Random(10_000_000 + number))
            await rater.start()
            pair = await rater.next_pair()
            assert pair is not None
            for path in pair["clips"].values():
                await rater.ask("GET", path)
            await rater.send(rater.draw_vote(pair["id"]))
            rater.connection.close()
            done += 1
            if done in (first, sessions):
                resident[done] = ours.resident_bytes()

    await asyncio.gather(*(work() for _ in range(8)))
    return {
        "memory_growth": round(resident[sessions] / resident[first] - 1, 4),
        "memory_sessions": [first, sessions],
        "memory_mib": [round(resident[mark] / 2**20, 1) for mark in (first, sessions)],
    }


def _fresh_database(server: str) -> str:
    name = f"attune_bench_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


def _server_version(database: Database) -> str:
    with database.session(write=False) as s:
        if database.is_sqlite:
            return f"SQLite {s.scalar(sa.text('SELECT sqlite_version()'))}"
        return f"PostgreSQL {s.scalar(sa.text('SHOW server_version'))}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _databases(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in DATABASES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(DATABASES)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to 3600")
    return value


if __name__ == "__main__":
    main()
