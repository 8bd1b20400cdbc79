"""Jobs, versions, comparisons and the leaderboard over HTTP: who may look, who may change, and what is told."""

from __future__ import annotations

import html
import re
import shutil
from datetime import timedelta

import pytest
import sqlalchemy as sa
from admin_support import HOSTILE, admin_site, form_values, post, token_in
from bench_support import NAMES, PROMPTS, Bench, bench_site, reopened, tone

from alignment import versions as registry
from alignment.clips import ClipStore
from alignment.db import clips, gates, job_workers, jobs, prompts, version_changes, versions
from alignment.db.accounts import list_audit
from alignment.db.base import utcnow
from alignment.db.clips import NewClip
from alignment.db.side_by_side import sung_by_all
from alignment.domain import GenerationConfig, Split, VersionStatus
from alignment.evaluation.intervals import Interval
from alignment.jobs import status
from rating_app.admin import jobs_told, pages_compare, pages_jobs, pages_leaderboard, pages_versions, view
from rating_app.admin.app import CONTENT_SECURITY_POLICY
from tests.database_support import any_database, any_url, postgres_server, postgres_url, sqlite_url  # noqa: F401

MODULES = (pages_jobs, pages_versions, pages_compare, pages_leaderboard)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """Read, but never changed, by the tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_workers, "SILENT_SECONDS", 1e6)  # however long these tests take, its worker is not lost
        bench = bench_site(tmp_path_factory.mktemp("bench"))
        yield bench
        bench.site.database.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A database with a base, its champion ``v1``, and the candidates ``v2`` and ``dreamt``, for ``fresh`` to copy."""
    folder = tmp_path_factory.mktemp("template")
    site = admin_site(folder, filled=False)
    with site.database.session() as s:
        versions.add_version(s, name="base", base="tiny", base_sha256="0" * 64)
        for n, name in enumerate(("v1", "v2", "dreamt")):
            versions.add_version(
                s, name=name, base="tiny", base_sha256="0" * 64, parent="base", adapter_sha256=str(n) * 64,
                adapter_uri=f"adapters/{n}", simulated=name == "dreamt",
            )  # fmt: skip
    registry.promote(site.database, "v1", actor="tests", force=True, reason="the first")
    site.database.close()
    return folder


@pytest.fixture
def fresh(template, tmp_path):
    """A site of one test's own, on a copy of the template, without any job."""
    site = reopened(shutil.copytree(template, tmp_path / "home"))
    yield site
    site.database.close()


def _addresses(bench: Bench) -> list[tuple[str, str]]:
    filled = {
        "job_id": bench.running, "version_id": str(bench.version("dpo-8").id), "action": "promote",
        "comparison_id": str(bench.comparison), "name": "report.html", "clip_id": str(bench.clips[0]),
    }  # fmt: skip
    return [
        (method, "/admin" + route.path.format(**filled))
        for module in MODULES
        for route in module.router.routes
        for method in route.methods
        if method != "HEAD"
    ]


def _audit(site) -> list[tuple[str, str, str | None]]:
    with site.database.session(write=False) as s:
        return [(one.actor, one.action, one.subject) for one in list_audit(s)]


