"""The door of MLflow's UI: an ASGI application around MLflow's own that checks a secret and admits listed routes only.

Every user of a machine can connect to its loopback, so that is not a limit. A client needs the secret: once in the
URL that `orch ui` prints, from then on as a cookie; or as `Authorization: Bearer`, which is how MLFLOW_TRACKING_TOKEN
is sent. Browsers send a host's cookies to all its ports, including other users', and treat pages of other ports as the
same site. Therefore the UI is at a path that only the secret's owner can know, the cookie is valid for that path alone,
and requests from other pages are refused by their Origin.

Only the routes listed here pass. Routes that MLflow adds in later versions are refused until they are listed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

COOKIE: Final = "orch_ui"
MOST_BYTES: Final = 1 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_HOSTS = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?", re.ASCII)
"""The host names by which a browser may address this server, on any port, since `ssh -L` may change the port."""

_ID = r"m-[\w-]+"
_API = re.compile(r"/(?:ajax-)?api/([23]\.0)/mlflow/([\w/-]+)", re.ASCII)
_PAGES = re.compile(
    r"/|/health|/version|/get-artifact|/model-versions/get-artifact"
    r"|/static-files(?:/(?!\.+(?:/|$))[\w.-]+)+",  # no segment of dots
    re.ASCII,
)
_READS = re.compile(
    r"2\.0/(?:experiments/(?:get|get-by-name|search)"
    r"|runs/get|artifacts/list"
    r"|metrics/(?:get-history|get-history-bulk|get-history-bulk-interval)"
    r"|registered-models/(?:get|search|get-latest-versions|alias)"
    r"|model-versions/(?:get|search|get-download-uri)"
    rf"|logged-models/{_ID}(?:/artifacts/(?:directories|files))?)"
    r"|3\.0/(?:server-info|ui-telemetry)",
    re.ASCII,
)
_SEARCHES = re.compile(
    r"2\.0/(?:experiments/search|experiments/search-datasets|runs/search|logged-models/search"
    r"|registered-models/get-latest-versions)"
    r"|3\.0/traces/(?:search|metrics)",  # an experiment's first page retries these forever
    re.ASCII,
)
_WRITES: Final[Mapping[str, frozenset[str]]] = {
    "2.0/runs/update": frozenset({"run_id", "run_uuid", "run_name"}),
    "2.0/runs/set-tag": frozenset({"run_id", "run_uuid", "key", "value"}),
    "2.0/runs/delete-tag": frozenset({"run_id", "key"}),
    "2.0/experiments/set-experiment-tag": frozenset({"experiment_id", "key", "value"}),
    "2.0/experiments/delete-experiment-tag": frozenset({"experiment_id", "key"}),
}
"""The routes by which the owner may change names and tags, but not states, and the fields of such a request."""

_OWN_TAGS = re.compile(r"orch\.|mlflow\.(?!note\.content$|runColor$|experimentKind$)", re.ASCII)
"""Tags by which the next sync finds its runs, or that have a meaning for MLflow."""

_PASSED = frozenset({"accept", "accept-encoding", "host", "if-modified-since", "if-none-match", "range", "user-agent"})
_ADDED: Final = {
    "content-security-policy": "frame-ancestors 'self'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
}
_INERT: Final = "sandbox; frame-ancestors 'self'"
"""For files of runs: a browser that shows one as a page must not treat it as a page of this server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The path, cookie and token that give access, all derived from one secret."""

    secret: str
    path: str
    cookie: str

    @classmethod
    def of(cls, secret: str) -> Keys:
        return cls(secret=secret, path=_derived(secret, "path"), cookie=_derived(secret, "cookie"))


def new_secret() -> str:
    """Return a secret of 256 random bits."""
    return secrets.token_urlsafe(32)


def _derived(secret: str, use: str) -> str:
    return hmac.new(secret.encode(), use.encode(), hashlib.sha256).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), wanted.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The head of a request. The path is as it was sent, without percent-decoding."""

    method: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, scope: Message) -> Request:
        return cls(
            method=scope["method"],
            path=scope["raw_path"].decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers=tuple(
                (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]
            ),
        )

    def all(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name]

    def only(self, name: str) -> str:
        """Return a header's value; empty if the request has none, or several."""
        found = self.all(name)
        return found[0] if len(found) == 1 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the door itself, in place of MLflow's."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...] = (("content-type", "text/plain; charset=utf-8"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A request that is passed to MLflow: the route, without the secret path in front."""

    route: str
    writes: bool = False


