"""Recipes and settings: small frozen pydantic models; YAML in, every fault reported at once.

Names follow TRL and PEFT where they exist there. A recipe file has one top-level mapping; unknown keys are
refused with the nearest known name.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignment.domain import GenerationConfig
from alignment.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent
DEVELOPMENT_SECRET = "attune-development-secret"
SHORTEST_SECRET = 32
VOTES_PER_PAIR = 3  # more votes on one pair of clips say ever less


class Recipe(BaseModel):
    """Base of all recipes: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GenerationSettings(Recipe):
    """How clips are sampled."""

    temperature: float = Field(1.0, gt=0, le=5, description="softmax temperature; 1 samples the model as it is")
    top_k: int = Field(0, ge=0, description="keep the k likeliest codes; 0 keeps all")
    guidance: float = Field(1.0, ge=1, le=20, description="classifier-free guidance; 1 is none")
    clip_seconds: float = Field(5.0, ge=0.5, le=30, description="length of a clip in seconds")

    def to_domain(self) -> GenerationConfig:
        return GenerationConfig(self.temperature, self.top_k, self.guidance, self.clip_seconds)


class LoraSettings(Recipe):
    """An adapter on the decoder, LoRA or another of PEFT's kinds (PEFT's names)."""

    kind: Literal["lora", "loha", "ia3"] = Field("lora", description="ia3 has no rank and no scale")
    r: int = Field(16, ge=1, le=512, description="rank")
    lora_alpha: float = Field(32.0, gt=0, description="scale; the update is multiplied by lora_alpha / r")
    target_modules: tuple[Literal["self_attention", "cross_attention", "feed_forward", "heads"], ...] = Field(
        ("self_attention", "cross_attention", "feed_forward"), min_length=1, description="where adapters sit"
    )


class RewardSettings(Recipe):
    """Training of a reward model on frozen CLAP embeddings."""

    hidden: int = Field(64, ge=1, le=4096, description="width of each head's hidden layer")
    dropout: float = Field(0.3, ge=0, lt=1)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    batch_size: int = Field(64, ge=1)
    epochs: int = Field(60, ge=1, description="at most; early stopping on the validation split ends sooner")
    patience: int = Field(10, ge=1, description="epochs without a better validation loss before stopping")
    axis_weight: float = Field(1.0, ge=0, description="weight of the two axes' losses beside the overall vote's")
    both_bad: Literal["tie", "drop"] = Field("tie", description="what BOTH_BAD means here, rule version 1")
    ties: Literal["davidson", "half"] = Field("davidson", description="ties by a learnt parameter, or as half a win")
    side_term: bool = Field(True, description="learn how much the left clip is favoured, apart from the scores")
    rater_deviation: float = Field(
        0.5, ge=0, le=5, description="prior deviation of the log of each rater's reliability; 0 takes all as equal"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of decisive votes taken to be flipped")
    ensemble: int = Field(4, ge=1, le=64, description="heads trained from different seeds in one batched module")
    bf16: bool = Field(False, description="multiply in bfloat16: faster on a CPU or GPU that knows it")
    seed: int = Field(0, ge=0, le=2**30, description="fixes everything that is drawn")


class AdapterSettings(Recipe):
    """What every training of an adapter takes (TRL's names)."""

    learning_rate: float = Field(1e-4, gt=0, le=1)
    num_train_epochs: float = Field(2.0, gt=0)
    per_device_train_batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    save_steps: int = Field(0, ge=0, description="optimizer steps between checkpoints; 0 saves at the end only")
    eval_steps: int = Field(0, ge=0, description="optimizer steps between evaluations; 0 trains to the end")
    patience: int = Field(3, ge=1, description="evaluations without a better adapter before stopping")
    report_to: str = Field("none", description="tensorboard, wandb, mlflow or whatever else the Trainer knows")
    gradient_checkpointing: bool = False
    bf16: bool = Field(False, description="products in bfloat16; the adapter, its gradients and sums stay float32")
    lora: LoraSettings = LoraSettings()
    seed: int = Field(0, ge=0, le=2**30, description="fixes everything that is drawn")


class DpoSettings(AdapterSettings):
    """Direct preference optimisation with LoRA (TRL's names)."""

    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "dpop"] = "sigmoid"
    beta: float = Field(0.1, gt=0, le=100, description="strength of the pull to the reference")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of votes taken to be flipped: conservative DPO, or robust DPO's rate"
    )
    tie_weight: float = Field(
        0.0, ge=0, le=1, description="weight of a tied vote as a pair that both clips win by half; 0 leaves ties out"
    )
    chosen_weight: float = Field(
        0.0, ge=0, description="weight of the term on the chosen clip: RPO's, or with loss_type dpop DPOP's lambda"
    )
    chosen_floor: float = Field(
        0.5, ge=0, description="nats a code the chosen clips may fall below the reference; then the run stops; 0: never"
    )


