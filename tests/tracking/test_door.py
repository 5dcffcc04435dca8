"""The door of MLflow's UI, request by request: who is let in, by what, and to which of MLflow's routes."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from orchestrator.tracking.door import MOST_BYTES, Answer, Door, Keys, Passed, Request, checked_body, judge, new_secret

KEYS = Keys.of("s3cret")
INSIDE = f"/{KEYS.path}"
HOST = ("host", "127.0.0.1:20000")
COOKIE = ("cookie", f"orch_ui={KEYS.cookie}")
BEARER = ("authorization", f"Bearer {KEYS.secret}")
ORIGIN = ("origin", "http://127.0.0.1:20000")


def status(method="GET", path="/", *headers, query="", keys=KEYS):
    """Return the status of the door's own answer; 0 where the request passes."""
    judged = judge(Request(method=method, path=path, query=query, headers=headers), keys)
    return judged.status if isinstance(judged, Answer) else 0


# --- who --------------------------------------------------------------------------------------------------------


def test_a_secret_has_256_bits_and_no_two_are_the_same():
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(len(secret) == 43 and re.fullmatch(r"[\w-]+", secret) for secret in made)


def test_neither_the_path_nor_the_cookie_shows_the_secret():
    assert len({KEYS.secret, KEYS.path, KEYS.cookie}) == 3
    assert KEYS.secret not in KEYS.path + KEYS.cookie


@pytest.mark.parametrize(
    ("path", "headers", "query"),
    [
        ("/", (), ""),
        ("/", (), "token="),
        ("/", (), "token=s3cre"),
        ("/", (), "token=s3cretx"),
        ("/", (), f"token={KEYS.cookie}"),
        ("/health", (), "token=s3cret"),  # the URL's token is for the login only
        (f"{INSIDE}/", (), "token=s3cret"),
        (f"{INSIDE}/", (), ""),
        ("/", (COOKIE,), ""),  # a cookie counts at its path only
        ("/health", (COOKIE,), ""),
        ("/api/2.0/mlflow/experiments/search", (COOKIE,), ""),
        (f"/{KEYS.cookie}/", (COOKIE,), ""),
        (f"/{KEYS.path[:-1]}/", (COOKIE,), ""),
        (f"/{INSIDE}/", (COOKIE,), ""),
        (f"/%{ord(KEYS.path[0]):02x}{KEYS.path[1:]}/", (COOKIE,), ""),
        (f"{INSIDE}/", (("cookie", "orch_ui=s3cret"),), ""),
        (f"{INSIDE}/", (("cookie", f"orch_ui2={KEYS.cookie}"),), ""),
        (f"{INSIDE}/", (("cookie", "orch_ui=\xe9\xff"),), ""),
        ("/health", (("authorization", "s3cret"),), ""),
        ("/health", (("authorization", "Basic s3cret"),), ""),
        ("/health", (("authorization", "Bearer "),), ""),
        ("/health", (("authorization", "Bearer \xe9"),), ""),
        ("/health", (("authorization", f"Bearer {KEYS.cookie}"),), ""),
        ("/health", (BEARER, ("authorization", "Bearer x")), ""),
    ],
)
@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "X"]
)
def test_without_the_secret_everything_is_401(method, path, headers, query):
    assert status(method, path, HOST, ORIGIN, *headers, query=query) == 401


def test_the_token_sets_a_cookie_for_the_secret_path_alone_and_leads_there():
    answer = judge(Request(method="GET", path="/", query="token=s3cret", headers=(HOST,)), KEYS)
    cookie = dict(answer.headers)["set-cookie"]
    assert cookie == f"orch_ui={KEYS.cookie}; Path={INSIDE}/; HttpOnly; SameSite=Strict"
    assert answer.status == 200
    assert f'url={INSIDE}/"' in answer.body
    assert "s3cret" not in answer.body


