"""The numbers behind a reward model's card: what it says of votes on prompts it never saw, beside simpler scorers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignment.config import RewardSettings
from alignment.domain import Axis, Pair, Split
from alignment.errors import DataError
from alignment.rewards.baselines import MEASURES
from alignment.rewards.heads import HEADS
from alignment.rewards.model import Embeddings, RewardModel, stack
from alignment.rewards.train import train_reward

CURVE_SHARES = (1 / 8, 1 / 4, 1 / 2)
FEWEST_VOTES = 20  # a point of the learning curve with fewer says nothing
BASELINES = ("clap_cosine", *MEASURES)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Deal:
    """Votes to learn from (train and valid splits) and votes to be asked about, on other prompts."""

    learnt: tuple[Pair, ...]
    asked: tuple[Pair, ...]


@dataclass(frozen=True)
class CurvePoint:
    """``agreement`` (n,) with the decisive votes of ``pairs`` of models that learnt from about ``votes`` votes; where
    several were trained, their mean."""

    votes: int
    pairs: tuple[Pair, ...]
    agreement: np.ndarray


@dataclass(frozen=True)
class Baseline:
    """A simple scorer's ``differences`` (n,), signed so that a positive one stands for clip a.

    ``sign`` is 1 where more was better in the votes learnt from, -1 where less was; of several deals the last one's.
    CLAP cosine is never turned."""

    name: str
    sign: int
    differences: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What was asked of a reward model. ``differences`` {head: (n,)} are score a less score b on each of ``pairs``, in
    log-odds, NaN for an untrained head. ``folds`` is 0 for a test split, else the models' number in cross-validation.
    """

    pairs: tuple[Pair, ...]
    differences: Mapping[str, np.ndarray]
    baselines: tuple[Baseline, ...]
    curve: tuple[CurvePoint, ...]
    folds: int


def deal_votes(pairs: Sequence[Pair], *, folds: int | None, seed: int) -> list[Deal]:
    """The test split against the others, or with ``folds`` every prompt in turn against the rest.

    ``folds`` None: the test split where it has a decisive vote, else five folds. Raises DataError when nothing
    decisive can be asked, or for fewer prompts than folds."""
    test = [pair for pair in pairs if pair.split == Split.TEST]
    if folds is None:
        folds = 0 if any(pair.preference != 0.5 for pair in test) else 5
    if not folds:
        learnt = tuple(pair for pair in pairs if pair.split in (Split.TRAIN, Split.VALID))
        deals = [Deal(learnt, tuple(test))]
    else:
        prompts = sorted({pair.prompt_text for pair in pairs})
        if len(prompts) < folds or folds < 3:
            raise DataError(f"The votes are on {len(prompts)} prompts; cross-validation takes 3 folds or more, and as "
                            f"many prompts as folds; {folds} folds were asked for.")  # fmt: skip
        order = np.random.default_rng(seed).permutation(len(prompts))
        fold_of = {prompts[p]: place % folds for place, p in enumerate(order)}
        deals = []
        for fold in range(folds):
            split_of = {fold: Split.TEST, (fold + 1) % folds: Split.VALID}
            dealt = [replace(pair, split=split_of.get(fold_of[pair.prompt_text], Split.TRAIN)) for pair in pairs]
            learnt = tuple(pair for pair in dealt if pair.split != Split.TEST)
            deals.append(Deal(learnt, tuple(pair for pair in dealt if pair.split == Split.TEST)))
    if all(pair.preference == 0.5 for deal in deals for pair in deal.asked):
        raise DataError("None of the votes to be asked about is decisive; a card needs votes for one of two clips.")
    return deals


def gather(
    model: RewardModel,
    deals: Sequence[Deal],
    audio: Embeddings,
    text: Embeddings,
    measured: Mapping[str, Mapping[str, float]],
    *,
    curve_shares: Sequence[float] = CURVE_SHARES,
    curve_draws: int = 3,
    on_progress: Progress | None = None,
) -> Evidence:
    """The evidence. audio {audio sha256: (D,)}, text {prompt: (D,)}, measured {audio sha256: {measure: value}}.

    With one deal the model itself is asked; with several, one model of its settings is trained a deal. The learning
    curve trains ``curve_draws`` models a share where there is one deal, and one a deal and share otherwise."""
    settings = settings_of(model)
    draws = curve_draws if len(deals) == 1 else 1
    total = len(deals) * (1 + len(curve_shares) * draws)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    found: list[dict[str, np.ndarray]] = []
    for deal in deals:
        asked = model if len(deals) == 1 else train_reward(deal.learnt, audio, text, settings)
        found.append(score_differences(asked, deal.asked, audio, text))
        step()
    pairs = tuple(pair for deal in deals for pair in deal.asked)
    differences = {head: np.concatenate([one[head] for one in found]) for head in HEADS}

    points = []
    for share in curve_shares:
        credit, votes = np.zeros(len(pairs)), []
        whole = True
        for draw in range(draws):
            parts = []
            for number, deal in enumerate(deals):
                part = _share_of(deal.learnt, share, seed=settings.seed + 1000 * draw + number)
                votes.append(len(part))
                taught = _try_train(part, audio, text, settings) if len(part) >= FEWEST_VOTES else None
                step()
                if taught is None:
                    whole = False
                    break
                parts.append(score_differences(taught, deal.asked, audio, text)["preference"])
            if not whole:
                break
            credit += agreement(np.concatenate(parts), preferences(pairs)) / draws
        if whole:
            points.append(_point(round(float(np.mean(votes))), pairs, credit))
    votes = round(float(np.mean([len(deal.learnt) for deal in deals])))
    points.append(_point(votes, pairs, agreement(differences["preference"], preferences(pairs))))
    baselines = tuple(_baseline(name, deals, audio, text, measured) for name in BASELINES)
    return Evidence(pairs, differences, baselines, tuple(points), len(deals) if len(deals) > 1 else 0)


