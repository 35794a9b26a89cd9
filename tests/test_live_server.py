"""The live page's server: what it answers, and to whom it does not."""

import base64
import http.client
import json
import re
import threading

import numpy as np
import pytest
import torch

from unrolled import CharTokenizer, LanguageModel, ModelConfig
from unrolled.live_server import MOST_BYTES, LiveApp, LiveServer
from unrolled.live_session import LiveSession

TOKENIZER = CharTokenizer("abcdefg \n<")


@pytest.fixture
def session():
    torch.manual_seed(4)
    return LiveSession(LanguageModel(ModelConfig(10, hidden=5, layers=2, embedding=0)), TOKENIZER)


@pytest.fixture
def server(session):
    made = LiveServer(LiveApp(session, TOKENIZER), "</title> live", {"layers": 2, "hidden": 5, "h_dim": 5})
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def ask(server):
    """Send a request; headers that are None are left out."""

    def ask(asked=None, method="POST", path="/", body=None, **headers):
        sent = {
            "Host": server.hosts[0],
            "X-Unrolled-Secret": server.secret,
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        body = json.dumps(asked).encode() if body is None else body
        connection.putrequest(method, path, skip_host=True)
        if "Content-Length" not in sent and method == "POST":
            sent["Content-Length"] = str(len(body))
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body if method == "POST" else None)
        answer = connection.getresponse()
        told = answer.read()
        connection.close()
        return answer.status, json.loads(told) if answer.headers[
            "Content-Type"
        ] == "application/json" else told.decode()

    return ask


def values(step, name):
    return np.frombuffer(base64.b64decode(step[name]), "<f4").reshape(2, 5)


def test_what_is_read_comes_back_step_by_step(ask, session):
    status, first = ask({"do": "read", "text": "abc", "at": 0})
    assert status == 200
    assert [step["text"] for step in first["texts"][0]["steps"]] == ["a", "b", "c"]
    for told, step in zip(first["texts"][0]["steps"], session.steps(), strict=True):
        for name in "chifgo":
            np.testing.assert_array_equal(values(told, name), step.values[name])
    shares = session.probabilities()
    best = (-shares).argsort()[:8]
    assert [each["share"] for each in first["texts"][0]["next"]] == shares[best].tolist()
    assert [each["text"] for each in first["texts"][0]["next"]] == [TOKENIZER.decode([token]) for token in best]
    _, second = ask({"do": "read", "text": "abd", "at": 0, "turn": first["turn"]})
    assert (second["texts"][0]["kept"], len(second["texts"][0]["steps"])) == (2, 1)
    assert second["texts"][1] == {**first["texts"][1], "kept": 0, "steps": []}
    # A page that has not seen the last turn gets all of it.
    _, other = ask({"do": "show", "turn": first["turn"]})
    assert (other["texts"][0]["kept"], len(other["texts"][0]["steps"])) == (0, 3)


def test_all_that_can_be_asked(ask, session):
    ask({"do": "read", "text": "ab", "at": 0})
    _, told = ask({"do": "clamp", "layer": 1, "name": "f", "unit": 3, "value": 0.5})
    assert told["clamps"] == [{"layer": 1, "name": "f", "unit": 3, "value": 0.5}]
    assert values(told["texts"][0]["steps"][-1], "f")[1, 3] == 0.5
    _, told = ask({"do": "clamp", "layer": 1, "name": "f", "unit": 3, "value": None})
    assert told["clamps"] == []
    ask({"do": "clamp", "layer": 1, "name": "f", "unit": 3, "value": 0.5})
    assert ask({"do": "release"})[1]["clamps"] == []
    before = session.probabilities()
    _, told = ask({"do": "zero", "layer": 1, "at": 0})
    assert not session.state().c[1].any()
    assert told["texts"][0]["next"][0]["share"] != float(before.max())
    ask({"do": "read", "text": "g", "at": 1})
    first, second = session.state(0), session.state(1)
    ask({"do": "swap"})
    assert torch.equal(session.state(0).c, second.c)
    assert torch.equal(session.state(1).c, first.c)
    _, told = ask({"do": "write", "at": 1, "temperature": 0})
    assert told["texts"][1]["text"] == session.text(1)
    assert len(session.text(1)) == 2


