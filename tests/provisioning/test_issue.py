"""What a job is given: issued, held against its lease, written down, and shown to its submitter alone."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing
from helpers import QUIET_FEATURES, Frame, RawClient, connect_raw, make_hello, open_raw
from provisioning.fakes import CANARY, ENDPOINT, FakeProvisioner, KeptLedger, failing, waiting
from provisioning.running import LEASE, Bench, credentials_of, open_bench
from sessions.resuming import drop, resume_hello

import arcp_trio
from arcp_trio import CredentialConstraints, LedgerEntry, LedgerState, ProvisioningError
from arcp_trio.store.memory import MemoryLedger
from arcp_trio.transports.memory import open_memory_pair

FEATURE = "provisioned_credentials"
WITHOUT = [feature for feature in QUIET_FEATURES if feature != FEATURE]


async def submit(client: RawClient, agent: str = "gate", **payload: Any) -> Frame:
    await client.submit(agent, **payload)
    return client.received[-1]


async def refusal(client: RawClient, **payload: Any) -> Frame:
    """Submit; return the error that it is refused with."""
    request_id = await client.request("job.submit", {"agent": "gate", "input": 1, **payload})
    frame = await client.receive()
    assert frame["type"] == "session.error", frame
    assert frame["payload"]["request_id"] == request_id
    error: Frame = frame["payload"]
    return error


# --- what is issued -------------------------------------------------------------------------------


@pytest.mark.requirement("P9.10", "P7.2")
async def test_a_job_is_accepted_with_its_credentials() -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        lease = {**LEASE, "tool.call": ["search.*"]}
        request = client.make(
            "job.submit",
            {
                "agent": "gate",
                "lease_request": lease,
                "lease_constraints": {"expires_at": "2099-01-01T00:00:00Z"},
            },
            trace_id="0af7651916cd43dd8448eb211c80319c",
        )
        await client.send(request)
        accepted = await client.receive_until("job.accepted")
        ((handle, value),) = bench.provisioner.values.items()
        (credential,) = credentials_of(accepted)
        assert credential.pop("id").startswith("cred_")
        assert credential == {
            "scheme": "bearer",
            "value": value,
            "endpoint": ENDPOINT,
            "profile": "openai",
            "constraints": {
                "cost.budget": ["USD:5.00"],
                "model.use": ["tier-fast/*"],
                "allowed_models": ["tier-fast/*"],
                "expires_at": "2099-01-01T00:00:00Z",
            },
        }
        (asked,) = bench.provisioner.requests
        assert asked == arcp_trio.CredentialRequest(
            job_id=accepted["payload"]["job_id"],
            principal="me",
            agent="gate@1.0.0",
            lease={name: tuple(patterns) for name, patterns in lease.items()},
            budget={"USD": Decimal("5.00")},
            models=("tier-fast/*",),
            expires_at="2099-01-01T00:00:00Z",
            trace_id="0af7651916cd43dd8448eb211c80319c",
            trace_headers=asked.trace_headers,
        )
        assert accepted["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert bench.ledger.states() == {LedgerState.REVOKED: 1, LedgerState.ISSUED: 1}
        statistics = runtime.statistics()
        assert (statistics.credentials_live, statistics.credentials_issued) == (1, 1)
        bench.script.gate.set()
        await client.receive_until("job.result")
        assert bench.provisioner.revoked == {handle: 1}
        assert bench.is_clean
        statistics = runtime.statistics()
        assert (statistics.credentials_live, statistics.credentials_revoked) == (0, 1)


@pytest.mark.requirement("P9.10", "C11")
async def test_the_intent_is_written_down_before_and_the_credential_before_it_leaves() -> None:
    """Nothing is asked of the upstream, and nothing said to the client, that the ledger could not lead back to."""
    bench = Bench()
    steps: list[str] = []

    async def note_put(entries: Sequence[LedgerEntry]) -> None:
        steps.append(" ".join(entry.state.value for entry in entries))

    async def note_issue(job_id: str) -> None:
        steps.append("issue")
        (intent,) = await bench.ledger.outstanding()
        assert (intent.job_id, intent.state, intent.handle) == (job_id, LedgerState.INTENDED, None)

    bench.ledger.before_put = note_put
    bench.provisioner.before["issue"] = note_issue
    async with bench.open() as runtime, open_raw(runtime) as client:
        await submit(client)
        assert steps == ["intended", "issue", "issued revoked"]
        bench.script.gate.set()
        await client.receive_until("job.result")


@pytest.mark.requirement("P9.10", "C07", "C14", "P14.2")
async def test_the_ledger_holds_no_value() -> None:
    async with open_bench(count=3) as (bench, runtime), open_raw(runtime) as client:
        accepted = await submit(client)
        assert len(credentials_of(accepted)) == 3
        bench.script.gate.set()
        await client.receive_until("job.result")
    assert len(bench.ledger.notes) >= 7
    assert CANARY not in repr(bench.ledger.notes)
    assert bench.is_clean


async def test_a_job_that_needs_none_gets_none() -> None:
    async with open_bench(count=0) as (bench, runtime), open_raw(runtime) as client:
        accepted = await submit(client, "echo", input=1)
        assert "credentials" not in accepted["payload"]
        await client.receive_until("job.result")
    assert bench.provisioner.calls_of("revoke") == bench.provisioner.calls_of("revoke_job") == []
    assert bench.ledger.states() == {LedgerState.REVOKED: 1}


@pytest.mark.requirement("P9.8", "P9.11")
async def test_what_a_provisioner_is_told_of_models() -> None:
    for open_models, lease, models in (
        (False, None, ()),
        (True, None, None),
        (True, {"model.use": ["a/*"]}, ("a/*",)),
        (False, {"model.use": ["a/*"]}, ("a/*",)),
    ):
        async with open_bench(open_models=open_models) as (bench, runtime), open_raw(runtime) as client:
            await submit(client, "echo", **({"lease_request": lease} if lease else {}))
            assert bench.provisioner.requests[0].models == models


@pytest.mark.requirement("P9.10")
async def test_an_agent_has_the_credentials_of_its_job() -> None:
    async with open_bench(count=2) as (bench, runtime), open_raw(runtime) as client:
        accepted = await submit(client, "rotate", input=0)
        await trio.testing.wait_all_tasks_blocked()
        (held,) = bench.seen
        assert [credential.to_wire() for credential in held] == credentials_of(accepted)
        assert held[0].headers_for(f"{ENDPOINT}/chat")["Authorization"].startswith(f"Bearer {CANARY}")
        with pytest.raises(arcp_trio.PermissionDeniedError):
            held[0].present("https://evil.example/v1/chat")
        bench.script.gate.set()
        await client.receive_until("job.result")


# --- who gets any ---------------------------------------------------------------------------------


@pytest.mark.requirement("C12", "P9.10", "P6.5")
async def test_a_provisioner_needs_a_ledger_that_lasts() -> None:
    script = Bench().script
    for options in (
        {"provisioner": FakeProvisioner()},
        {"provisioner": FakeProvisioner(), "ledger": MemoryLedger()},
        {"ledger": KeptLedger()},
    ):
        with pytest.raises(ValueError, match="a provisioner needs a durable ledger"):
            async with arcp_trio.open_runtime(script.agents, **options):  # type: ignore[arg-type]
                raise AssertionError


@pytest.mark.requirement("C12", "P6.5", "G21")
async def test_the_feature_is_offered_with_a_provisioner_alone() -> None:
    for provisioned in (True, False):
        bench = Bench()
        options: Any = {"provisioner": bench.provisioner, "ledger": bench.ledger} if provisioned else {}
        async with arcp_trio.open_runtime(bench.script.agents, **options) as runtime:
            client = await connect_raw(runtime, shake_hands=False)
            await client.send(make_hello())
            features = (await client.receive())["payload"]["capabilities"]["features"]
            assert (FEATURE in features) is provisioned
            assert "model.use" in features


@pytest.mark.requirement("C12", "P9.10", "P6.4")
async def test_a_client_without_the_feature_gets_none() -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime, hello=make_hello(features=WITHOUT)) as client:
        accepted = await submit(client)
        assert "credentials" not in accepted["payload"]
        bench.script.gate.set()
        await client.receive_until("job.result")
    assert bench.provisioner.calls == []
    assert bench.ledger.notes == []


@pytest.mark.requirement("P9.10")
async def test_whom_nobody_knows_gets_none() -> None:
    async with open_bench() as (bench, runtime):
        async with open_raw(runtime, principal=None, verifier=arcp_trio.AnonymousAccess()) as client:
            assert "credentials" not in (await submit(client))["payload"]
        assert bench.provisioner.calls == []


class InTheOpen:
    """A transport that others can read."""

    private = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def connect_in_the_open(runtime: arcp_trio.Runtime, hello: Frame) -> RawClient:
    theirs, ours = open_memory_pair()

    async def serve() -> None:
        await runtime.serve_transport(InTheOpen(theirs), principal="me")

    runtime.spawn_connection(serve, "in the open")
    client = RawClient(ours)
    await client.send(hello)
    return client


@pytest.mark.requirement("P9.10", "P6.9")
async def test_a_connection_that_others_can_read_gets_none() -> None:
    async with open_bench() as (bench, runtime):
        client = await connect_in_the_open(runtime, make_hello())
        welcome = await client.receive()
        assert FEATURE not in welcome["payload"]["capabilities"]["features"]
        client.session_id = welcome["session_id"]
        assert "credentials" not in (await submit(client, "sleep"))["payload"]
        assert bench.provisioner.calls == []


@pytest.mark.requirement("P9.10", "P6.9", "S09")
async def test_a_session_with_credentials_is_not_resumed_where_others_can_read() -> None:
    async with open_bench() as (bench, runtime):
        client = await connect_raw(runtime)
        await submit(client, "sleep")
        await drop(client)
        hello = resume_hello(client, 0)
        for frame in (hello, session_resume(hello)):
            spied = await connect_in_the_open(runtime, frame)
            answer = await spied.receive()
            assert answer["payload"]["code"] == "INVALID_REQUEST"
            assert CANARY not in str(answer)
        # It has cost the owner nothing.
        again = await connect_raw(runtime, hello=hello)
        assert len(credentials_of(await again.receive_until("job.accepted"))) == 1
        assert bench.provisioner.live


def session_resume(hello: Frame) -> Frame:
    payload = hello["payload"]
    return {**hello, "type": "session.resume", "payload": {"auth": payload["auth"], **payload["resume"]}}


# --- what a provisioner may not return --------------------------------------------------------------

WIDER = {
    "later": {"constraints": CredentialConstraints(expires_at="2199-01-01T00:00:00Z")},
    "not UTC": {"constraints": CredentialConstraints(expires_at="2098-01-01T00:00:00+01:00")},
    "budget": {"constraints": CredentialConstraints(budget=("USD:50.00",))},
    "currency": {"constraints": CredentialConstraints(budget=("EUR:1",))},
    "models": {"constraints": CredentialConstraints(models=("**",))},
    "no endpoint": {"endpoint": "gateway"},
    "the value in the handle": {"handle": "key-sk-canary-x", "value": "sk-canary-x"},
    "too large": {"value": CANARY + "x" * 20_000},
}


@pytest.mark.requirement("C14", "P9.11", "L11", "L12")
@pytest.mark.parametrize("changes", WIDER.values(), ids=WIDER.keys())
async def test_what_is_wider_than_the_lease_is_refused_and_revoked(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        bench.provisioner.changes = changes
        constraints = {"expires_at": "2099-01-01T00:00:00Z"}
        error = await refusal(client, lease_request=LEASE, lease_constraints=constraints)
        assert (error["code"], error["retryable"]) == ("INTERNAL_ERROR", True)
        assert error["message"] == "the credentials of the job could not be issued"
        await trio.testing.wait_all_tasks_blocked()
        assert bench.provisioner.live == {}
        assert len(bench.provisioner.calls_of("revoke_job")) == 1
        assert bench.ledger.states() == {LedgerState.REVOKED: 1}
        assert runtime.statistics().jobs_accepted == 0
        assert "what the provisioner returned was refused" in caplog.text
        assert CANARY not in caplog.text
        # The next one is as good as if nothing had been.
        bench.provisioner.changes = {}
        assert credentials_of(await submit(client))


@pytest.mark.requirement("P9.10")
@pytest.mark.parametrize("which", ["value", "handle"])
async def test_what_was_issued_before_is_not_issued_again(which: str) -> None:
    """A value is for one job; and a second job's end would revoke the first one's, were the handle the same."""
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        await submit(client, "sleep")
        ((handle, value),) = bench.provisioner.values.items()
        bench.provisioner.changes = {"value": value} if which == "value" else {"handle": handle}
        assert (await refusal(client))["code"] == "INTERNAL_ERROR"
        await trio.testing.wait_all_tasks_blocked()
        assert list(bench.provisioner.live) == [handle], "the first job's is as good as before"


async def test_two_of_one_job_that_are_the_same_are_refused() -> None:
    async with open_bench(count=2) as (bench, runtime), open_raw(runtime) as client:
        bench.provisioner.changes = {"value": "sk-canary-twice"}
        assert (await refusal(client))["code"] == "INTERNAL_ERROR"


async def test_a_job_has_only_so_many(caplog: pytest.LogCaptureFixture) -> None:
    async with open_bench(count=3, credentials=2) as (bench, runtime), open_raw(runtime) as client:
        await refusal(client)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.provisioner.live == {}
    assert "3 credentials, the limit credentials is 2" in caplog.text


# --- when it fails --------------------------------------------------------------------------------


@pytest.mark.requirement("L11", "L12", "C07", "P7.1")
@pytest.mark.parametrize(
    "error",
    [
        ProvisioningError("the upstream answered 503"),
        ValueError(f"401 for key {CANARY}secret"),
        ExceptionGroup("several", [ValueError(f"{CANARY}secret")]),
        SystemExit(3),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_failed_issue_leaves_nothing(
    error: BaseException, when: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        await submit(client, "sleep")
        before = runtime.statistics()
        (running,) = bench.provisioner.live
        getattr(bench.provisioner, when)["issue"] = failing(error)
        answer = await refusal(client, max_runtime_sec=5, lease_constraints={"expires_at": "2099-01-01T00:00:00Z"})
        assert answer["code"] == "INTERNAL_ERROR"
        assert answer["retryable"] is True
        assert CANARY not in str(answer)
        assert "503" not in str(answer)
        await trio.sleep(1_000)
        # No job, no timer, no listing entry, no live credential; nothing more is said.
        after = runtime.statistics()
        assert (after.jobs_accepted, after.timers, after.submits_waiting) == (1, before.timers, 0)
        assert list(bench.provisioner.live) == [running]
        await client.request("session.list_jobs", {})
        assert len((await client.receive())["payload"]["jobs"]) == 1
        assert bench.ledger.states() == {LedgerState.REVOKED: 2, LedgerState.ISSUED: 1}
    assert CANARY not in caplog.text


@pytest.mark.requirement("L12", "P7.6")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_issue_that_hangs_is_cut(when: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_bench(submit_seconds=30) as (bench, runtime), open_raw(runtime) as client:
        getattr(bench.provisioner, when)["issue"] = waiting(trio.Event())
        began = trio.current_time()
        error = await refusal(client)
        assert trio.current_time() - began == pytest.approx(30)
        assert (error["code"], error["retryable"]) == ("INTERNAL_ERROR", True)
        assert error["details"] == {"limit": "submit_seconds", "value": 30}
        await trio.testing.wait_all_tasks_blocked()
        assert bench.provisioner.live == {}
        assert bench.ledger.states() == {LedgerState.REVOKED: 1}
        assert runtime.statistics().jobs_accepted == 0


@pytest.mark.requirement("L12", "P9.10")
@pytest.mark.parametrize("put", [1, 2])
async def test_what_cannot_be_written_down_is_not_issued(put: int, autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    count = 0

    async def fail(entries: Sequence[LedgerEntry]) -> None:
        nonlocal count
        count += 1
        if count == put:
            raise OSError("disk full")

    bench.ledger.before_put = fail
    async with bench.open() as runtime, open_raw(runtime) as client:
        error = await refusal(client)
        assert error["message"] == "the credentials of the job could not be written down"
        await trio.sleep(1)
        assert len(bench.provisioner.calls_of("issue")) == put - 1
        assert bench.provisioner.live == {}
        assert set(bench.ledger.states()) == {LedgerState.REVOKED}


@pytest.mark.requirement("P9.10", "C11")
async def test_a_ledger_that_fails_behind_its_commit(autojump_clock: trio.testing.MockClock) -> None:
    """The entries are there though the put has failed: they are settled with the intent."""
    bench = Bench(count=2)

    async def fail(entries: Sequence[LedgerEntry]) -> None:
        bench.ledger.after_put = None
        raise OSError("the connection was lost")

    async with bench.open() as runtime, open_raw(runtime) as client:
        bench.provisioner.after["issue"] = arm = _Arm(bench, fail)
        await refusal(client)
        await trio.sleep(1)
        assert arm.done
        assert bench.provisioner.live == {}
        assert bench.ledger.states() == {LedgerState.REVOKED: 3}
        assert runtime.unrevoked_credentials() == ()


class _Arm:
    """Has the ledger fail from now on."""

    def __init__(self, bench: Bench, fail: Any) -> None:
        self.bench = bench
        self.fail = fail
        self.done = False

    async def __call__(self, subject: str) -> None:
        self.bench.ledger.after_put = self.fail
        self.done = True
        await trio.lowlevel.checkpoint()


@pytest.mark.requirement("P9.10", "C09")
async def test_who_cannot_revoke_must_not_issue(autojump_clock: trio.testing.MockClock) -> None:
    limits = {"unrevoked_credentials": 2, "revocation_delay_seconds": 100, "revocation_max_delay_seconds": 1_000}
    async with open_bench(count=2, **limits) as (bench, runtime), open_raw(runtime) as client:
        bench.provisioner.before["revoke"] = failing(ProvisioningError("503"), times=2)
        await submit(client, "echo")
        await client.receive_until("job.result")
        error = await refusal(client)
        assert error["retryable"] is True
        assert error["details"] == {"limit": "unrevoked_credentials", "value": 2}
        assert len(runtime.unrevoked_credentials()) == 2
        await trio.sleep(200)
        assert runtime.unrevoked_credentials() == ()
        assert credentials_of(await submit(client))
        bench.script.gate.set()
        await client.receive_until("job.result")
    assert bench.is_clean
