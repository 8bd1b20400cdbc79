"""Audio from elsewhere made into clips: found inside one folder, measured, stored by their content."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignment.audio_facts import mono
from alignment.clips import ClipStore
from alignment.domain import AudioFacts
from alignment.errors import DataError
from alignment.imports.channels import MOST_CHANNELS, to_two
from alignment.imports.incoming import AudioRef

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

LONGEST_SECONDS = 600.0
REMEMBERED = 20_000  # files of which the result is kept: releases name one clip in many battles
Encode = Callable[[np.ndarray, int], np.ndarray]  # (audio (samples,) or (samples, 2), rate) -> codes (K, T)


@dataclass(frozen=True)
class StoredAudio:
    """What became of a file: names in the store and what was measured."""

    audio_sha256: str
    codes_sha256: str | None
    facts: AudioFacts
    channels: int = 1  # of the file it came in


class AudioIntake:
    """Puts files into the store. ``sample_rate_hz`` and ``clip_seconds`` None: as they come.

    Stereo stays stereo, or with ``one_channel`` is mixed; more than two channels are mixed to two. Everything is stored
    as 16-bit FLAC. ``encode`` gives codes, which are marked as re-encoded: nobody sampled them."""

    def __init__(
        self,
        store: ClipStore,
        root: Path,
        *,
        sample_rate_hz: int | None = None,
        clip_seconds: float | None = None,
        encode: Encode | None = None,
        one_channel: bool = False,
    ) -> None:
        self._store, self._root, self._encode = store, root.resolve(), encode
        self._one_channel = one_channel
        self._rate, self._seconds = sample_rate_hz, clip_seconds
        self._known: OrderedDict[tuple[str, int, int], StoredAudio] = OrderedDict()

    def take(self, audio: AudioRef) -> StoredAudio:
        """The stored clip. Raises DataError, half a sentence, for a file that is missing, outside the folder, no audio,
        too long or too short."""
        if audio.data is not None:
            return self._put(io.BytesIO(audio.data), audio.path)
        path = self._find(audio.path)
        about = path.stat()
        key = (str(path), about.st_size, about.st_mtime_ns)
        if key not in self._known:
            self._known[key] = self._put(path, audio.path)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]

    def _find(self, name: str) -> Path:
        try:
            path = (self._root / name).resolve()
            inside, there = path.is_relative_to(self._root), path.is_file()
        except (OSError, ValueError, RuntimeError):
            raise DataError(f"{ascii(name)[:100]} is no path") from None
        if not inside:
            raise DataError(f"{name[:100]} lies outside the folder of the audio")
        if not there:
            raise DataError(f"{name[:100]} is not in the folder of the audio")
        return path

    def _put(self, file: Path | io.BytesIO, name: str) -> StoredAudio:
        import soundfile

        try:
            about = soundfile.info(file)
            if about.frames <= 0 or about.duration > LONGEST_SECONDS:
                raise DataError(f"{name[:100]} has {about.duration:.1f} s; up to {LONGEST_SECONDS:.0f} s are taken")
            if about.channels > MOST_CHANNELS:
                raise DataError(f"{name[:100]} has {about.channels} channels; up to {MOST_CHANNELS} are taken")
            if isinstance(file, io.BytesIO):
                file.seek(0)
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise DataError(f"{name[:100]} is no audio that can be read ({str(error)[:100]})") from None
        audio = to_two(samples, about.subtype)
        if self._one_channel:
            audio = mono(audio)
        if self._rate is not None and rate != self._rate:
            audio, rate = resampled(audio, rate, self._rate), self._rate
        if self._seconds is not None:
            wanted = round(self._seconds * rate)
            if len(audio) < wanted:
                raise DataError(f"{name[:100]} has {len(audio) / rate:.2f} s; {self._seconds:g} s are needed")
            audio = audio[:wanted]
        audio_sha256, facts = self._store.put_audio(audio, rate)
        codes = None if self._encode is None else self._store.put_codes(self._encode(audio, rate))
        return StoredAudio(audio_sha256, codes, facts, about.channels)


def resampled(audio: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The audio (samples,) or (samples, 2) at another sample rate (polyphase filter), float32."""
    from math import gcd

    from scipy.signal import resample_poly

    if rate == wanted:
        return audio
    common = gcd(rate, wanted)
    return resample_poly(audio, wanted // common, rate // common, axis=0).astype(np.float32)


def codec_of(model: MusicModel) -> Encode:
    """The model's codec as a function that gives a clip's codes (K, T). A model of one channel hears stereo mixed; a
    stereo model hears one channel as both."""
    from alignment.music.codec import encode

    def codes(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        heard = mono(audio) if model.channels == 1 else audio
        return encode(model, resampled(heard, sample_rate_hz, model.sample_rate_hz)[None])[0].numpy()

    return codes