def _text(page: str) -> str:
    """What a reader sees, without what only assistive technology reads."""
    page = re.sub(r'<span class="hidden">.*?</span>', "", page, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def _job(site, kind: str = "compare", **recipe) -> str:
    wanted = {"versions": ["base", "v1"], "captions": 4, **recipe}
    return status.submit(site.admin.state.settings, kind, wanted, asked_by="tests")


# ---- who may what ------------------------------------------------------------------------------------------------


def test_a_stranger_is_sent_to_the_log_in_page_from_every_address(bench):
    client, addresses = bench.site.client(None), _addresses(bench)
    assert len(addresses) > 18
    for method, address in addresses:
        answer = client.request(method, address, data={} if method == "POST" else None)
        assert (answer.status_code, answer.headers["location"]) == (303, "/admin/login"), (method, address)
        fragment = client.request(method, address, headers={"x-attune-fragment": "1"})
        assert fragment.status_code == 401 and not fragment.content


def test_every_form_needs_the_token_of_its_own_session_and_its_own_site(bench):
    ada, olga = bench.site.client("ada"), bench.site.client("olga")
    token_of_olga = token_in(olga.get("/admin/password").text)
    own = token_in(ada.get("/admin/password").text)
    before = _audit(bench.site)
    for method, address in _addresses(bench):
        if method == "POST":
            for token in ("", "0" * 64, token_of_olga):
                assert ada.post(address, data={"token": token, "sure": "yes"}).status_code == 403, address
            foreign = ada.post(address, data={"token": own, "sure": "yes"}, headers={"origin": "http://evil.test"})
            assert foreign.status_code == 403
    assert _audit(bench.site) == before


def test_an_organiser_looks_at_everything_and_changes_nothing(bench):
    olga, before = bench.site.client("olga"), _audit(bench.site)
    token = token_in(olga.get("/admin/password").text)
    for method, address in _addresses(bench):
        if method == "POST":
            answer = olga.post(address, data={"token": token, "sure": "yes", "force": "yes", "reason": "x"})
            assert answer.status_code == 404, address
        elif address != "/admin/jobs/new":
            page = olga.get(address)
            assert page.status_code == (422 if address == "/admin/compare/listen" else 200), address
            posts = re.findall(r'<form method="post" action="([^"]+)"', page.text)
            assert set(posts) <= {"/admin/logout"}, address
    assert olga.get("/admin/jobs/new").status_code == 404
    assert _audit(bench.site) == before
    assert bench.version("dpo-8").status is VersionStatus.CANDIDATE


def test_every_answer_carries_the_policy_and_no_page_needs_more_than_it_allows(bench):
    client = bench.site.client()
    pages = [address for method, address in _addresses(bench) if method == "GET"]
    listen = "/admin/compare/listen?version=musicgen-small&version=expert-2"
    for address in [*pages, listen, f"/admin/static/{view.static_digest()}/player/abplayer.js"]:
        answer = client.get(address)
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY, address
        if "text/html" in answer.headers.get("content-type", ""):
            assert "no-store" in answer.headers["cache-control"]
            assert not re.search(r"<script>|<style|style=|\son[a-z]+=\"", answer.text), address
            assert HOSTILE not in answer.text, address
    assert "&lt;script&gt;window.injected=1" in client.get(f"/admin/jobs/job/{bench.running}").text
    assert "&lt;script&gt;window.injected=1" in client.get(listen).text


# ---- jobs --------------------------------------------------------------------------------------------------------


def test_the_list_says_what_runs_how_far_and_why_each_job_ended(bench):
    text = _text(bench.site.client().get("/admin/jobs").text)
    for part in ("align · step 430 of 1000", "The GPU ran out of memory in align", "17 new votes, fewer than 100",
                 "0 3 * * *", "gpu-1"):  # fmt: skip
        assert part in text, part
    page = bench.site.client().get(f"/admin/jobs/job/{bench.failed}").text
    assert re.search(r'class="problem">The GPU ran out of memory', page) and ">Resume<" in page
    running = bench.site.client().get(f"/admin/jobs/job/{bench.running}").text
    assert (
        re.findall(r'class="step-(\w+)"><span class="step-name">', running)
        == ["done"] * 3 + ["running"] + ["pending"] * 5
    )


def test_the_state_is_json_whose_mark_changes_with_a_step_and_not_with_a_share(fresh):
    client, job_id = fresh.client(), _job(fresh)
    ledger = status.ledger_of(fresh.admin.state.settings)
    with ledger.session() as s:
        job_workers.beat(s, name="w", host="w", pid=7, code="c1")
        jobs.step_names(s, job_id, ("sing", "measure"))
        jobs.move_job(s, job_id, to="running", step="sing", executor="w")
        jobs.set_step(s, job_id, "sing", state="running", started=utcnow() - timedelta(seconds=30), share=0.25)
    first = client.get("/admin/jobs/state").json()
    # Two steps weigh the same while nobody knows better, and a quarter of the first is done.
    assert [(one["id"], one["state"], one["share"]) for one in first["jobs"]] == [(job_id, "running", 0.125)]
    assert first["jobs"][0]["line"].startswith("sing · 12% of all")
    with ledger.session() as s:
        jobs.set_step(s, job_id, "sing", share=0.5, text="5 of 10 clips")
    second = client.get("/admin/jobs/state").json()
    assert second["mark"] == first["mark"] and second["jobs"][0]["line"].startswith("sing · 5 of 10 clips · 25% of all")
    with ledger.session() as s:
        jobs.set_step(s, job_id, "measure", reason="the reference is missing")
    third = client.get("/admin/jobs/state").json()
    assert third["mark"] != second["mark"]  # there is something new to read
    with ledger.session() as s:
        jobs.set_step(s, job_id, "sing", state="done", share=1.0)
        jobs.move_job(s, job_id, to="running", step="measure")
    assert client.get("/admin/jobs/state").json()["mark"] not in (first["mark"], third["mark"])
    own = client.get(f"/admin/jobs/job/{job_id}/state").json()
    assert own["jobs"][0]["line"].startswith("measure") and own["log"]["lines"][0].endswith("asked for by tests")
    assert client.get(f"/admin/jobs/job/{job_id}/state?after={own['log']['next']}").json()["log"]["lines"] == []


def test_a_log_is_plain_text_and_the_page_holds_its_newest_lines_alone(fresh):
    client, job_id = fresh.client(), _job(fresh)
    with status.ledger_of(fresh.admin.state.settings).session() as s:
        jobs.add_lines(s, job_id, [f"line {n} of many" for n in range(4500)], step="sing")
        jobs.add_line(s, job_id, "\x1b[2K\x1b[1;32mgreen\x1b[0m\x07 end", step="sing")
    page = client.get(f"/admin/jobs/job/{job_id}").text
    assert "line 4101 of many" in page and "line 4100 of many" not in page
    assert "The newest 400 lines; 4,102 older ones are in the whole log." in page
    assert "green end" in page and "\x1b" not in page and "\x07" not in page
    whole = client.get(f"/admin/jobs/job/{job_id}/log")
    assert whole.headers["content-type"].startswith("text/plain") and "no-store" in whole.headers["cache-control"]
    assert len(whole.text.splitlines()) == 4502 and whole.text.splitlines()[1].endswith("sing: line 0 of many")


def test_a_page_that_a_job_wrote_is_a_file_to_keep_and_nothing_else_is(fresh, tmp_path):
    client, job_id = fresh.client("olga"), _job(fresh)
    folder = tmp_path / "home" / "jobs" / job_id
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<script>1</script>")
    (folder / "sing.log").write_text("text")
    (folder / "secret.html").symlink_to(tmp_path / "home" / "attune.db")
    address = f"/admin/jobs/job/{job_id}"
    page = client.get(address).text
    assert f'href="{address}/page/report.html"' in page and "secret.html" not in page and "sing.log" not in page
    answer = client.get(f"{address}/page/report.html")
    assert answer.text == "<script>1</script>" and answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}-report.html"'
    for name in ("secret.html", "sing.log", "nothing.html"):
        assert client.get(f"{address}/page/{name}").status_code == 404, name
    assert fresh.client(None).get(f"{address}/page/report.html").headers["location"] == "/admin/login"


