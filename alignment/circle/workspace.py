"""An open database with its store and the models in use: what every stage works on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignment.circle.allocator import keep_freed_memory
from alignment.clips import ClipStore
from alignment.config import REPOSITORY, Settings
from alignment.db.engine import Database, open_database
from alignment.db.versions import get_version
from alignment.domain import Version
from alignment.versions import require_base

if TYPE_CHECKING:
    from alignment.music.model import MusicModel
    from alignment.rewards.embeddings import EmbeddingCache
    from alignment.rewards.encoder import ClapEncoder

Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Says nothing."""


@lru_cache(maxsize=1)
def current_commit() -> str | None:
    """The commit this code runs at, with ``+`` when files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != REPOSITORY:
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass
class Workspace:
    """One base model in memory at a time; versions swap adapters on it."""

    database: Database
    store: ClipStore
    secret: str
    _models: dict[str, MusicModel] = field(default_factory=dict, repr=False)
    _encoder: ClapEncoder | None = field(default=None, repr=False)
    _embeddings: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, settings: Settings) -> Workspace:
        keep_freed_memory()
        return cls(open_database(settings.database_url), ClipStore(settings.store), settings.secret)

    def version(self, name: str) -> Version:
        """Raises NotFoundError naming the known versions."""
        with self.database.session(write=False) as s:
            return get_version(s, name)

    def base_model(self, source: str) -> MusicModel:
        """The base without adapter, loaded once."""
        from alignment.music.model import MusicModel
        from alignment.music.placement import choose

        if source not in self._models:
            self._models.clear()
            place = choose()
            self._models[source] = MusicModel.load(source, device=place.device, dtype=place.dtype)
        model = self._models[source]
        model.remove_adapter()
        return model

    def policy(self, version: Version) -> MusicModel:
        """The version ready to sing. Raises ModelError when its base is no longer the registered one."""
        model = self.base_model(version.base)
        require_base(version, model.base_sha256)
        if version.adapter_uri is not None:
            model.load_adapter(self.store.path_of(version.adapter_uri))
        return model

    @property
    def encoder(self) -> ClapEncoder:
        from alignment.music.placement import choose
        from alignment.rewards.encoder import ClapEncoder

        if self._encoder is None:
            self._encoder = ClapEncoder(device=choose().device)
        return self._encoder

    def embed_audio(self, sha256s: Iterable[str], progress: Progress = no_progress) -> dict[str, np.ndarray]:
        """CLAP embedding (D,) of each stored clip, computed once: kept beside a store on this machine, otherwise in
        memory."""
        wanted = list(dict.fromkeys(sha256s))

        def compute(shas: list[str]) -> np.ndarray:
            loaded = [self.store.get_audio(sha) for sha in shas]
            found: np.ndarray | None = None
            for rate in {rate for _, rate in loaded}:  # clips from elsewhere come at rates of their own
                places = [n for n, (_, own) in enumerate(loaded) if own == rate]
                part = self.encoder.audio([loaded[n][0] for n in places], rate)
                found = np.empty((len(shas), part.shape[1]), part.dtype) if found is None else found
                found[places] = part
            return found

        if self._cache is not None:
            found = self._cache.get(wanted, compute, on_progress=progress)
            return {sha: found[sha] for sha in wanted}
        missing = [sha for sha in wanted if sha not in self._embeddings]
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            self._embeddings.update(zip(part, compute(part), strict=True))
            progress(start + len(part), len(missing))
        return {sha: self._embeddings[sha] for sha in wanted}

    @cached_property
    def _cache(self) -> EmbeddingCache | None:
        from alignment.rewards.embeddings import EmbeddingCache

        if not self.store.is_local:
            return None
        folder = Path(self.store.root).parent / "embeddings" / self.encoder.name.replace(":", "-")
        return EmbeddingCache(folder, encoder=self.encoder.name, width=self.encoder.width)

    def embed_text(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        distinct = list(dict.fromkeys(prompts))
        return dict(zip(distinct, self.encoder.text(distinct), strict=True))