def judge(request: Request, keys: Keys) -> Passed | Answer:
    """Decide on a request by its head: its credentials, its origin and its route."""
    inside = request.path.startswith("/") and _same(request.path[1:].partition("/")[0], keys.path)
    by_cookie = inside and any(_same(value, keys.cookie) for value in _cookies(request))
    logs_in = request.method == "GET" and request.path == "/" and _has_token(request, keys)
    if not (by_cookie or logs_in or _has_bearer(request, keys)):
        return _unknown()
    if reason := _foreign(request, by_cookie=by_cookie):
        return _refused(reason)
    if logs_in:
        return _welcome(keys)
    route = request.path.removeprefix(f"/{keys.path}") if inside else request.path
    return _passed(request.method, route)


def _has_token(request: Request, keys: Keys) -> bool:
    return any(_same(token, keys.secret) for token in parse_qs(request.query).get("token", []))


def _has_bearer(request: Request, keys: Keys) -> bool:
    scheme, _, token = request.only("authorization").partition(" ")
    return scheme.lower() == "bearer" and _same(token, keys.secret)


def _cookies(request: Request) -> list[str]:
    """Return all values of the access cookie: another port's page may have added one of its own."""
    pairs = (pair.strip().partition("=") for header in request.all("cookie") for pair in header.split(";"))
    return [value for name, _, value in pairs if name == COOKIE]


def _foreign(request: Request, *, by_cookie: bool) -> str:
    """Return why a request does not come from this UI or from a program of its owner; empty if it does."""
    host = request.only("host")
    if not _HOSTS.fullmatch(host):
        return "this server is called localhost or 127.0.0.1"
    origins = request.all("origin")
    if any(origin != f"http://{host}" for origin in origins):
        return "a page of another origin asks"
    if by_cookie and request.method not in {"GET", "HEAD"} and not origins:
        return "a change by cookie has no Origin"
    if by_cookie and request.only("sec-fetch-site") not in {"", "same-origin", "none"}:
        return "a page of another origin asks"
    return ""


def _passed(method: str, route: str) -> Passed | Answer:
    found = _API.fullmatch(route)
    api = f"{found[1]}/{found[2]}" if found else ""
    if method in {"GET", "HEAD"} and (_PAGES.fullmatch(route) or _READS.fullmatch(api)):
        return Passed(route=route)
    if method == "POST" and (route == "/graphql" or _SEARCHES.fullmatch(api)):
        return Passed(route=route)
    if method == "POST" and api in _WRITES:
        return Passed(route=route, writes=True)
    return _error(404, "ENDPOINT_NOT_FOUND", f"{method} of this route")


def checked_body(passed: Passed, body: bytes) -> bytes | Answer:
    """Return the body to pass to MLflow: JSON written again from the fields that were checked, and nothing else."""
    try:
        sent = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return Answer(status=400, body="the body is not JSON\n")
    if not isinstance(sent, dict):
        return Answer(status=400, body="the body is not a JSON object\n")
    reason = _not_read(sent) if passed.route == "/graphql" else _not_annotated(passed, sent) if passed.writes else ""
    return _refused(reason) if reason else json.dumps(sent).encode()


def _not_read(sent: Mapping[str, object]) -> str:
    """Return why a GraphQL request may be more than a query; only certain keywords can make it one."""
    query = sent.get("query")
    reads = isinstance(query, str) and not re.search(r"\b(?:mutation|subscription)\b", query)
    return "" if reads else "GraphQL serves queries only"


def _not_annotated(passed: Passed, sent: Mapping[str, object]) -> str:
    found = _API.fullmatch(passed.route)
    fields = _WRITES[f"{found[1]}/{found[2]}"] if found else frozenset()
    if set(sent) - fields:
        return "names and tags may be changed, and nothing else"
    key = sent.get("key", "")
    if not isinstance(key, str) or _OWN_TAGS.match(key):
        return "the next sync needs this tag"
    return ""