def test_a_job_whose_worker_is_lost_says_so_and_can_be_resumed(fresh):
    client, job_id = fresh.client(), _job(fresh)
    settings, address = fresh.admin.state.settings, f"/admin/jobs/job/{job_id}"
    with status.ledger_of(settings).session() as s:
        job_workers.beat(s, name="gpu-2", host="gpu-2", pid=7, code="c1")
        jobs.step_names(s, job_id, ("sing",))
        jobs.move_job(s, job_id, to="running", step="sing", executor="gpu-2")
    assert ">Resume<" not in client.get(address).text and "no sign of life" not in client.get("/admin/jobs").text
    with status.ledger_of(settings).session() as s:
        job_workers.ended(s, "gpu-2")
    assert ">Resume<" in client.get(address).text
    assert "sing: Its worker gpu-2 gives no sign of life" in client.get("/admin/jobs/state").json()["jobs"][0]["line"]
    assert post(client, address, f"{address}/resume").status_code == 303
    assert status.get_job(settings, job_id).state == "queued"


def test_an_admin_starts_cancels_and_resumes_a_job_and_each_is_logged(fresh):
    client = fresh.client()
    recipe = "versions: [base, v1]\ncaptions: 4\n"
    made = post(client, "/admin/jobs/new?kind=compare", "/admin/jobs/new", kind="compare", recipe=recipe)
    assert made.status_code == 303
    address = made.headers["location"]
    job_id = address.rpartition("/")[2]
    job = status.get_job(fresh.admin.state.settings, job_id)
    assert (job.state, job.asked_by, job.recipe["versions"]) == ("queued", "ada", ["base", "v1"])
    assert "No worker is at work" in client.get("/admin/jobs").text
    assert post(client, address, f"{address}/cancel").status_code == 303
    assert status.get_job(fresh.admin.state.settings, job_id).state == "cancelled"
    assert "cancelled" in client.get(address).text
    again = post(client, address, f"{address}/cancel")
    assert again.status_code == 422 and "nothing to cancel" in again.text
    assert post(client, address, f"{address}/resume").status_code == 303
    assert status.get_job(fresh.admin.state.settings, job_id).state == "queued"
    assert post(client, address, f"{address}/resume").status_code == 422
    for action in ("job.start", "job.cancel", "job.resume"):
        assert ("ada", action, job_id) in _audit(fresh)
    assert _audit(fresh).count(("ada", "job.cancel", job_id)) == 1  # what was refused is not in the log