class ExpertSettings(AdapterSettings):
    """Expert iteration: maximum likelihood with LoRA on the clips that a reward model likes best (TRL's names)."""

    keep: int = Field(1, ge=1, description="best clips kept of each prompt's N")


class ValueSettings(Recipe):
    """The value head of PPO and how advantages are estimated with it; only ``advantage: gae`` reads it."""

    lam: float = Field(1.0, ge=0, le=1, description="lambda of generalised advantage estimation")
    hidden: int = Field(64, ge=1, le=8192, description="width of the head's hidden layer")
    learning_rate: float = Field(1e-3, gt=0, le=1)
    epochs: int = Field(4, ge=1, description="passes of the head alone over each rollout")
    warmup_steps: int = Field(1, ge=0, description="first rollouts that train the value head and nothing else")


class PpoSettings(Recipe):
    """Online optimisation of an adapter by PPO, RLOO or GRPO (TRL's names). A step is one rollout and its updates."""

    learning_rate: float = Field(2e-3, gt=0, le=1)
    max_steps: int = Field(40, ge=1, description="rollouts")
    rollout_prompts: int = Field(16, ge=1, description="prompts of one rollout, over all processes together")
    num_generations: int = Field(4, ge=1, description="clips of each of these prompts")
    num_ppo_epochs: int = Field(2, ge=1, description="passes over each rollout")
    num_mini_batches: int = Field(2, ge=1, description="optimizer steps of one pass")
    per_device_train_batch_size: int = Field(16, ge=1, description="clips scored at once; changes speed only")
    advantage: Literal["gae", "rloo", "grpo"] = Field("gae", description="how a clip's reward becomes advantages")
    cliprange: float = Field(0.2, gt=0, lt=1, description="how far a delayed step's ratio may go from 1")
    kl_coef: float = Field(0.05, ge=0, description="price of a nat of KL to the reference, in units of the reward")
    kl_target: float = Field(0.0, ge=0, description="KL in nats a clip that kl_coef is adapted to; 0 keeps it fixed")
    max_grad_norm: float = Field(1.0, gt=0)
    save_steps: int = Field(0, ge=0, description="rollouts between checkpoints; 0 saves at the end only")
    eval_steps: int = Field(0, ge=0, description="rollouts between calls of the watch; 0 trains to the end")
    patience: int = Field(3, ge=1, description="calls of the watch without a better held-out reward before stopping")
    tail_average: float = Field(
        0.0, ge=0, le=1, description="share of the rollouts, the last ones, whose adapters' mean is kept; 0: the last"
    )
    gradient_checkpointing: bool = False
    value: ValueSettings = ValueSettings()
    generation: GenerationSettings = GenerationSettings()
    lora: LoraSettings = LoraSettings(r=4, lora_alpha=8)
    seed: int = Field(0, ge=0, le=2**30, description="fixes everything that is drawn")


# What a reward may be made of.
REWARD_PARTS = ("text_adherence", "quality", "preference", "clap_cosine", "caption_contrast")


def _check_reward(weights: dict[str, float], where: str, others: Iterable[str] = ()) -> None:
    known = (*REWARD_PARTS, *others)
    for name in weights:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}: there is no reward head {name}; {hint}")
    if not any(weights.values()):
        raise ValueError(f"{where}: every weight of its reward is 0; give one of them another")