def _unknown() -> Answer:
    return Answer(
        status=401,
        body="This is the MLflow UI of one user. Open the URL that `orch ui` has printed, with its token.\n"
        "For MLflow's client, the token belongs in MLFLOW_TRACKING_TOKEN.\n",
        headers=(("content-type", "text/plain; charset=utf-8"), ("www-authenticate", "Bearer")),
    )


def _refused(reason: str) -> Answer:
    return _error(403, "PERMISSION_DENIED", reason)


def _error(status: int, code: str, reason: str) -> Answer:
    """Return an error that MLflow's client and UI can read."""
    body = json.dumps({"error_code": code, "message": f"orch ui does not serve this: {reason}"})
    return Answer(status=status, body=body, headers=(("content-type", "application/json"),))


def _welcome(keys: Keys) -> Answer:
    """Return the page that sets the cookie and then opens the UI.

    A redirect does not work: if another site's page has the link, browsers do not send a strict cookie after it.
    """
    body = f'<!doctype html><meta http-equiv="refresh" content="0;url=/{keys.path}/"><title>MLflow</title>\n'
    cookie = f"{COOKIE}={keys.cookie}; Path=/{keys.path}/; HttpOnly; SameSite=Strict"
    kind = ("content-type", "text/html; charset=utf-8")
    return Answer(status=200, body=body, headers=(kind, ("set-cookie", cookie)))


class Door:
    """An ASGI application around another: HTTP only, and only what `judge` lets pass."""

    def __init__(self, application: Application, keys: Keys) -> None:
        self._application, self._keys = application, keys

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return
        request = Request.of(scope)
        judged = judge(request, self._keys)
        answer = judged if isinstance(judged, Answer) else await self._serve(judged, request, scope, receive, send)
        if answer is not None:
            await _answer(answer, request, send)

    async def _serve(
        self, passed: Passed, request: Request, scope: Message, receive: Receive, send: Send
    ) -> Answer | None:
        """Pass a request to the application, or return the answer that refuses its body."""
        posted = request.method == "POST"
        body = await _read(receive) if posted else b""
        content = checked_body(passed, body) if posted and body is not None else body
        if content is None:
            return Answer(status=413, body=f"more than {MOST_BYTES} bytes\n")
        if isinstance(content, Answer):
            return content
        inner = {
            **scope,
            "path": passed.route,
            "raw_path": passed.route.encode(),
            "root_path": "",
            "query_string": b"" if posted else scope["query_string"],
            "headers": _headers(request, content if posted else None),
        }
        await self._application(inner, _replayed(content, receive), _hardened(passed, send))
        return None


async def _read(receive: Receive) -> bytes | None:
    """Return a request's body; None if it is too large."""
    body = b""
    while len(body) <= MOST_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body if len(body) <= MOST_BYTES else None
    return None


def _headers(request: Request, content: bytes | None) -> list[tuple[bytes, bytes]]:
    """Return the headers to pass to MLflow: without cookie, token, origin, and options for MLflow itself."""
    passed = [(name, value) for name, value in request.headers if name in _PASSED]
    if content is not None:
        passed += [("content-type", "application/json"), ("content-length", str(len(content)))]
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in passed]


def _replayed(content: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body once, and then the further messages of the connection."""
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _hardened(passed: Passed, send: Send) -> Send:
    """Return a `send` that replaces the permissions that MLflow grants other pages by stricter ones."""
    added = {**_ADDED, **({"content-security-policy": _INERT} if "artifact" in passed.route else {})}

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", []) if not _replaced(name.lower(), added)]
            message = {**message, "headers": kept + _encoded(added.items())}
        await send(message)

    return hardened


def _replaced(name: bytes, added: Mapping[str, str]) -> bool:
    return name.decode("latin-1") in added or name == b"set-cookie" or name.startswith(b"access-control-")


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers]


async def _answer(answer: Answer, request: Request, send: Send) -> None:
    body = answer.body.encode()
    headers = [*answer.headers, *_ADDED.items(), ("cache-control", "no-store"), ("content-length", str(len(body)))]
    await send({"type": "http.response.start", "status": answer.status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})