def test_a_button_pressed_twice_starts_one_job_and_another_recipe_another(fresh):
    client, settings = fresh.client(), fresh.admin.state.settings
    page = client.get("/admin/jobs/new?kind=compare").text
    sent = {"token": token_in(page), "kind": "compare", "mark": re.search(r'name="mark" value="([^"]+)"', page)[1]}
    recipe = "versions: [base, v1]\ncaptions: 4"
    answers = [client.post("/admin/jobs/new", data=sent | {"recipe": text}) for text in (recipe, recipe, recipe + "0")]
    first, again, other = (answer.headers["location"] for answer in answers)
    assert first == again != other and first.endswith(sent["mark"])
    assert [job.recipe["captions"] for job in status.list_jobs(settings)] == [40, 4]
    values = form_values(client.get("/admin/compare").text) | {"versions": ["base", "v1"]}
    assert len({client.post("/admin/compare", data=values).headers["location"] for _ in range(2)}) == 1
    crooked = client.post("/admin/compare", data=values | {"mark": ["../x"]}).headers["location"]
    assert re.fullmatch(r"/admin/jobs/job/compare-[0-9-]+-[0-9a-f]{6}", crooked)
    assert [action for _, action, _ in _audit(fresh)].count("job.start") == 4


def test_a_job_is_planned_by_a_cron_time_and_removed_again(fresh):
    client = fresh.client()
    values = {
        "kind": "compare",
        "recipe": "versions: [base, v1]\ncaptions: 4",
        "cron": "0 3 * * *",
        "name": "each night",
    }
    assert post(client, "/admin/jobs/new", "/admin/jobs/new", **values).headers["location"] == "/admin/jobs#planned"
    page = client.get("/admin/jobs").text
    assert "each night" in page and "0 3 * * *" in page
    assert post(client, "/admin/jobs/new", "/admin/jobs/new", **values).status_code == 422  # the name is taken
    assert post(client, "/admin/jobs", "/admin/jobs/unplan", name="each night").status_code == 303
    assert "Nothing begins by itself" in client.get("/admin/jobs").text
    assert post(client, "/admin/jobs/new", "/admin/jobs/unplan", name="each night").status_code == 404
    assert {("ada", "job.plan", "each night"), ("ada", "job.unplan", "each night")} <= set(_audit(fresh))


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"recipe": "versions: [base"}, "not valid YAML"),
        ({"recipe": "- base"}, "must be lines of"),
        ({"recipe": "versions: [base, v1]\ncaptions: 4\nvotess: 3"}, "did you mean votes?"),
        ({"recipe": ""}, "versions"),
        ({"kind": "nothing", "recipe": ""}, "There is no job kind"),
        ({"recipe": "versions: [base, v1]\ncaptions: 4", "cron": "at three"}, "cron line needs 5"),
    ],
)
def test_a_job_that_cannot_start_is_told_why_and_keeps_what_was_typed(fresh, sent, said):
    answer = post(fresh.client(), "/admin/jobs/new", "/admin/jobs/new", **{"kind": "compare", **sent})
    assert answer.status_code == 422 and said in _text(answer.text)
    assert sent["recipe"].split("\n")[-1] in answer.text
    assert status.list_jobs(fresh.admin.state.settings) == []


def test_addresses_of_jobs_that_do_not_exist_say_so(bench):
    client = bench.site.client()
    for address in ("/admin/jobs/job/nothing", "/admin/jobs/job/nothing/log", "/admin/jobs/new?kind=nothing"):
        assert client.get(address).status_code == 404, address
    assert client.get(f"/admin/jobs/job/{bench.running}/state?after=x").status_code == 404


def test_an_app_without_jobs_says_so_and_shows_everything_else(tmp_path):
    site = admin_site(tmp_path, filled=False)
    client = site.client()
    missing = client.get("/admin/jobs")
    assert missing.status_code == 404 and "attune serve" in missing.text
    assert client.get("/admin/versions").status_code == client.get("/admin/compare").status_code == 200
    assert client.get("/admin/leaderboard").status_code == 200
    site.database.close()


# ---- versions ----------------------------------------------------------------------------------------------------


def test_a_version_is_drawn_down_to_its_votes_with_its_figures_and_the_gates_reasons(bench):
    text = _text(bench.site.client().get(bench.page("dpo-8")).text)
    for part in ("training dpo 86 min · commit c0ffeec0ffee · job nightly-4", "snapshot votes-3 404 votes",
                 "303 train, 101 test", "votes Autumn listening 404 votes of 14 raters on 19 prompts",
                 "version musicgen-small champion", "0.350 0.342 to 0.358 8", "It won: win rate 64.1%",
                 "config.beta – 0.1", "CLAP score"):  # fmt: skip
        assert part in text, part


