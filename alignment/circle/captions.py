"""Captions of attune-tiny as recorded prompts, each in one split for ever."""

from __future__ import annotations

from collections.abc import Callable

from alignment.circle.workspace import Workspace
from alignment.db import prompts
from alignment.domain import Prompt, Split
from alignment.simulation.captions import draw_captions

SOURCE = "attune-tiny captions"


def add_captions(ws: Workspace, count: int, seed: int, split_of: Callable[[str], Split]) -> list[Prompt]:
    """``count`` captions that attune-tiny never saw, recorded; ``split_of`` says where a caption's text belongs.

    A caption that is on record in another split is passed over and the next one drawn: a split never changes."""
    drawn = draw_captions(count, seed, reserved=True)
    with ws.database.session() as s:
        known = {prompt.text: prompt.split for prompt in prompts.list_prompts(s)}
        while True:
            usable = [(text, a) for text, a in drawn if known.get(text, split_of(text)) == split_of(text)]
            if len(usable) >= count:
                break
            drawn = draw_captions(2 * len(drawn), seed, reserved=True)
        items = [(text, SOURCE, split_of(text), a.as_tags()) for text, a in usable[:count]]
        return prompts.add_prompts(s, items)
