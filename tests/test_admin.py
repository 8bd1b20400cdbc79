"""The organisers' side over HTTP: who gets in, what a form may do, and what an organiser can do with a study."""

from __future__ import annotations

import io
import json
import re
import uuid
import zipfile
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from admin_support import HOSTILE, PASSWORD, admin_site, form_values, log_in, post, token_in
from database_support import fill

from alignment.accounts import SingleSignOn
from alignment.db.accounts import list_audit
from alignment.db.studies import get_study, get_study_by_id, list_studies
from alignment.db.tables import StudyRow
from alignment.invites import find_invite
from alignment.studies import StudyRecipe, rules_of
from alignment.versions import promote
from rating_app.admin import pages_accounts, pages_login, pages_studies, pages_study, recipe_form
from rating_app.admin.app import CONTENT_SECURITY_POLICY
from rating_app.admin.visitors import COOKIE
from rating_app.routes import withdrawal_code
from rating_app.tokens import RaterCookie, Tokens


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Read, but never changed, by the tests of this module."""
    site = admin_site(tmp_path_factory.mktemp("site"))
    yield site
    site.database.close()


@pytest.fixture
def fresh(tmp_path):
    """A site of one test's own, with the small study ``study`` of two versions."""
    site = admin_site(tmp_path, filled=False)
    fill(site.database, battles=3, kind="human")
    yield site
    site.database.close()


def _addresses(site) -> list[tuple[str, str]]:
    """Every method and address of the admin but the log-in page and the static files."""
    found = []
    modules = (pages_login, pages_studies, pages_study, pages_accounts)
    for route in [route for module in modules for route in module.router.routes]:
        for method in route.methods:
            if route.path != "/login" and method != "HEAD":
                found.append((method, "/admin" + route.path.replace("{study_id}", str(site.study_id))))
    return found


def test_every_admin_address_sends_a_stranger_to_the_log_in_page(site):
    client = site.client(None)
    addresses = _addresses(site)
    assert len(addresses) > 25
    for method, address in [*addresses, ("GET", "/admin/nothing"), ("GET", "/admin/study/x"), ("GET", "/admin/a/b/c")]:
        answer = client.request(method, address, data={} if method == "POST" else None)
        assert (answer.status_code, answer.headers["location"]) in (
            (303, "/admin/login"), *([(303, "/admin/studies")] if address == "/admin/" else []),
        ), (method, address)  # fmt: skip
        assert "dpo-7" not in answer.text
    assert client.get(f"/admin/study/{site.study_id}/figures", headers={"x-attune-fragment": "1"}).status_code == 401


def test_a_raters_cookie_means_nothing_here(site):
    client = site.client(None)
    rater = Tokens("a secret for tests only").cookie(RaterCookie("0" * 32, (uuid.uuid4(),)))
    for name in ("attune", COOKIE):
        client.cookies.set(name, rater)
        assert client.get("/admin/studies").headers["location"] == "/admin/login"


def test_a_session_cookie_is_kept_from_scripts_other_sites_and_other_paths(site):
    client = site.client(None, scheme="https")
    answer = log_in(client, "ada")
    (cookie,) = [c for c in answer.headers.get_list("set-cookie") if c.startswith(f"{COOKIE}=v1")]
    for part in ("HttpOnly", "SameSite=strict", "Secure", "Path=/admin", "Max-Age=28800"):
        assert part in cookie
    plain = log_in(site.client(None), "ada")
    assert not any("Secure" in c for c in plain.headers.get_list("set-cookie"))


def test_a_wrong_password_gets_one_sentence_and_no_session(site):
    client = site.client(None)
    for name, password in (("ada", "a wrong password"), ("nobody", PASSWORD)):
        answer = log_in(client, name, password)
        assert answer.status_code == 403 and "do not open an account" in answer.text
        assert COOKIE not in client.cookies and password not in answer.text
    site.admin.state.accounts._by_account.forget("ada")