class ScorerSettings(Recipe):
    """A scorer that no vote taught: Audiobox-Aesthetics or a Python function (docs/scorers.md)."""

    audiobox: str | None = Field(None, description="its checkpoint.pt, fetched beforehand")
    axis: Literal["CE", "CU", "PC", "PQ"] = Field("PQ", description="of Audiobox-Aesthetics")
    function: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="module:function of (prompts, audio (B, N), sample rate in Hz), giving B numbers",
    )
    licence: str = Field("unknown", description="of what the function uses; an unknown one is refused where commercial")

    @model_validator(mode="after")
    def _one_of_two(self) -> ScorerSettings:
        if (self.audiobox is None) == (self.function is None):
            raise ValueError("a scorer is audiobox (a checkpoint) or function (module:function); give one of them")
        return self


class WatchSettings(Recipe):
    """What looks at a policy while it trains: prompts that training never sings, and a reward model from other raters
    and other prompts."""

    prompts: int = Field(24, ge=4, description="held-out prompts sung at each look, at most")
    clips_per_prompt: int = Field(2, ge=2, le=8, description="clips of each at each look")
    best_of: tuple[int, ...] = Field((2, 4, 8, 16), min_length=1, description="sizes of best-of-N, out of one pool")
    held_out_share: float = Field(
        0.5, gt=0, lt=1, description="share of raters, and of prompts, that only the held-out reward model learns from"
    )

    @model_validator(mode="after")
    def _sizes(self) -> WatchSettings:
        if min(self.best_of) < 2 or max(self.best_of) > 64 or sorted(set(self.best_of)) != list(self.best_of):
            raise ValueError(f"best_of is {list(self.best_of)}; give sizes from 2 to 64, each once, smallest first")
        return self


