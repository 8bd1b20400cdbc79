"""Versions side by side: equal n, the same clips again, what is measured, battles, the job, the page."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from circle_support import attune
from compare_support import ASKED, SECONDS, make_home

from alignment.circle import compare, measure_version
from alignment.circle.compare_job import COMPARE
from alignment.circle.compare_recipe import CompareRecipe, MetricSettings
from alignment.circle.generate import generate_clips
from alignment.circle.measure_version import measure_versions
from alignment.circle.workspace import Workspace, no_progress
from alignment.config import GenerationSettings
from alignment.db import comparisons, figures, gates, runs
from alignment.db.tables import ComparisonRow, MetricResultRow
from alignment.domain import GenerationConfig, Prompt, RaterKind
from alignment.errors import ConfigError, DataError, ModelError, NotFoundError
from alignment.evaluation.frechet import frechet_distance
from alignment.evaluation.metric_words import METRICS
from alignment.evaluation.metrics import kl_nats_per_clip
from alignment.jobs import Skip, StepContext
from alignment.rewards.encoder import TINY_CLAP

SETTINGS = MetricSettings(generation={"clip_seconds": SECONDS}, rounds=100)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def made(home: Path) -> Iterator[tuple[Workspace, list[Prompt]]]:
    ws, asked = make_home(home)
    yield ws, asked
    ws.database.close()


@pytest.fixture(scope="module")
def found(made: tuple[Workspace, list[Prompt]]) -> comparisons.Comparison:
    return measure_versions(made[0], ["v1", "base"], prompts=made[1], settings=SETTINGS)


@contextmanager
def silent(name: str):
    yield no_progress


def rows(ws: Workspace, table: type) -> int:
    with ws.database.session(write=False) as s:
        return s.scalar(sa.select(sa.func.count()).select_from(table))


def test_every_metric_of_the_list_is_measured_of_both_versions_with_equal_n(found) -> None:
    for name in ("v1", "base"):
        measured = {one.metric for one in found.metrics if one.version == name}
        assert measured == set(METRICS) - ({"kl"} if name == "base" else set()), name
    for one in found.metrics:
        assert one.n == (4 if one.metric == "diversity" else 8), one
        assert one.low <= one.value <= one.high, one
    assert found.about["clips"] == 8 and found.about["prompts"] == 4


def test_the_exact_model_behind_a_metric_is_named(made, found) -> None:
    clap = made[0].encoder.name
    assert found.of("v1", "clap_score").model == clap and clap.startswith("clap:")
    assert found.of("v1", "fad").model == f"{clap}, reference 8 clips of base"
    with made[0].database.session(write=False) as s:
        record = runs.get_reward_model(s, "likes-1")
    assert found.of("v1", "reward_preference").model == f"likes-1 {record.artefact_sha256[:12]}"
    assert found.of("v1", "silence").model is None


def test_the_figures_are_those_of_the_clips_themselves(made, found) -> None:
    ws, asked = made
    with ws.database.session(write=False) as s:
        prompts = comparisons.compared_prompts(s, found.id)
    assert [one.prompt.text for one in prompts] == list(ASKED)
    clips = [clip for one in prompts for clip in one.clips["v1"]]
    heard = ws.embed_audio([clip.audio_sha256 for clip in clips])
    text = ws.embed_text([one.prompt.text for one in prompts])
    cosines = [heard[c.audio_sha256] @ text[one.prompt.text] for one in prompts for c in one.clips["v1"]]
    assert found.of("v1", "clap_score").value == pytest.approx(np.mean(cosines), abs=1e-6)
    spread = [1 - float(heard[a.audio_sha256] @ heard[b.audio_sha256]) for a, b in (o.clips["v1"] for o in prompts)]
    assert found.of("v1", "diversity").value == pytest.approx(np.mean(spread), abs=1e-6)
    facts = [clip.facts.silence_ratio for clip in clips]
    assert found.of("v1", "silence").value == pytest.approx(np.mean(facts), abs=1e-9)
    other = generate_clips(
        ws, "base", asked, GenerationConfig(clip_seconds=SECONDS), per_prompt=2, seed=600_000
    )  # fmt: skip
    against = ws.embed_audio([clip.audio_sha256 for prompt in asked for clip in other[prompt.id]])
    expected = frechet_distance(
        np.stack([heard[c.audio_sha256] for c in clips]),
        np.stack([against[c.audio_sha256] for p in asked for c in other[p.id]]),
    )
    assert found.of("v1", "fad").value == pytest.approx(expected, rel=1e-6)


def test_kl_is_that_of_the_sampled_codes_and_the_base_has_none(made, found) -> None:
    import torch

    from alignment.music.text import encode_prompts

    ws, asked = made
    own = generate_clips(ws, "v1", asked, GenerationConfig(clip_seconds=SECONDS), per_prompt=2, seed=0)
    policy = ws.policy(ws.version("v1"))
    ours, base = [], []
    for prompt in asked:
        codes = torch.from_numpy(np.stack([ws.store.get_codes(clip.codes_sha256) for clip in own[prompt.id]])).long()
        with torch.no_grad():
            text = encode_prompts(policy, [prompt.text] * 2)
            ours.append(policy.logprobs(codes, text).numpy())
            with policy.reference():
                base.append(policy.logprobs(codes, text).numpy())
    expected = kl_nats_per_clip(np.concatenate(ours), np.concatenate(base)).value
    assert found.of("v1", "kl").value == pytest.approx(expected, rel=1e-4) and expected > 1
    assert found.of("base", "kl") is None


def test_the_versions_sing_with_the_same_seeds_and_the_reference_with_others(made, found) -> None:
    with made[0].database.session(write=False) as s:
        for one in comparisons.compared_prompts(s, found.id):
            seeds = {name: [clip.seed for clip in takes] for name, takes in one.clips.items()}
            assert seeds["v1"] == seeds["base"] and len(set(seeds["v1"])) == 2
    # Were the base its own reference with the same seeds, its distance would be 0.
    assert found.of("base", "fad").value > 0.001


def test_the_differences_are_those_of_the_same_prompts_and_narrower_than_the_intervals(found) -> None:
    gaps = {(one.metric, one.model): one for one in found.differences}
    for (metric, model), gap in gaps.items():
        first, other = found.of("v1", metric, model), found.of("base", metric, model)
        assert gap.value == pytest.approx(first.value - other.value, abs=1e-9), metric
        assert (gap.version, gap.against) == ("v1", "base")
    level = gaps["clap_score", found.of("v1", "clap_score").model]
    assert math.isfinite(level.low) and level.low <= level.value <= level.high
    assert ("kl", None) not in gaps


def test_the_same_content_and_the_same_job_give_the_rows_that_are_there(made, found) -> None:
    ws, asked = made
    before = rows(ws, MetricResultRow)
    assert measure_versions(ws, ["v1", "base"], prompts=asked, settings=SETTINGS).id == found.id
    first = measure_versions(ws, ["v1", "base"], prompts=asked[:2], settings=SETTINGS, job_id="job-1", name="by job")
    after = rows(ws, MetricResultRow)
    again = measure_versions(ws, ["v1", "base"], prompts=asked[:3], settings=SETTINGS, job_id="job-1")
    assert again.id == first.id and rows(ws, MetricResultRow) == after == before + len(first.metrics)
    with pytest.raises(DataError, match="by job exists with other content"):
        measure_versions(ws, ["v1", "base"], prompts=asked, settings=SETTINGS, name="by job")


def test_what_fails_while_measuring_leaves_nothing_half_recorded(made, monkeypatch) -> None:
    ws, asked = made
    before = rows(ws, MetricResultRow), rows(ws, ComparisonRow)

    def broken(*_: object) -> None:
        raise DataError("the disk is gone")

    monkeypatch.setattr(measure_version, "_record_scores", broken)
    with pytest.raises(DataError, match="the disk is gone"):
        measure_versions(ws, ["v1", "base"], prompts=asked[1:], settings=SETTINGS)
    assert (rows(ws, MetricResultRow), rows(ws, ComparisonRow)) == before


def test_the_gate_finds_the_metrics_and_the_sentinel_the_scores(made, found) -> None:
    with made[0].database.session(write=False) as s:
        latest = gates.latest_metrics(s, "v1")
        ids = [clip.id for one in comparisons.compared_prompts(s, found.id) for clip in one.clips["v1"]]
        scores = figures.clip_scores(s, ids)["likes-1"]
    assert latest["silence"][0] == found.of("v1", "silence").value and latest["diversity"][3] in (2, 3, 4)
    mean = np.mean([preference for preference, _ in scores.values()])
    assert len(scores) == 8 and mean == pytest.approx(found.of("v1", "reward_preference").value)


def test_training_clips_are_those_of_the_lineages_train_split_and_the_very_clip_is_no_copy(
    made, found, tmp_path: Path
) -> None:
    ws, _ = made
    with ws.database.session(write=False) as s:
        from alignment.db.prompts import list_prompts
        from alignment.domain import Split

        seen = list_prompts(s, split=Split.TRAIN)
    assert found.about["snapshots"] == ["votes-1"] and 0 < found.about["training_clips"] <= 12
    # The base sings the prompts of the votes with the votes' seeds: each clip *is* a training clip.
    own = measure_versions(
        ws, ["base", "v1"], prompts=seen, settings=SETTINGS.model_copy(update={"reference": "none"}), name="own"
    )
    assert own.about["training_clips"] and own.of("base", "copied").value == 0
    assert own.of("base", "nearest_training").value > 1e-5
    assert own.of("base", "fad") is None and own.about["reference"] is None
    html = compare.write_comparison(ws, "own", tmp_path / "own.html").read_text(encoding="utf-8")
    assert "4 of the 4 prompts are of a split that training may see." in html


def test_a_folder_of_audio_is_a_reference_and_its_content_is_named(made, tmp_path: Path) -> None:
    ws, asked = made
    rng = np.random.default_rng(0)
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", rng.normal(0, 0.1, (8000, 2)), 22_050)
    settings = SETTINGS.model_copy(update={"reference": str(tmp_path), "reward_models": ()})
    own = measure_versions(ws, ["v1"], prompts=asked[:2], settings=settings)
    about = own.about["reference"]
    assert about["clips"] == 3 and len(about["sha256"]) == 64 and about["name"] == tmp_path.name
    assert own.of("v1", "fad").model.endswith(f"reference 3 clips of {tmp_path.name} {about['sha256'][:12]}")
    assert own.of("v1", "reward_preference") is None and not own.differences
    (tmp_path / "0.wav").write_bytes(b"RIFF no audio at all")
    with pytest.raises(DataError, match=r"0\.wav: no audio that can be read"):
        measure_versions(ws, ["v1"], prompts=asked[:2], settings=settings)
    for name in ("1.wav", "2.wav"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="1 audio files .* needs two or more"):
        measure_versions(ws, ["v1"], prompts=asked[:2], settings=settings)


@pytest.mark.parametrize(
    ("names", "count", "changes", "error", "said"),
    [
        (["v1", "v1"], 4, {}, DataError, "name each once"),
        (["v1", "base"], 1, {}, DataError, "Found 1 prompt; metrics with intervals need two"),
        (["v1", "nobody"], 4, {}, NotFoundError, "No version is called nobody; known: base, v1"),
        (["v1"], 4, {"reference": "version:nobody"}, NotFoundError, "No version is called nobody"),
        (["v1"], 4, {"reference": "no/such/folder"}, DataError, "no such folder; a reference is base"),
        (["v1"], 4, {"reward_models": ("none",)}, NotFoundError, "No reward model is called none"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(made, names, count, changes, error, said) -> None:
    ws, asked = made
    before = rows(ws, MetricResultRow)
    with pytest.raises(error, match=said):
        measure_versions(ws, names, prompts=asked[:count], settings=SETTINGS.model_copy(update=changes))
    assert rows(ws, MetricResultRow) == before


def test_a_recipe_without_prompts_or_with_one_version_is_refused_with_every_fault() -> None:
    from alignment.config import parse_recipe

    for faulty, said in (
        ({"versions": ["a", "b"]}, "no prompts; give prompts, prompt_set, split or captions"),
        ({"versions": ["a"], "captions": 3}, "name two versions or more"),
        ({"versions": ["a", "a"], "captions": 3}, "each once"),
        ({"versions": ["a", "b"], "caption": 3}, "caption"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_recipe(faulty, CompareRecipe)


RECIPE = CompareRecipe(
    versions=("v1", "base"), prompts=ASKED, metrics=SETTINGS, battles="simulated", votes=6, raters=2, name="six votes"
)


def context(ws: Workspace, home: Path, step: str, results: dict, recipe: CompareRecipe = RECIPE) -> StepContext:
    return StepContext(
        job_id="job-2", step=step, home=home, database_url=ws.database.url, run_dir=home / "jobs" / "job-2",
        recipe=recipe.model_dump(mode="json"), results=results,
    )  # fmt: skip


def test_each_step_of_the_job_may_run_twice(made, home: Path) -> None:
    ws, _ = made
    results: dict = {}
    for step in COMPARE.steps:
        results[step.name] = step.run(context(ws, home, step.name, results))
        counts = rows(ws, MetricResultRow), rows(ws, ComparisonRow)
        assert step.run(context(ws, home, step.name, results)) == results[step.name]
        assert (rows(ws, MetricResultRow), rows(ws, ComparisonRow)) == counts
    json.dumps(results)
    assert [step.gpu for step in COMPARE.steps] == [True, True, False, False]
    with ws.database.session(write=False) as s:
        found = comparisons.get_comparison(s, results["measure"]["comparison"])
    contests, simulated = compare.contests_of(ws, found)
    assert found.job_id == "job-2" and simulated and contests[0].rate.votes == 6
    html = Path(results["page"]["page"]).read_text(encoding="utf-8")
    assert "Simulated listeners" in html and html.count("<audio") == 8


def test_a_job_without_battles_or_page_says_what_it_skipped(made, home: Path) -> None:
    ws, _ = made
    quiet = RECIPE.model_copy(update={"battles": "none", "page": False, "name": None})
    for name in ("battles", "page"):
        step = next(one for one in COMPARE.steps if one.name == name)
        assert isinstance(step.run(context(ws, home, name, {"measure": {"comparison": "x"}}, quiet)), Skip)


def test_people_get_a_drafted_study_of_the_same_prompts(made, found) -> None:
    ws, _ = made
    study = compare.human_study(ws, found.name)
    assert compare.human_study(ws, found.name).id == study.id
    assert study.state == "draft" and study.rater_kind is RaterKind.HUMAN and set(study.versions) == {"v1", "base"}
    with ws.database.session(write=False) as s:
        assert comparisons.get_comparison(s, found.name).studies == (found.name,)


def test_the_command_names_figures_contests_and_page(made, home: Path, tmp_path: Path, capsys) -> None:
    arguments = ["compare", "v1", "base", "--seconds", SECONDS, "--votes", "6", "--raters", "2", "--home", home]
    for text in ASKED:
        arguments += ["--prompt", text]
    done = attune(capsys, *arguments, "--json", "--report", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert (done.json["candidate"], done.json["opponent"], done.json["votes"]) == ("v1", "base", 6)
    assert done.json["contests"][0]["win_rate"] == done.json["win_rate"] and done.json["simulated"] is True
    assert {one["metric"] for one in done.json["metrics"]} >= {"fad", "kl", "silence"}
    assert (tmp_path / "page.html").exists()
    said = attune(capsys, *arguments, "--battles", "none")
    assert "CLAP score" in said.out and "±" not in said.out and re.search(r"v1 vs base: \d", said.out)
    shown = attune(capsys, "compare", "--recorded", done.json["comparison"], "--home", home, "--json")
    assert shown.json | {"report": None} == done.json | {"report": None}
    both = attune(capsys, "compare", "v1", "--recorded", "x", "--home", home)
    assert both.code == 1 and "not both" in both.err
    refused = attune(capsys, "compare", "v1", "nobody", "--home", home)
    assert refused.code == 1 and "No version is called nobody" in refused.err and "Traceback" not in refused.err


def test_more_audio_than_fits_lies_beside_the_page_and_says_that_it_is_generated(made, found, tmp_path: Path) -> None:
    ws, _ = made
    path = compare.write_comparison(ws, found.name, tmp_path / "page.html", inline_bytes=0)
    html = path.read_text(encoding="utf-8")
    files = re.findall(r'src="(page-clips/[^"]+)"', html)
    assert len(files) == 8 and "data:audio" not in html and "media-src 'self' file:" in html
    with soundfile.SoundFile(tmp_path / files[0]) as first, soundfile.SoundFile(tmp_path / files[1]) as second:
        assert first.comment == "AI-generated, version v1" and second.comment == "AI-generated, version base"
    inlined = compare.write_comparison(ws, found.name, tmp_path / "one.html").read_text(encoding="utf-8")
    assert inlined.count("data:audio/flac") == 8 and "media-src data:" in inlined
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_clips_at_another_rate_are_not_given_to_simulated_listeners(made, found, monkeypatch) -> None:
    monkeypatch.setattr(compare, "SAMPLE_RATE_HZ", 32_000)
    with pytest.raises(DataError, match="16000 Hz; let people compare them"):
        compare.simulate_battles(made[0], found.name, RECIPE, no_progress)


def test_a_name_for_nothing_is_refused_with_the_newest(made, found) -> None:
    with (
        pytest.raises(NotFoundError, match=f"No comparison is called {uuid.UUID(int=0)}; the newest: .*{found.name}"),
        made[0].database.session(write=False) as s,
    ):
        comparisons.get_comparison(s, str(uuid.UUID(int=0)))


def test_where_people_voted_their_votes_stand_alone(made, found, monkeypatch) -> None:
    from types import SimpleNamespace

    from alignment.domain import Outcome

    def votes(outcome: Outcome) -> list:
        side = SimpleNamespace
        return [
            SimpleNamespace(
                left=side(clip_id="1", version="v1"), right=side(clip_id="2", version="base"), outcome=outcome,
                rater_id=f"r{i % 2}", prompt_id=f"p{i}",
            )
            for i in range(4)
        ]  # fmt: skip

    said = {"programs": votes(Outcome.B), "people": votes(Outcome.A), "waiting": []}
    kinds = {"programs": RaterKind.SIMULATED, "people": RaterKind.HUMAN, "waiting": RaterKind.HUMAN}
    monkeypatch.setattr(compare.listen, "votes_of", lambda ws, name: said[name])
    monkeypatch.setattr(compare.studies, "get_study", lambda s, name: SimpleNamespace(rater_kind=kinds[name]))

    def asked(*names: str):
        contests, simulated = compare.contests_of(made[0], replace(found, studies=names))
        return [(c.label, c.rate.value, c.rate.votes) for c in contests], simulated

    assert asked("programs", "people") == ([("v1 vs base", 1.0, 4)], False)
    assert asked("programs", "waiting") == ([("v1 vs base", 0.0, 4)], True)
    assert asked("waiting") == ([], False)


def test_versions_sing_as_people_hear_the_first_that_says_how(made, monkeypatch) -> None:
    ws, _ = made
    listening = GenerationConfig(temperature=0.9, top_k=20, guidance=3.0, clip_seconds=2.0)
    plain = ws.version("base")
    heard = {"v1": plain, "base": replace(plain, listening=listening)}
    monkeypatch.setattr(Workspace, "version", lambda self, name: heard[name])
    left_open = MetricSettings()

    def sung(settings: MetricSettings, *names: str) -> GenerationConfig:
        return measure_version.sampling(measure_version.resolved(ws, names, settings))

    assert sung(left_open, "v1", "base") == listening and sung(left_open, "v1") == GenerationConfig()
    assert sung(SETTINGS, "base") == replace(listening, clip_seconds=SECONDS)
    whole = MetricSettings(generation=GenerationSettings(top_k=7))
    copied = left_open.model_copy(update={"generation": GenerationSettings(top_k=7)})
    assert sung(whole, "base") == sung(copied, "base") == GenerationConfig(top_k=7)


def test_a_web_page_checks_the_recipe_without_torch() -> None:
    code = "import sys, alignment.circle.compare_job as c; c.CompareRecipe(versions=('a', 'b'), captions=2); print(" + (
        "sorted({'torch', 'transformers', 'dbos'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_recipe_that_ships_is_whole() -> None:
    from alignment.config import REPOSITORY, load_recipe

    recipe = load_recipe(REPOSITORY / "configs" / "compare.yaml", CompareRecipe)
    assert recipe.versions == ("tiny-dpo", "tiny-base") and recipe.metrics.reference == "base"


def test_another_clap_is_named_and_a_missing_one_refused(made, found, tmp_path: Path) -> None:
    ws, asked = made
    shutil.copytree(TINY_CLAP, tmp_path / "other-clap")
    settings = {"clap": str(tmp_path / "other-clap"), "reward_models": (), "reference": "none", "training_clips": 0}
    own = measure_versions(ws, ["v1"], prompts=asked, settings=SETTINGS.model_copy(update=settings))
    assert own.of("v1", "clap_score").model.startswith("clap:other-clap:")
    assert own.of("v1", "clap_score").value == pytest.approx(found.of("v1", "clap_score").value, abs=1e-6)
    assert own.of("v1", "copied") is None and own.about["training_clips"] == 0
    missing = SETTINGS.model_copy(update={"clap": str(tmp_path)})
    with pytest.raises(ModelError, match="no CLAP here"):
        measure_versions(ws, ["v1"], prompts=asked, settings=missing)
