"""The benchmarks of DPO and PPO: they run, contestants compute the same, and the phases are the whole."""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path

import pytest

from scripts import bench_common, bench_dpo, bench_options, bench_ppo

NANO = "--shape nano --pairs 2 --steps 2 --json".split()


@pytest.fixture(scope="module")
def measured() -> dict[str, dict]:
    """Every contestant, one after the other in this process."""
    options = bench_dpo.parse(NANO)
    return {who: bench_dpo.measure(who, options) for who in bench_dpo.CONTESTANTS}


def test_every_contestant_begins_at_the_reference_and_reads_as_many_tokens(measured: dict[str, dict]) -> None:
    for one in measured.values():
        assert one["losses"][0] == pytest.approx(math.log(2), abs=1e-5)  # DPO's loss where policy and reference agree
        assert len(one["losses"]) == 3 and one["tokens_a_step"] == 2 * 2 * 13  # 10 frames, 3 delayed steps more
        assert one["seconds_a_step"] > 0
        assert one["tokens_per_second"] == pytest.approx(52 / one["seconds_a_step"])


def test_ours_learns_the_same_with_and_without_checkpointing_or_a_cached_reference(measured: dict[str, dict]) -> None:
    plain = measured["attune"]["losses"]
    assert plain[2] != plain[0]
    for who in ("attune-checkpointing", "attune-no-cache"):
        assert measured[who]["losses"] == pytest.approx(plain, abs=1e-6)


def test_trl_learns_the_same_with_and_without_its_own_cache(measured: dict[str, dict]) -> None:
    plain = measured["trl"]["losses"]
    assert abs(plain[2] - plain[0]) > 1e-6
    assert measured["trl-as-it-comes"]["losses"] == pytest.approx(plain, abs=1e-5)


def test_the_report_compares_ours_with_each_and_its_last_line_is_json(
    measured: dict[str, dict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_dpo, "_in_its_own_process", lambda who, options: measured[who])
    bench_dpo.main(NANO)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    speed = {who: one["tokens_per_second"] for who, one in report["contestants"].items()}
    assert set(speed) == set(bench_dpo.CONTESTANTS)
    assert report["ratio_trl"] == pytest.approx(speed["attune"] / speed["trl"], abs=0.006)
    assert report["ratio_no_cache"] == pytest.approx(speed["attune"] / speed["attune-no-cache"], abs=0.006)
    assert report["machine"] and report["trl"] and report["torch"] and report["device"]


@pytest.mark.slow
def test_each_contestant_runs_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    bench_dpo.main([*NANO, "--contestants", "attune,trl"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["contestants"]) == {"attune", "trl"} and report["ratio_trl"] > 0


def test_the_phases_of_ppo_are_the_whole_and_a_clock_changes_nothing(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    model = bench_common.load_shape("nano")
    iterations, result = bench_ppo.timed(model, 4, 0.5, 2, tmp_path / "timed", lambda: float(next(ticks)))
    assert len(iterations) == 2 and tuple(iterations[0]) == bench_ppo.PHASES
    # Every look at the clock is one second. Rollout, policy and value update are clocked once; the codec once, within
    # the scoring; log-probabilities twice, of policy and reference. Each spans one tick from its begin to its end.
    for one in iterations:
        assert one["rollout"] == one["codec"] == one["policy update"] == one["value update"] == 1
        assert one["log-probabilities"] == 2 and one["scoring"] == 3 - 1
        assert sum(one.values()) == 15  # 14 looks within an iteration, and the one that ends it
    again = bench_common.load_shape("nano")
    _, twice = bench_ppo.timed(again, 4, 0.5, 2, tmp_path / "again", lambda: 0.0)
    for one, other in zip(result.history, twice.history, strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in other.items() if "seconds" not in k
        }
    assert model.hf.audio_encoder.decode.__qualname__.startswith("Encodec")


def test_the_ppo_benchmark_reports_the_shape_and_what_sampler_and_trainer_differ_by() -> None:
    report = bench_ppo.measure(bench_ppo.parse("--shape nano --clips 2 --steps 1".split()))
    assert report["frames"] == 25 and report["clips"] == 2 and report["drift"] < 1e-4
    assert report["seconds_an_iteration"] == pytest.approx(sum(report["phases"].values()))
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(
    ("parse", "arguments", "told"),
    [
        (bench_dpo.parse, "--shape big", "bench_dpo: argument --shape: 'big' is none of attune-tiny"),
        (bench_dpo.parse, "--pairs 0", "'0' is not a whole number from 1"),
        (bench_dpo.parse, "--contestants me", "'me' is none of attune, attune-checkpointing"),
        (bench_ppo.parse, "--seconds -1", "'-1' is not a length above 0"),
        (bench_ppo.parse, "--clips none", "'none' is not a whole number"),
    ],
)
def test_a_bad_argument_is_one_sentence_and_a_failure(
    parse: object, arguments: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and told in said and len(said.strip().splitlines()) == 1


def test_peak_memory_is_what_was_used_above_the_start() -> None:
    with mmap.mmap(-1, 300 * 2**20) as past:
        past.write(b"1" * len(past))  # a highest memory that must be forgotten
    memory = bench_options.PeakMemory("cpu")
    if memory.before is None:
        pytest.skip("this system does not let a process forget its highest memory")
    with mmap.mmap(-1, 64 * 2**20) as fresh:  # pages that nothing before has left to the process
        fresh.write(b"1" * len(fresh))
    assert 50 < memory.above() < 140  # and perhaps the bytes written there
