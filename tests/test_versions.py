"""The registry: what a version keeps of its origin, what is refused, its lineage down to the votes, differences."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from circle_support import attune
from safetensors.torch import load_file, save_file

from alignment.circle.workspace import Workspace
from alignment.config import LoraSettings
from alignment.db import accounts, migrate, people, runs, versions
from alignment.db.base import utcnow
from alignment.db.engine import create_engine
from alignment.db.tables import MetricResultRow, RaterRow, TrainRunRow
from alignment.domain import GenerationConfig, RaterKind
from alignment.errors import DataError, ModelError, NotFoundError, StoreError
from alignment.music.sampler import sample
from alignment.versions import champion, differences, lineage, register_base, tree
from tests.database_support import any_database, any_url, postgres_server, postgres_url, sqlite_url  # noqa: F401
from tests.version_support import DPO, LISTENING, Registry, decide, freeze, open_registry, reward_model, save_adapter

GREEDY = GenerationConfig(top_k=1, clip_seconds=0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Twelve simulated votes, a snapshot, a reward model of it, two versions; read only."""
    folder = tmp_path_factory.mktemp("registry")
    registry = open_registry(f"sqlite:///{folder / 'attune.db'}", folder, kind=RaterKind.SIMULATED)
    taken = freeze(registry.database, kind=RaterKind.SIMULATED)
    reward_model(registry.database, "likes-1", taken)
    run = {"snapshot_id": taken, "reward_models": ["likes-1"], "seconds": 12.0}
    first = registry.register("v1", registry.adapter(folder / "a1", seed=1), simulated=True, run=run, job_id="night-1")
    registry.register(
        "v2", registry.adapter(folder / "a2", seed=2, lora=LoraSettings(r=2)), parent=first, simulated=True,
        run={"kind": "ppo", "config": DPO | {"kl_coef": 0.05}}, listening=GenerationConfig(guidance=3.0),
        licence="research only",
    )  # fmt: skip
    with registry.database.session() as s:
        for name, value in (("v1", 0.20), ("v2", 0.40)):
            for metric, width in (("diversity", 0.05), ("clap", 0.15)):
                s.execute(
                    sa.insert(MetricResultRow).values(
                        version_id=versions.get_version(s, name).id, metric=metric, n=64, value=value,
                        model="clap:tiny" if metric == "clap" else None, value_low=value - width,
                        value_high=value + width, created_at=utcnow(),
                    )
                )  # fmt: skip
    decide(registry.database, "v1", "base", "undecided", simulated=True)
    return registry


@pytest.fixture
def fresh(tmp_path: Path, made: Registry) -> Iterator[Registry]:
    """The same in a home of its own, free to be changed."""
    with sqlite3.connect(made.database.engine.url.database) as whole, sqlite3.connect(tmp_path / "attune.db") as copy:
        whole.backup(copy)
    shutil.copytree(made.store.root, tmp_path / "store")
    from alignment.clips import ClipStore
    from alignment.db.engine import open_database

    database = open_database(f"sqlite:///{tmp_path / 'attune.db'}")
    yield Registry(database, ClipStore(tmp_path / "store"), made.base, made.source)
    database.close()


def get(registry: Registry, name: str):
    with registry.database.session(write=False) as s:
        return versions.get_version(s, name)


def counts(registry: Registry) -> tuple[int, int]:
    with registry.database.session(write=False) as s:
        return len(versions.list_versions(s)), len(runs.list_train_runs(s))


# Registering ----------------------------------------------------------------------------------------------


def test_a_version_keeps_its_listening_config_and_licence_and_hands_them_to_its_children(made: Registry):
    assert get(made, "base").listening == get(made, "v1").listening == LISTENING
    assert get(made, "base").licence == get(made, "v1").licence == "CC-BY-NC-4.0"
    assert get(made, "v2").listening == GenerationConfig(guidance=3.0) and get(made, "v2").licence == "research only"


def test_what_a_base_did_not_say_is_filled_in_later_and_never_changed(fresh: Registry):
    about = {"base": "nowhere", "base_sha256": "a" * 64}
    assert register_base(fresh.database, name="other", **about).licence is None
    assert register_base(fresh.database, name="other", **about, licence="MIT", listening=GREEDY).listening == GREEDY
    again = register_base(fresh.database, name="other", **about, licence="CC0-1.0", listening=LISTENING)
    assert again.licence == "MIT" and again.listening == GREEDY == get(fresh, "other").listening


