"""The page of a comparison: what it says of differences, whom it marks, what it escapes, how it plays."""

from __future__ import annotations

import io
import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alignment.db.comparisons import Comparison, Difference, Measured
from alignment.domain import Comparison as Vote
from alignment.domain import Outcome
from alignment.evaluation.compare_page import (
    ComparePage,
    HeardClip,
    HeardPrompt,
    metric_lines,
    render,
    win_rate_line,
    write_page,
)
from alignment.evaluation.metric_words import METRICS, words_of
from alignment.evaluation.report import Contest, audio_data_uri
from alignment.evaluation.win_rate import win_rate

CLAP = "clap:x:123"


def comparison(*differences: Difference, versions: tuple[str, ...] = ("v2", "v1", "base")) -> Comparison:
    metrics = [Measured(name, "clap_score", CLAP, 8, 0.4 + at / 10, 0.3, 0.6) for at, name in enumerate(versions)]
    metrics += [Measured(versions[0], "kl", None, 8, 3.25, float("nan"), float("nan"))]
    return Comparison(
        id=uuid.UUID(int=1), name="three", versions=versions, metrics=tuple(metrics), differences=differences,
        settings={"seed": 3, "confidence": 0.95, "generation": {"clip_seconds": 5.0}},
        about={"clap": CLAP, "reference": {"kind": "folder", "name": "songs", "clips": 9, "sha256": "f" * 64},
               "reward_models": [{"name": "likes", "sha256": "e" * 64, "simulated": True}], "training_clips": 1200,
               "snapshots": ["s1"], "prompts": 4, "clips": 8},
        content_sha256="a" * 64, studies=("heard",), simulated=False, job_id=None, commit="c0ffee",
        created_at=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
    )  # fmt: skip


def contest(wins: int = 3, losses: int = 1) -> Contest:
    votes = [Vote("v2", "v1", float(i < wins), Outcome.A if i < wins else Outcome.B, f"r{i % 2}", f"p{i}")
             for i in range(wins + losses)]  # fmt: skip
    return Contest("v2 vs v1", win_rate(votes, "v2"), "blind, people")


BETTER = Difference("v2", "v1", "clap_score", CLAP, 8, 0.12, 0.05, 0.19)
LOUDER = Difference("v2", "base", "level_lufs", None, 8, -4.0, -5.0, -3.0)
OPEN = Difference("v2", "base", "clap_score", CLAP, 8, -0.1, -0.3, 0.1)


def test_the_headline_says_what_differs_clearly_and_which_way_is_better() -> None:
    html = render(ComparePage(comparison(BETTER, LOUDER, OPEN)))
    assert re.findall(r"<li>(.*?)</li>", html) == [  # an interval with 0 in it is no difference
        "<b>Beside v1</b>, better: CLAP score +0.120.",
        "<b>Beside base</b>, also: Level −4.00 LUFS.",
    ]
    assert render(ComparePage(comparison(OPEN))).count("no clear difference in any metric") == 2


def test_far_from_a_versions_clips_is_not_worse_and_far_from_recordings_is() -> None:
    far = Difference("v2", "v1", "fad", CLAP, 8, 0.4, 0.3, 0.5)
    recordings = comparison(far, versions=("v2", "v1"))
    base = {**recordings.about, "reference": {"kind": "version", "name": "base", "clips": 8}}
    assert "worse: FAD +0.400." in render(ComparePage(recordings))
    assert "also: FAD +0.400." in render(ComparePage(Comparison(**{**vars(recordings), "about": base})))


def test_every_figure_stands_with_its_interval_its_n_and_its_model() -> None:
    html = render(ComparePage(comparison(BETTER, OPEN)))
    assert html.count("0.300 to 0.600 · n\u00a0=\u00a08") == 3 and f"embeddings, in −1 to 1. {CLAP}." in html
    assert "interval unknown" in html, "one figure has none"
    row = next(part for part in html.split("<tr>") if "KL to base" in part)
    assert row.count('data-column="v1"><span>–') == 1
    assert html.count('class="gap clear"') == 1 and html.count('class="gap"') == 1
    assert "9 clips of songs" in html and "likes (simulated votes)" in html and "1,200 of s1" in html


