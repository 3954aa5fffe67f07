"""The first frame: who gets a session, who does not, and what the others are told (P6.1 to P6.6, P5.2)."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import pytest
import trio
from fuzz.live import assert_alive, assert_nothing_left, assert_valid, error_of, ping
from helpers import TOKEN, Frame, RawClient, Script, make_hello, open_raw

import arcp_trio
from arcp_trio.limits import Limits
from arcp_trio.sessions.auth import Principal
from arcp_trio.transports.memory import open_memory_pair

TOKENS = arcp_trio.StaticTokens({TOKEN: "me", "other": "you", "tökén": "umlaut"})


def hello(**changes: Any) -> Frame:
    """Return a hello whose payload has the changes; ``...`` drops a field."""
    frame = make_hello()
    payload = {**frame["payload"], **changes}
    return {**frame, "payload": {name: value for name, value in payload.items() if value is not ...}}


async def refusal(runtime: arcp_trio.Runtime, *texts: bytes | str, **options: Any) -> tuple[Frame, int]:
    """Send a connection's first frames; return the one answer, and how the connection was closed."""
    options = {"principal": None, **options}
    async with open_raw(runtime, shake_hands=False, **options) as client:
        await client.send_text(*texts)
        closed = await client.receive_close()
        (answer,) = client.received
        assert_valid(client)
    await trio.testing.wait_all_tasks_blocked()
    assert_nothing_left(runtime)
    return answer, closed.code


@pytest.mark.requirement("P6.1", "P4.5", "T18", "T12")
@pytest.mark.parametrize(
    "first",
    [
        hello(auth=...),
        hello(auth=None),
        hello(auth={}),
        hello(auth={"scheme": "bearer"}),
        hello(auth={"scheme": "bearer", "token": ""}),
        hello(auth={"scheme": "bearer", "token": None}),
        hello(auth={"scheme": "bearer", "token": "wrong"}),
        hello(auth={"scheme": "bearer", "token": TOKEN.upper()}),
        hello(auth={"scheme": "bearer", "token": TOKEN + " "}),
        hello(auth={"scheme": "bearer", "token": "é" * 5000}),
        hello(auth={"scheme": "basic", "token": TOKEN}),
        hello(auth={"scheme": "none"}),
        {**make_hello(), "type": "session.ping", "payload": {"nonce": "n"}},
        {**make_hello(), "type": "job.submit", "payload": {"agent": "echo"}},
        {**make_hello(), "type": "session.close", "payload": {}},
        {**make_hello(), "type": "session.error", "payload": {"code": "INTERNAL_ERROR"}},
        {**make_hello(), "type": "x-vendor.hello"},
    ],
)
async def test_who_is_not_authenticated_is_told_so_and_closed(script: Script, first: Frame) -> None:
    async with arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime:
        answer, code = await refusal(runtime, json.dumps(first), ping("never"))
        assert error_of(answer) == ("UNAUTHENTICATED", "msg_hello")
        assert (answer["payload"]["retryable"], code) == (False, 1008)
        assert script.entered == 0