@pytest.mark.parametrize(
    ("base", "licence"), [("tiny", "MIT"), ("facebook/musicgen-small", "CC-BY-NC-4.0"), ("someone/else", None)]
)
def test_known_bases_bring_their_licence(fresh: Registry, base: str, licence: str | None):
    assert register_base(fresh.database, name="known", base=base, base_sha256="a" * 64).licence == licence


def test_the_same_job_registers_once_and_another_name_for_it_is_refused(fresh: Registry, tmp_path: Path):
    before = counts(fresh)
    other = fresh.adapter(tmp_path / "other", seed=9)  # whatever it brings
    again = fresh.register("v1", other, simulated=True, job_id="night-1")
    assert again == get(fresh, "v1") and counts(fresh) == before
    with pytest.raises(DataError, match="Job night-1 has registered version v1 already and now names it v7"):
        fresh.register("v7", other, simulated=True, job_id="night-1")
    assert counts(fresh) == before


def test_workers_that_register_one_job_at_once_register_it_once(any_database, made: Registry, tmp_path: Path):  # noqa: F811
    about = {"base": str(made.source), "base_sha256": made.base.base_sha256}
    base = register_base(any_database, name="base", **about)
    registry = Registry(any_database, made.store, base, made.source)
    # A trainer that ran twice need not end with the same bytes.
    adapters = [made.adapter(tmp_path / f"a{seed}", seed=seed) for seed in (1, 2)]
    start, got = threading.Barrier(6), []

    def register(number: int) -> None:
        start.wait()
        got.append(registry.register("night", adapters[number % 2], job_id="night-9").id)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6 and len(set(got)) == 1 and counts(registry) == (2, 1)


