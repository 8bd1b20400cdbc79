"""Recipes of stages: what is refused and how, which version a stage becomes, and the recipes that ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alignment.circle.rewarding import further_scorers, weighted_scorer
from alignment.circle.stages import version_name
from alignment.config import REPOSITORY, AlignRecipe, ExpertSettings, PpoSettings, load_recipe, parse_recipe
from alignment.errors import ConfigError

CONFIGS = REPOSITORY / "configs"


def recipe(*stages: dict, **more: object) -> AlignRecipe:
    return parse_recipe({"stages": [{"name": "a", "method": "dpo"} | stage for stage in stages], **more}, AlignRecipe)


def test_the_recipes_that_ship_load_and_name_the_command_that_uses_them() -> None:
    sequential, joint = (load_recipe(CONFIGS / f"{name}.yaml", AlignRecipe) for name in ("sequential", "joint"))
    # MusicRL's order: text and quality, then the raters' preference, paid for from where the first stage ended.
    assert [stage.reward for stage in sequential.stages] == [
        {"text_adherence": 1.0, "quality": 1.0}, {"preference": 1.0},
    ]  # fmt: skip
    assert [stage.reference for stage in sequential.stages] == ["base", "start"]
    assert set(joint.stages[0].reward) == {"text_adherence", "quality", "preference"}
    # The same number of rollouts, so that the two can be compared.
    assert sum(stage.ppo.max_steps for stage in sequential.stages) == joint.stages[0].ppo.max_steps
    load_recipe(CONFIGS / "expert.yaml", ExpertSettings)
    load_recipe(CONFIGS / "ppo.yaml", PpoSettings)
    for name in ("sequential", "joint", "expert"):
        assert "attune align" in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").split("\n\n")[0]


def test_every_stage_of_a_shipped_recipe_is_watched_and_has_expert_iteration_and_best_of_n_beside() -> None:
    for name in ("sequential", "joint"):
        found = load_recipe(CONFIGS / f"{name}.yaml", AlignRecipe)
        assert all(stage.settings.eval_steps for stage in found.stages)
        assert found.beside is not None and found.beside.method == "expert" and found.watch.best_of == (2, 4, 8, 16)


def test_an_unknown_reward_head_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="there is no reward head prefrence; did you mean preference?"):
        recipe({"reward": {"prefrence": 1.0}})
    with pytest.raises(ConfigError, match="known: text_adherence, quality, preference, clap_cosine"):
        recipe({"reward": {"xyz": 1.0}})


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"reward": {"preference": 0.0}}, "every weight of its reward is 0"),
        ({"clips_per_prompt": 4, "pairs_per_prompt": 3}, "cannot be above half of clips_per_prompt"),
        ({"method": "expert", "clips_per_prompt": 2, "expert": {"keep": 2}}, "must be below clips_per_prompt"),
        ({"method": "pppo"}, "method"),
        ({"name": "no/slash"}, "name"),
        ({"refrence": "start"}, "did you mean reference"),
    ],
)
def test_a_stage_that_does_not_fit_together_is_refused_by_name(stage: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(stage)


def test_stages_of_one_name_and_sizes_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="give each a name of its own"):
        recipe({"name": "same"}, {"name": "same"})
    with pytest.raises(ConfigError, match="give each a name of its own"):
        recipe({"name": "expert"})  # what stands beside is called so
    for sizes in ([1, 2], [4, 2], [2, 2], [128]):
        with pytest.raises(ConfigError, match="sizes from 2 to 64"):
            recipe({}, watch={"best_of": sizes})
    with pytest.raises(ConfigError, match="there are 0 stages"):
        parse_recipe({"stages": []}, AlignRecipe)


def test_the_last_stage_has_the_runs_own_name_and_the_others_their_own_ending() -> None:
    found = recipe({"name": "r"}, {"name": "u"})
    assert [version_name("v1", found, stage) for stage in (*found.stages, found.beside)] == ["v1-r", "v1", "v1-expert"]


def test_a_recipe_that_is_missing_is_said_with_where_recipes_are() -> None:
    with pytest.raises(ConfigError, match="no such file.*configs/"):
        load_recipe(Path("nowhere.yaml"), AlignRecipe)


def test_a_reward_may_be_made_of_the_recipes_own_scorers_and_of_no_unnamed_one(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_scorers.py").write_text("def level(prompts, audio, rate):\n    return abs(audio).mean(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"scorers": {"level": {"function": "my_scorers:level", "licence": "MIT"}}}
    found = recipe({"reward": {"level": -1.0, "preference": 1.0}}, **own)
    level = further_scorers(found.scorers)["level"]
    audio = np.array([[0.5, -0.5], [0.25, 0.25]], dtype=np.float32)
    assert level.score(["a", "b"], audio, 16000).values.tolist() == [0.5, 0.25]
    assert (level.name, level.licence) == ("level", "MIT")
    with pytest.raises(ConfigError, match="stage a: there is no reward head levl; did you mean level?"):
        recipe({"reward": {"levl": 1.0}}, **own)
    with pytest.raises(ConfigError, match="a scorer is called quality, which Attune has already"):
        recipe({}, scorers={"quality": {"function": "my_scorers:level"}})
    with pytest.raises(ConfigError, match="is audiobox .* or function .*; give one of them"):
        recipe({}, scorers={"x": {}})
    with pytest.raises(ConfigError, match="The scorer x is my_scorers:volume, which cannot be imported"):
        further_scorers(recipe({}, scorers={"x": {"function": "my_scorers:volume"}}).scorers)


def test_a_scorer_of_unknown_licence_is_refused_where_the_purpose_is_commercial(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "other_scorers.py").write_text("def level(prompts, audio, rate):\n    return abs(audio).mean(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    scorers = further_scorers(recipe({}, scorers={"level": {"function": "other_scorers:level"}}).scorers)
    audio = np.linspace(0.1, 1, 8, dtype=np.float32).reshape(4, 2)
    ask = (None, None, {"level": 1.0}, ["a", "a", "b", "b"], audio, 16000)
    assert weighted_scorer(*ask, others=scorers).licence == "unknown"
    with pytest.raises(ConfigError, match="level has no known licence"):
        weighted_scorer(*ask, others=scorers, commercial=True)
