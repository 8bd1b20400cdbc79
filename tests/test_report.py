"""The report: escaped, self-contained, labelled as simulated, and equal to the data it embeds."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from alignment.domain import Comparison, Outcome
from alignment.errors import DataError, StoreError
from alignment.evaluation import plots
from alignment.evaluation.intervals import Interval
from alignment.evaluation.report import (
    AdherenceRow,
    Contest,
    Curve,
    Example,
    ExampleClip,
    FigureTrace,
    HeadAccuracy,
    MethodRow,
    MetricRow,
    ReportData,
    RewardCard,
    Stage,
    audio_data_uri,
    terminal_table,
    write_report,
)
from alignment.evaluation.win_rate import win_rate

HOSTILE = "</script><img src=x onerror=alert(1)> \"'& ${x} {{y}} $title \x1b[31m"
SHA = "0123456789abcdef" * 4


def contest(label="DPO vs base", wins=150, losses=50):
    outcomes = [Outcome.A] * wins + [Outcome.B] * losses + [Outcome.TIE] * 4 + [Outcome.BOTH_BAD] * 2
    credit = {Outcome.A: 1.0, Outcome.B: 0.0}
    return Contest(
        label,
        win_rate(
            [
                Comparison("new", "base", credit.get(o, 0.5), o, f"r{i % 8}", f"p{i % 60}")
                for i, o in enumerate(outcomes)
            ],
            "new",
        ),
    )


def interval(value, n=40):
    return Interval(value, value - 0.05, value + 0.05, n)


def report(text="a flute", **changes):
    data = ReportData(
        title=text,
        created_at=text,
        simulated=True,
        candidate="new",
        base="base",
        contests=[contest(text), contest("Best of 4 vs base", 110, 90)],
        reward=RewardCard(text, [HeadAccuracy(text, interval(0.66), 0.5, text)], {text: text}),
        curves=[Curve(text, [(1, 0.69), (2, 0.6), (3, 0.5)], text, 0.69, text)],
        methods=[
            MethodRow(text, interval(9.0), interval(0.6), interval(0.5)),
            MethodRow(text, interval(9.4), interval(0.7), interval(0.5), interval(0.6), kl_bound=0.636),
            MethodRow(
                text,
                interval(9.8),
                interval(0.8),
                interval(0.5),
                interval(0.65, 206),
                kl=interval(16.0),
                diversity=interval(0.3),
                headline=True,
            ),
        ],
        metrics=[MetricRow(text, None, interval(12.0), text, text)],
        adherence=[AdherenceRow(text, interval(0.4), interval(0.5), 0.1)],
        examples=[Example(text, [ExampleClip(text, audio_data_uri(b"fLaC"), text, 2)], text)],
        stages=[Stage(text, 61.0)],
        peak_memory_mb=2100.0,
        traces=[FigureTrace(text, text, 206, SHA, text, text, text)],
        run={text: text},
        notes=[text],
        next_command=text,
    )
    return dataclasses.replace(data, **changes)


class Page(HTMLParser):
    """Every tag with its attributes, and the text of scripts and of the body."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self._open = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text.append(data)


def written(data, folder):
    return write_report(data, folder / "report.html").read_text(encoding="utf-8")


def test_hostile_text_anywhere_stays_text(tmp_path):
    html, harmless = written(report(HOSTILE), tmp_path), written(report("plain"), tmp_path)
    page, expected = Page(html), Page(harmless)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in expected.tags]
    assert not [tag for tag, _ in page.tags if tag == "img"]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
    assert len(page.scripts) == 2
    # Escaped, yet shown as it was typed.
    assert sum(HOSTILE in text for text in page.text) >= 5
    assert json.loads(page.scripts[0])["examples"][0]["prompt"] == HOSTILE


