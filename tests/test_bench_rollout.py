"""The rollout benchmark: it runs, its contestants compute the same, and its last line is what scripts may read."""

from __future__ import annotations

import importlib.util
import json

import pytest

from alignment.domain import GenerationConfig
from scripts import bench_common as common
from scripts.bench_rollout import main, race

audiocraft = pytest.mark.skipif(importlib.util.find_spec("audiocraft") is None, reason="audiocraft is not installed")
NANO = "--shape nano --batch 1,2 --seconds 0.1 --repeats 1 --threads 1 --top-k 20 --json".split()


@audiocraft
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_codes_of_all_three_are_identical(guidance: float):
    model = common.load_shape("nano")
    prompts = common.equal_prompts(model, 3)
    greedy = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=0.4)
    codes = common.ours(model)(prompts, greedy)
    assert codes.shape == (3, 4, 20) and len(codes.unique()) > 20
    assert (codes == common.transformers_generate(model)(prompts, greedy)).all()
    assert (codes == common.audiocraft_generate(model)(prompts, greedy)).all()


@audiocraft
def test_the_last_line_is_one_json_object_with_the_named_keys(capsys: pytest.CaptureFixture[str]):
    main(NANO)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    nano = report["shapes"]["nano"]
    assert nano["greedy_codes_equal"] == {"transformers": True, "audiocraft": True}
    assert (nano["codebooks"], nano["width"], nano["frames"], nano["steps"]) == (4, 32, 5, 8)
    for batch in ("batch_1", "batch_2"):
        speeds = nano["frames_per_second"][batch]
        assert min(speeds.values()) > 0
        faster = max(speeds["transformers"], speeds["audiocraft"])
        assert report[f"ratio_{batch}"] == nano[f"ratio_{batch}"] == pytest.approx(speeds["attune"] / faster, abs=0.02)
    assert (report["guidance"], report["top_k"], report["threads"]) == (3.0, 20, 1)
    assert report["machine"] and report["torch"] and report["transformers"] and report["audiocraft"]


def test_one_peer_will_do_and_its_absent_rival_is_not_reported(capsys: pytest.CaptureFixture[str]):
    main([*NANO, "--peers", "transformers"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["shapes"]["nano"]["frames_per_second"]["batch_1"]) == {"attune", "transformers"}


def test_contestants_take_turns_and_medians_are_reported():
    order: list[str] = []
    ticks = iter([0.0, 1.0, 1.0, 3.0, 3.0, 8.0, 8.0, 9.0, 9.0, 11.0, 11.0, 18.0])  # ours 1 5 2, theirs 2 1 7
    medians = race({"ours": lambda: order.append("ours"), "theirs": lambda: order.append("theirs")}, 3, ticks.__next__)
    assert order == ["ours", "theirs"] * 3
    assert medians == {"ours": 2.0, "theirs": 2.0}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--batch 0", "'0' is not a whole number from 1"),
        ("--shape big", "'big' is none of attune-tiny, musicgen-small, nano"),
        ("--seconds nan", "'nan' is not a length above 0"),
        ("--guidance 0.5", "'0.5' is not a number from 1"),
        ("--peers nobody", "'nobody' is none of transformers, audiocraft"),
        ("--shape nano --top-k 65", "nano has 64 codes a book; top-k is 65"),
    ],
)
def test_a_bad_argument_is_one_sentence_and_a_failure(arguments: str, told: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    said = capsys.readouterr().err or str(stopped.value.code)
    assert stopped.value.code not in (0, None)
    assert told in said and len(said.strip().splitlines()) == 1


def test_the_floor_is_weights_and_cache_read_once_a_step_worked_by_hand():
    model = common.load_shape("nano")  # 2 layers of width 32, 4 heads of 64 codes
    layer = 4 * 32 * 32 + 4 * 32 * 32 + 2 * 32 * 128 + 3 * 2 * 32  # two attentions, feed-forward, three norms
    weights = 4 * (2 * layer + 4 * 64 * 32)
    cached = (1 + 2 + 3 + 4 + 5) * 2 * 2 * 32 * 4  # five steps; keys and values of two layers
    assert common.bytes_read(model, 1, 2, 1.0) == 5 * weights + cached
    assert common.bytes_read(model, 3, 2, 3.0) == 5 * weights + 6 * cached
    ticks = iter([0.0, 2.0, 2.0, 3.0, 3.0, 8.0, 8.0, 9.0, 9.0, 11.0])
    assert common.read_bandwidth("cpu", ticks.__next__) == 256 * 2**20
