"""The benchmark of imports: every format to its end, in a process of its own, its last line JSON."""

from __future__ import annotations

import json

import pytest

from scripts.bench_imports import FORMATS, main


@pytest.mark.parametrize("form", ["csv", *(pytest.param(one, marks=pytest.mark.slow) for one in FORMATS[:-1])])
def test_every_row_is_taken_and_the_last_line_is_json(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--rows", "24", "--formats", form, "--channels", "2", "--json"])
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    (found,) = report["imports"]
    # Two clips a battle, all of other sounds or prompts; a table brings clips without votes.
    assert (found["votes"], found["clips"]) == ((0, 24) if form == "csv" else (24, 48))
    assert found["read_seconds"] > 0 and found["write_seconds"] > 0 and found["peak_mib"] > 50
    assert report["growth"] == {form: None} and report["channels"] == 2, "one size has no slope"


def test_a_bad_option_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--formats", "tape"])
    assert stopped.value.code == 2 and "'tape' is none of music-arena" in capsys.readouterr().err
