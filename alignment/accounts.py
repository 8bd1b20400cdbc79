"""Accounts of organisers and admins: passwords, log-ins, signed sessions, and a hook for single sign-on."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from hashlib import sha256

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from alignment.db import accounts as queries
from alignment.db.accounts import ROLES, Account
from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.db.people import add_audit
from alignment.errors import ConfigError, DataError, LoginRefused

SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 200
SESSION_SECONDS = 8 * 3600
WRONG = "This name and password do not open an account."
# A hash takes 64 MiB and a tenth of a second; more than two at once would let strangers fill the memory.
_hashing = threading.BoundedSemaphore(2)


def check_password(name: str, password: str) -> None:
    """Raises DataError unless the password has 10 to 200 characters and is not the name."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise DataError(
            f"The password has {len(password)} characters; it needs {SHORTEST_PASSWORD} to {LONGEST_PASSWORD}. "
            "Four random words are easy to keep."
        )
    if password.casefold() == name.casefold():
        raise DataError("The password is the account's name; choose another one.")


class RateLimit:
    """Failures of a key in a sliding window, kept in memory. Safe to use from several threads."""

    def __init__(self, most: int, seconds: float, *, timer: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self._timer = most, seconds, timer
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def attempt(self, key: str) -> float:
        """0 when the key may try, which is counted as a failure until ``forgive``; else the seconds it must wait.

        Counting first leaves no room for many attempts at the same moment. The 10,000 newest keys are remembered."""
        with self._lock:
            now = self._timer()
            times = self._failures.setdefault(key, deque())
            self._failures.move_to_end(key)
            while times and times[0] <= now - self.seconds:
                times.popleft()
            if len(times) >= self.most:
                return times[0] + self.seconds - now
            times.append(now)
            while len(self._failures) > 10_000:
                self._failures.popitem(last=False)
            return 0.0

    def forgive(self, key: str) -> None:
        """Takes back the last attempt of a key: it was right."""
        with self._lock:
            if self._failures.get(key):
                self._failures[key].pop()

    def forget(self, key: str) -> None:
        with self._lock:
            self._failures.pop(key, None)


class Accounts:
    """Creates accounts and lets people in. Every change writes a line of the audit log in the same transaction."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], datetime] = utcnow,
        timer: Callable[[], float] = time.monotonic,
        hasher: PasswordHasher | None = None,
    ) -> None:
        self.database = database
        self._clock = clock
        self._hasher = hasher or PasswordHasher()  # argon2id, RFC 9106's second recommended setting
        self._by_account = RateLimit(5, 15 * 60, timer=timer)
        self._by_address = RateLimit(20, 15 * 60, timer=timer)

    def add(self, name: str, role: str, password: str | None, *, actor: str) -> Account:
        """The new account; without a password only single sign-on opens it. Raises DataError on a bad or known name."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}", name):
            raise DataError(f"{name!r} is no account name; use up to 100 letters, digits and . _ @ + - (no spaces).")
        if role not in ROLES:
            raise DataError(f"The role is {role}; it must be one of {', '.join(ROLES)}.")
        if password is not None:
            check_password(name, password)
        digest = None if password is None else self._hash(password)
        with self.database.session() as s:
            one_at_a_time(s, "account", name)
            if queries.find_account(s, name) is not None:
                raise DataError(f"An account is called {name} already; choose another name.")
            account = queries.add_account(s, name=name, role=role, password_hash=digest, now=self._clock())
            add_audit(s, actor=actor, action="account.add", subject=name, after={"role": role})
        return account

    def list(self) -> list[Account]:
        """All accounts by name."""
        with self.database.session(write=False) as s:
            return queries.list_accounts(s)

    def get(self, account_id: uuid.UUID) -> Account | None:
        """The account, or None when it is unknown or disabled."""
        with self.database.session(write=False) as s:
            account = queries.get_account(s, account_id)
        return account if account is not None and account.disabled_at is None else None

    def set_password(self, name: str, password: str, *, actor: str) -> Account:
        """The account with its new password; every session opened before is void."""
        check_password(name, password)
        digest = self._hash(password)
        with self.database.session() as s:
            account = queries.update_account(s, name, password_hash=digest, password_changed_at=self._clock())
            add_audit(s, actor=actor, action="account.password", subject=name)
        self._by_account.forget(name)
        return account

    def disable(self, name: str, *, actor: str) -> Account:
        """The account, closed; its sessions are void. Raises DataError for the last admin."""
        with self.database.session() as s:
            admins = queries.count_active_admins(s, lock=True)
            found = queries.find_account(s, name)
            if found is not None and found[0].is_admin and found[0].disabled_at is None and admins == 1:
                raise DataError(f"{name} is the last admin; make another one first (attune account add --role admin).")
            account = queries.update_account(s, name, disabled_at=self._clock())
            add_audit(s, actor=actor, action="account.disable", subject=name)
        return account

    def enable(self, name: str, *, actor: str) -> Account:
        """The account, open again."""
        with self.database.session() as s:
            account = queries.update_account(s, name, disabled_at=None)
            add_audit(s, actor=actor, action="account.enable", subject=name)
        return account

    def log_in(self, name: str, password: str, *, address: str) -> Account:
        """The account that this name and password open.

        An unknown name, a disabled account and a wrong password take the same work and get the same sentence. Raises
        LoginRefused; after 5 failures of a name or 20 of an address within a quarter of an hour, before any check."""
        wait = self._by_address.attempt(address) or self._by_account.attempt(name)
        if wait > 0:
            raise LoginRefused(f"Too many attempts; try again in {max(1, round(wait / 60))} min.")
        with self.database.session(write=False) as s:
            found = queries.find_account(s, name)
        account, digest = found if found is not None else (None, None)
        right = self._verify(digest or self._decoy(), password)
        if account is None or digest is None or not right or account.disabled_at is not None:
            with self.database.session() as s:
                # Names that do not exist stay out of the log: people type passwords into the wrong field.
                add_audit(s, actor=account.name if account else "unknown", action="login.refused", subject=None)
            raise LoginRefused(WRONG)
        self._by_account.forget(name)
        self._by_address.forgive(address)
        with self.database.session() as s:
            if self._hasher.check_needs_rehash(digest):
                queries.update_account(s, name, password_hash=self._hash(password))
            add_audit(s, actor=name, action="login", subject=None)
        return account

    def by_single_sign_on(self, name: str) -> Account | None:
        """The enabled account of this name, which a trusted proxy vouches for; None when there is none."""
        with self.database.session(write=False) as s:
            found = queries.find_account(s, name)
        return found[0] if found is not None and found[0].disabled_at is None else None

    def _hash(self, password: str) -> str:
        with _hashing:
            return self._hasher.hash(password)

    def _verify(self, digest: str, password: str) -> bool:
        with _hashing:
            try:
                return self._hasher.verify(digest, password[: LONGEST_PASSWORD + 1])
            except (VerificationError, InvalidHashError):
                return False

    def _decoy(self) -> str:
        return _decoy_hash(self._hasher)


