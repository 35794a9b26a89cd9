"""The live page: a session served to a browser on this machine, and to nobody else.

It listens on the loopback address alone. A page elsewhere that a browser has open could still send to it, so that every
request has to name this host (against DNS rebinding) and to bring a secret, which only the address at the terminal
has; what changes something is JSON of a limited size, from this page's own origin.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from .live_session import TEXTS, LiveSession, LiveStep
from .page import live_html
from .tokens import Tokenizer

# A request's body at most: a text of 1,000 tokens is far below.
MOST_BYTES = 2**16
# Most probable tokens that are shown.
ALTERNATIVES = 8
_SECONDS = 30
_ORDER = ("c", "h", "i", "f", "g", "o")


class LiveError(ValueError):
    """A request that can't be answered; the message says what it should have been."""


class LiveApp:
    """What the page can ask of a session: one request at a time, JSON in and out."""

    def __init__(self, session: LiveSession, tokenizer: Tokenizer) -> None:
        self._session, self._tokenizer = session, tokenizer
        self._lock = threading.Lock()
        self._turn = 0
        self._sent: list[tuple[LiveStep, ...]] = [()] * TEXTS

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked, and say what is new since the turn that the page has seen; all of it to another one.

        `do`: "show", "read" (text, at), "write" (at, temperature), "clamp" (layer, name, unit, value), "release",
        "zero" (layer, at) or "swap". Raises ValueError or IndexError for what can't be done.
        """
        with self._lock:
            self._do(asked)
            if asked.get("turn") != self._turn:
                self._sent = [()] * TEXTS
            self._turn += 1
            return {
                "turn": self._turn,
                "texts": [self._told(at) for at in range(TEXTS)],
                "clamps": [
                    {"layer": layer, "name": name, "unit": unit, "value": value}
                    for (layer, name, unit), value in self._session.clamps.items()
                ],
            }

    def _do(self, asked: Mapping[str, Any]) -> None:
        session, do = self._session, asked.get("do")
        if do == "read":
            session.read(_field(asked, "text", str), _text(asked))
        elif do == "write":
            session.write(_number(asked, "temperature"), _text(asked))
        elif do == "clamp":
            value = None if asked.get("value") is None else _number(asked, "value")
            session.clamp(_field(asked, "layer", int), _field(asked, "name", str), _field(asked, "unit", int), value)
        elif do == "release":
            session.release()
        elif do == "zero":
            session.zero(_field(asked, "layer", int), _text(asked))
        elif do == "swap":
            session.swap()
        elif do != "show":
            raise LiveError(f"do={do!r} is none of show, read, write, clamp, release, zero, swap")

    def _told(self, at: int) -> dict[str, Any]:
        steps, sent = self._session.steps(at), self._sent[at]
        kept = next(
            (k for k, (a, b) in enumerate(zip(steps, sent, strict=False)) if a is not b), min(len(steps), len(sent))
        )
        self._sent[at] = steps
        shares = self._session.probabilities(at)
        best = (-shares).argsort(kind="stable")[:ALTERNATIVES].tolist()
        return {
            "kept": kept,
            "text": self._session.text(at),
            "steps": [
                {"text": step.text, **{name: _packed(step.values[name]) for name in _ORDER}} for step in steps[kept:]
            ],
            "next": [{"text": self._tokenizer.decode([token]), "share": float(shares[token])} for token in best],
        }


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _field(asked: Mapping[str, Any], name: str, kind: type) -> Any:
    value = asked.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise LiveError(f"{name}={value!r} must be {'text' if kind is str else 'a whole number'}")
    return value


def _number(asked: Mapping[str, Any], name: str) -> float:
    value = asked.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise LiveError(f"{name}={value!r} must be a number")
    return float(value)


def _text(asked: Mapping[str, Any]) -> int:
    at: int = _field(asked, "at", int)
    if not 0 <= at < TEXTS:
        raise LiveError(f"at={at} is none of the texts 0 to {TEXTS - 1}")
    return at


class LiveServer(ThreadingHTTPServer):
    """Serves one session on 127.0.0.1; `url` has the secret in it. `port` 0 takes a free one."""

    daemon_threads = True

    def __init__(self, app: LiveApp, title: str, shape: Mapping[str, int], *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.app = app
        self.secret = secrets.token_urlsafe(24)
        self.hosts = tuple(f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost"))
        self.page = live_html(title, {**shape, "secret": self.secret}).encode()

    @property
    def url(self) -> str:
        return f"http://{self.hosts[0]}/?secret={self.secret}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet each: the second must not wait for the first to be acknowledged.
    disable_nagle_algorithm = True
    timeout = _SECONDS
    server: LiveServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        given = parse_qs(address.query).get("secret", [""])[0]
        if not self._from_here(given):
            return
        if address.path != "/":
            self._say(HTTPStatus.NOT_FOUND, b"there is nothing but /", "text/plain; charset=utf-8")
            return
        self._say(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= MOST_BYTES):
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has a length, of at most {MOST_BYTES} bytes")
            return
        body = self.rfile.read(int(length))
        if not self._from_here(self.headers.get("X-Unrolled-Secret", "")):
            return
        if self.headers.get("Content-Type") != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request is application/json")
            return
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict):
                raise LiveError("a request is a JSON object")
            answer = self.server.app.answer(asked)
        except (ValueError, IndexError, RecursionError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._say(HTTPStatus.OK, json.dumps(answer).encode(), "application/json")

    def _from_here(self, secret: str) -> bool:
        """Whether the request names this host and knows the secret, and no page of another origin sends it."""
        hosts, origin = self.server.hosts, self.headers.get("Origin")
        if self.headers.get("Host") not in hosts or (
            origin is not None and origin not in [f"http://{host}" for host in hosts]
        ):
            self._refuse(HTTPStatus.FORBIDDEN, f"this page is at {hosts[0]} alone")
            return False
        if not secrets.compare_digest(secret.encode(), self.server.secret.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that the terminal shows, with its secret")
            return False
        return True

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._say(status, json.dumps({"error": why}).encode(), "application/json")

    def _say(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is for the address."""
