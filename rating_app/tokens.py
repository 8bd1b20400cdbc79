"""What the browser carries: a signed cookie, and clip addresses that only one session can use."""

from __future__ import annotations

import hmac
import re
import secrets
import uuid
from dataclasses import dataclass
from hashlib import sha256

from alignment.domain import Side

COOKIE_NAME = "attune"
COOKIE_SECONDS = 180 * 24 * 3600
SESSIONS_KEPT = 8
_COOKIE = re.compile(rf"v2\.([0-9a-f]{{32}})((?:\.[0-9a-f]{{32}}){{1,{SESSIONS_KEPT}}})\.([0-9a-f]{{64}})")


@dataclass(frozen=True)
class RaterCookie:
    """A browser's random identity and its listening sessions, the newest first. It names no person, no study and no
    version. There are several sessions because two tabs may show two studies."""

    browser_id: str
    sessions: tuple[uuid.UUID, ...]

    @property
    def session_id(self) -> uuid.UUID:
        """The newest session."""
        return self.sessions[0]

    def with_session(self, session_id: uuid.UUID) -> RaterCookie:
        """The same browser with this session in front; the oldest beyond SESSIONS_KEPT is forgotten."""
        others = [known for known in self.sessions if known != session_id]
        return RaterCookie(self.browser_id, (session_id, *others)[:SESSIONS_KEPT])


class Tokens:
    """Signs and checks with keys derived from the app's secret, one key per purpose."""

    def __init__(self, secret: str) -> None:
        self._cookie_key = hmac.digest(secret.encode(), b"attune rater cookie v2", sha256)
        self._clip_key = hmac.digest(secret.encode(), b"attune clip address v1", sha256)

    @staticmethod
    def new_browser_id() -> str:
        return secrets.token_hex(16)

    def cookie(self, value: RaterCookie) -> str:
        body = ".".join(("v2", value.browser_id, *(session.hex for session in value.sessions)))
        return f"{body}.{hmac.new(self._cookie_key, body.encode(), sha256).hexdigest()}"

    def read_cookie(self, text: str | None) -> RaterCookie | None:
        """The cookie's content, or None when it is absent, malformed or not signed by us."""
        match = _COOKIE.fullmatch(text or "")
        if match is None:
            return None
        value = RaterCookie(match[1], tuple(uuid.UUID(hex=part) for part in match[2][1:].split(".")))
        return value if hmac.compare_digest(self.cookie(value), text or "") else None

    def clip_token(self, session_id: uuid.UUID, assignment_id: uuid.UUID, side: Side) -> str:
        """Address of one side of one assignment for one session; the side cannot be read from it."""
        message = session_id.bytes + assignment_id.bytes + side.value.encode()
        return f"{assignment_id.hex}{hmac.new(self._clip_key, message, sha256).hexdigest()[:32]}"

    def read_clip_token(self, session_id: uuid.UUID, token: str) -> tuple[uuid.UUID, Side] | None:
        """(assignment, side), or None when the address was not made for this session."""
        if not re.fullmatch(r"[0-9a-f]{64}", token):
            return None
        assignment_id = uuid.UUID(hex=token[:32])
        for side in Side:
            if hmac.compare_digest(self.clip_token(session_id, assignment_id, side), token):
                return assignment_id, side
        return None