def test_versions_stand_under_the_one_they_were_trained_from(bench):
    page = bench.site.client().get("/admin/versions").text
    rows = re.findall(r'class="depth-(\d)"><a href="[^"]+">([^<]+)</a>', page)
    assert rows == [("0", "musicgen-small"), ("1", "dpo-7"), ("2", "dpo-8"), ("1", "expert-2")]
    assert len(re.findall("trained on simulated votes", page)) == 1


def test_a_circle_of_parents_or_a_lost_one_hides_no_version():
    from alignment.domain import Version

    made = [Version(view_id, name, "b", "0", VersionStatus.CANDIDATE, parent=parent) for view_id, name, parent in (
        (1, "orphan", "gone"), (2, "child", "orphan"), (3, "root", None))]  # fmt: skip
    assert [(v.name, depth) for v, depth in pages_versions.family(made)] == [("orphan", 0), ("child", 1), ("root", 0)]
    deep = [Version(n, str(n), "b", "0", VersionStatus.CANDIDATE, parent=str(n - 1) if n else None) for n in range(9)]
    assert [depth for _, depth in pages_versions.family(deep)] == [0, 1, 2, 3, 4, 5, 6, 6, 6]


def _address(site, name: str) -> str:
    with site.database.session(write=False) as s:
        return f"/admin/versions/{versions.get_version(s, name).id}"


def _champion(site) -> str:
    return registry.champion(site.database).name


def test_a_version_is_promoted_on_the_gates_word_and_only_then_without_force(fresh):
    client, page = fresh.client(), _address(fresh, "v2")
    refused = post(client, page, f"{page}/promote", sure="yes", reason="it sounds better")
    assert refused.status_code == 422 and 'role="alert"' in refused.text and _champion(fresh) == "v1"
    assert "it sounds better" in refused.text  # what was typed is still there
    with fresh.database.session() as s:
        gates.record_decision(s, candidate="v2", champion="v1", outcome="promoted", evidence={}, alpha_spent=0.01)
    unsure = post(client, page, f"{page}/promote", reason="x")
    assert unsure.status_code == 422 and "Tick the box" in unsure.text and _champion(fresh) == "v1"
    assert post(client, page, f"{page}/promote", sure="yes").status_code == 303
    assert _champion(fresh) == "v2"
    change = _changes(fresh)[-1]
    assert (change.version, change.action, change.forced, change.actor) == ("v2", "promote", False, "ada")


def _changes(site):
    with site.database.session(write=False) as s:
        return version_changes.list_changes(s)


def test_force_takes_a_reason_and_both_are_in_the_log(fresh):
    client, page = fresh.client(), _address(fresh, "v2")
    refused = post(client, page, f"{page}/promote", sure="yes", force="yes")
    assert refused.status_code == 422 and "takes a reason" in refused.text and _champion(fresh) == "v1"
    assert post(client, page, f"{page}/promote", sure="yes", force="yes", reason="the demo is today").status_code == 303
    assert _champion(fresh) == "v2" and ("ada", "version.promote.forced", "v2") in _audit(fresh)
    assert "the demo is today" in client.get(page).text and "the demo is today" in client.get("/admin/log").text
    assert "without the gate" in client.get(page).text


def test_an_admin_goes_back_to_the_champion_before_with_a_reason(fresh):
    client, page = fresh.client(), _address(fresh, "v2")
    post(client, page, f"{page}/promote", sure="yes", force="yes", reason="try it")
    old = _address(fresh, "v1")
    wrong = post(client, page, f"{old}/rollback", sure="yes", reason="x")
    assert wrong.status_code == 409 and _champion(fresh) == "v2"  # v1 is no champion, so there is nothing to take back
    assert post(client, page, f"{page}/rollback", sure="yes").status_code == 422
    assert post(client, page, f"{page}/rollback", sure="yes", reason="raters complain").status_code == 303
    assert _champion(fresh) == "v1" and ("ada", "version.rollback", "v1") in _audit(fresh)


def test_a_retired_version_is_offered_nowhere_and_keeps_its_page(fresh):
    client, page = fresh.client(), _address(fresh, "v2")
    champion = _address(fresh, "v1")
    assert post(client, champion, f"{champion}/retire", sure="yes", reason="old").status_code == 422
    assert post(client, page, f"{page}/retire", sure="yes").status_code == 422
    assert post(client, page, f"{page}/retire", sure="yes", reason="it hisses").status_code == 303
    assert client.get(page).status_code == 200 and "it hisses" in client.get(page).text
    for form in ("/admin/compare", "/admin/studies/new"):
        assert 'value="v1"' in client.get(form).text and 'value="v2"' not in client.get(form).text
    assert ("ada", "version.retire", "v2") in _audit(fresh)