def test_the_log_in_form_works_only_from_its_own_page(site):
    client = site.client(None)
    page = client.get("/admin/login")
    values = {"token": token_in(page.text), "name": "ada", "password": PASSWORD}
    client.cookies.clear()
    assert client.post("/admin/login", data=values).status_code == 403  # the token without the page's cookie
    client.get("/admin/login")
    assert client.post("/admin/login", data=values).status_code == 403  # another page's token
    foreign = {"origin": "http://evil.test"}
    values["token"] = token_in(client.get("/admin/login").text)
    assert client.post("/admin/login", data=values, headers=foreign).status_code == 403
    assert client.post("/admin/login", data=values, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post("/admin/login", data=values, headers={"origin": "http://admin.test"}).status_code == 303


def test_every_form_needs_the_token_of_its_own_session(site):
    ada, olga = site.client("ada"), site.client("olga")
    token_of_olga = token_in(olga.get("/admin/password").text)
    before = _audit(site)
    for method, address in _addresses(site):
        if method == "POST":
            for token in ("", "0" * 64, token_of_olga):
                assert ada.post(address, data={"token": token}).status_code == 403, address
            assert ada.post(address, json={"token": token_of_olga}).status_code == 415
    assert _audit(site) == before


def test_logging_out_ends_the_session_also_for_a_copy_of_its_cookie(site):
    client = site.client("olga")
    copy = client.cookies[COOKIE]
    assert post(client, "/admin/password", "/admin/logout").headers["location"] == "/admin/login"
    client.cookies.set(COOKIE, copy, path="/admin")
    assert client.get("/admin/studies").headers["location"] == "/admin/login"


def test_organisers_do_not_see_accounts_or_the_log(site):
    client = site.client("olga")
    assert client.get("/admin/accounts").status_code == client.get("/admin/log").status_code == 404
    assert 'href="/admin/accounts"' not in client.get("/admin/studies").text
    assert post(client, "/admin/password", "/admin/accounts", name="eve", role="admin").status_code == 404
    assert [one.name for one in site.admin.state.accounts.list()] == ["ada", "olga"]


def test_every_answer_carries_a_policy_without_unsafe_words_and_no_page_needs_them(site):
    client = site.client()
    assert "unsafe" not in CONTENT_SECURITY_POLICY and "default-src 'none'" in CONTENT_SECURITY_POLICY
    pages = [address for method, address in _addresses(site) if method == "GET"]
    for address in [*pages, "/admin/login", "/admin/nothing", "/admin/static/admin.js"]:
        answer = client.get(address)
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY, address
        assert answer.headers["x-frame-options"] == "DENY"
        if "text/html" in answer.headers.get("content-type", ""):
            assert "no-store" in answer.headers["cache-control"]
            assert not re.search(r"<script>|<style|style=|\son[a-z]+=\"", answer.text), address
            assert 'content="same-origin"' in answer.text or "/figures" in address


def test_hostile_words_stay_words(site):
    client = site.client()
    page = client.get(f"/admin/study/{site.study_id}").text
    assert HOSTILE not in page and "&lt;script&gt;window.injected=1" in page


def test_an_admin_adds_disables_and_enables_accounts_and_it_is_logged(fresh):
    client = fresh.client()
    assert post(client, "/admin/accounts", "/admin/accounts", name="eve", role="organiser",
                password="another four words").status_code == 303  # fmt: skip
    eve = fresh.client(None)
    assert log_in(eve, "eve", "another four words").status_code == 303
    assert eve.get("/admin/studies").status_code == 200
    assert post(client, "/admin/accounts", "/admin/accounts/change", name="eve", action="disable").status_code == 303
    assert eve.get("/admin/studies").headers["location"] == "/admin/login"
    post(client, "/admin/accounts", "/admin/accounts/change", name="eve", action="enable")
    new = {"name": "eve", "action": "password", "password": "yet another word"}
    post(client, "/admin/accounts", "/admin/accounts/change", **new)
    assert log_in(eve, "eve", "yet another word").status_code == 303
    bad = post(client, "/admin/accounts", "/admin/accounts", name="eve", role="organiser", password="short")
    assert bad.status_code == 422 and "The password has 5 characters" in bad.text
    own = post(client, "/admin/accounts", "/admin/accounts/change", name="ada", action="disable")
    assert own.status_code == 422 and "another admin" in own.text
    log = client.get("/admin/log").text
    for action in ("account.add", "account.disable", "account.enable", "account.password", "login"):
        assert action in log


def test_a_new_password_needs_the_old_one_and_ends_other_sessions(fresh):
    here, there = fresh.client("olga"), fresh.client("olga")
    new = "a quite new password"
    wrong = post(here, "/admin/password", "/admin/password", old="not the old one", new=new, again=new)
    assert wrong.status_code == 422 and "old password is not right" in wrong.text
    differ = post(here, "/admin/password", "/admin/password", old=PASSWORD, new=new, again=new + "!")
    assert differ.status_code == 422 and "not the same" in differ.text
    assert post(here, "/admin/password", "/admin/password", old=PASSWORD, new=new, again=new).status_code == 303
    assert here.get("/admin/studies").status_code == 200
    assert there.get("/admin/studies").headers["location"] == "/admin/login"


def test_single_sign_on_opens_known_accounts_for_a_trusted_peer_only(tmp_path):
    sso = SingleSignOn.from_environment({"ATTUNE_SSO_HEADER": "Remote-User", "ATTUNE_SSO_PROXIES": "10.0.0.5"})
    site = admin_site(tmp_path, filled=False, sso=sso)
    client = site.client(None)
    assert client.get("/admin/studies", headers={"remote-user": "ada"}).headers["location"] == "/admin/login"
    trusted = type(client)(site.app, base_url="http://admin.test", client=("10.0.0.5", 1), follow_redirects=False)
    assert trusted.get("/admin/studies", headers={"remote-user": "ada"}).status_code == 200
    unknown = trusted.get("/admin/studies", headers={"remote-user": "eve"})
    assert unknown.status_code == 403 and "no account here" in unknown.text
    assert trusted.get("/admin/studies").headers["location"] == "/admin/login"
    token = token_in(trusted.get("/admin/accounts", headers={"remote-user": "ada"}).text)
    made = trusted.post(
        "/admin/accounts", headers={"remote-user": "ada"}, data={"token": token, "name": "eve", "role": "organiser"}
    )
    assert made.status_code == 303
    stolen = trusted.post("/admin/accounts", headers={"remote-user": "olga"}, data={"token": token})
    assert stolen.status_code in (403, 404)
    site.database.close()


def test_an_empty_form_sent_back_is_the_recipes_defaults(site):
    html = site.client().get("/admin/studies/new").text
    values = form_values(html) | {"name": ["x"], "versions": ["dpo-7"]}
    parsed = recipe_form.values_from(StudyRecipe, recipe_form.Form(values))
    assert StudyRecipe.model_validate(parsed) == StudyRecipe(name="x", versions=("dpo-7",))


def test_a_recipe_with_every_field_changed_survives_the_form(site):
    recipe = StudyRecipe(
        name="all fields", title="T", mode="ab", versions=("dpo-7", "expert-2"), pairs=7, votes_per_pair=5,
        minimum_listening_seconds=1.5, questions=("quality",), ask_confidence=True, ask_comment=False,
        scales=("mos",), access="invited", choice="active", reveal=True,
        shares={"repeats": 0.1, "gold": 0.05, "anchors": 0.2},
        onboarding={"consent_version": "2", "consent_text": "I do.\nReally & <truly>.", "ask_training": False,
                    "ask_publication": False, "instructions": "Listen.", "level_check": False,
                    "headphone_check": "tested", "background": ("culture",), "practice_pairs": 0},
        pacing={"pairs_per_session": 12, "break_every": 0, "break_seconds": 5},
        arena={"longest_prompt": 100, "blocked_words": ("bad word", "worse"), "blocked_artists": ("Some Body",),
               "requests_per_hour": 3, "generation": {"temperature": 0.9, "top_k": 50, "guidance": 3.0,
                                                      "clip_seconds": 4.0}},
    )  # fmt: skip
    changed = {p for p in _paths(recipe.model_dump(mode="json")) if _get(recipe, p) != _get(_plain_recipe(), p)}
    assert set(_paths(recipe.model_dump(mode="json"))) - changed == {"mode", "prompt_set"}
    html = site.client()
    page = post(html, "/admin/studies/new", "/admin/studies/yaml", yaml=json.dumps(recipe.model_dump(mode="json")))
    assert page.status_code == 200 and "no faults" in page.text
    values = {name: [_unescape(v) for v in found] for name, found in form_values(page.text).items()}
    assert StudyRecipe.model_validate(recipe_form.values_from(StudyRecipe, recipe_form.Form(values))) == recipe


def _plain_recipe() -> StudyRecipe:
    return StudyRecipe(name="x", versions=("y",))


def _paths(values: dict, path: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        here = f"{path}.{name}".strip(".")
        found += _paths(value, here) if isinstance(value, dict) else [here]
    return found


def _get(recipe: StudyRecipe, path: str):
    for part in path.split("."):
        recipe = getattr(recipe, part)
    return recipe


def _unescape(text: str) -> str:
    import html

    return html.unescape(text)


def test_every_fault_of_pasted_yaml_is_told_at_once_at_its_field(site):
    text = """
name: ""
versions: [dpo-7, dpo-7]
votes_per_pair: 0
acess: open
shares: {repeats: 0.4, gold: 0.4}
onboarding: {headphone_check: maybe, practice_pairs: 9}
"""
    page = post(site.client(), "/admin/studies/new", "/admin/studies/yaml", yaml=text)
    assert page.status_code == 422
    for element in ("f-name", "f-votes_per_pair", "f-onboarding-headphone_check", "f-onboarding-practice_pairs"):
        assert f'id="{element}-fault0"' in page.text, element
        assert re.search(rf'id="{element}"[^>]*aria-invalid="true"', page.text), element
    assert "Repeats, gold and anchors together take more than half" in page.text
    assert "acess is no field of a study" in page.text
    assert "6 things need" in page.text and "acess: open" in page.text  # the text is still there to correct
    for broken in ("a: [", "just words", "- list", "[" * 5000):
        answer = post(site.client(), "/admin/studies/new", "/admin/studies/yaml", yaml=broken)
        assert answer.status_code == 422 and 'role="alert"' in answer.text


def test_a_study_is_made_from_the_form_opened_paused_closed_and_copied(fresh):
    client = fresh.client("olga")
    html = client.get("/admin/studies/new").text
    values = form_values(html) | {
        "name": ["Winter"], "versions": ["base", "tuned"], "access": ["invited"], "token": [token_in(html)],
    }  # fmt: skip
    made = client.post("/admin/studies/new", data=values)
    assert made.status_code == 303, re.findall(r'class="(?:fault|problem)"[^>]*>(.*?)<', made.text, re.S)
    page = urlsplit(made.headers["location"]).path
    study = _study(fresh, "Winter")
    assert page == f"/admin/study/{study.id}" and study.state == "draft"
    assert rules_of(study).access == "invited"
    again = client.post("/admin/studies/new", data=values | {"votes_per_pair": ["9"]})
    assert again.status_code == 422 and "exists with another recipe" in again.text
    for state in ("open", "paused", "open", "closed"):
        assert post(client, page, f"{page}/state", state=state).status_code == 303
        assert _study(fresh, "Winter").state == state
    assert post(client, page, f"{page}/state", state="draft").status_code == 409
    copy = client.get(f"/admin/studies/new?copy={study.id}").text
    assert 'value="invited" selected' in copy and re.search(r'name="name" value=""', copy)
    actors = {(entry.actor, entry.action) for entry in _audit(fresh)}
    assert ("olga", "study.create") in actors


def test_faults_of_the_form_keep_what_was_typed(fresh):
    client = fresh.client()
    html = client.get("/admin/studies/new").text
    typed = {"name": ["Winter"], "versions": [], "votes_per_pair": ["many"], "title": ["My title"]}
    values = form_values(html) | typed
    answer = client.post("/admin/studies/new", data=values | {"token": [token_in(html)]})
    assert answer.status_code == 422 and 'value="My title"' in answer.text and 'value="many"' in answer.text
    assert 'id="f-versions-fault0"' in answer.text and 'id="f-votes_per_pair-fault0"' in answer.text
    assert len(_studies(fresh)) == 1


def test_a_draft_can_change_until_it_was_heard_but_not_its_pairs(fresh):
    client = fresh.client()
    html = client.get("/admin/studies/new").text
    values = form_values(html) | {"name": ["Winter"], "versions": ["base", "tuned"], "token": [token_in(html)]}
    page = client.post("/admin/studies/new", data=values).headers["location"]
    html = client.get(f"{page}/edit").text
    assert re.search(r'id="f-versions"[^>]*disabled', html) and re.search(r'id="f-shares-gold"[^>]*disabled', html)
    changed = form_values(html) | {
        "title": ["Hear this"], "minimum_listening_seconds": ["4"], "token": [token_in(html)], "pairs": ["1"],
    }  # fmt: skip
    assert client.post(f"{page}/edit", data=changed).status_code == 303
    recipe = rules_of(_study(fresh, "Winter"))
    assert (recipe.title, recipe.minimum_listening_seconds, recipe.pairs) == ("Hear this", 4.0, None)
    assert _study(fresh, "Winter").minimum_listening_seconds == 4.0
    post(client, page, f"{page}/state", state="open")
    refused = client.post(f"{page}/edit", data=changed | {"title": ["Later"]})
    assert refused.status_code == 422 and "copy it to a new study" in refused.text


def test_invites_are_shown_once_work_and_can_be_revoked(fresh):
    client, page = fresh.client(), f"/admin/study/{_study(fresh, 'study').id}/invites"
    made = post(client, page, page, count="3", label="class", most_uses="2", days="30")
    links = re.findall(r"http://admin\.test/\?invite=([\w-]{22})", made.text)
    assert len(links) == 3 and all(find_invite(fresh.database, token).study_name == "study" for token in links)
    later = client.get(page).text
    assert not any(token in later for token in links) and "class 3" in later and "0 of 2" in later
    invite = find_invite(fresh.database, links[0])
    assert post(client, page, f"{page}/revoke", invite=str(invite.id)).status_code == 303
    assert find_invite(fresh.database, links[0]) is None and find_invite(fresh.database, links[1])
    for wrong in ({"count": "0"}, {"count": "501"}, {"count": "1", "most_uses": "0"}, {"count": "1", "days": "x"}):
        assert post(client, page, page, **wrong).status_code == 422


def test_the_dashboard_tells_every_figure_with_its_n_and_interval(site):
    text = _text(site.client().get(f"/admin/study/{site.study_id}").text)
    for part in ("dpo-7 against musicgen-small", "more decisive votes would separate them (80% power)",
                 "Agreement between raters", "Same answer when asked again", "Left clip preferred", "Gold pairs passed",
                 "of 684 wanted", "reward-3", "musical training"):  # fmt: skip
        assert part in text, part
    # Every share stands with an interval and an n.
    for share in re.findall(r"\d+(?:\.\d)?% \d[\d.]* to [\d.]+% [^.]{0,30}", text):
        assert re.search(r"n \d+|\d+ of \d+|\d", share)
    assert len(re.findall(r"n \d+", text)) > 12
    rating = _text(site.client().get(f"/admin/study/{site.rating_id}").text)
    for part in ("Mean ratings", "hidden reference", "low anchor", "Opinion score (MOS)",
                 "1 of 6 raters who heard both rated the low anchors at or above"):  # fmt: skip
        assert part in rating, part


def test_a_study_of_simulated_listeners_is_marked_everywhere(tmp_path):
    site = admin_site(tmp_path, filled=False)
    fill(site.database, battles=2)
    client = site.client()
    study = _study(site, "study")
    assert "simulated listeners" in client.get("/admin/studies").text
    for tab in ("", "/setup", "/invites", "/raters", "/export", "/figures"):
        assert "imulated listeners" in client.get(f"/admin/study/{study.id}{tab}").text, tab
    site.database.close()


def test_a_rater_is_withdrawn_only_when_the_organiser_is_sure(tmp_path):
    site = admin_site(tmp_path)
    client, page = site.client("olga"), f"/admin/study/{site.study_id}/raters"
    rater = re.search(r'name="rater" value="([^"]+)"', client.get(page).text)[1]
    assert post(client, page, f"{page}/withdraw", rater=rater).status_code == 422
    assert post(client, page, f"{page}/withdraw", rater=str(uuid.uuid4()), sure="yes").status_code == 404
    done = post(client, page, f"{page}/withdraw", rater=rater, sure="yes")
    assert done.status_code == 200 and "is withdrawn" in done.text and "had reached no version" in done.text
    assert f'value="{rater}"' not in done.text
    assert "more withdrawn" in client.get(f"/admin/study/{site.study_id}").text
    other = uuid.uuid5(uuid.NAMESPACE_OID, "rater 3")
    code = withdrawal_code(other.hex * 2)  # as the rater's page shows it
    assert post(client, page, f"{page}/withdraw", rater=code[:-1], sure="yes").status_code == 404
    assert str(other)[-8:] in post(client, page, f"{page}/withdraw", rater=f" {code.upper()} ", sure="yes").text
    assert f'value="{other}"' not in client.get(page).text
    site.database.close()


def test_flags_and_an_export_are_a_button_away(fresh):
    client, study = fresh.client("olga"), _study(fresh, "study")
    page = f"/admin/study/{study.id}"
    assert post(client, page, f"{page}/flag").status_code == 303
    answer = post(client, f"{page}/export", f"{page}/export", licence="CC0")
    assert answer.headers["content-type"] == "application/zip"
    assert re.fullmatch(r'attachment; filename="study-\d{8}\.zip"', answer.headers["content-disposition"])
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert json.loads(archive.read("datacard.json"))["licence"] == "CC0"
    assert {entry.action for entry in _audit(fresh)} >= {"study.flag", "study.export"}


def _text(html: str) -> str:
    return re.sub(r"\s+", " ", _unescape(re.sub(r"<[^>]+>", " ", html)))


def _audit(site) -> list:
    with site.database.session(write=False) as s:
        return [entry for entry in list_audit(s) if entry.action != "login"]


def _studies(site) -> list:
    with site.database.session(write=False) as s:
        return list_studies(s)


def _study(site, name: str):
    with site.database.session(write=False) as s:
        found = get_study(s, name)
        assert get_study_by_id(s, found.id) == found
        assert s.scalar(sa.select(StudyRow.state).where(StudyRow.id == found.id)) == found.state
        return found


def test_the_log_says_who_promoted_what_and_why(fresh):
    promote(fresh.database, "tuned", actor="ada", force=True, reason=f"by ear {HOSTILE}")
    page = fresh.client().get("/admin/log").text
    assert "version.promote.forced" in page and "by ear" in page and HOSTILE not in page