def test_the_cookie_opens_the_path_also_beside_what_other_ports_have_set():
    assert status("GET", f"{INSIDE}/", HOST, ("cookie", f"_xsrf=2; orch_ui=theirs; orch_ui={KEYS.cookie}; a")) == 0
    assert status("GET", f"{INSIDE}/", HOST, ("cookie", "orch_ui=theirs"), COOKIE) == 0


def test_programs_send_the_token_as_mlflow_does():
    assert status("GET", "/api/2.0/mlflow/experiments/search", HOST, BEARER) == 0
    assert status("GET", f"{INSIDE}/version", HOST, BEARER) == 0


# --- from where -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:20000"])
def test_any_port_of_this_machine_will_do_as_ssh_forwards_another(host):
    assert status("GET", f"{INSIDE}/", ("host", host), COOKIE) == 0
    assert status("GET", "/", ("host", host), query="token=s3cret") == 200
    path = f"{INSIDE}/ajax-api/2.0/mlflow/runs/search"
    assert status("POST", path, ("host", host), COOKIE, ("origin", f"http://{host}")) == 0


@pytest.mark.parametrize(
    "hosts",
    [
        (),
        ("evil.example",),
        ("evil.example:20000",),
        ("localhost.evil.example",),
        ("127.0.0.1.nip.io:20000",),
        ("localhost@evil.example",),
        ("evil.example#localhost",),
        ("localhost:20000:1",),
        ("localhost:",),
        ("localhost:٢",),
        ("0.0.0.0:20000",),
        ("10.0.0.1:20000",),
        ("",),
        ("localhost", "evil.example"),
    ],
)
def test_another_name_is_a_rebound_one(hosts):
    headers = [("host", host) for host in hosts]
    assert status("GET", f"{INSIDE}/", *headers, COOKIE) == 403
    assert status("GET", "/health", *headers, BEARER) == 403
    assert status("GET", "/", *headers, query="token=s3cret") == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://127.0.0.1:20001",  # another user's page: the same site, but not the same origin
        "http://localhost:20000",
        "https://127.0.0.1:20000",
        "http://127.0.0.1",
        "http://evil.example",
        "null",
        "",
    ],
)
def test_a_page_of_another_origin_gets_nothing(origin):
    for method, path in [("GET", "/"), ("POST", "/ajax-api/2.0/mlflow/runs/search"), ("POST", "/graphql")]:
        assert status(method, INSIDE + path, HOST, COOKIE, ("origin", origin)) == 403
        assert status(method, INSIDE + path, HOST, COOKIE, ORIGIN, ("origin", origin)) == 403
    assert status("GET", "/", HOST, ("origin", origin), query="token=s3cret") == 403


def test_a_change_by_cookie_needs_an_origin_and_no_browser_that_calls_it_foreign():
    path = f"{INSIDE}/ajax-api/2.0/mlflow/runs/set-tag"
    assert status("POST", path, HOST, COOKIE) == 403
    assert status("POST", path, HOST, COOKIE, ORIGIN) == 0
    assert status("POST", path, HOST, COOKIE, ORIGIN, ("sec-fetch-site", "same-origin")) == 0
    for site in ("same-site", "cross-site", "new"):
        assert status("POST", path, HOST, COOKIE, ORIGIN, ("sec-fetch-site", site)) == 403
        assert status("GET", f"{INSIDE}/", HOST, COOKIE, ("sec-fetch-site", site)) == 403
    assert status("GET", f"{INSIDE}/", HOST, COOKIE, ("sec-fetch-site", "none")) == 0
    assert status("GET", "/", HOST, ("sec-fetch-site", "cross-site"), query="token=s3cret") == 200  # a link in a mail


# --- to where ---------------------------------------------------------------------------------------------------