def test_the_page_asks_nothing_of_any_server_and_its_policy_forbids_it(tmp_path):
    html = written(report(), tmp_path)
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "http://" not in html and "https://" not in html
    assert "url(" not in html and "@import" not in html
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_simulated_votes_are_labelled_in_banner_headline_and_every_section_that_rests_on_them(tmp_path):
    html = written(report(), tmp_path)
    assert 'class="banner"' in html
    sections = dict(re.findall(r'<section id="([\w-]+)"(.*?)</section>', html, re.S))
    for name in ("verdict", "win-rates", "methods", "examples", "reward", "training", "lineage"):
        assert 'class="badge">Simulated listeners<' in sections[name], name
    assert "SIMULATED LISTENERS" in terminal_table(report())
    human = written(report(simulated=False), tmp_path)
    assert 'class="badge"' not in human and 'class="banner"' not in human
    assert "SIMULATED" not in terminal_table(report(simulated=False))


def test_the_embedded_json_is_the_data_without_audio_and_with_null_for_what_is_not_finite(tmp_path):
    broken = Interval(0.3, float("nan"), float("inf"), 1)
    data = report(metrics=[MetricRow("Diversity", None, broken)])
    embedded = json.loads(Page(written(data, tmp_path)).scripts[0])
    assert embedded == json.loads(data.to_json())
    assert embedded["contests"][0]["rate"]["wins"] == 150
    assert embedded["contests"][0]["rate"]["low"] == data.contests[0].rate.low
    assert embedded["metrics"][0]["aligned"]["low"] is None and embedded["metrics"][0]["aligned"]["high"] is None
    assert embedded["traces"][0]["snapshot_sha256"] == SHA
    assert embedded["simulated"] is True and embedded["verdict"] == "gain"
    assert "audio" not in embedded["examples"][0]["clips"][0]
    assert json.loads(data.to_json(audio=True))["examples"][0]["clips"][0]["audio"] == "data:audio/flac;base64,ZkxhQw=="


@pytest.mark.parametrize(
    ("wins", "losses", "verdict", "sentence"),
    [
        (150, 50, "gain", "Gain: simulated listeners prefer new to base."),
        (100, 100, "no gain", "No gain: simulated listeners show no clear preference between new and base."),
        (50, 150, "no gain", "No gain: simulated listeners prefer base to new."),
    ],
)
def test_the_headline_says_what_the_interval_says(wins, losses, verdict, sentence):
    data = report(contests=[contest(wins=wins, losses=losses)])
    assert (data.verdict, data.headline) == (verdict, sentence)


def test_figures_stand_in_page_and_table_with_interval_and_n(tmp_path):
    data = report()
    rate = data.contests[0].rate
    assert rate.value == pytest.approx(153 / 206)
    html, table = written(data, tmp_path), terminal_table(data)
    for shown in ("74.3%", f"{100 * rate.low:.1f}%", f"{100 * rate.high:.1f}%"):
        assert shown in html and shown in table
    assert "206 votes" in table and "n&nbsp;=&nbsp;206" in html
    assert "150 wins, 50 losses, 4 ties, 2 both bad; 200 decisive" in table
    assert "1 min 01 s, peak memory 2,100 MB" in table
    wide = report(contests=[contest("a label that goes on and on, far past the width of a terminal")])
    assert all(len(line) <= 80 for line in table.splitlines())
    assert all(len(line) <= 80 for line in terminal_table(wide).splitlines()[:6])


def test_the_terminal_table_has_no_control_characters():
    assert "\x1b" not in terminal_table(report(HOSTILE))


def test_sections_without_data_are_left_out(tmp_path):
    bare = ReportData("t", "now", True, "new", "base", [contest()])
    html = written(bare, tmp_path)
    assert re.findall(r'<section id="([\w-]+)"', html) == ["verdict", "win-rates", "words"]
    assert terminal_table(bare)