def test_a_version_that_simulated_votes_trained_is_not_promoted_where_people_listen(fresh):
    from database_support import fill

    fill(fresh.database, battles=2, kind="human")
    with fresh.database.session() as s:
        from alignment.db.tables import StudyRow

        s.execute(sa.update(StudyRow).values(state="open"))
    client, page = fresh.client(), _address(fresh, "dreamt")
    refused = post(client, page, f"{page}/promote", sure="yes", force="yes", reason="why not")
    assert refused.status_code == 422 and "imulated" in refused.text and _champion(fresh) == "v1"


def test_wrong_addresses_of_versions_lead_nowhere(fresh):
    client, page = fresh.client(), _address(fresh, "v2")
    assert client.get("/admin/versions/x").status_code == 404
    assert client.get("/admin/versions/00000000-0000-0000-0000-000000000000").status_code == 404
    assert post(client, page, f"{page}/delete", sure="yes", reason="x").status_code == 404
    assert post(client, page, f"{page}/retire", sure="yes", reason="x" * 2001).status_code == 422
    assert client.get(f"{page}?against=nothing").status_code == 200


# ---- comparisons -------------------------------------------------------------------------------------------------


def test_a_comparison_tells_every_figure_with_interval_and_n_and_what_is_clearly_apart(bench):
    page = bench.site.client().get(f"/admin/compare/show/{bench.comparison}").text
    text = _text(page)
    # 0.31, 0.33 and 0.35, each 0.008 up and down: one digit of that is three decimals.
    for name, value in (("CLAP score", "0.310 0.302 to 0.318"), ("", "0.350 0.342 to 0.358"),
                        ("Silence", "0.012 0.004 to 0.020")):  # fmt: skip
        assert name in text and value in text, value
    assert "above musicgen-small by 0.040 0.020 to 0.060" in text
    assert len(re.findall(r'class="apart"', page)) == 1  # the other difference's interval holds 0
    assert "laion/clap-htsat-unfused" in text and len(re.findall(r'<td class="num">8</td>', page)) == 2
    assert "dpo-7 against musicgen-small" in text and "against expert-2" not in text  # not in this comparison
    assert f"/admin/studies/new?{'&amp;'.join('version=' + name for name in NAMES)}" in page


def test_a_study_of_the_compared_versions_is_one_click_away(bench):
    page = bench.site.client().get("/admin/studies/new?version=dpo-7&version=dpo-8&prompt_set=held-out").text
    assert re.findall(r'name="versions" value="([^"]+)" checked', page) == ["dpo-7", "dpo-8"]
    assert 'value="held-out" selected' in page


def test_a_clip_is_what_raters_hear_in_whole_and_in_part(bench):
    client = bench.site.client("olga")
    with bench.site.database.session(write=False) as s:
        clip = clips.get_clips(s, [bench.clips[0]])[bench.clips[0]]
    expected = bench.site.store.rendition(clip.audio_sha256)
    answer = client.get(f"/admin/compare/clip/{clip.id}")
    assert answer.content == expected and answer.headers["content-type"] == "audio/flac"
    part = client.get(f"/admin/compare/clip/{clip.id}", headers={"range": "bytes=4-9"})
    assert (part.status_code, part.content) == (206, expected[4:10])
    head = client.head(f"/admin/compare/clip/{clip.id}")
    assert head.headers["content-length"] == str(len(expected)) and not head.content
    assert client.get("/admin/compare/clip/x").status_code == 404
    assert client.get(f"/admin/compare/clip/{bench.comparison}").status_code == 404
    for address in ("/admin/compare/show/x", f"/admin/compare/show/{clip.id}"):
        assert client.get(address).status_code == 404


def test_a_clip_that_the_store_lost_is_an_answer_and_no_accident(bench, tmp_path):
    bench.site.admin.state.store, kept = ClipStore(str(tmp_path)), bench.site.admin.state.store
    try:
        answer = bench.site.client().get(f"/admin/compare/clip/{bench.clips[3]}")
    finally:
        bench.site.admin.state.store = kept
    assert answer.status_code == 503 and "That did not work" in answer.text


