"""The guide's numbers are those of its formulas, and the example files for a server are what the code understands."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path
from statistics import NormalDist

import pytest

from alignment.config import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
GUIDE = (DOCS / "first-study.md").read_text(encoding="utf-8")
SECONDS_A_PAIR, DESIGN_EFFECT, DECISIVE, PAIRS_A_RATER, WAGE, FEE = 40, 1.5, 0.75, 20, 15.0, 0.33


def decisive_votes(p: float) -> int:
    """For 80% power in a two-sided 5% test of one half against ``p``, by the normal approximation."""
    z = NormalDist().inv_cdf
    return math.ceil(((z(0.975) * 0.5 + z(0.8) * math.sqrt(p * (1 - p))) / (p - 0.5)) ** 2)


def number(text: str) -> float:
    return float(text.replace(",", "").replace("%", ""))


def test_the_table_of_votes_is_what_its_formula_gives():
    rows = [line.strip("| ").split(" | ") for line in GUIDE.splitlines() if re.match(r"\| \d\d% \|", line)]
    assert [row[0] for row in rows] == ["55%", "60%", "65%", "70%"]
    for row in rows:
        rate, n, pairs, hours, raters = map(number, row)
        assert n == decisive_votes(rate / 100)
        assert pairs == math.ceil(n * DESIGN_EFFECT / DECISIVE)
        assert hours == pytest.approx(pairs * SECONDS_A_PAIR / 3600, abs=0.05)
        assert raters == math.ceil(pairs / PAIRS_A_RATER)


@pytest.mark.parametrize(("pairs", "raters"), [(388, 20), (1566, 79)])
def test_the_cost_is_worked_out_right(pairs: int, raters: int):
    checks = math.ceil(0.1 * pairs)
    parts = [pairs * SECONDS_A_PAIR / 3600, raters * 6 / 60, checks * SECONDS_A_PAIR / 3600]
    hours, cost = sum(parts), sum(parts) * WAGE
    for value in (hours, cost, cost * (1 + FEE)):
        nearest = min((number(text) for text in re.findall(r"\d+\.\d\d", GUIDE)), key=lambda found: abs(found - value))
        assert nearest == pytest.approx(value, abs=0.011), value


def test_the_example_environment_is_accepted_in_production(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    lines = (DOCS / "deploy" / "attune.env").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            monkeypatch.setenv(name, value)
    secret = tmp_path / "secret"
    secret.write_text("k3Jx0-long-and-random-Q9zt7-enough-Lw2v")
    monkeypatch.setenv("ATTUNE_SECRET_FILE", str(secret))
    settings = Settings.from_environment().for_serving()
    assert settings.is_production and settings.hosts == ("listen.example.org",)


def test_every_variable_of_the_settings_is_in_the_deployment_page():
    page = (DOCS / "deployment.md").read_text(encoding="utf-8")
    source = (DOCS.parent / "alignment" / "config.py").read_text(encoding="utf-8")
    for name in set(re.findall(r"ATTUNE_[A-Z]+(?:_[A-Z]+)*", source)):
        assert name in page or f"{name.removesuffix('_FILE')}`, `..._FILE" in page, name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_units_are_what_systemd_understands():
    files = sorted((DOCS / "deploy").glob("*.service")) + sorted((DOCS / "deploy").glob("*.timer"))
    done = subprocess.run(["systemd-analyze", "verify", *map(str, files)], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if "deploy" in line or "attune" in line]
    assert [line for line in told if "/opt/attune/.venv/bin/attune is not executable" not in line] == []


@pytest.mark.skipif(shutil.which("nginx") is None or shutil.which("openssl") is None, reason="nginx is not installed")
def test_the_reverse_proxy_is_what_nginx_understands(tmp_path: Path):
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=listen.example.org"],
        check=True, capture_output=True,
    )  # fmt: skip
    site = (DOCS / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    site = site.replace("/etc/letsencrypt/live/listen.example.org", str(tmp_path)).replace(
        "/var/log/nginx", str(tmp_path)
    )
    (tmp_path / "site.conf").write_text(site)
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"pid {tmp_path}/pid;\nerror_log {tmp_path}/log;\nevents {{}}\nhttp {{ include {tmp_path}/site.conf; }}\n"
    )
    done = subprocess.run(["nginx", "-t", "-c", str(main)], capture_output=True, text=True)
    assert done.returncode == 0 and "[warn]" not in done.stderr, done.stderr
