"""How audio is sent: whole, in part or as headers only, and always in the same words."""

from __future__ import annotations

import re
from typing import Literal

from fastapi import Request, Response

NO_STORE = {"Cache-Control": "private, no-store"}
# The same for every clip, so that no date tells which one was made when.
FIXED_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


def audio_answer(request: Request, data: bytes) -> Response:
    """A FLAC file, or the byte range of it that the request asks for. Its headers depend on its length alone."""
    headers = {**NO_STORE, "Accept-Ranges": "bytes", "Last-Modified": FIXED_DATE}
    status, span = 200, byte_range(request.headers.get("range"), len(data))
    if span == "unsatisfiable":
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(data)}"})
    if span is not None:
        first, last = span
        status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(data)}"
        data = data[first : last + 1]
    if request.method == "HEAD":
        headers["Content-Length"], data = str(len(data)), b""
    return Response(data, status_code=status, headers=headers, media_type="audio/flac")


def byte_range(header: str | None, size: int) -> tuple[int, int] | Literal["unsatisfiable"] | None:
    """(first, last) of a single byte range, inclusive; None to send everything (RFC 9110, section 14)."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first_text, last_text = match.groups()
    if not first_text:  # the last n bytes
        length = min(int(last_text), size)
        return (size - length, size - 1) if length else "unsatisfiable"
    first, last = int(first_text), min(int(last_text or size - 1), size - 1)
    if first >= size:
        return "unsatisfiable"
    return (first, last) if first <= last else None