def test_versions_are_heard_side_by_side_without_a_comparison(bench):
    client = bench.site.client()
    page = client.get("/admin/compare/listen?version=dpo-8&version=musicgen-small").text
    heard = re.findall(r'class="sung-prompt">([^<]+)<', page)
    assert [html.unescape(one) for one in heard] == list(reversed(PROMPTS))  # the newest first
    assert len(re.findall(r'href="/admin/compare/clip/', page)) == len(PROMPTS) * 2 * 2
    for wrong in (
        "",
        "?version=dpo-8",
        "?version=dpo-8&version=dpo-8",
        "?" + "&".join(f"version={n}" for n in range(9)),
    ):
        assert client.get(f"/admin/compare/listen{wrong}").status_code == 422, wrong
    assert client.get("/admin/compare/listen?version=dpo-8&version=nothing").status_code == 404
    marked = client.get("/admin/compare/listen?version=expert-2&version=musicgen-small").text
    assert "Simulated votes trained expert-2" in marked


def test_only_prompts_that_all_have_sung_under_one_setting_are_side_by_side(any_database, tmp_path):  # noqa: F811
    short, long = GenerationConfig(clip_seconds=1.0), GenerationConfig(clip_seconds=2.0)
    sha256, facts = ClipStore(str(tmp_path)).put_audio(tone(1), 16_000)
    with any_database.session() as s:
        for name in ("v1", "v2"):
            versions.add_version(s, name=name, base="tiny", base_sha256="0" * 64)
        both, one, apart, twice = prompts.add_prompts(s, [(t, "tests", Split.TEST, {}) for t in ("b", "o", "a", "t")])
        rows = [
            (both, "v1", short, 1), (both, "v2", short, 1), (both, "v2", short, 2), (one, "v1", short, 1),
            (apart, "v1", short, 1), (apart, "v2", long, 1), (twice, "v1", long, 1), (twice, "v2", long, 1),
            (twice, "v1", short, 1), (twice, "v2", short, 1),
        ]  # fmt: skip
        clips.add_clips(s, [NewClip(p.id, v, g, seed, sha256, None, facts) for p, v, g, seed in rows])
    with any_database.session(write=False) as s:
        found = sung_by_all(s, ["v2", "v1"])
        newest = sung_by_all(s, ["v2", "v1"], limit=1)
    assert [one.prompt.text for one in found] == ["t", "b"] and [one.prompt.text for one in newest] == ["t"]
    # Equally many takes of each; where two settings are shared, the one under which they sang last.
    assert {name: len(takes) for name, takes in found[1].clips.items()} == {"v2": 1, "v1": 1}
    assert {clip.generation for takes in found[0].clips.values() for clip in takes} == {short}


def test_an_admin_starts_a_comparison_from_the_form(fresh):
    client = fresh.client()
    page = client.get("/admin/compare?version=v1&version=base").text
    assert re.findall(r'name="versions" value="([^"]+)" checked', page) == ["base", "v1"]
    assert re.search(r'<select id="f-split"[^>]*><option value="" selected>none<', page)
    sent = form_values(page) | {"captions": ["12"], "metrics.generation.clip_seconds": ["2"]}
    made = client.post("/admin/compare", data=sent)
    assert made.status_code == 303, made.text
    job = status.get_job(fresh.admin.state.settings, made.headers["location"].rpartition("/")[2])
    assert (job.kind, job.asked_by, job.recipe["captions"]) == ("compare", "ada", 12)
    assert job.recipe["metrics"]["generation"]["clip_seconds"] == 2 and job.recipe["metrics"]["reward_models"] is None
    assert job.recipe["split"] is None
    assert all("base · v1" in client.get(f"/admin/compare{part}").text for part in ("", "/figures"))
    assert [one["id"] for one in client.get("/admin/compare/state").json()["jobs"]] == [job.id]
    assert ("ada", "job.start", job.id) in _audit(fresh)


def test_faults_of_the_form_are_told_at_their_fields_and_nothing_starts(fresh):
    client = fresh.client()
    values = form_values(client.get("/admin/compare").text)
    for sent, said in (
        ({"versions": ["base"], "captions": "many"}, ("f-versions-fault0", "f-captions-fault0", 'value="many"')),
        ({"versions": ["base", "v1"], "captions": "0"}, ("There are no prompts",)),
        ({"versions": ["base", "nothing"], "captions": "4"}, ("No version is called nothing",)),
    ):
        answer = client.post("/admin/compare", data=values | sent)
        assert answer.status_code == 422 and all(part in answer.text for part in said), said
    assert status.list_jobs(fresh.admin.state.settings) == []


def test_the_list_of_comparisons_leads_to_each(bench):
    page = bench.site.client("olga").get("/admin/compare").text
    assert f'href="/admin/compare/show/{bench.comparison}">autumn</a>' in page and "New comparison" not in page


# ---- the leaderboard ---------------------------------------------------------------------------------------------


