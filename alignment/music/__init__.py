"""The only door to the music generator: prompts in, codes with exact log-probabilities and audio out."""

from alignment.music.codec import decode, encode, render
from alignment.music.model import MusicModel
from alignment.music.sampler import Request, Rollout, sample, sample_queue
from alignment.music.text import TextBatch, encode_prompts

__all__ = [
    "MusicModel",
    "Request",
    "Rollout",
    "TextBatch",
    "decode",
    "encode",
    "encode_prompts",
    "render",
    "sample",
    "sample_queue",
]