@cache
def _decoy_hash(hasher: PasswordHasher) -> str:
    return hasher.hash(secrets.token_hex(16))


@dataclass(frozen=True)
class AdminSession:
    """A log-in: whose, with a random nonce of its own, until when (Unix seconds)."""

    account_id: uuid.UUID
    nonce: str
    expires: int


class SessionSigner:
    """Signs session cookies and form tokens with keys of their own; the raters' keys open nothing here."""

    def __init__(self, secret: str, *, now: Callable[[], float] = time.time) -> None:
        self._cookie_key = hmac.digest(secret.encode(), b"attune admin cookie v1", sha256)
        self._form_key = hmac.digest(secret.encode(), b"attune admin form v1", sha256)
        self._now = now
        self._ended: OrderedDict[str, None] = OrderedDict()

    def open(self, account: Account) -> str:
        """A fresh cookie for the account."""
        expires = int(self._now()) + SESSION_SECONDS
        return self._cookie(account, secrets.token_hex(16), expires)

    def read(
        self, text: str | None, find: Callable[[uuid.UUID], Account | None]
    ) -> tuple[Account, AdminSession] | None:
        """Who this cookie speaks for; None when it is absent, forged, expired, logged out, or when the account was
        disabled or its password changed since."""
        match = re.fullmatch(r"v1\.([0-9a-f]{32})\.([0-9a-f]{32})\.(\d{1,12})\.([0-9a-f]{64})", text or "")
        if match is None:
            return None
        session = AdminSession(uuid.UUID(hex=match[1]), match[2], int(match[3]))
        if session.expires <= self._now() or session.nonce in self._ended:
            return None
        account = find(session.account_id)
        if account is None:
            return None
        expected = self._cookie(account, session.nonce, session.expires)
        return (account, session) if hmac.compare_digest(expected, text or "") else None

    def end(self, session: AdminSession) -> None:
        """Makes a cookie void before it expires."""
        self._ended[session.nonce] = None
        while len(self._ended) > 10_000:
            self._ended.popitem(last=False)

    def form_token(self, nonce: str) -> str:
        """What every form of this session carries; another site cannot know it."""
        return hmac.new(self._form_key, nonce.encode(), sha256).hexdigest()

    def form_token_is_right(self, nonce: str, token: str) -> bool:
        return hmac.compare_digest(self.form_token(nonce).encode(), token.encode())

    def _cookie(self, account: Account, nonce: str, expires: int) -> str:
        body = f"v1.{account.id.hex}.{nonce}.{expires}"
        changed = account.password_changed_at.isoformat() if account.password_changed_at else ""
        signature = hmac.new(self._cookie_key, f"{body}.{changed}".encode(), sha256).hexdigest()
        return f"{body}.{signature}"