def test_workers_that_register_one_base_at_once_register_it_once(any_database, made: Registry):  # noqa: F811
    start, got = threading.Barrier(6), []

    def register(name: str) -> None:
        start.wait()
        got.append(register_base(any_database, name=name, base=str(made.source), base_sha256="a" * 64).id)

    for name in ("base-1", "base-2"):
        got.clear()
        threads = [threading.Thread(target=register, args=(name,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 6 and len(set(got)) == 1


def test_the_same_content_under_its_name_is_the_same_version_without_a_second_run(fresh: Registry, made: Registry):
    before = counts(fresh)
    adapter = fresh.store.path_of(get(fresh, "v1").adapter_uri)
    assert fresh.register("v1", adapter, simulated=True).id == get(made, "v1").id and counts(fresh) == before
    with pytest.raises(DataError, match="Version v2 exists with other content"):
        fresh.register("v2", adapter, simulated=True)
    assert counts(fresh) == before


def test_a_registration_is_in_the_audit_log_with_the_job_that_made_it(made: Registry):
    with made.database.session(write=False) as s:
        lines = [(e.actor, e.subject) for e in accounts.list_audit(s) if e.action == "version.register"]
    assert sorted(lines) == [("engine", "base"), ("engine", "v2"), ("job:night-1", "v1")]


def damaged(folder: Path, how: str) -> str:
    """Damages the adapter and says what the refusal must name."""
    weights = folder / "adapter_model.safetensors"
    if how == "nan":
        tensors = load_file(weights)
        first = sorted(tensors)[0]
        tensors[first].flatten()[3] = float("nan")
        save_file(tensors, weights)
        return "not finite, so the training went wrong"
    if how == "base":
        (folder / "base.json").write_text(json.dumps({"base_sha256": "b" * 64}))
        return "trained on another base"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
        return "is damaged"
    weights.unlink()
    return "has no adapter_model.safetensors"


@pytest.mark.parametrize("how", ["nan", "base", "cut", "missing"])
def test_an_adapter_that_cannot_sing_is_not_registered_at_all(fresh: Registry, tmp_path: Path, how: str):
    adapter = Path(shutil.copytree(fresh.store.path_of(get(fresh, "v1").adapter_uri), tmp_path / "adapter"))
    said, before = damaged(adapter, how), counts(fresh)
    files = sorted(Path(fresh.store.root).rglob("*"))
    with pytest.raises(ModelError, match=said):
        fresh.register("v7", adapter, simulated=True, job_id="night-7")
    assert counts(fresh) == before and sorted(Path(fresh.store.root).rglob("*")) == files
    if how in ("nan", "base"):  # and one that got into the store sings nothing
        _, uri = fresh.store.put_folder(adapter)
        ws = Workspace(fresh.database, fresh.store, "secret")
        from dataclasses import replace

        with pytest.raises(ModelError, match=said):
            ws.policy(replace(get(fresh, "v1"), adapter_uri=uri))


def test_reward_models_of_simulated_votes_make_a_simulated_version(fresh: Registry, tmp_path: Path):
    adapter, run = fresh.adapter(tmp_path / "a", seed=5), {"reward_models": ["likes-1"]}
    before = counts(fresh)
    with pytest.raises(DataError, match="comes from a training on simulated votes; mark it simulated"):
        fresh.register("v7", adapter, run=run)
    with pytest.raises(NotFoundError, match="No reward model is called likes-9; known: likes-1"):
        fresh.register("v7", adapter, run={"reward_models": ["likes-9"]})
    assert counts(fresh) == before


# Singing --------------------------------------------------------------------------------------------------


def test_versions_sing_side_by_side_from_one_base_that_never_changes(fresh: Registry, tmp_path: Path):
    ia3 = save_adapter(fresh.source, tmp_path / "ia3", seed=3, lora=LoraSettings(kind="ia3"))
    loha = save_adapter(fresh.source, tmp_path / "loha", seed=4, lora=LoraSettings(kind="loha", r=2))
    fresh.register("v3", ia3)
    fresh.register("v4", loha)
    ws = Workspace(fresh.database, fresh.store, "secret")
    names = ("base", "v1", "v2", "v3", "v4")
    base = ws.policy(get(fresh, "base"))
    before, weights = base.checksum(), {id(p) for n, p in base.hf.named_parameters() if "lora_" not in n}

    def sung(name: str) -> torch.Tensor:
        model = ws.policy(get(fresh, name))
        assert model is base, "one copy of the base for all"
        assert weights <= {id(p) for p in model.hf.parameters()}
        codes = sample(model, ["calm piano"], generation=GREEDY, seeds=[0]).codes
        assert model.checksum() == before == get(fresh, name).base_sha256
        return codes

    first = {name: sung(name) for name in names}
    for name in (*reversed(names), "v2", "v2", "v1", "base"):
        assert torch.equal(sung(name), first[name]), name
    assert len({codes.numpy().tobytes() for codes in first.values()}) == len(names), "each sings something of its own"
    # A swap that fails leaves the base as it was, too.
    shutil.rmtree(fresh.store.path_of(get(fresh, "v1").adapter_uri))
    with pytest.raises(StoreError, match="is missing"):
        ws.policy(get(fresh, "v1"))
    assert torch.equal(sung("base"), first["base"])


# Lineage --------------------------------------------------------------------------------------------------


def test_the_tree_of_a_version_reaches_the_votes_by_way_of_run_snapshot_and_reward_model(made: Registry):
    grown = tree(made.database, "v2", votes=True).to_json()
    ppo, parent = grown["from"]
    assert (ppo["kind"], ppo["name"], ppo["config"]["kl_coef"], "from" in ppo) == ("training", "ppo", 0.05, False)
    assert parent["name"] == "v1" and parent["simulated"] is True
    dpo, base = parent["from"]
    assert base["name"] == "base" and "from" not in base and base["listening"]["guidance"] == 3.0
    assert dpo["job"] == "night-1" and dpo["seconds"] == 12.0
    snapshot, reward = dpo["from"]
    assert (
        snapshot["votes"] == 12 and snapshot["splits"] == {"train": 8, "test": 4} and snapshot["licence"] == "CC0-1.0"
    )
    assert len(set(snapshot["vote_ids"])) == 12
    (votes,) = snapshot["from"]
    assert {k: votes[k] for k in ("name", "votes", "raters", "prompts", "rater_kind", "withdrawn")} == {
        "name": "heard", "votes": 12, "raters": 3, "prompts": 4, "rater_kind": "simulated", "withdrawn": 0,
    }  # fmt: skip
    assert (votes["first_at"], votes["last_at"]) == ("2026-03-01T12:00:00+00:00", "2026-03-01T12:11:00+00:00")
    assert reward["name"] == "likes-1" and reward["simulated"] is True
    # The reward model learnt from the same snapshot, which is not told twice.
    assert reward["from"][0]["from"] == [
        {"kind": "snapshot", "name": "votes-1", "content_sha256": "5" * 64, "seen": True}
    ]
    steps = lineage(made.database, "v2")
    assert [(a.version.name, a.run_kind, a.snapshot, a.votes, a.reward_models) for a in steps] == [
        ("v2", "ppo", None, None, ()), ("v1", "dpo", "votes-1", 12, ("likes-1",)), ("base", None, None, None, ()),
    ]  # fmt: skip


def test_votes_of_raters_who_withdrew_since_are_counted_and_reach_versions_by_reward_models(fresh: Registry):
    with fresh.database.session() as s:
        one = s.scalars(sa.select(RaterRow.id).order_by(RaterRow.id)).first()
        s.execute(sa.update(RaterRow).where(RaterRow.id == one).values(status="withdrawn"))
        # Nothing of the votes but a reward model led to this one.
        run = runs.add_train_run(s, kind="ppo", snapshot_id=None, config={}, metrics={}, reward_models=["likes-1"])
        about = {"base": "tiny", "base_sha256": "a" * 64, "simulated": True}
        versions.add_version(s, name="taught", train_run_id=run, **about)
        versions.add_version(s, name="untaught", **about)
        assert people.versions_reached(s, one) == ("v1", "v2", "taught")
    votes = tree(fresh.database, "v1").to_json()["from"][0]["from"][0]["from"][0]
    assert (votes["votes"], votes["withdrawn"]) == (12, 4)


def test_differences_are_the_fields_that_differ_and_metrics_with_their_intervals(made: Registry):
    found = {d.field: d for d in differences(made.database, "v1", "v2")}
    pairs = {name: (d.one, d.other) for name, d in found.items()}
    assert pairs["training"] == ("dpo", "ppo") and pairs["parent"] == ("base", "v1")
    assert pairs["config.kl_coef"] == (None, 0.05) and "config.lora.r" not in pairs and "base" not in pairs
    assert pairs["snapshot"] == ("votes-1", None) and pairs["votes"] == (12, None)
    assert pairs["reward_models"] == (["likes-1"], None) and pairs["licence"] == ("CC-BY-NC-4.0", "research only")
    assert pairs["listening.top_k"] == (20, 0) and "listening.guidance" not in pairs
    assert pairs["adapter_sha256"][0] != pairs["adapter_sha256"][1]
    # 0.15 to 0.25 and 0.35 to 0.45 are apart, 0.05 to 0.35 and 0.25 to 0.55 are not.
    assert found["metric.diversity"].apart is True and found["metric.clap (clap:tiny)"].apart is False
    assert pairs["metric.diversity"][0] == {"value": 0.2, "low": pytest.approx(0.15), "high": 0.25, "n": 64}
    assert differences(made.database, "v1", "v1") == []


# The command ----------------------------------------------------------------------------------------------


def home(registry: Registry) -> str:
    return str(Path(registry.database.engine.url.database).parent)


def test_show_draws_the_lineage_with_its_marks_and_prints_it_as_json(made: Registry, capsys):
    shown = attune(capsys, "versions", "show", "v1", "--home", home(made))
    lines = shown.out.splitlines()
    assert lines[0].startswith("v1  (candidate, trained on simulated votes (SIMULATED listeners)): base ")
    assert lines[1].startswith("├─ dpo on snapshot votes-1, 12 s, job night-1, run ")
    assert (
        lines[2] == "│  ├─ snapshot votes-1: 12 SIMULATED votes (8 train, 4 test), sha256 555555555555, licence CC0-1.0"
    )
    assert lines[3] == ("│  │  └─ study heard: 12 votes of 3 SIMULATED raters on 4 prompts, 2026-03-01 to 2026-03-01")
    assert lines[4].startswith("│  └─ reward model likes-1: SIMULATED votes, heads preference on clap:tiny")
    assert lines[5].startswith("│     └─ reward on snapshot votes-1, run ")
    assert lines[6] == "│        └─ snapshot votes-1: as above"
    assert lines[7].startswith("└─ base  (candidate): base ") and "licence CC-BY-NC-4.0" in lines[7]
    assert lines[8] == "clap 0.200 [0.0500, 0.350], n 64, clap:tiny"
    assert lines[10].startswith("gate ") and "over base: undecided" in lines[10]
    found = attune(capsys, "versions", "show", "v1", "--home", home(made), "--json").json
    assert found["tree"]["from"][0]["from"][0]["name"] == "votes-1"
    assert found["decisions"][0]["outcome"] == "undecided" and found["metrics"][0]["n"] == 64


def test_the_commands_list_diff_promote_roll_back_and_retire(fresh: Registry, capsys):
    where = ("--home", home(fresh))
    rows = attune(capsys, "versions", "list", *where, "--json").json
    assert [(r["name"], r["votes"], r["licence"]) for r in rows[-2:]] == [
        ("v1", "simulated", "CC-BY-NC-4.0"), ("v2", "simulated", "research only"),
    ]  # fmt: skip
    told = attune(capsys, "versions", "diff", "v1", "v2", *where).out
    assert "config.kl_coef" in told and "apart" in told and "overlap" in told
    refused = attune(capsys, "versions", "promote", "v1", *where)
    assert refused.code == 1 and "newest decision on v1 over base is 'undecided'" in refused.err and not refused.out
    refused = attune(capsys, "versions", "promote", "v1", "--force", *where)
    assert refused.code == 1 and '--reason "..."' in refused.err
    # No study of people is there, so what simulated votes trained may be promoted by force.
    done = attune(capsys, "versions", "promote", "v1", "--force", "--reason", "a rehearsal", *where)
    assert done.out == "v1 is champion (trained on SIMULATED votes)\n"
    made = decide(fresh.database, "v2", "v1", simulated=True)
    done = attune(capsys, "versions", "promote", "v2", "--decision", str(made), *where, "--json").json
    assert done == {"version": "v2", "status": "champion", "simulated": True, "before": "v1"}
    assert "already" in attune(capsys, "versions", "promote", "v2", *where).out
    back = attune(capsys, "versions", "rollback", "--reason", "it hums", *where)
    assert back.out == "v1 is champion again after v2 (trained on SIMULATED votes)\n"
    gone = attune(capsys, "versions", "retire", "v2", "--reason", "it hums", *where)
    assert gone.out == "v2 is retired (trained on SIMULATED votes)\n"
    shown = attune(capsys, "versions", "show", "v2", *where).out
    assert "promoted after v1 by cli:" in shown and "retired by cli:" in shown and ": it hums" in shown
    for words in (("promote", "v9"), ("retire", "v9", "--reason", "x"), ("show", "v9"), ("diff", "v1", "v9")):
        refused = attune(capsys, "versions", *words, *where)
        assert refused.code == 1 and "No version is called v9; known: " in refused.err
        assert "Traceback" not in refused.err


def test_a_promotion_by_command_looks_whether_the_adapter_is_there(fresh: Registry, capsys):
    shutil.rmtree(fresh.store.path_of(get(fresh, "v1").adapter_uri))
    refused = attune(capsys, "versions", "promote", "v1", "--force", "--reason", "try", "--home", home(fresh))
    assert refused.code == 1 and "is missing; generate it again or restore the store" in refused.err
    assert champion(fresh.database) is None


# The migration --------------------------------------------------------------------------------------------


def test_older_databases_name_the_reward_models_that_their_recipes_used_and_go_back_whole(any_url):  # noqa: F811
    migrate.upgrade(any_url, "0005")
    engine = create_engine(any_url)
    run, model, other, version = (uuid.UUID(int=i) for i in range(1, 5))
    at = "'2026-01-02 03:04:05'"
    with engine.begin() as connection:
        for key, kind, config in (
            (run, "reward", {}), (other, "ppo", {"reward_models": ["likes", "likes", "gone"]}),
        ):  # fmt: skip
            connection.execute(
                sa.insert(TrainRunRow.__table__).values(
                    id=key, kind=kind, config=config, metrics={}, created_at=utcnow()
                )
            )
        connection.exec_driver_sql(
            "INSERT INTO reward_model (id, name, train_run_id, encoder, heads, calibration, artefact_sha256, "
            f"artefact_uri, created_at) VALUES ('{model.hex}', 'likes', '{run.hex}', 'c', '[]', '{{}}', '0', 'x', {at})"
        )
        connection.exec_driver_sql(
            "INSERT INTO version (id, name, base, base_sha256, simulated, status, train_run_id, created_at) VALUES "
            f"('{version.hex}', 'v1', 'tiny', '0', {'false' if 'postgres' in any_url else '0'}, 'champion', "
            f"'{other.hex}', {at})"
        )
    migrate.upgrade(any_url, "0006")
    with engine.connect() as connection:
        used = connection.exec_driver_sql("SELECT train_run_id, reward_model_id FROM train_run_reward_model").all()
        assert [tuple(uuid.UUID(str(key)) for key in row) for row in used] == [(other, model)]
        row = connection.exec_driver_sql("SELECT status, licence, listening_config_id FROM version").one()
        assert tuple(row) == ("champion", None, None)
    migrate.downgrade(any_url, "0005")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT name, status FROM version").one()[1] == "champion"
    assert "version_change" not in sa.inspect(engine).get_table_names()
    engine.dispose()