PAGES = {"/", "/health", "/version", "/get-artifact", "/model-versions/get-artifact", "/static-files/<path:path>"}
READS = {
    "2.0/experiments/get",
    "2.0/experiments/get-by-name",
    "2.0/experiments/search",
    "2.0/runs/get",
    "2.0/artifacts/list",
    "2.0/metrics/get-history",
    "2.0/metrics/get-history-bulk",
    "2.0/metrics/get-history-bulk-interval",
    "2.0/registered-models/get",
    "2.0/registered-models/search",
    "2.0/registered-models/get-latest-versions",
    "2.0/registered-models/alias",
    "2.0/model-versions/get",
    "2.0/model-versions/search",
    "2.0/model-versions/get-download-uri",
    "2.0/logged-models/<model_id>",
    "2.0/logged-models/<model_id>/artifacts/directories",
    "2.0/logged-models/<model_id>/artifacts/files",
    "3.0/server-info",
    "3.0/ui-telemetry",
}
POSTS = {
    "2.0/experiments/search",
    "2.0/experiments/search-datasets",
    "2.0/experiments/set-experiment-tag",
    "2.0/experiments/delete-experiment-tag",
    "2.0/runs/search",
    "2.0/runs/set-tag",
    "2.0/runs/delete-tag",
    "2.0/runs/update",
    "2.0/logged-models/search",
    "2.0/registered-models/get-latest-versions",
    "3.0/traces/search",
    "3.0/traces/metrics",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")


def wanted(method, rule):
    if rule in PAGES:
        return method in {"GET", "HEAD"}
    if rule == "/graphql":
        return method == "POST"
    found = re.fullmatch(r"/(?:ajax-)?api/([\d.]+)/mlflow/(.+)", rule)
    name = f"{found[1]}/{found[2]}" if found else ""
    return name in (READS if method in {"GET", "HEAD"} else POSTS if method == "POST" else ())


@pytest.fixture(scope="module")
def rules():
    """All routes of MLflow's applications as they are installed: Flask's, and those that are served before them."""
    from mlflow.server import app, fastapi_app

    native = {
        route.path
        for outer in fastapi_app.app.routes
        for route in getattr(getattr(outer, "original_router", outer), "routes", [])
        if hasattr(route, "path")
    }
    return sorted({rule.rule for rule in app.url_map.iter_rules()} | native)


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_of_all_routes_that_mlflow_has_those_on_the_list_pass_and_no_others(rules):
    assert len(rules) > 300
    assert any("assistant" in rule for rule in rules)
    assert any("jobs" in rule for rule in rules)
    for rule in rules:
        path = re.sub(r"<[^>]*>|\{[^}]*\}", "m-abc", rule)
        for method in METHODS:
            judged = judge(Request(method=method, path=INSIDE + path, headers=(HOST, COOKIE, ORIGIN)), KEYS)
            assert (
                (judged == Passed(route=path, writes=judged.writes))
                if wanted(method, rule)
                else (isinstance(judged, Answer) and judged.status == 404)
            ), (method, rule)
    served = {re.sub(r"^/(?:ajax-)?api/([\d.]+)/mlflow/", r"\1/", rule) for rule in rules}
    assert (PAGES | READS | POSTS) - served == set(), "on the list, but not in this MLflow"


@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/2.0/mlflow/runs/delete",
        "/ajax-api/3.0/mlflow/assistant/message",
        "/ajax-api/9.0/mlflow/runs/get",
        "/ajax-api/2.0/mlflow/runs/get/shell",
        "/ajax-api/2.0/mlflow/runs/get-and-run",
        "//ajax-api/2.0/mlflow/runs/get",
        "/ajax-api//2.0/mlflow/runs/get",
        "/ajax-api/2.0/mlflow/runs/get/",
        "/ajax-api/2.0/mlflow/runs/./get",
        "/ajax-api/2.0/mlflow/runs/get/../delete",
        "/ajax-api/2.0/mlflow/runs%2fget",
        "/ajax-api/2.0/mlflow/runs/%67et",
        "/ajax-api/2.0/mlflow/runs/get%00",
        "/ajax-api/2.0/mlflow/runs/get%0a",
        "/ajax-api/2.0/mlflow/runs/get\n",
        "/ajax-api/2.0/mlflow/runs/get;x",
        "/ajax-api/2.0/mlflow/logged-models/../runs/get",
        "/ajax-api/2.0/mlflow/logged-models/m-1/artifacts/files/..",
        "/AJAX-API/2.0/mlflow/runs/get",
        "/static-files",
        "/static-files/",
        "/static-files//etc/passwd",
        "/static-files/../../../../etc/passwd",
        "/static-files/static/..",
        "/static-files/static/../../x",
        "/static-files/%2e%2e/x",
        "/static-files/..%2fx",
        "/static-files/..\\x",
        "/static-files/./x",
        "/get-artifact/",
        "/get-artifact/../graphql",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/gateway/x/mlflow/invocations",
        "/v1/traces",
        "http://127.0.0.1:20000/health",
        "*",
        "",
    ],
)
def test_no_other_spelling_leads_past_the_list(path):
    for method in ("GET", "POST"):
        if path.startswith("/"):
            assert status(method, INSIDE + path, HOST, COOKIE, ORIGIN) == 404
        assert status(method, path, HOST, BEARER) == 404


