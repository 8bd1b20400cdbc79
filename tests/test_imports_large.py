"""An import's memory does not grow with its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from exchange_support import battle, write_tones

PROGRAM = """
import json, resource, sys
from pathlib import Path
from exchange_support import new_place
from alignment.db import migrate
root, rows = Path(sys.argv[1]), int(sys.argv[2])
(root / "new.db").unlink(missing_ok=True)
migrate.upgrade(f"sqlite:///{root / 'new.db'}")
done = new_place(root / "new.db", root / f"home-{rows}").take(root / f"{rows}.jsonl")
print(json.dumps([done.votes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def _peak(folder: Path, rows: int) -> float:
    """MiB of resident memory at the most while so many battles are imported."""
    with (folder / f"{rows}.jsonl").open("w") as file:
        for number in range(rows):
            audio = {f"audio_{side}": f"audio/{number % 20}-{side}.wav" for side in "ab"}
            print(json.dumps(battle(number, prompt=f"p {number % 500}", user_pseudonym=f"u{number % 300}", **audio)),
                  file=file)  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(folder), str(rows)]
    env_path = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": env_path, "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    votes, peak = json.loads(done.stdout.splitlines()[-1])
    assert votes == rows
    return peak


@pytest.mark.slow
def test_twenty_times_the_rows_take_hardly_more_memory(tmp_path):
    write_tones(tmp_path, [f"audio/{n}-{side}.wav" for n in range(20) for side in "ab"])
    few, many = _peak(tmp_path, 500), _peak(tmp_path, 10_000)
    assert many - few < 80, (few, many)  # 10,000 rows of some 2 kB alone would be 20 MB of text, as objects thrice that
