"""Accounts keep strangers out: hashes, limits, sessions that end, and a proxy that is believed only when named."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from alignment.accounts import Accounts, RateLimit, SessionSigner, SingleSignOn
from alignment.db.accounts import list_audit
from alignment.errors import ConfigError, DataError, LoginRefused, NotFoundError
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)

PASSWORD = "four words easily kept"
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def _accounts(database, **options) -> Accounts:
    return Accounts(database, **{"hasher": QUICK} | options)


def test_a_password_opens_its_account_and_only_its_argon2id_hash_is_kept(any_database):  # noqa: F811
    accounts = _accounts(any_database)
    made = accounts.add("olga", "organiser", PASSWORD, actor="cli")
    assert accounts.log_in("olga", PASSWORD, address="1") == made
    with any_database.engine.connect() as connection:
        row = connection.execute(sa.text("SELECT * FROM account")).one()
    assert row.password_hash.startswith("$argon2id$") and PASSWORD not in repr(row)
    with any_database.session(write=False) as s:
        assert [entry.action for entry in list_audit(s)] == ["login", "account.add"]


def test_the_default_hash_is_argon2id_with_the_memory_that_rfc_9106_asks(sqlite_database):  # noqa: F811
    hasher = Accounts(sqlite_database)._hasher
    assert (hasher.type.name, hasher.memory_cost, hasher.time_cost) == ("ID", 64 * 1024, 3)


@pytest.mark.parametrize("who", ["olga", "nobody", "closed", "sso-only"])
def test_a_wrong_name_a_wrong_password_and_a_closed_account_get_one_sentence_and_the_same_work(
    sqlite_database,  # noqa: F811
    who,
):
    verified = []

    class Counting(PasswordHasher):
        def verify(self, digest, password):
            verified.append(digest)
            return super().verify(digest, password)

    accounts = _accounts(sqlite_database, hasher=Counting(time_cost=1, memory_cost=8, parallelism=1))
    accounts.add("olga", "organiser", PASSWORD, actor="cli")
    accounts.add("closed", "organiser", PASSWORD, actor="cli")
    accounts.disable("closed", actor="cli")
    accounts.add("sso-only", "organiser", None, actor="cli")
    with pytest.raises(LoginRefused, match="^This name and password do not open an account.$"):
        accounts.log_in(who, PASSWORD if who == "closed" else "a wrong password", address="1")
    assert len(verified) == 1


def test_five_failures_close_an_account_for_a_quarter_of_an_hour_and_then_it_opens(sqlite_database):  # noqa: F811
    now = [0.0]
    accounts = _accounts(sqlite_database, timer=lambda: now[0])
    accounts.add("olga", "organiser", PASSWORD, actor="cli")
    for number in range(5):
        with pytest.raises(LoginRefused, match="do not open"):
            accounts.log_in("olga", "a wrong password", address=str(number))
    with pytest.raises(LoginRefused, match="try again in 15 min"):
        accounts.log_in("olga", PASSWORD, address="9")
    now[0] = 15 * 60
    assert accounts.log_in("olga", PASSWORD, address="9").name == "olga"


def test_one_address_tries_twenty_names_and_no_more_however_often_it_succeeds_between(sqlite_database):  # noqa: F811
    accounts = _accounts(sqlite_database, timer=lambda: 0.0)
    accounts.add("olga", "organiser", PASSWORD, actor="cli")
    for number in range(20):
        with pytest.raises(LoginRefused, match="do not open"):
            accounts.log_in(f"guess-{number}", "a wrong password", address="1")
        if number < 19:
            accounts.log_in("olga", PASSWORD, address="1")
    with pytest.raises(LoginRefused, match="Too many"):
        accounts.log_in("olga", PASSWORD, address="1")
    assert accounts.log_in("olga", PASSWORD, address="2")


def test_attempts_at_the_same_moment_are_counted_before_they_are_checked():
    limit = RateLimit(5, 60, timer=lambda: 0.0)
    allowed, barrier = [], threading.Barrier(20)

    def attempt() -> None:
        barrier.wait()
        allowed.append(limit.attempt("olga") == 0)

    threads = [threading.Thread(target=attempt) for _ in range(20)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert sum(allowed) == 5


@pytest.mark.parametrize("password", ["short", "x" * 201, "olgaolgaolga"])
def test_a_password_that_is_too_short_too_long_or_the_name_is_refused(sqlite_database, password):  # noqa: F811
    with pytest.raises(DataError, match="The password"):
        _accounts(sqlite_database).add("olgaolgaolga", "organiser", password, actor="cli")


def test_the_last_admin_cannot_be_closed_and_unknown_names_are_told_the_known_ones(sqlite_database):  # noqa: F811
    accounts = _accounts(sqlite_database)
    accounts.add("ada", "admin", PASSWORD, actor="cli")
    with pytest.raises(DataError, match="last admin"):
        accounts.disable("ada", actor="ada")
    accounts.add("bea", "admin", PASSWORD, actor="ada")
    assert accounts.disable("ada", actor="bea").disabled_at is not None
    with pytest.raises(NotFoundError, match="known: ada, bea"):
        accounts.set_password("eve", PASSWORD, actor="bea")
    with pytest.raises(DataError, match="already"):
        accounts.add("ada", "organiser", PASSWORD, actor="bea")
    with pytest.raises(DataError, match="no account name"):
        accounts.add("<script>", "organiser", PASSWORD, actor="bea")


def test_a_session_ends_on_time_on_log_out_on_a_new_password_and_with_its_account(sqlite_database):  # noqa: F811
    now = [1_000_000.0]
    accounts = _accounts(sqlite_database, clock=lambda: datetime.fromtimestamp(now[0], UTC) + timedelta(0))
    signer = SessionSigner("secret", now=lambda: now[0])
    olga = accounts.add("olga", "organiser", PASSWORD, actor="cli")
    cookie = signer.open(olga)
    account, session = signer.read(cookie, accounts.get)
    assert account == olga
    now[0] += 8 * 3600 - 1
    assert signer.read(cookie, accounts.get)
    now[0] += 1
    assert signer.read(cookie, accounts.get) is None
    cookie = signer.open(olga)
    accounts.set_password("olga", PASSWORD + "!", actor="olga")
    assert signer.read(cookie, accounts.get) is None
    cookie = signer.open(accounts.list()[0])
    signer.end(signer.read(cookie, accounts.get)[1])
    assert signer.read(cookie, accounts.get) is None
    cookie = signer.open(accounts.list()[0])
    accounts.disable("olga", actor="cli")
    assert signer.read(cookie, accounts.get) is None


def test_a_session_cannot_be_forged_stretched_or_signed_with_the_raters_key(sqlite_database):  # noqa: F811
    from rating_app.tokens import RaterCookie, Tokens

    accounts = _accounts(sqlite_database)
    olga = accounts.add("olga", "organiser", PASSWORD, actor="cli")
    signer = SessionSigner("secret")
    version, account, nonce, expires, signature = signer.open(olga).split(".")
    assert signer.read(".".join((version, account, nonce, expires, signature)), accounts.get)
    for forged in (
        None, "", ".".join((version, account, nonce, str(int(expires) + 1), signature)),
        ".".join((version, account, "0" * 32, expires, signature)), SessionSigner("other").open(olga),
        Tokens("secret").cookie(RaterCookie(nonce, (olga.id,))),
    ):  # fmt: skip
        assert signer.read(forged, accounts.get) is None
    token = signer.form_token(nonce)
    assert signer.form_token_is_right(nonce, token) and not signer.form_token_is_right("0" * 32, token)


def test_single_sign_on_believes_one_header_of_a_named_proxy_and_nobody_else():
    sso = SingleSignOn.from_environment(
        {"ATTUNE_SSO_HEADER": "X-Forwarded-User", "ATTUNE_SSO_PROXIES": "127.0.0.1, 10.0.0.0/8"}
    )
    header = [(b"x-forwarded-user", b"olga")]
    assert sso.name_from(header, "127.0.0.1") == sso.name_from(header, "10.1.2.3") == "olga"
    assert sso.name_from(header, "192.168.0.1") is None
    assert sso.name_from(header, None) is None and sso.name_from(header, "testclient") is None
    assert sso.name_from([*header, (b"x-forwarded-user", b"ada")], "127.0.0.1") is None
    assert sso.name_from([], "127.0.0.1") is None
    assert SingleSignOn.from_environment({}) is None
    with pytest.raises(ConfigError, match="ATTUNE_SSO_PROXIES is not"):
        SingleSignOn.from_environment({"ATTUNE_SSO_HEADER": "X-Forwarded-User"})
    with pytest.raises(ConfigError, match="give addresses"):
        SingleSignOn.from_environment({"ATTUNE_SSO_HEADER": "X-User", "ATTUNE_SSO_PROXIES": "proxy"})