def test_files_of_the_page_pass():
    assert status("GET", f"{INSIDE}/static-files/static/js/main.c2f5f8d4.js", HOST, COOKIE) == 0
    assert status("HEAD", f"{INSIDE}/static-files/lib/ml-model-trace-renderer/index.html", HOST, COOKIE) == 0


# --- with what --------------------------------------------------------------------------------------------------


def body(path, sent):
    checked = checked_body(judge(Request(method="POST", path=path, headers=(HOST, BEARER)), KEYS), sent)
    return checked.status if isinstance(checked, Answer) else json.loads(checked)


def change(route, **sent):
    return body(f"/api/2.0/mlflow/{route}", json.dumps(sent).encode())


def test_runs_may_be_annotated():
    assert change("runs/set-tag", run_id="r", key="group", value="a") == {"run_id": "r", "key": "group", "value": "a"}
    assert change("runs/set-tag", run_id="r", key="mlflow.note.content", value="# a")["value"] == "# a"
    assert change("runs/delete-tag", run_id="r", key="group")["key"] == "group"
    assert change("runs/update", run_id="r", run_name="good")["run_name"] == "good"


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("runs/update", {"run_id": "r", "status": "FAILED"}),
        ("runs/update", {"run_id": "r", "end_time": 1}),
        ("runs/update", {"run_id": "r", "endTime": 1}),
        ("runs/set-tag", {"run_id": "r", "key": "orch.run", "value": "x"}),
        ("runs/set-tag", {"run_id": "r", "key": "mlflow.parentRunId", "value": "x"}),
        ("runs/set-tag", {"run_id": "r", "key": "mlflow.note.content.x", "value": "x"}),
        ("runs/set-tag", {"run_id": "r", "key": ["orch.run"]}),
        ("runs/delete-tag", {"run_id": "r", "key": "orch.run"}),
        ("experiments/set-experiment-tag", {"experiment_id": "1", "key": "orch.experiment", "value": "x"}),
        ("experiments/set-experiment-tag", {"experiment_id": "1", "key": "a", "value": "x", "name": "y"}),
    ],
)
def test_what_the_next_sync_relies_on_may_not_be_changed(name, sent):
    assert change(name, **sent) == 403


@pytest.mark.parametrize("sent", [b"[]", b'"{}"', b"1", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_not_an_object_is_refused(sent):
    assert body("/api/2.0/mlflow/runs/search", sent) == 400


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"query": "query Run { mlflowGetRun { run { info { runId } } } }", "variables": {"a": "mutation"}}, 0),
        ({"query": "mutation { testMutation }"}, 403),
        ({"query": "query A { a } mutation B { b }", "operationName": "B"}, 403),
        ({"query": "#\nsubscription{a}"}, 403),
        ({"query": ["mutation { a }"]}, 403),
        ({}, 403),
    ],
)
def test_graphql_serves_queries_only(sent, status):
    assert body("/graphql", json.dumps(sent).encode()) == (status or sent)
    escaped = json.dumps(sent).replace("mutation", "\\u006dutation").encode()
    assert body("/graphql", escaped) == (status or sent)


