"""Pages on disk: written in one move, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from alignment.errors import StoreError


def write_page(text: str, path: str | Path, *, what: str = "report") -> Path:
    """The path of the page, which is there whole. Raises StoreError, calling it ``what``, when it cannot be written."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StoreError(
            f"{path}: the {what} cannot be written ({error.strerror or error}); free space or choose another folder."
        ) from error
    return path
