"""Steps of jobs in warm processes: what a worker starts as `python -m ...` is forked from one that has imported torch.

python tests/jobs_warm.py SOCKET serves. By the script that ``warm`` writes `python -m ...` becomes `python jobs_warm.py
-m ...`, which hands its standard streams and environment over, and lives and dies with the fork: killed, it takes it
along."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback

SOCKET, PYTHON = "ATTUNE_WARM_SOCKET", "ATTUNE_WARM_PYTHON"


def ask(words: list[str]) -> None:
    """The process that the worker sees."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[SOCKET])
        told = json.dumps({"words": words, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
        socket.send_fds(server, [len(told).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(told)
        status = int(server.recv(16) or b"1")
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(path: str) -> None:
    """Forks for each client; a client that is gone takes its fork along."""
    import select

    import alignment.circle.nightly_train
    import alignment.cli
    import alignment.evaluation.nightly_page
    import alignment.jobs.child
    import alignment.music.sampler
    import alignment.rewards.train
    import alignment.training.dpo
    import alignment.training.ppo  # noqa: F401 imported here, so that no step has to
    import tests.night_kind  # noqa: F401

    wake, awake = os.pipe()
    os.set_blocking(awake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(awake)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    forks: dict[socket.socket, int] = {}
    print("ready", flush=True)
    while True:
        ready = select.select([*forks, sys.stdin, wake, listener], [], [])[0]
        for one in ready:  # whoever is gone before whoever comes
            if one in forks:
                os.killpg(forks[one], signal.SIGKILL)
            elif one is sys.stdin:
                return
            elif one == wake:
                os.read(wake, 4096)
            elif one is listener:
                client = listener.accept()[0]
                pid = _fork(client, [listener, *forks])
                forks[client] = pid
        for client, pid in list(forks.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(OSError):
                    client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                client.close()
                del forks[client]


def _fork(client: socket.socket, others: list[socket.socket]) -> int:
    head, streams, _, _ = socket.recv_fds(client, 4, 3)
    length, told = int.from_bytes(head, "big"), b""
    while len(told) < length:
        told += client.recv(length - len(told))
    if pid := os.fork():
        for fd in streams:
            os.close(fd)
        return pid
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    for one in [client, *others]:
        one.close()
    asked = json.loads(told)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.executable = os.environ[PYTHON]
    _, module, *more = asked["words"]
    sys.argv = [module, *more]
    status = 1
    try:
        _main(module)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _main(module: str) -> None:
    import alignment.cli
    import alignment.jobs.child

    {"alignment.jobs.child": alignment.jobs.child.main, "alignment.cli": alignment.cli.main}[module]()


def warm(folder: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """A server, and the environment in which workers make use of it; it ends with its standard input."""
    path, script = f"{folder}/warm", f"{folder}/python"
    with open(script, "w", encoding="utf-8") as file:
        here = os.path.abspath(__file__)
        file.write(f'#!/bin/sh\n[ "$1" = -m ] && exec {sys.executable} -I -S {here} "$@"\nexec {sys.executable} "$@"\n')
    os.chmod(script, 0o755)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root}/tests", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment, cwd=root,
    )  # fmt: skip
    assert server.stdout.readline() == "ready\n"
    return server, {SOCKET: path, PYTHON: script}


if __name__ == "__main__":
    if sys.argv[1] == "-m":
        ask(sys.argv[1:])
    else:
        serve(sys.argv[1])
