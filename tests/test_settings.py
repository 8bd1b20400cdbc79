"""Settings: secrets come from the environment, and production refuses what is only fit for a laptop."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.config import DEVELOPMENT_SECRET, Settings
from alignment.errors import ConfigError

GOOD = {
    "ATTUNE_ENV": "production",
    "ATTUNE_SECRET": "k3Jx0-long-and-random-Q9zt7-enough-Lw2v",
    "ATTUNE_DATABASE": "postgresql+psycopg://attune@db/attune",
    "ATTUNE_TRUSTED_PROXIES": "127.0.0.1,10.0.0.0/8",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch):
    for name in (
        *GOOD,
        "ATTUNE_SECRET_FILE",
        "ATTUNE_METRICS_TOKEN",
        "ATTUNE_ALLOW_SQLITE",
        "ATTUNE_HOSTS",
        "ATTUNE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_a_laptop_needs_no_settings_at_all(environment):
    settings = Settings.from_environment().for_serving()
    assert settings.secret == DEVELOPMENT_SECRET and not settings.is_production
    assert settings.database_url == "sqlite:///data/attune.db"


def test_production_takes_a_long_secret_postgresql_and_a_proxy(environment):
    environment(**GOOD, ATTUNE_HOSTS="Listen.example.org")
    settings = Settings.from_environment().for_serving()
    assert settings.is_production and settings.trusted_proxies == ("127.0.0.1", "10.0.0.0/8")
    assert settings.hosts == ("listen.example.org",)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ATTUNE_SECRET": ""}, "ATTUNE_SECRET is not set, and the default is known to everybody; make one with"),
        ({"ATTUNE_SECRET": DEVELOPMENT_SECRET}, "ATTUNE_SECRET is not set"),
        ({"ATTUNE_SECRET": "short"}, "ATTUNE_SECRET can be guessed: it has 5 characters"),
        ({"ATTUNE_SECRET": "abcdefghijklmnopqrst0123456789-"}, "it has 31 characters, 31 of them different"),
        ({"ATTUNE_SECRET": "ab" * 40}, "it has 80 characters, 2 of them different"),
        ({"ATTUNE_DATABASE": "data/attune.db"}, "The database is SQLite; give --database postgresql"),
        ({"ATTUNE_METRICS_TOKEN": "short"}, "ATTUNE_METRICS_TOKEN has fewer than 16 characters"),
        (
            {"ATTUNE_TRUSTED_PROXIES": ""},
            "ATTUNE_TRUSTED_PROXIES is empty, so pages and cookies would travel over plain",
        ),
        ({"ATTUNE_TRUSTED_PROXIES": "nginx"}, "ATTUNE_TRUSTED_PROXIES names 'nginx'; give addresses"),
        ({"ATTUNE_ENV": "prod"}, "environment is 'prod'"),
    ],
)
def test_production_refuses_in_a_sentence_with_the_next_step(environment, changes: dict[str, str], told: str):
    environment(**{**GOOD, **changes})
    with pytest.raises(ConfigError) as refused:
        Settings.from_environment().for_serving()
    assert told in str(refused.value)


def test_every_fault_is_told_at_once(environment):
    environment(ATTUNE_ENV="production")
    with pytest.raises(ConfigError, match="ATTUNE_SECRET is not set.*The database is SQLite"):
        Settings.from_environment()


def test_sqlite_in_production_can_be_allowed(environment):
    environment(**{**GOOD, "ATTUNE_DATABASE": "attune.db", "ATTUNE_ALLOW_SQLITE": "1"})
    assert Settings.from_environment().for_serving().database_url == "sqlite:///attune.db"


def test_a_secret_may_lie_in_a_file(environment, tmp_path: Path):
    path = tmp_path / "secret"
    path.write_text(GOOD["ATTUNE_SECRET"] + "\n")
    environment(**{**GOOD, "ATTUNE_SECRET": "other", "ATTUNE_SECRET_FILE": str(path)})
    assert Settings.from_environment().secret == GOOD["ATTUNE_SECRET"]
    path.write_text("")
    with pytest.raises(ConfigError, match="which is empty; write the secret"):
        Settings.from_environment()
    path.unlink()
    with pytest.raises(ConfigError, match="ATTUNE_SECRET_FILE is .* cannot be read"):
        Settings.from_environment()


def test_settings_do_not_show_their_secrets(environment):
    environment(**{**GOOD, "ATTUNE_DATABASE": "postgresql://a:pass@db/x"}, ATTUNE_METRICS_TOKEN="0123456789abcdef")
    shown = repr(Settings.from_environment()) + str(Settings.from_environment())
    assert not any(secret in shown for secret in (GOOD["ATTUNE_SECRET"], "pass@", "0123456789abcdef"))


def test_attune_serve_refuses_before_it_opens_a_port(environment, monkeypatch, capsys):
    from alignment.cli import main

    environment(ATTUNE_ENV="production")
    monkeypatch.setattr("sys.argv", ["attune", "serve"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and "ATTUNE_SECRET is not set" in said and len(said.strip().splitlines()) == 1
