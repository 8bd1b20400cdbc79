"""The content-addressed store of audio, codes, adapters and reward models, on fsspec.

    audio/ab/abcd....flac    codes/ab/abcd....npy    files/abcd.../NAME    folders/abcd.../...

A name is the sha256 of the content, so every read can tell whether a file is still what was stored. Files appear
whole or not at all: they are written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from alignment.audio_facts import FULL_SCALE, flac_bytes, levelled, measure, mono, quantised
from alignment.domain import AudioFacts
from alignment.errors import DataError, StoreError

__all__ = ["ClipStore", "measure"]

SCHEME = "store://"
RENDITIONS_KEPT = 256


class ClipStore:
    """Files by the sha256 of their content, under ``root``: a folder or any address fsspec knows."""

    def __init__(self, root: str | Path) -> None:
        import fsspec

        try:
            self.fs, self.root = fsspec.core.url_to_fs(str(root))
        except (ValueError, ImportError) as error:
            raise StoreError(f"{root} is not an address of a store ({error}); give a folder.") from error
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self._renditions: OrderedDict[tuple[str, float], bytes] = OrderedDict()
        self._renditions_lock = threading.Lock()

    # Audio and codes

    def put_audio(self, audio: np.ndarray, sample_rate_hz: int) -> tuple[str, AudioFacts]:
        """(sha256 of the FLAC file, facts measured on what is stored). ``audio`` (samples,), or
        (samples, 2), float in [-1, 1].

        Stored as 16-bit FLAC; the same audio gives the same bytes. Raises DataError for audio that is empty, of
        the wrong shape or not finite."""
        samples = quantised(audio)
        data = flac_bytes(samples, sample_rate_hz)
        digest = hashlib.sha256(data).hexdigest()
        self._put(self._key("audio", digest, ".flac"), data)
        return digest, measure(samples.astype(np.float32) / FULL_SCALE, sample_rate_hz)

    def get_audio(self, sha256: str) -> tuple[np.ndarray, int]:
        """(audio (samples,) float32, sample rate in Hz), stereo mixed to one channel: what scorers and metrics hear.
        Raises StoreError when missing or altered."""
        audio, rate = self.get_recording(sha256)
        return mono(audio), rate

    def get_recording(self, sha256: str) -> tuple[np.ndarray, int]:
        """(audio (samples,) or (samples, 2) float32 as it is stored, sample rate in Hz). Raises StoreError as above."""
        import soundfile

        audio, rate = soundfile.read(io.BytesIO(self.open_flac(sha256)), dtype="float32")
        return audio, int(rate)

    def open_flac(self, sha256: str) -> bytes:
        """The FLAC file as stored. Raises StoreError when missing or altered."""
        return self._get(self._key("audio", sha256, ".flac"), sha256)

    def location(self, sha256: str) -> str:
        """Where the audio of this name lies, for a person to open."""
        return self.at(self._key("audio", sha256, ".flac"))

    def put_codes(self, codes: np.ndarray) -> str:
        """sha256 of the stored codes, (K, T) integers that fit 16 bits. Raises DataError otherwise."""
        codes = np.asarray(codes)
        limit = np.iinfo(np.int16).max
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or codes.size == 0:
            raise DataError(f"Codes are {codes.dtype} of shape {codes.shape}; needs whole numbers (K, T).")
        if codes.min() < 0 or codes.max() > limit:
            raise DataError(f"Codes go from {codes.min()} to {codes.max()}; they must be in 0 to {limit}.")
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(codes, dtype="<i2"), version=(1, 0), allow_pickle=False)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        self._put(self._key("codes", digest, ".npy"), data)
        return digest

    def get_codes(self, sha256: str) -> np.ndarray:
        """Codes (K, T) int16. Raises StoreError when missing or altered."""
        data = self._get(self._key("codes", sha256, ".npy"), sha256)
        return np.load(io.BytesIO(data), allow_pickle=False)

    def rendition(self, sha256: str, *, target_lufs: float = -23.0) -> bytes:
        """The clip as raters hear it: FLAC at ``target_lufs`` (BS.1770), no tags.

        Brought there by ``audio_facts.levelled``, stereo as loud as mono; silence stays as it is."""
        key = (sha256, float(target_lufs))
        with self._renditions_lock:
            if key in self._renditions:
                self._renditions.move_to_end(key)
                return self._renditions[key]
        audio, rate = self.get_recording(sha256)
        data = flac_bytes(quantised(levelled(audio, rate, target_lufs)), rate)
        with self._renditions_lock:
            self._renditions[key] = data
            while len(self._renditions) > RENDITIONS_KEPT:
                self._renditions.popitem(last=False)
        return data

    def verify(self, sha256: str) -> None:
        """Returns when the audio or codes of this name are whole. Raises StoreError when missing or altered."""
        for kind, suffix in (("audio", ".flac"), ("codes", ".npy")):
            key = self._key(kind, sha256, suffix)
            if self.fs.exists(self.at(key)):
                self._get(key, sha256)
                return
        raise StoreError(f"{sha256} is not in the store {self.root}; generate the clip again or restore the store.")

    # Adapters, reward models and other files

    def put_file(self, path: str | Path) -> tuple[str, str]:
        """(sha256, uri) of a stored copy of the file; ``path_of(uri)`` finds it again."""
        path = Path(path)
        data = _read_source(path)
        digest = hashlib.sha256(data).hexdigest()
        key = f"files/{digest}/{path.name}"
        self._put(key, data)
        return digest, SCHEME + key

    def put_folder(self, path: str | Path) -> tuple[str, str]:
        """(sha256 of its list of names and contents, uri) of a stored copy of the folder, files in folders included.

        Raises StoreError when it is missing or empty."""
        path = Path(path)
        if not path.is_dir():
            raise StoreError(f"{path} is not a folder; nothing was stored.")
        contents = {
            file.relative_to(path).as_posix(): _read_source(file) for file in sorted(path.rglob("*")) if file.is_file()
        }
        if not contents:
            raise StoreError(f"{path} is empty; nothing was stored.")
        manifest = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        listing = json.dumps({"files": manifest}, sort_keys=True, indent=1).encode()
        digest = hashlib.sha256(listing).hexdigest()
        for name, data in contents.items():
            self._put(f"folders/{digest}/content/{name}", data)
        # The list comes last: a folder without it was never finished.
        self._put(f"folders/{digest}/manifest.json", listing)
        return digest, f"{SCHEME}folders/{digest}"

    def path_of(self, uri: str) -> Path:
        """The local file or folder of a uri, checked against its sha256. From a remote store it is copied first.

        Raises StoreError when it is missing or altered."""
        parts = PurePosixPath(uri.removeprefix(SCHEME)).parts
        if not uri.startswith(SCHEME) or ".." in parts or len(parts) < 2 or parts[0] not in ("files", "folders"):
            raise StoreError(f"{uri!r} is not a uri of this store; it looks like {SCHEME}folders/<sha256>.")
        digest = parts[1]
        if parts[0] == "files":
            key = "/".join(parts)
            data = self._get(key, digest)
            return Path(self.at(key)) if self.is_local else self._copied({parts[-1]: data}) / parts[-1]
        listing = self._get(f"folders/{digest}/manifest.json", digest)
        contents = {
            name: self._get(f"folders/{digest}/content/{name}", sha256)
            for name, sha256 in json.loads(listing)["files"].items()
        }
        return Path(self.at(f"folders/{digest}/content")) if self.is_local else self._copied(contents)

    # What a backup copies

    def files_of_clip(self, audio_sha256: str, codes_sha256: str | None) -> dict[str, str]:
        """Key -> sha256 of the files of one clip."""
        files = {self._key("audio", audio_sha256, ".flac"): audio_sha256}
        return files if codes_sha256 is None else {**files, self._key("codes", codes_sha256, ".npy"): codes_sha256}

    def files_of(self, uri: str) -> dict[str, str]:
        """Key -> sha256 of the files behind a uri. Raises StoreError when a folder's list is missing or altered."""
        parts = PurePosixPath(uri.removeprefix(SCHEME)).parts
        if not uri.startswith(SCHEME) or ".." in parts or len(parts) < 2 or parts[0] not in ("files", "folders"):
            raise StoreError(f"{uri!r} is not a uri of this store; it looks like {SCHEME}folders/<sha256>.")
        if parts[0] == "files":
            return {"/".join(parts): parts[1]}
        key = f"folders/{parts[1]}/manifest.json"
        listed = json.loads(self._get(key, parts[1]))["files"]
        # The list comes last here too: a folder without it was never finished.
        return {f"folders/{parts[1]}/content/{name}": sha256 for name, sha256 in listed.items()} | {key: parts[1]}

    def read_file(self, key: str, sha256: str) -> bytes:
        """The file under ``key``. Raises StoreError when missing or altered."""
        return self._get(key, sha256)

    def check_file(self, key: str, sha256: str) -> None:
        """Returns when the file under ``key`` is whole. Raises StoreError when missing or altered."""
        self._get(key, sha256)

    def copy_file(self, key: str, sha256: str, other: ClipStore) -> None:
        """Puts the file into another store; one that is there already stays. Raises StoreError when either differs."""
        data = self._get(key, sha256)
        if other.fs.exists(other.at(key)):
            other._get(key, sha256)
            return
        other._put(key, data)

    # Reading and writing

    def at(self, key: str) -> str:
        """The address of the file under ``key``."""
        return f"{self.root}/{key}"

    @staticmethod
    def _key(kind: str, sha256: str, suffix: str) -> str:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise StoreError(f"{sha256!r} is not a sha256; a clip is named by 64 hexadecimal digits.")
        return f"{kind}/{sha256[:2]}/{sha256}{suffix}"

    def _get(self, key: str, sha256: str) -> bytes:
        try:
            with self.fs.open(self.at(key), "rb") as handle:
                data = handle.read()
        except FileNotFoundError:
            raise StoreError(
                f"{self.at(key)} is missing; generate it again or restore the store from a copy."
            ) from None
        except OSError as error:
            raise StoreError(f"{self.at(key)} cannot be read ({error}); check the disk and its rights.") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"{self.at(key)} was altered after it was stored; restore it from a copy.")
        return data

    def _put(self, key: str, data: bytes) -> None:
        """Writes ``data`` under ``key`` whole or not at all. A file that is there already, whole, is left alone."""
        target = self.at(key)
        folder, _, name = target.rpartition("/")
        partial = f"{folder}/.{name}.{uuid.uuid4().hex}.partial"
        try:
            same = self.fs.exists(target) and self.fs.size(target) == len(data) and self.fs.cat_file(target) == data
            if same and self._renewed(target):
                return
            self.fs.makedirs(folder, exist_ok=True)
            try:
                with self.fs.open(partial, "wb") as handle:
                    _write(handle, data)
                    if self.is_local:
                        handle.flush()
                        os.fsync(handle.fileno())
                if self.is_local:
                    os.replace(partial, target)
                else:
                    self.fs.mv(partial, target)
            except BaseException:
                if self.fs.exists(partial):
                    self.fs.rm_file(partial)
                raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(
                f"{target} cannot be written ({reason}); free some space or check the rights. Nothing was half-written."
            ) from error

    def _renewed(self, target: str) -> bool:
        """Whether the file is there and counts as young from now on, so that garbage collection leaves it alone."""
        try:
            os.utime(target) if self.is_local else self.fs.touch(target, truncate=False)
        except (FileNotFoundError, NotImplementedError, ValueError):
            return False  # gone meanwhile, or a store whose files are young only when they are written anew
        except OSError:
            pass  # not ours to touch
        return True

    def _copied(self, contents: dict[str, bytes]) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="attune-store-"))
        try:
            for name, data in contents.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise StoreError(f"{folder} cannot be written ({error}); free some space.") from error
        return folder


def _write(handle: Any, data: bytes) -> None:
    handle.write(data)


def _read_source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); nothing was stored.") from error