def settings_of(model: RewardModel) -> RewardSettings:
    """The settings a reward model was trained with; keys that this code no longer knows are passed over."""
    return RewardSettings(**{key: value for key, value in model.settings.items() if key in RewardSettings.model_fields})


def score_differences(
    model: RewardModel, pairs: Sequence[Pair], audio: Embeddings, text: Embeddings
) -> dict[str, np.ndarray]:
    """{head: score of clip a less that of clip b (n,)}, NaN for an untrained head."""
    prompts = [pair.prompt_text for pair in pairs]
    asked = stack(text, prompts, "text embedding of prompt")
    a, b = (
        model.score(prompts, stack(audio, [getattr(pair, side).audio_sha256 for pair in pairs], "embedding of clip"),
                    asked)
        for side in ("a", "b")
    )  # fmt: skip
    return {head: getattr(a, head) - getattr(b, head) for head in HEADS}


def preferences(pairs: Sequence[Pair]) -> np.ndarray:
    """(n,) credit of clip a by the overall vote: 1, 0 or 0.5."""
    return np.array([pair.preference for pair in pairs], dtype=np.float64)


def axis_credit(pairs: Sequence[Pair], axis: Axis) -> np.ndarray:
    """(n,) 1 where an axis' answer favours clip a, 0 where clip b, 0.5 at equal, NaN where nobody answered."""
    steps = [pair.axes.get(axis.value) for pair in pairs]
    return np.array([np.nan if step is None else 0.5 - 0.5 * np.sign(step) for step in steps], dtype=np.float64)


def agreement(differences: np.ndarray, credit: np.ndarray) -> np.ndarray:
    """(n,) 1 where a difference has the winner's sign, 0 where the loser's, 0.5 at no difference; NaN where the vote
    is not decisive (credit 0.5 or NaN)."""
    agreed = 0.5 + 0.5 * np.sign(differences * np.sign(credit - 0.5))
    return np.where((credit == 0.5) | np.isnan(credit), np.nan, agreed)


def level_shifts(
    model: RewardModel, prompts: Sequence[str], heard: np.ndarray, quieter: np.ndarray, text: Embeddings
) -> np.ndarray:
    """(n,) preference score of clips less that of the same clips made quieter; embeddings (n, D) of both."""
    asked = stack(text, prompts, "text embedding of prompt")
    return model.score(prompts, heard, asked).preference - model.score(prompts, quieter, asked).preference


def _point(votes: int, pairs: tuple[Pair, ...], credit: np.ndarray) -> CurvePoint:
    decisive = ~np.isnan(credit)
    kept = tuple(pair for pair, is_decisive in zip(pairs, decisive, strict=True) if is_decisive)
    return CurvePoint(votes, kept, credit[decisive])


def _share_of(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """A share of each split's votes, drawn; a larger share of the same seed holds the smaller one."""
    rng = np.random.default_rng(seed)
    kept: list[Pair] = []
    for split in (Split.TRAIN, Split.VALID):
        among = [pair for pair in pairs if pair.split == split]
        order = rng.permutation(len(among))[: round(share * len(among))]
        kept += [among[place] for place in sorted(order.tolist())]
    return kept


def _try_train(
    pairs: Sequence[Pair], audio: Embeddings, text: Embeddings, settings: RewardSettings
) -> RewardModel | None:
    """A model of so few votes, or None where they teach nothing (all ties, no train vote)."""
    try:
        return train_reward(pairs, audio, text, settings)
    except DataError:
        return None


def _baseline(
    name: str, deals: Sequence[Deal], audio: Embeddings, text: Embeddings, measured: Mapping[str, Mapping[str, float]]
) -> Baseline:
    """Differences of one simple scorer, turned in each deal to the direction of the votes learnt from."""
    signs, parts = [], []
    for deal in deals:
        sign = 1
        if name != "clap_cosine":
            agreed = agreement(_simple(name, deal.learnt, audio, text, measured), preferences(deal.learnt))
            sign = -1 if np.nanmean(np.append(agreed, 0.5)) < 0.5 else 1
        signs.append(sign)
        parts.append(sign * _simple(name, deal.asked, audio, text, measured))
    return Baseline(name, signs[-1], np.concatenate(parts))


def _simple(
    name: str, pairs: Sequence[Pair], audio: Embeddings, text: Embeddings, measured: Mapping[str, Mapping[str, float]]
) -> np.ndarray:
    """(n,) a simple scorer's value of clip a less that of clip b."""
    if name == "clap_cosine":
        return np.array([float((audio[p.a.audio_sha256] - audio[p.b.audio_sha256]) @ text[p.prompt_text])
                         for p in pairs])  # fmt: skip
    return np.array([measured[p.a.audio_sha256][name] - measured[p.b.audio_sha256][name] for p in pairs])