class StageSettings(Recipe):
    """One training among several: where the policy is after the stages before it, and what it is rewarded for now.

    Only the settings of its own ``method`` are read. ``expert`` has no reference: it imitates."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", description="ends the version's name")
    method: Literal["dpo", "expert", "ppo"]
    reward: dict[str, float] = Field({"preference": 1.0}, min_length=1, description="weight of each part by name")
    uncertainty_penalty: float = Field(0.0, ge=0, description="deviations of the ensemble taken off the reward")
    reference: Literal["base", "start"] = Field("base", description="where KL is measured from")
    clips_per_prompt: int = Field(4, ge=2, le=64, description="dpo, expert: N clips sung and scored before training")
    pairs_per_prompt: int = Field(1, ge=1, le=32, description="dpo: the best k of N clips against the worst k")
    dpo: DpoSettings = DpoSettings()
    expert: ExpertSettings = ExpertSettings()
    ppo: PpoSettings = PpoSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> StageSettings:
        if self.method == "dpo" and 2 * self.pairs_per_prompt > self.clips_per_prompt:
            raise ValueError(
                f"stage {self.name}: pairs_per_prompt ({self.pairs_per_prompt}) cannot be above half of "
                f"clips_per_prompt ({self.clips_per_prompt})"
            )
        if self.method == "expert" and self.expert.keep >= self.clips_per_prompt:
            raise ValueError(
                f"stage {self.name}: expert.keep ({self.expert.keep}) must be below clips_per_prompt "
                f"({self.clips_per_prompt})"
            )
        return self

    @property
    def settings(self) -> DpoSettings | ExpertSettings | PpoSettings:
        """The settings of its method."""
        return {"dpo": self.dpo, "expert": self.expert, "ppo": self.ppo}[self.method]


class AlignRecipe(Recipe):
    """Stages one after the other, watched by a reward model from other raters and prompts, with best-of-N and expert
    iteration beside them."""

    stages: tuple[StageSettings, ...]
    generation: GenerationSettings = Field(
        GenerationSettings(), description="how the watch, best-of-N and pools sing; ppo's rollouts have their own"
    )
    reward: RewardSettings = Field(RewardSettings(), description="of both reward models, where they are not given")
    watch: WatchSettings = WatchSettings()
    train_prompts: int = Field(0, ge=0, description="prompts that the stages sing, at most; 0: all in the train split")
    more_captions: int = Field(0, ge=0, description="attune-tiny captions added to the prompts that the stages sing")
    beside: StageSettings | None = Field(
        StageSettings(name="expert", method="expert"),
        description="what is trained from the same start for comparison, rewarded as the last stage is; null: nothing",
    )
    scorers: dict[str, ScorerSettings] = Field({}, description="further parts of rewards, by the name that stages use")
    commercial: bool = Field(False, description="refuse scorers whose licence forbids commercial use")
    report_to: str = Field("none", description="tensorboard, wandb, mlflow or whatever else the Trainer knows")
    seed: int = Field(0, ge=0, le=2**30, description="fixes everything that is drawn")

    @model_validator(mode="after")
    def _rewards_are_known(self) -> AlignRecipe:
        if taken := sorted(set(self.scorers) & set(REWARD_PARTS)):
            raise ValueError(f"a scorer is called {taken[0]}, which Attune has already; give it another name")
        for stage in (*self.stages, *([self.beside] if self.beside else ())):
            _check_reward(stage.reward, f"stage {stage.name}", self.scorers)
        return self

    @model_validator(mode="after")
    def _names(self) -> AlignRecipe:
        if not 1 <= len(self.stages) <= 8:
            raise ValueError(f"there are {len(self.stages)} stages; give from 1 to 8")
        names = [stage.name for stage in (*self.stages, *([self.beside] if self.beside else ()))]
        if len(set(names)) < len(names):
            raise ValueError(f"stages are called {', '.join(names)}; give each a name of its own")
        return self


class AlignSettings(Recipe):
    """How the aligned version is made; fixed before any comparison is looked at. The first stage makes the adapter;
    later ones go on with it, whatever LoRA their own settings name."""

    method: Literal["dpo", "expert", "dpo_after_expert", "ppo_after_dpo"] = Field(
        "dpo", description="the headline version's training"
    )
    beside: tuple[Literal["dpo", "expert"], ...] = Field(
        ("dpo", "expert"), description="methods trained and compared beside it"
    )
    rounds: int = Field(1, ge=1, le=4, description="each further one trains on fresh clips of the policy so far")
    pairs_per_prompt: int = Field(1, ge=1, le=32, description="k: the best k of N clips against the worst k")
    min_margin: float = Field(
        0.0, ge=0, description="a pair needs a difference of rewards above this many deviations of the ensemble's"
    )
    use_voted_pairs: bool = Field(True, description="DPO also trains on the decisive votes themselves")
    online_reward: dict[str, float] = Field(
        default={"preference": 1.0}, description="what PPO is rewarded for, each on the scale of the base's clips"
    )
    online_captions: int = Field(1000, ge=0, le=5000, description="prompts that PPO sings beside those voted on")
    gate: bool = Field(True, description="train only when the reward model is better than chance on unseen prompts")
    gate_folds: int = Field(5, ge=3, le=20, description="folds of the cross-validation behind the gate")

    @model_validator(mode="after")
    def _reward_is_known(self) -> AlignSettings:
        _check_reward(self.online_reward, "align.online_reward")
        return self


class DemoSettings(Recipe):
    """The whole circle on attune-tiny with simulated listeners."""

    train_prompts: int = Field(150, ge=8, description="prompts voted on")
    clips_per_prompt: int = Field(4, ge=2, le=16)
    train_votes: int = Field(900, ge=20)
    train_raters: int = Field(12, ge=2)
    best_of: int = Field(8, ge=2, le=64, description="N of the best/worst-of-N pairs")
    test_prompts: int = Field(150, ge=8, description="held-out prompts of the comparison")
    test_pool: int = Field(4, ge=2, le=64, description="N of best-of-N: the base's spare clips of a held-out prompt")
    test_votes: int = Field(450, ge=20, description="votes of each contest")
    test_raters: int = Field(8, ge=2)
    generation: GenerationSettings = GenerationSettings()
    reward: RewardSettings = RewardSettings()
    align: AlignSettings = AlignSettings()
    dpo: DpoSettings = DpoSettings()
    expert: ExpertSettings = ExpertSettings()
    ppo: PpoSettings = PpoSettings()
    quick: bool = Field(False, description="a short run that promises less, and whose report says so")
    seed: int = Field(0, ge=0, le=2**30, description="fixes everything that is drawn")

    @model_validator(mode="after")
    def _fits_together(self) -> DemoSettings:
        clips, most = self.clips_per_prompt, VOTES_PER_PAIR
        if clips > self.best_of:
            raise ValueError(f"clips_per_prompt ({clips}) cannot be above best_of ({self.best_of})")
        if 2 * self.align.pairs_per_prompt > self.best_of:
            raise ValueError(
                f"align.pairs_per_prompt ({self.align.pairs_per_prompt}) cannot be above half of best_of "
                f"({self.best_of})"
            )
        if self.expert.keep >= self.best_of:
            raise ValueError(f"expert.keep ({self.expert.keep}) must be below best_of ({self.best_of})")
        if self.test_votes > most * self.test_prompts:
            raise ValueError(
                f"test_votes ({self.test_votes}) cannot be above {most} for each of {self.test_prompts} test_prompts"
            )
        if self.train_votes > most * self.train_prompts * clips * (clips - 1) // 2:
            raise ValueError(f"train_votes ({self.train_votes}) cannot be above {most} for each pair of clips")
        return self


class MusicRlRun(Recipe):
    """One training of the MusicRL study: what it is rewarded for, and how."""

    weights: dict[Literal["clap_cosine", "caption_contrast", "text_adherence", "quality", "preference"], float] = Field(
        min_length=1, description="of each reward, in deviations among the base's clips of one prompt"
    )
    uncertainty_penalty: float = Field(0.0, ge=0, description="deviations of the ensemble taken off each reward")
    ppo: PpoSettings = PpoSettings()


class MusicRlSettings(Recipe):
    """MusicRL on attune-tiny with simulated listeners: users vote, selected raters rate and compare."""

    users: str = Field(
        "musicrl", description="population whose votes are the preference reward; configs/listeners.yaml"
    )
    raters: str = Field("expert", description="population behind text and quality, and behind the comparisons")
    voted_prompts: int = Field(400, ge=10)
    held_out_prompts: int = Field(120, ge=10, description="voted on by others, for the held-out reward models")
    clips_per_prompt: int = Field(4, ge=2, le=16)
    user_votes: int = Field(7200, ge=20)
    rater_votes: int = Field(2400, ge=20)
    listeners: int = Field(48, ge=2, description="in each of the panels that vote")
    policy_prompts: int = Field(2000, ge=4, description="captions that the runs train on")
    watch_prompts: int = Field(64, ge=4, description="captions whose clips show the scores over training")
    test_prompts: int = Field(400, ge=8, description="held-out prompts of the comparisons")
    test_votes: int = Field(1200, ge=20, description="ratings of each comparison")
    test_listeners: int = Field(48, ge=2, description="in the panel that compares; none of them voted before")
    test_pool: int = Field(4, ge=2, le=64, description="N of best-of-N, and of expert iteration's choice")
    generation: GenerationSettings = GenerationSettings()
    reward: RewardSettings = RewardSettings()
    runs: dict[Literal["R", "U", "RU", "joint"], MusicRlRun] = Field(
        {"R": MusicRlRun(weights={"text_adherence": 1.0, "quality": 1.0})}, description="RU starts from R, others fresh"
    )
    expert: ExpertSettings = ExpertSettings()
    quick: bool = Field(False, description="a short run that promises less, and whose report says so")
    seed: int = Field(0, ge=0, le=2**20, description="fixes everything that is drawn")

    @model_validator(mode="after")
    def _fits_together(self) -> MusicRlSettings:
        pairs = self.voted_prompts * self.clips_per_prompt * (self.clips_per_prompt - 1) // 2
        for name, votes in (("user_votes", self.user_votes), ("rater_votes", self.rater_votes)):
            if votes > VOTES_PER_PAIR * pairs:
                raise ValueError(
                    f"{name} ({votes}) cannot be above {VOTES_PER_PAIR} for each of {pairs} pairs of clips"
                )
        if self.test_votes > VOTES_PER_PAIR * self.test_prompts:
            raise ValueError(
                f"test_votes ({self.test_votes}) cannot be above {VOTES_PER_PAIR} for each of {self.test_prompts} "
                "test_prompts"
            )
        if "R" not in self.runs:
            raise ValueError(f"runs are {', '.join(self.runs) or 'none'}; R is the one that all others stand beside")
        if self.expert.keep >= self.clips_per_prompt:
            raise ValueError(
                f"expert.keep ({self.expert.keep}) must be below clips_per_prompt ({self.clips_per_prompt})"
            )
        return self


R = TypeVar("R", bound=Recipe)


def _field_names(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    parts = iter(location)
    for part in parts:
        found = model.model_fields.get(str(part))
        kind = found.annotation if found else None
        if get_origin(kind) is dict:  # recipes by name: the next part is a name, not a field
            kind = get_args(kind)[1]
            next(parts, None)
        if get_origin(kind) is tuple:  # recipes in a row: the next part is a number
            kind = get_args(kind)[0]
            next(parts, None)
        if not isinstance(kind, type) or not issubclass(kind, BaseModel):
            return []
        model = kind
    return list(model.model_fields)


def parse_recipe(values: Any, recipe: type[R], *, origin: str = "recipe") -> R:
    """The validated recipe. Raises ConfigError naming every fault at once, with the nearest known key."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: found a {type(values).__name__}, needs a mapping of keys to values.")
    try:
        return recipe.model_validate(values)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            location = fault["loc"]
            name = ".".join(str(part) for part in location)
            if fault["type"] == "extra_forbidden":
                known = _field_names(recipe, location[:-1])
                near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}."
                faults.append(f"unknown key {name}; {hint}")
            else:
                said = fault["msg"].removeprefix("Value error, ")
                found = f"{name} is {fault['input']!r}: " if name else ""
                faults.append(f"{found}{said[0].lower()}{said[1:]}.")
        raise ConfigError(f"{origin}: " + " ".join(faults)) from None