def test_a_point_stands_where_its_value_is():
    # On an axis from 30% to 70%, 60% lies at three quarters and 50% in the middle.
    svg = plots.track([(Interval(0.6, 0.4, 0.65, 10), "plain")], (0.3, 0.7), reference=0.5, label="x")
    assert 'cx="75.00%"' in svg
    assert 'class="whisker plain" x1="25.00%" x2="87.50%"' in svg
    assert 'class="reference" x1="50.00%"' in svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (0.46, 0.71, [0.4, 0.5, 0.6, 0.7, 0.8]), (-3, 17, [-5, 0, 5, 10, 15, 20])],
)
def test_ticks_are_round_numbers_that_enclose_the_data(low, high, expected):
    assert plots.nice_ticks(low, high) == pytest.approx(expected)


def test_a_flat_curve_and_one_that_is_not_finite_still_draw():
    assert "<path" in plots.line_chart("flat", [(1, 2.0), (2, 2.0)])
    assert "<path" in plots.line_chart("single", [(1, 0.0)])
    assert plots.line_chart("empty", [(1, math.nan)]) == ""


def test_what_a_report_cannot_be_made_of_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="at least one win rate"):
        report(contests=[])
    with pytest.raises(DataError, match="no data: URI"):
        report(examples=[Example("p", [ExampleClip("new", "https://example.org/x.flac")])])
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="the report cannot be written"):
        write_report(report(), tmp_path / "file" / "report.html")


def test_a_failed_write_leaves_the_old_page_and_no_rest(tmp_path, monkeypatch):
    path = write_report(report(), tmp_path / "report.html")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreError, match="No space left"):
        write_report(report("other"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_methods_stand_side_by_side_with_intervals_n_and_what_they_cost(tmp_path):
    html = written(report("t"), tmp_path)
    section = re.search(r'<section id="methods".*?</section>', html, re.S).group()
    assert section.count("<tr") == 4 and section.count("<tr class=headline>") == 1
    assert "65.0%<small>60.0% to 70.0% · n = 206</small>" in section and section.count("<small>40 prompts</small>") == 3
    assert "<td>≤ 0.636</td>" in section and "16.0<small>" in section
    # The two that met the base, and all three for the judge's reward.
    assert [chart.count("<circle") for chart in section.split("<figure")[1:]] == [2, 3]
    table = terminal_table(report("t"))
    assert "9.80" in table and "16.0 nats" in table


def test_a_point_of_the_curve_stands_at_the_root_of_its_kl_and_at_its_value():
    points = [(0.0, interval(1.0), "base", "base"), (4.0, interval(2.0), "a", "x"), (16.0, interval(3.0), "b", "x")]
    svg = plots.kl_chart("t", points, reference=1.0)
    found = re.findall(r'<circle class="point \w+" cx="([\d.]+)%" cy="([\d.]+)"', svg)
    x, y = zip(*[(float(a), float(b)) for a, b in found], strict=True)
    assert x == pytest.approx((11.0, 46.5, 82.0))  # sqrt(4 / 16) is half of the way
    assert y[0] > y[1] > y[2] and y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)
    assert f'<line class="reference" x1="8%" x2="100%" y1="{y[0]}" y2="{y[0]}"/>' in svg
    assert plots.kl_chart("t", [(math.nan, interval(1.0), "x", "x")], reference=0) == ""


def test_a_run_that_trained_nothing_has_a_report_that_says_why(tmp_path):
    reason = "The votes carry no signal, so nothing was trained."
    data = report("t", contests=[], methods=[], curves=[], metrics=[], adherence=[], examples=[], not_trained=reason)
    assert data.verdict == "not trained"
    assert data.headline == "Not trained: the votes carry no signal, so nothing was trained."
    html = written(data, tmp_path)
    ids = re.findall(r'<section id="([\w-]+)"', html)
    assert ids == ["verdict", "reward", "time", "lineage", "words"]
    assert "nothing was trained" in html and 'class="hero-figure"' not in html and "badge" in html
    assert json.loads(Page(html).scripts[0])["verdict"] == "not trained"
    assert "nothing was trained" in terminal_table(data) and "wins" not in terminal_table(data)