@pytest.mark.requirement("P6.1", "P5.5", "P4.5")
@pytest.mark.parametrize(
    ("text", "path", "request_id"),
    [
        ("", "$:", None),
        ("nonsense", "$:", None),
        (b"\xff\x00", "$:", None),
        ("[" * 10_000, "$:", None),
        ("[]", "$:", None),
        ("{}", "$.id:", None),
        (json.dumps({**make_hello(), "id": 5}), "$.id:", None),
        (json.dumps({**make_hello(), "type": 5}), "$.type:", "msg_hello"),
        (json.dumps({**make_hello(), "payload": "p"}), "$.payload:", "msg_hello"),
        (json.dumps(make_hello()).replace('"type"', '"type": "x", "type"'), "$.type:", "msg_hello"),
        (json.dumps({**make_hello(), "arcp": "2.0"}), "$.arcp:", "msg_hello"),
        (json.dumps({**make_hello(), "arcp": 1}), "$.arcp:", "msg_hello"),
        (json.dumps({**make_hello(), "session_id": 5}), "$.session_id:", "msg_hello"),
        (json.dumps(hello(auth="token")), "$.payload.auth:", "msg_hello"),
        (json.dumps(hello(auth={"token": 5})), "$.payload.auth.token:", "msg_hello"),
        (json.dumps(hello(auth={"token": TOKEN, "scheme": 5})), "$.payload.auth.scheme:", "msg_hello"),
        (json.dumps(hello(client="me")), "$.payload.client:", "msg_hello"),
        (json.dumps(hello(client={"name": 5})), "$.payload.client.name:", "msg_hello"),
        (json.dumps(hello(capabilities=[])), "$.payload.capabilities:", "msg_hello"),
        (json.dumps(hello(capabilities={"features": "all"})), "$.payload.capabilities.features:", "msg_hello"),
        (json.dumps(hello(capabilities={"features": [1]})), "$.payload.capabilities.features[0]:", "msg_hello"),
        (json.dumps(hello(capabilities={"encodings": ["msgpack"]})), "$.payload.capabilities.encodings:", "msg_hello"),
        (json.dumps(hello(capabilities={"encodings": []})), "$.payload.capabilities.encodings:", "msg_hello"),
        (json.dumps(hello(resume="t")), "$.payload.resume:", "msg_hello"),
        (json.dumps(hello(resume={"resume_token": "t"})), "$.payload.resume.last_event_seq:", "msg_hello"),
    ],
)
async def test_a_malformed_first_frame_is_an_invalid_request(
    script: Script, text: bytes | str, path: str, request_id: str | None
) -> None:
    async with arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime:
        answer, code = await refusal(runtime, text, ping("never"))
        assert error_of(answer) == ("INVALID_REQUEST", request_id)
        assert answer["payload"]["message"].startswith(path)
        assert code == 1008


@pytest.mark.requirement("P6.1", "P6.6", "P6.4", "T20", "T21")
@pytest.mark.parametrize(
    "first",
    [
        hello(),
        hello(client=...),
        hello(client=..., client_name=...),
        hello(client={}, client_name=...),
        hello(auth={"token": TOKEN}),
        hello(capabilities=...),
        hello(capabilities=None),
        hello(capabilities={}),
        hello(capabilities={"encodings": None}),
        hello(capabilities={"encodings": ["cbor", "json"]}),
        hello(capabilities={"encodings": ["json"], "features": []}),
        {**hello(), "session_id": "sess_of_the_client"},
        {**hello(), "unknown": {"a": 1}},
        {**hello(), "arcp": "1"},
    ],
)
async def test_the_least_that_a_hello_may_say(script: Script, first: Frame) -> None:
    async with (
        arcp_trio.open_runtime(script.agents, verifier=TOKENS, name="rt") as runtime,
        open_raw(runtime, principal=None, hello=first) as client,
    ):
        (welcome,) = client.received
        payload = welcome["payload"]
        assert payload["session_id"] == welcome["session_id"]
        assert re.fullmatch("sess_[0-9A-HJKMNP-TV-Z]{26}", welcome["session_id"])
        assert (payload["runtime"]["name"], payload["runtime_name"]) == ("rt", "rt")
        assert payload["runtime"]["version"] == payload["runtime_version"] == arcp_trio.__version__
        assert payload["capabilities"]["encodings"] == ["json"]
        assert payload["resume_window_sec"] >= 1
        assert len(payload["resume_token"]) >= 22
        assert payload["accepted_at"].endswith("Z")
        assert "heartbeat_interval_sec" not in payload
        assert all(each["versions"] for each in payload["capabilities"]["agents"])
        assert welcome["correlation_id"] == "msg_hello"
        await assert_alive(client)