def test_simulated_votes_and_versions_are_marked_and_people_are_not() -> None:
    marked = ComparePage(comparison(), [contest()], simulated_votes=True, simulated_versions=["v2"])
    html = render(marked)
    assert "The votes on this page come from programs" in html and "Simulated votes trained v2" in html
    assert html.count('class="badge"') == 1
    assert "Simulated listeners" not in render(ComparePage(comparison(), [contest()]))


def test_a_prompt_cannot_put_anything_into_the_page() -> None:
    evil = '"><script>alert(1)</script><!--</script>'
    heard = [HeardPrompt(evil, [HeardClip("v2", "data:audio/flac;base64,AA=="), HeardClip(evil, "data:audio/flac,")])]
    html = render(ComparePage(comparison(versions=("v2", evil)), heard=heard))
    assert "<script>alert" not in html and html.count("<script") == 2
    inside = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.S)
    assert inside and json.loads(inside.group(1))["prompts"] == [evil]
    assert "connect-src" not in html and "default-src 'none'" in html and "media-src data:;" in html


def test_the_page_and_the_terminal_have_the_same_figures(tmp_path: Path) -> None:
    found = comparison(BETTER)
    assert metric_lines(found)[0] == {
        "metric": "CLAP score", "v2": "0.400 [0.300, 0.600]", "v1": "0.500 [0.300, 0.600] *",
        "base": "0.600 [0.300, 0.600]", "n": "8",
    }  # fmt: skip
    assert win_rate_line(contest()).startswith("v2 vs v1: 75.0% [")
    path = write_page(ComparePage(found, [contest()]), tmp_path / "deep" / "page.html")
    data = re.search(r'id="attune-comparison">(.*?)</script>', path.read_text(encoding="utf-8"), re.S).group(1)
    assert json.loads(data)["contests"][0]["win_rate"] == 0.75


def test_every_metric_has_words_and_an_unknown_one_its_name() -> None:
    from alignment.evaluation.compare_page import GROUPS

    assert {name for names in GROUPS.values() for name in names} == set(METRICS)
    assert all(words.label and words.definition for words in METRICS.values())
    assert words_of("something new").label == "something new"
    new = comparison()
    own = (*new.metrics, Measured("v2", "something new", None, 8, 1.0, 0.5, 1.5))
    assert "something new" in render(ComparePage(Comparison(**{**vars(new), "metrics": own})))


@pytest.mark.slow
def test_starting_one_clip_stops_the_other_and_goes_on_at_the_same_moment(tmp_path: Path) -> None:
    from browser_support import PATIENCE_MS, chromium

    def flac(seconds: float) -> str:
        out = io.BytesIO()
        soundfile.write(out, np.zeros(int(16_000 * seconds)), 16_000, format="FLAC")
        return audio_data_uri(out.getvalue())

    heard = [HeardPrompt(f"prompt {i}", [HeardClip(name, flac(60.0)) for name in ("v2", "v1")]) for i in range(2)]
    path = write_page(ComparePage(comparison(versions=("v2", "v1")), heard=heard), tmp_path / "page.html")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 360, "height": 800})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 360

        def played(first: str, condition: str) -> list[float]:
            """Where each clip is when the condition first holds. Not wait_for_function: it evaluates text again and
            again, which the page's policy forbids."""
            return page.evaluate(
                f"""() => new Promise((done, failed) => {{
                    const a = [...document.querySelectorAll('audio')], ends = Date.now() + {PATIENCE_MS};
                    const look = () => {{
                      if ({condition}) done(a.map((one) => (one.paused ? -1 : one.currentTime)));
                      else if (Date.now() > ends) failed(new Error("not within {PATIENCE_MS} ms"));
                      else setTimeout(look, 10);
                    }};
                    {first};
                    look();
                }})"""
            )

        assert played("a[0].currentTime = 7; a[0].play()", "a[0].currentTime > 7.05")[0] > 7.05
        at = played("a[1].play()", "a[0].paused && a[1].currentTime > 7")
        assert at[0] == -1 and 7 < at[1] < 60
        at = played("a[2].play()", "a[1].paused && a[2].currentTime > 0")
        assert at[:2] == [-1, -1] and at[2] < 5, "another prompt starts anew"
        assert said == []