def test_the_page_has_the_secret_and_nothing_breaks_out_of_it(ask, server):
    status, page = ask(method="GET", path=f"/?secret={server.secret}")
    assert status == 200
    assert "<title>&lt;/title&gt; live</title>" in page
    assert json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["secret"] == server.secret
    assert server.url == f"http://127.0.0.1:{server.server_port}/?secret={server.secret}"
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ({"Host": "evil.example:80"}, 403, "this page is at 127.0.0.1:"),
        ({"Host": None}, 403, "this page is at 127.0.0.1:"),
        ({"Origin": "http://evil.example"}, 403, "this page is at 127.0.0.1:"),
        ({"Origin": "null"}, 403, "this page is at 127.0.0.1:"),
        ({"X_Unrolled_Secret": "guess"}, 403, "open the address that the terminal shows, with its secret"),
        ({"X_Unrolled_Secret": None}, 403, "open the address that the terminal shows, with its secret"),
        ({"X_Unrolled_Secret": "\xff"}, 403, "open the address that the terminal shows, with its secret"),
        ({"Content_Type": "text/plain"}, 415, "a request is application/json"),
        ({"Content_Length": None}, 413, "a request has a length, of at most 65536 bytes"),
        ({"Content_Length": str(MOST_BYTES + 1)}, 413, "a request has a length, of at most 65536 bytes"),
        ({"Content_Length": "-1"}, 413, "a request has a length, of at most 65536 bytes"),
        ({"body": b"{"}, 400, "Expecting property name"),
        ({"body": b"[" * 5000}, 400, ""),
        ({"body": b"[]"}, 400, "a request is a JSON object"),
        ({"asked": {"do": "format"}}, 400, "do='format' is none of show, read, write, clamp, release, zero, swap"),
        ({"asked": {"do": "read", "text": 3, "at": 0}}, 400, "text=3 must be text"),
        ({"asked": {"do": "read", "text": "a", "at": 2}}, 400, "at=2 is none of the texts 0 to 1"),
        ({"asked": {"do": "read", "text": "x", "at": 0}}, 400, "'x'"),
        ({"asked": {"do": "zero", "layer": True, "at": 0}}, 400, "layer=True must be a whole number"),
        ({"asked": {"do": "zero", "layer": 9, "at": 0}}, 400, "layer 9 of 2; layers are 0 to 1"),
        ({"body": b'{"do": "write", "at": 0, "temperature": NaN}'}, 400, "temperature=nan must be a number"),
        ({"asked": {"do": "write", "at": 0, "temperature": -1}}, 400, "temperature=-1.0 must be 0"),
        ({"body": b'{"do": "clamp", "layer": 0, "name": "c", "unit": 0, "value": Infinity}'}, 400, "value=inf must be"),
    ],
)
def test_who_is_no_page_of_ours_is_refused(ask, session, how, status, message):
    asked = how.pop("asked", {"do": "read", "text": "a", "at": 0}) if "body" not in how else None
    got, told = ask(asked, **how)
    assert got == status
    assert message in told["error"]
    assert session.text() == ""


def test_pages_elsewhere_get_no_page(ask, server):
    assert ask(method="GET", path="/")[0] == 403
    assert ask(method="GET", path="/?secret=guess")[0] == 403
    assert ask(method="GET", path=f"/?secret={server.secret}", Host="evil.example")[0] == 403
    assert ask(method="GET", path=f"/etc/passwd?secret={server.secret}")[0] == 404
    assert ask(method="PUT", path="/")[0] == 501


def test_requests_at_once_are_answered_one_after_the_other(ask, session):
    threads = [
        threading.Thread(target=ask, args=({"do": "read", "text": "abcdefg" * n, "at": n % 2},)) for n in range(1, 9)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    _, told = ask({"do": "show"})
    assert told["turn"] == 9
    for at in (0, 1):
        assert len(told["texts"][at]["steps"]) == len(session.text(at)) > 0
        assert session.text(at) == "abcdefg" * (len(session.text(at)) // 7)