@pytest.mark.requirement("P5.3a", "D4")
async def test_a_refusal_has_the_session_id_that_the_client_proposed(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime:
        first = {**hello(auth={"token": "wrong"}), "session_id": "ses_of_the_client"}
        answer, _ = await refusal(runtime, json.dumps(first))
        assert answer["session_id"] == "ses_of_the_client"
        answer, _ = await refusal(runtime, json.dumps(hello(auth={"token": "wrong"})))
        assert answer["session_id"].startswith("sess_")


@pytest.mark.requirement("P5.2", "T02")
async def test_an_older_protocol_is_told_so_in_its_own_words(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime:
        for arcp in ("1.1", "1.0", "0.1"):
            first = {"arcp": arcp, "id": "msg_1", "type": "session.open", "payload": {"auth": {"token": TOKEN}}}
            answer, code = await refusal(runtime, json.dumps(first), ping("never"))
            assert (answer["type"], answer["correlation_id"], code) == ("session.rejected", "msg_1", 1000)
            assert answer["payload"]["code"] == "UNIMPLEMENTED"
            assert "session.hello" in answer["payload"]["message"]


async def test_a_resume_of_nothing(script: Script) -> None:
    """In either form: no session, the same answer, and a close."""
    resume = {"session_id": "sess_1", "resume_token": "never issued", "last_event_seq": 0}
    auth = {"scheme": "bearer", "token": TOKEN}
    async with arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime:
        in_hello, code = await refusal(runtime, json.dumps(hello(resume=resume)))
        alone = {**make_hello(), "type": "session.resume", "payload": {**resume, "auth": auth}}
        as_message, other_code = await refusal(runtime, json.dumps(alone))
        assert error_of(in_hello) == error_of(as_message) == ("RESUME_WINDOW_EXPIRED", "msg_hello")
        assert in_hello["payload"] == as_message["payload"]
        assert code == other_code == 1008


@pytest.mark.requirement("P6.1", "T12")
async def test_a_later_hello_is_refused_and_the_session_lives(script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime,
        open_raw(runtime, principal=None) as client,
    ):
        for again in (
            make_hello(message_id="again"),
            {**make_hello(message_id="mine"), "session_id": client.session_id},
            {**make_hello(message_id="proposed"), "session_id": "sess_of_the_client"},
            make_hello(token="other", message_id="as somebody else"),
            make_hello(token="wrong", message_id="wrong"),
        ):
            await client.send(again)
            (answer,) = await client.settle()
            assert error_of(answer) == ("INVALID_REQUEST", again["id"])
            assert answer["session_id"] == client.session_id
            await assert_alive(client)
        assert runtime.statistics().sessions == 1
        (session,) = runtime._sessions._sessions.values()
        assert session.principal.name == "me"


@pytest.mark.requirement("P6.1")
async def test_what_comes_behind_a_hello_in_the_same_read_is_handled(script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime,
        open_raw(runtime, principal=None, shake_hands=False) as client,
    ):
        await client.send_text(json.dumps(hello()), ping("behind"), "nonsense")
        frames = await client.settle()
        assert [each["type"] for each in frames] == ["session.welcome", "session.pong", "session.error"]


# --- verifiers ----------------------------------------------------------------------------------------


class SlowVerifier:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = 0

    async def verify(self, token: str) -> Principal | None:
        self.asked += 1
        await trio.sleep(self.seconds)
        return Principal(name="slow")


@pytest.mark.requirement("P6.1", "P6.2", "P4.5", "T11")
@pytest.mark.parametrize("hello_seconds", [10.0, 0.5])
async def test_who_says_nothing_is_closed_at_the_deadline(
    script: Script, autojump_clock: trio.testing.MockClock, hello_seconds: float
) -> None:
    limits = Limits(hello_seconds=hello_seconds)
    async with arcp_trio.open_runtime(script.agents, verifier=TOKENS, limits=limits) as runtime:
        started = trio.current_time()
        answer, code = await refusal(runtime)
        assert trio.current_time() - started == pytest.approx(hello_seconds)
        assert error_of(answer) == ("UNAUTHENTICATED", None)
        assert code == 1008
        assert script.entered == 0


@pytest.mark.requirement("P6.1", "P6.2", "T11")
@pytest.mark.parametrize("seconds", [10.5, 1e6, float("inf")])
async def test_a_verifier_is_bounded_by_the_deadline(
    script: Script, autojump_clock: trio.testing.MockClock, seconds: float
) -> None:
    verifier = SlowVerifier(seconds)
    async with arcp_trio.open_runtime(script.agents, verifier=verifier) as runtime:
        started = trio.current_time()
        answer, code = await refusal(runtime, json.dumps(hello()))
        assert trio.current_time() - started == pytest.approx(10.0)
        assert (error_of(answer)[0], code, verifier.asked) == ("UNAUTHENTICATED", 1008, 1)


@pytest.mark.requirement("P6.1", "P6.2")
async def test_a_slow_verifier_in_time_is_none_the_worse(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        arcp_trio.open_runtime(script.agents, verifier=SlowVerifier(9.9)) as runtime,
        open_raw(runtime, principal=None) as client,
    ):
        await assert_alive(client)
        # The deadline was the hello's and not the session's.
        await trio.sleep(100)
        await assert_alive(client)


@pytest.mark.requirement("P6.1")
async def test_a_client_that_leaves_during_its_verification(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents, verifier=SlowVerifier(5)) as runtime:
        async with open_raw(runtime, principal=None, shake_hands=False) as client:
            await client.send(hello())
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(20)
        assert_nothing_left(runtime)


@pytest.mark.requirement("P6.2")
@pytest.mark.parametrize(
    "error", [ValueError("a secret"), KeyError("a secret"), ExceptionGroup("a secret", [OSError("a secret")])]
)
async def test_a_verifier_that_fails(script: Script, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        async def verify(self, token: str) -> Principal | None:
            raise error

    async with arcp_trio.open_runtime(script.agents, verifier=Failing()) as runtime:
        answer, code = await refusal(runtime, json.dumps(hello()))
        assert error_of(answer) == ("INTERNAL_ERROR", "msg_hello")
        assert answer["payload"]["retryable"] is True
        assert code == 1011
        assert "secret" not in str(answer)
        assert "a secret" in caplog.text


@pytest.mark.requirement("P6.2", "P6.6", "P7.16")
async def test_a_verifier_may_restrict_the_agents(script: Script) -> None:
    verifier = arcp_trio.StaticTokens({TOKEN: Principal(name="me", agents=frozenset({"echo"})), "all": "you"})
    async with (
        arcp_trio.open_runtime(script.agents, verifier=verifier) as runtime,
        open_raw(runtime, principal=None) as client,
        open_raw(runtime, principal=None, hello=make_hello(token="all")) as other,
    ):
        agents = [each["name"] for each in client.received[0]["payload"]["capabilities"]["agents"]]
        assert agents == ["echo"]
        assert len(other.received[0]["payload"]["capabilities"]["agents"]) > 1
        refusals = []
        for agent in ("sleep", "nobody"):
            await client.request("job.submit", {"agent": agent})
            (answer,) = await client.settle()
            assert error_of(answer)[0] == "AGENT_NOT_AVAILABLE"
            refusals.append(answer["payload"]["message"].replace(agent, "?"))
        # One that is forbidden is one that does not exist.
        assert refusals[0] == refusals[1]
        await assert_alive(client)


@pytest.mark.requirement("P6.1", "T18", "S08")
async def test_tokens_are_compared_in_constant_time_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    for token, name in (
        (TOKEN, "me"),
        ("tökén", "umlaut"),
        (TOKEN[:-1], None),
        ("", None),
        ("é" * 99, None),
        ("\ud800", None),
    ):
        compared.clear()
        found = await TOKENS.verify(token)
        assert (found.name if found else None) == name
        assert len(compared) == 3
    assert TOKEN not in repr(TOKENS)


@pytest.mark.requirement("P6.1", "T18")
async def test_nobody_is_let_in_by_default(script: Script) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        arcp_trio.StaticTokens({"": "me"})
    with pytest.raises(ValueError, match="the name of a principal"):
        arcp_trio.StaticTokens({TOKEN: ""})
    async with arcp_trio.open_runtime(script.agents) as runtime:
        with pytest.raises(ValueError, match="AnonymousAccess"):
            await arcp_trio.serve_websocket(runtime, "127.0.0.1", 0)
        theirs, _ = open_memory_pair()
        with pytest.raises(ValueError, match="needs a verifier or a principal"):
            await runtime.serve_transport(theirs)


@pytest.mark.requirement("P6.1", "Q02")
async def test_anonymous_principals_are_all_different(script: Script) -> None:
    anonymous = arcp_trio.AnonymousAccess()
    async with (
        arcp_trio.open_runtime(script.agents, verifier=anonymous) as runtime,
        open_raw(runtime, principal=None) as one,
        open_raw(runtime, principal=None) as other,
    ):
        job_id = await one.submit("sleep")
        await other.request("job.cancel", {"job_id": job_id})
        (answer,) = await other.settle()
        assert error_of(answer)[0] == "JOB_NOT_FOUND"
        assert runtime.statistics().jobs_running == 1
        # Anonymous is not tokenless.
        answer, code = await _refused(runtime, hello(auth={"token": ""}))
        assert (error_of(answer)[0], code) == ("UNAUTHENTICATED", 1008)


async def _refused(runtime: arcp_trio.Runtime, first: Frame, **options: Any) -> tuple[Frame, int]:
    """As :func:`refusal`, while other sessions live."""
    async with open_raw(runtime, shake_hands=False, **{"principal": None, **options}) as client:
        await client.send(first)
        closed = await client.receive_close()
        (answer,) = client.received
        assert_valid(client)
        return answer, closed.code


# --- caps ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("P6.3", "P4.5", "H16")
async def test_a_principal_has_only_so_many_sessions(script: Script) -> None:
    limits = Limits(sessions_per_principal=2)
    async with (
        arcp_trio.open_runtime(script.agents, limits=limits, verifier=TOKENS) as runtime,
        open_raw(runtime, principal=None) as first,
    ):
        async with open_raw(runtime, principal=None):
            answer, code = await _refused(runtime, hello())
            assert error_of(answer) == ("INTERNAL_ERROR", "msg_hello")
            assert answer["payload"]["retryable"] is True
            assert answer["payload"]["details"]["limit"] == "sessions_per_principal"
            assert code == 1013
            # Nothing else is harmed: another principal, and the sessions that are.
            async with open_raw(runtime, principal=None, hello=make_hello(token="other")) as other:
                await assert_alive(other)
            await assert_alive(first)
            # One that is refused takes no place, and neither does one that is not authenticated.
            answer, code = await _refused(runtime, hello(auth={"token": "wrong"}))
            assert error_of(answer)[0] == "UNAUTHENTICATED"
        await trio.testing.wait_all_tasks_blocked()
        async with open_raw(runtime, principal=None) as again:
            await assert_alive(again)


@pytest.mark.requirement("P6.3")
@pytest.mark.parametrize("limit", ["jobs_per_principal", "jobs"])
async def test_only_so_many_jobs_run(script: Script, limit: str) -> None:
    limits = Limits(**{limit: 2})  # type: ignore[arg-type]
    async with (
        arcp_trio.open_runtime(script.agents, limits=limits) as runtime,
        open_raw(runtime) as client,
        open_raw(runtime, principal="you") as other,
    ):
        jobs = [await client.submit("sleep") for _ in range(2)]
        request_id = await client.request("job.submit", {"agent": "echo"})
        answer = await client.receive_until("session.error")
        assert error_of(answer) == ("INTERNAL_ERROR", request_id)
        assert answer["payload"]["retryable"] is True
        assert answer["payload"]["details"] == {"limit": limit, "value": 2}
        await other.request("job.submit", {"agent": "echo"})
        answers = await other.settle()
        assert answers[0]["type"] == ("job.accepted" if limit == "jobs_per_principal" else "session.error")
        await client.request("job.cancel", {"job_id": jobs[0]})
        await client.receive_until("job.error")
        await assert_alive(client)
        assert runtime.statistics().jobs_running == 1


@pytest.mark.requirement("P4.4", "P4.5")
async def test_a_frame_over_the_limit_closes_with_1009(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents, limits=Limits(receive_bytes=2000)) as runtime:
        for first in (True, False):
            theirs, ours = open_memory_pair(receive_bytes=(2000, 10**6))
            runtime.spawn_connection(partial(runtime.serve_transport, theirs, principal="me"), "raw")
            client = RawClient(ours)
            if not first:
                await client.send(make_hello())
                await client.receive()
                # At the limit is within it.
                await client.send_text(ping("x").ljust(2000))
                await client.receive_until("session.pong")
            await client.send_text(ping("x").ljust(2001))
            closed = await client.receive_close()
            assert closed.code == 1009
            assert "2000" in closed.reason
        await trio.testing.wait_all_tasks_blocked()
        assert_nothing_left(runtime)