def load_recipe(path: str | Path, recipe: type[R]) -> R:
    """The recipe in a YAML file. Raises ConfigError when it is missing, is not YAML, or has faults."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the recipes that ship with Attune are in configs/.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a YAML file.") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: not valid YAML{where}; compare it with the files in configs/.") from None
    return parse_recipe(values, recipe, origin=str(path))


class Settings(Recipe):
    """Where things are and who may reach them; from the environment, then from command-line options.

    docs/deployment.md lists every variable. ``ATTUNE_ENV=production`` refuses what is only fit for a laptop.
    """

    database_url: str = Field(repr=False, description="ATTUNE_DATABASE; may hold a password")
    store: str = Field(description="ATTUNE_STORE")
    secret: str = Field(repr=False, description="ATTUNE_SECRET; keys pseudonyms, cookies and clip addresses")
    environment: Literal["development", "production"] = Field("development", description="ATTUNE_ENV")
    trusted_proxies: tuple[str, ...] = Field(
        (), description="ATTUNE_TRUSTED_PROXIES: addresses whose X-Forwarded-For and -Proto are believed"
    )
    hosts: tuple[str, ...] = Field((), description="ATTUNE_HOSTS: names the page answers to; none: every name")
    metrics_token: str | None = Field(None, repr=False, description="ATTUNE_METRICS_TOKEN; none: no /metrics")
    rate_scale: float = Field(1.0, gt=0, le=1e9, description="ATTUNE_RATE_SCALE: multiplies every rate limit")
    allow_sqlite: bool = Field(False, description="ATTUNE_ALLOW_SQLITE=1: SQLite in production")

    @classmethod
    def from_environment(cls, *, database: str | None = None, store: str | None = None) -> Settings:
        """The settings, with ``data/attune.db`` and ``data/store`` as defaults.

        ATTUNE_SECRET_FILE and ATTUNE_METRICS_TOKEN_FILE name a file that holds the value instead. Raises ConfigError
        with every fault at once."""
        home = Path(os.environ.get("ATTUNE_HOME", "data"))
        url = database or os.environ.get("ATTUNE_DATABASE") or f"sqlite:///{home / 'attune.db'}"
        if "://" not in url:
            url = f"sqlite:///{url}"
        settings = parse_recipe(
            {
                "database_url": url,
                "store": store or os.environ.get("ATTUNE_STORE") or str(home / "store"),
                "secret": _secret("ATTUNE_SECRET") or DEVELOPMENT_SECRET,
                "environment": os.environ.get("ATTUNE_ENV") or "development",
                "trusted_proxies": _listed("ATTUNE_TRUSTED_PROXIES"),
                "hosts": [name.lower() for name in _listed("ATTUNE_HOSTS")],
                "metrics_token": _secret("ATTUNE_METRICS_TOKEN"),
                "rate_scale": os.environ.get("ATTUNE_RATE_SCALE") or 1.0,
                "allow_sqlite": os.environ.get("ATTUNE_ALLOW_SQLITE", "") in ("1", "true", "yes"),
            },
            cls,
            origin="environment",
        )
        settings._refuse(settings._proxy_faults())
        if settings.is_production:
            settings._refuse(settings._production_faults())
        return settings

    @property
    def is_production(self) -> bool:
        return self.environment == "production"

    def for_serving(self) -> Settings:
        """These settings, fit to open a port with. Raises ConfigError in production without a trusted proxy."""
        if self.is_production and not self.trusted_proxies:
            raise ConfigError(
                "ATTUNE_ENV is production and ATTUNE_TRUSTED_PROXIES is empty, so pages and cookies would travel over "
                "plain http; put a TLS proxy in front and set it to the proxy's address, such as 127.0.0.1 "
                "(docs/deployment.md)."
            )
        return self

    def _production_faults(self) -> list[str]:
        faults = []
        make = 'make one with `python -c "import secrets; print(secrets.token_urlsafe(48))"`.'
        if self.secret == DEVELOPMENT_SECRET:
            faults.append(f"ATTUNE_SECRET is not set, and the default is known to everybody; {make}")
        elif len(self.secret) < SHORTEST_SECRET or len(set(self.secret)) < 8:
            faults.append(
                f"ATTUNE_SECRET can be guessed: it has {len(self.secret)} characters, {len(set(self.secret))} of them "
                f"different, and needs {SHORTEST_SECRET}; {make}"
            )
        if self.metrics_token is not None and len(self.metrics_token) < 16:
            faults.append(f"ATTUNE_METRICS_TOKEN has fewer than 16 characters; {make}")
        if self.database_url.startswith("sqlite") and not self.allow_sqlite:
            faults.append(
                "The database is SQLite; give --database postgresql+psycopg://..., or set ATTUNE_ALLOW_SQLITE=1 "
                "for a small study on one machine."
            )
        return faults

    def _proxy_faults(self) -> list[str]:
        faults = []
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                faults.append(
                    f"ATTUNE_TRUSTED_PROXIES names {network!r}; give addresses or networks, such as 127.0.0.1 or "
                    "10.0.0.0/8."
                )
        return faults

    def _refuse(self, faults: list[str]) -> None:
        if faults:
            raise ConfigError(" ".join(faults))


def _listed(name: str) -> list[str]:
    return [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]


def _secret(name: str) -> str | None:
    """The variable, or what stands in the file that ``NAME_FILE`` names. Raises ConfigError when it cannot be read."""
    path = os.environ.get(f"{name}_FILE")
    if not path:
        return os.environ.get(name) or None
    try:
        value = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_FILE is {path}, which cannot be read ({error}); check path and rights.") from None
    if not value:
        raise ConfigError(f"{name}_FILE is {path}, which is empty; write the secret into it.")
    return value