@dataclass(frozen=True)
class SingleSignOn:
    """Trust in a header that a reverse proxy sets after it has checked who someone is. See docs/single-sign-on.md."""

    header: str
    proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> SingleSignOn | None:
        """From ATTUNE_SSO_HEADER and ATTUNE_SSO_PROXIES; None without the former. Raises ConfigError when the header
        is no header name, or when no proxy is named, for then anybody could set it."""
        header = environment.get("ATTUNE_SSO_HEADER", "").strip().lower()
        if not header:
            return None
        if not re.fullmatch(r"[a-z0-9-]+", header):
            raise ConfigError(f"ATTUNE_SSO_HEADER is {header!r}; it must be a header's name, such as X-Forwarded-User.")
        listed = [part.strip() for part in environment.get("ATTUNE_SSO_PROXIES", "").split(",") if part.strip()]
        if not listed:
            raise ConfigError(
                "ATTUNE_SSO_HEADER is set and ATTUNE_SSO_PROXIES is not: without the proxy's address anybody could "
                "claim to be anyone. Set it, for example to 127.0.0.1."
            )
        try:
            return cls(header, tuple(ipaddress.ip_network(part) for part in listed))
        except ValueError as error:
            raise ConfigError(f"ATTUNE_SSO_PROXIES: {error}; give addresses or networks, with commas.") from None

    def name_from(self, headers: list[tuple[bytes, bytes]], peer: str | None) -> str | None:
        """The name that a trusted peer vouches for; None from any other peer, without the header, or with two."""
        try:
            address = ipaddress.ip_address(peer or "")
        except ValueError:
            return None
        if not any(address in network for network in self.proxies):
            return None
        found = [value for name, value in headers if name.lower() == self.header.encode()]
        return found[0].decode("latin-1").strip() or None if len(found) == 1 else None
