"""Recipes: every fault at once, the nearest key suggested, the shipped files valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.config import (
    AlignSettings,
    DemoSettings,
    DpoSettings,
    ExpertSettings,
    RewardSettings,
    load_recipe,
    parse_recipe,
)
from alignment.errors import ConfigError
from alignment.simulation.listeners import load_listeners

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def test_all_faults_of_a_recipe_are_named_at_once_with_the_nearest_key() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe({"beta": -1, "learning_rat": 0.1, "lora": {"rank": 4}}, DpoSettings, origin="x.yaml")
    message = str(raised.value)
    assert message.startswith("x.yaml: ")
    assert "beta is -1" in message
    assert "unknown key learning_rat; did you mean learning_rate?" in message
    assert "unknown key lora.rank" in message and "target_modules" in message
    assert "\n" not in message


def test_a_value_that_is_not_a_number_is_refused_and_not_rounded() -> None:
    with pytest.raises(ConfigError, match="train_votes is 'many'"):
        parse_recipe({"train_votes": "many"}, DemoSettings)
    with pytest.raises(ConfigError, match="beta is nan"):
        parse_recipe({"beta": float("nan")}, DpoSettings)


def test_a_missing_recipe_says_where_the_shipped_ones_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; the recipes that ship with Attune are in configs/"):
        load_recipe(tmp_path / "none.yaml", DpoSettings)


def test_broken_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("beta: 0.1\nlora: {r: 4\n")
    with pytest.raises(ConfigError, match=r"not valid YAML at line \d"):
        load_recipe(path, DpoSettings)


def test_a_recipe_must_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- beta\n")
    with pytest.raises(ConfigError, match="found a list, needs a mapping"):
        load_recipe(path, DpoSettings)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("tiny.yaml", DemoSettings),
        ("quick.yaml", DemoSettings),
        ("dpo.yaml", DpoSettings),
        ("reward.yaml", RewardSettings),
    ],
)
def test_the_shipped_recipes_load(name: str, recipe: type) -> None:
    assert load_recipe(CONFIGS / name, recipe)


def test_recipes_have_at_most_twenty_fields_and_each_shipped_one_opens_with_its_command() -> None:
    for recipe in (DemoSettings, AlignSettings, DpoSettings, ExpertSettings, RewardSettings):
        assert len(recipe.model_fields) <= 20
    for path in CONFIGS.glob("*.yaml"):
        assert "attune " in path.read_text().splitlines()[0], path


def test_what_the_demos_ppo_is_rewarded_for_is_checked_by_name_and_not_all_zero() -> None:
    with pytest.raises(ConfigError, match="align.online_reward: there is no reward head preferense; did you mean pref"):
        parse_recipe({"align": {"online_reward": {"preferense": 1.0}}}, DemoSettings, origin="x.yaml")
    with pytest.raises(ConfigError, match="every weight of its reward is 0"):
        parse_recipe({"align": {"online_reward": {"preference": 0.0}}}, DemoSettings, origin="x.yaml")


def test_the_shipped_listener_populations_name_known_profiles() -> None:
    listeners = load_listeners()
    assert {"default", "musicrl"} <= set(listeners.populations)


def test_a_population_of_unknown_profiles_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "listeners.yaml"
    path.write_text("profiles: {a: {}}\npopulations: {p: {b: 1.0}}\n")
    with pytest.raises(ConfigError, match="population p names b; the profiles are a"):
        load_listeners(path)


def test_more_clips_shown_than_sung_are_refused_and_seeds_are_bounded() -> None:
    with pytest.raises(ConfigError, match=r"clips_per_prompt \(9\) cannot be above best_of \(8\)"):
        parse_recipe({"clips_per_prompt": 9}, DemoSettings)
    with pytest.raises(ConfigError, match=r"align.pairs_per_prompt \(5\) cannot be above half of best_of \(8\)"):
        parse_recipe({"align": {"pairs_per_prompt": 5}}, DemoSettings)
    with pytest.raises(ConfigError, match=r"expert.keep \(8\) must be below best_of \(8\)"):
        parse_recipe({"expert": {"keep": 8}}, DemoSettings)
    with pytest.raises(ConfigError, match=r"test_votes \(451\) cannot be above 3 for each of 150 test_prompts"):
        parse_recipe({"test_votes": 451}, DemoSettings)
    with pytest.raises(ConfigError, match=r"train_votes \(181\) cannot be above 3 for each pair of clips"):
        parse_recipe({"train_votes": 181, "train_prompts": 20, "clips_per_prompt": 3}, DemoSettings)
    with pytest.raises(ConfigError, match="seed is 5000000000"):
        parse_recipe({"seed": 5_000_000_000}, DpoSettings)


def test_the_demo_keeps_its_word_and_the_quick_one_promises_less() -> None:
    full, quick = (load_recipe(CONFIGS / name, DemoSettings) for name in ("tiny.yaml", "quick.yaml"))
    assert full.test_prompts >= 300 and full.test_votes >= 900 and not full.quick
    assert full.align.gate and quick.align.gate
    assert quick.quick and quick.test_prompts < full.test_prompts and quick.test_votes < full.test_votes