def test_the_leaderboard_shows_what_the_command_records(bench, tmp_path):
    import json

    from typer.testing import CliRunner

    from alignment.cli import app

    said = CliRunner().invoke(app, ["leaderboard", "--json", "--database", bench.settings.database_url])
    board = json.loads(said.stdout.splitlines()[-1])
    text = _text(bench.site.client("olga").get("/admin/leaderboard").text)
    assert f"{board['votes']} blind votes by {board['raters']} raters on {board['prompts']} prompts" in text
    for row in board["versions"]:
        assert re.search(
            rf"{row['version']}.*{row['rating']:,.0f} {row['low']:,.0f} to {row['high']:,.0f} .*{row['votes']} "
            rf"{row['wins']} {row['losses']} {row['ties'] + row['both_bad']}", text
        ), row  # fmt: skip
    for sentence in board["sentences"]:
        assert sentence in text


def test_a_slice_counts_only_its_votes_and_says_how_to_record_it(bench):
    client = bench.site.client()
    asked = "study=Autumn+listening&since=2020-01-01&until=2100-01-01&listeners=people"
    page = client.get(f"/admin/leaderboard?{asked}").text
    assert "340 blind votes" in _text(page)
    command = "attune leaderboard --study &#39;Autumn listening&#39; --since 2020-01-01 --until 2100-01-01"
    assert command in page
    empty = _text(client.get("/admin/leaderboard?until=2001-01-01").text)
    assert "No vote between two versions counts here yet" in empty
    none = _text(client.get("/admin/leaderboard?listeners=simulated").text)
    assert (
        "hold 340 votes of people; the two are never on one leaderboard" in none.replace(" ,", ",")
        or "votes of people" in none
    )
    for wrong in ("tag=no=such", "cohort=nobody", "study=nothing", "since=yesterday"):
        answer = client.get(f"/admin/leaderboard?{wrong}")
        assert answer.status_code == 422 and 'role="alert"' in answer.text, wrong


def test_a_leaderboard_is_computed_again_only_when_votes_came_in(bench, monkeypatch):
    from alignment.db.leaderboards import Slice
    from rating_app.admin import leaderboard_cache

    made, clock = [], [0.0]
    real = leaderboard_cache.make_leaderboard
    monkeypatch.setattr(leaderboard_cache, "make_leaderboard", lambda *a, **k: made.append(1) or real(*a, **k))
    cache = leaderboard_cache.LeaderboardCache(bench.site.database, timer=lambda: clock[0])
    first = cache.of(Slice(), simulated=None)
    clock[0] = 1000.0
    assert cache.of(Slice(), simulated=None) is first and len(made) == 1
    counts = {False: 9999, True: 0}
    monkeypatch.setattr(leaderboard_cache.records, "count_votes", lambda *a: counts)
    assert cache.of(Slice(), simulated=None) is not first and len(made) == 2


def test_a_leaderboard_of_simulated_listeners_is_marked(tmp_path):
    from database_support import fill

    site = admin_site(tmp_path, filled=False)
    fill(site.database, battles=2)
    page = site.client().get("/admin/leaderboard").text
    assert "No vote between two versions counts here yet" in page
    site.database.close()


# ---- how things are written --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119.4, "119 s"), (119.6, "2 min"), (7140, "119 min"),
     (7200, "2 h 00 min"), (11_100, "3 h 05 min"), (172_800, "2 d 0 h"), (200_000, "2 d 8 h"), (float("nan"), "–")],
)  # fmt: skip
def test_durations_are_written_as_people_say_them(seconds, said):
    assert view.duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.31, 0.302, 0.318, "0.310 0.302 to 0.318"),
        (0.0402, 0.0201, 0.0603, "0.040 0.020 to 0.060"),
        (-23.14, -23.6, -22.7, "−23.14 −23.60 to −22.70"),
        (0.3022, -2.8, 3.4, "0.3 −2.8 to 3.4"),
        (1234.5, 1100.0, 1400.0, "1,234 1,100 to 1,400"),
        (0.0, 0.0, 0.0, "0 0 to 0"),
        (0.01234, float("nan"), float("nan"), "0.0123 no interval"),
        (0.5, None, None, "0.500 no interval"),
        (float("nan"), 0.0, 1.0, "– 0.0 to 1.0"),
    ],
)
def test_a_figure_has_as_many_digits_as_its_interval_is_worth(value, low, high, said):
    found = Interval(value, low, high, 8)
    assert f"{view.figure_of(found)} {view.span_figure(found)}" == said


def test_colours_and_bells_of_a_terminal_are_no_text():
    assert jobs_told.plain("\x1b[31mred\x1b[0m\x1b[2K\r\n") == "red"
    assert jobs_told.plain("tab\tstays\x00\x7f") == "tab\tstays"