# --- what passes the door -----------------------------------------------------------------------------------------


class Inner:
    """The application behind a door: remembers what it got, and answers like one that trusts other pages."""

    def __init__(self):
        self.scope, self.body = None, None

    async def __call__(self, scope, receive, send):
        self.scope, self.body = scope, (await receive())["body"]
        headers = [
            (b"Set-Cookie", b"a=b"),
            (b"Access-Control-Allow-Origin", b"*"),
            (b"X-Frame-Options", b"ALLOW"),
            (b"x-own", b"1"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})


def through(method, path, *headers, query=b"", sent=(b"",), kind="http"):
    """Return the application behind a door, and what was sent back, after one request."""
    inner, sent_back = Inner(), []
    chunks = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in sent]
    chunks[-1]["more_body"] = False

    async def receive():
        return chunks.pop(0)

    async def send(message):
        sent_back.append(message)

    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    scope = {"type": kind, "method": method, "path": "/else", "raw_path": path.encode(), "root_path": "/x"}
    asyncio.run(Door(inner, KEYS)({**scope, "query_string": query, "headers": encoded}, receive, send))
    return inner, sent_back


def test_mlflow_gets_the_route_and_neither_cookie_nor_token_nor_options():
    others = (
        ("x-mlflow-workspace", "w"),
        ("x-forwarded-host", "evil"),
        ("range", "bytes=0-1"),
        ("content-type", "a/b"),
    )
    path = f"{INSIDE}/ajax-api/2.0/mlflow/runs/search"
    inner, _ = through("POST", path, HOST, COOKIE, ORIGIN, BEARER, *others, query=b"a=b", sent=(b'{"a"', b": 1}"))
    assert inner.scope["path"] == "/ajax-api/2.0/mlflow/runs/search"
    assert inner.scope["raw_path"] == inner.scope["path"].encode()
    assert (inner.scope["root_path"], inner.scope["query_string"]) == ("", b"")
    assert inner.body == b'{"a": 1}'
    assert sorted(name for name, _ in inner.scope["headers"]) == [b"content-length", b"content-type", b"host", b"range"]
    assert dict(inner.scope["headers"])[b"content-type"] == b"application/json"


def test_other_pages_get_nothing_of_mlflows_answer():
    _, (start, content) = through("GET", f"{INSIDE}/", HOST, COOKIE)
    headers = dict(start["headers"])
    assert content["body"] == b"hello"
    assert {b"Set-Cookie", b"Access-Control-Allow-Origin", b"X-Frame-Options"} & set(headers) == set()
    assert headers[b"x-own"] == b"1"
    assert headers[b"x-frame-options"] == b"SAMEORIGIN"
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert headers[b"content-security-policy"] == b"frame-ancestors 'self'"


def test_a_file_of_a_run_is_no_page_of_this_server():
    _, (start, _) = through("GET", f"{INSIDE}/get-artifact", HOST, COOKIE, query=b"path=a.html&run_uuid=r")
    assert dict(start["headers"])[b"content-security-policy"].startswith(b"sandbox;")


def test_a_body_may_not_be_larger_than_any_search():
    inner, (start, _) = through("POST", "/api/2.0/mlflow/runs/search", HOST, BEARER, sent=(b" " * MOST_BYTES, b"{}"))
    assert start["status"] == 413
    assert inner.scope is None


def test_a_websocket_is_closed_before_it_opens():
    inner, sent_back = through("GET", f"{INSIDE}/", HOST, COOKIE, kind="websocket")
    assert [message["type"] for message in sent_back] == ["websocket.close"]
    assert inner.scope is None
    assert through("GET", "/", kind="lifespan")[1] == []


def test_an_answer_to_head_has_no_body():
    _, (start, content) = through("HEAD", "/", HOST)
    assert (start["status"], content["body"]) == (401, b"")
