"""FLAC streams that tell nothing but their sound: no tags, and the same size for both sides of a pair."""

from __future__ import annotations

from alignment.errors import StoreError

SIZE_STEP_BYTES = 16 * 1024
MOST_PADDING_BYTES = 2**24 - 1  # of one block
_STREAMINFO, _PADDING = 0, 1


def _split(flac: bytes) -> tuple[bytes, bytes]:
    """(stream info, audio frames) of a FLAC file. Raises StoreError. Layout: RFC 9639, section 8."""
    if flac[:4] != b"fLaC":
        raise StoreError("A clip is not a FLAC file; verify the clip store.")
    position, info, last = 4, b"", False
    while not last:
        header = flac[position : position + 4]
        if len(header) < 4:
            raise StoreError("A clip's FLAC headers are cut short; verify the clip store.")
        last, kind, length = bool(header[0] & 0x80), header[0] & 0x7F, int.from_bytes(header[1:], "big")
        if kind == _STREAMINFO:
            info = flac[position + 4 : position + 4 + length]
        position += 4 + length
    if len(info) != 34:
        raise StoreError("A clip has no FLAC stream information; verify the clip store.")
    return info, flac[position:]


def _bare_info(info: bytes) -> bytes:
    """The stream information without frame sizes and checksum, which a FLAC file may leave at 0 for unknown."""
    return info[:4] + bytes(6) + info[10:18] + bytes(16)


def _block(kind: int, body: bytes, *, last: bool) -> bytes:
    return bytes([kind | (0x80 if last else 0)]) + len(body).to_bytes(3, "big") + body


def _samples_bytes(info: bytes) -> int:
    """What the samples take uncompressed: the same for all clips of one length."""
    word = int.from_bytes(info[10:18], "big")  # rate (20 bits), channels - 1 (3), bits a sample - 1 (5), samples (36)
    channels, bits, samples = (word >> 41 & 7) + 1, (word >> 36 & 31) + 1, word & (2**36 - 1)
    return samples * channels * bits // 8


def alone(flac: bytes) -> bytes:
    """A clip that is heard by itself, without tags: as large as every other one of its length and channels, for how
    well a clip compresses tells a low-passed or noisy one. Raises StoreError."""
    return twins(flac, flac, least=_samples_bytes(_split(flac)[0]))[0]


def twins(left: bytes, right: bytes, *, least: int = 0) -> tuple[bytes, bytes]:
    """Both clips with every tag, seek table, picture and checksum removed, padded to one size in bytes.

    The size is a multiple of 16 KiB, so that not even the larger of the two is told exactly, and at least ``least``
    as far as padding goes. Raises StoreError.
    """
    parts = [(_bare_info(info), frames) for info, frames in map(_split, (left, right))]
    bare = [4 + 38 + 4 + len(frames) for _, frames in parts]
    wanted = max(*bare, min(least, min(bare) + MOST_PADDING_BYTES - SIZE_STEP_BYTES))
    size = -(-wanted // SIZE_STEP_BYTES) * SIZE_STEP_BYTES
    first, second = (
        b"fLaC" + _block(_STREAMINFO, info, last=False) + _block(_PADDING, bytes(size - length), last=True) + frames
        for (info, frames), length in zip(parts, bare, strict=True)
    )
    return first, second
