"""What a client does with the credentials of its jobs, however a runtime writes them."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from helpers import ALL_FEATURES, Frame
from playing import Call, Connection, open_played

import arcp_trio
from arcp_trio.client.credentials import read_credentials, read_rotation, without_value

CANARY = "sk-canary-"
URL = "https://gateway.example/v1/chat"


def wire(number: int = 1, **changes: Any) -> Frame:
    return {
        "id": f"cred_{number}",
        "scheme": "bearer",
        "value": f"{CANARY}{number}",
        "endpoint": "https://gateway.example/v1",
    } | changes


async def accept(
    nursery: trio.Nursery, client: arcp_trio.Client, connection: Connection, *credentials: Frame
) -> arcp_trio.JobHandle:
    call = Call(nursery, client.submit, "a")
    submit = await connection.expect("job.submit")
    payload = {"job_id": "job_1", "agent": "a@1", "request_id": submit["id"], "credentials": list(credentials)}
    await connection.say("job.accepted", payload, job_id="job_1", correlation_id=submit["id"])
    assert isinstance(call.value, arcp_trio.JobHandle)
    return call.value


async def rotate(connection: Connection, number: int, **body: Any) -> None:
    payload = {"kind": "status", "body": {"phase": "credential_rotated", **body}}
    await connection.say("job.event", payload, job_id="job_1", event_seq=number)


@pytest.mark.requirement("P9.11", "P6.5")
async def test_a_handle_has_the_credentials_of_its_job_until_its_end(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        assert "provisioned_credentials" in connection.hello["payload"]["capabilities"]["features"]
        handle = await accept(nursery, client, connection, wire(1, profile="openai"), wire(2))
        first, second = handle.credentials
        assert (first.id, first.profile, second.value.reveal()) == ("cred_1", "openai", f"{CANARY}2")
        assert first.headers_for(URL) == {"Authorization": f"Bearer {CANARY}1"}
        with pytest.raises(arcp_trio.PermissionDeniedError):
            first.present("https://gateway.example.evil/v1/chat")
        assert handle.accepted is not None
        assert handle.accepted.credentials is None
        await connection.result(1)
        assert handle.credentials == ()


@pytest.mark.requirement("P9.11")
async def test_what_a_client_cannot_present_is_skipped(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        handle = await accept(
            nursery,
            client,
            connection,
            wire(1, scheme="signed_url"),
            wire(2, value=None),
            wire(3, endpoint=""),
            wire(4, unknown="field"),
            {},
        )
        assert [credential.id for credential in handle.credentials] == ["cred_4"]
    assert "skipped a credential" in caplog.text


@pytest.mark.requirement("P6.4", "P9.11")
async def test_what_was_not_negotiated_is_not_taken(autojump_clock: trio.testing.MockClock) -> None:
    features = [feature for feature in ALL_FEATURES if feature != "provisioned_credentials"]
    async with open_played(features=features) as (_, connection, client), trio.open_nursery() as nursery:
        handle = await accept(nursery, client, connection, wire())
        assert handle.credentials == ()
        assert handle.accepted is not None
        assert handle.accepted.credentials is None


LAYOUTS: dict[str, Frame] = {
    "spec": {"id": "cred_1", "value": f"{CANARY}new"},
    "ours": {
        "message": "cred_1",
        "id": "cred_1",
        "value": f"{CANARY}new",
        "details": {"id": "cred_1", "value": f"{CANARY}new"},
    },
    "go": {"message": "cred_1", "details": {"id": "cred_1", "value": f"{CANARY}new"}},
    "c#": {"credential_id": "cred_1", "credential_value": f"{CANARY}new"},
    "c#, details": {"details": {"credential_id": "cred_1", "credential_value": f"{CANARY}new"}},
    "fields": {"fields": {"id": "cred_1", "value": f"{CANARY}new"}},
    "by message": {"message": "cred_1", "value": f"{CANARY}new"},
}


@pytest.mark.requirement("P9.10", "P9.11", "D50", "C07")
@pytest.mark.parametrize("body", LAYOUTS.values(), ids=LAYOUTS.keys())
async def test_a_rotation_in_any_layout_takes_its_place(body: Frame, autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        handle = await accept(nursery, client, connection, wire(1, profile="openai"), wire(2))
        await rotate(connection, 1, **body)
        first, second = handle.credentials
        assert (first.id, first.profile, first.value.reveal()) == ("cred_1", "openai", f"{CANARY}new")
        assert second.value.reveal() == f"{CANARY}2"
        # The program hears of it, and gets the value from the handle alone.
        event = await anext(handle.events())
        assert isinstance(event, arcp_trio.Event)
        assert event.body["phase"] == "credential_rotated"
        assert CANARY not in repr(event)
        assert event.parse().phase == "credential_rotated"


@pytest.mark.requirement("D50", "P9.11")
async def test_a_rotation_that_does_not_say_the_value(autojump_clock: trio.testing.MockClock) -> None:
    """The prior one is revoked: what is left of it is of no use."""
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        handle = await accept(nursery, client, connection, wire(1), wire(2))
        await rotate(connection, 1, fields={"id": "cred_1"})
        assert [credential.id for credential in handle.credentials] == ["cred_2"]
        await rotate(connection, 2, id="cred_9", value=f"{CANARY}of another")
        await rotate(connection, 3, id="cred_2", value=5, details="none")
        assert handle.credentials == ()


@pytest.mark.requirement("P9.11")
async def test_a_rotation_before_the_acceptance(autojump_clock: trio.testing.MockClock) -> None:
    """Some runtimes send events before they accept (D32)."""
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.submit, "a")
        submit = await connection.expect("job.submit")
        await rotate(connection, 1, id="cred_1", value=f"{CANARY}new")
        payload = {"job_id": "job_1", "request_id": submit["id"], "credentials": [wire(1)]}
        await connection.say("job.accepted", payload, job_id="job_1")
        (credential,) = call.value.credentials
        assert credential.value.reveal() == f"{CANARY}new"


@pytest.mark.requirement("P9.11")
@pytest.mark.parametrize("end", ["lost", "closed", "left"])
async def test_what_is_not_observed_any_more_is_not_kept(end: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(reconnects=False) as (_, connection, client), trio.open_nursery() as nursery:
        handle = await accept(nursery, client, connection, wire(1))
        if end == "lost":
            await connection.drop()
        elif end == "closed":
            await connection.drop(1000)
        else:
            handle._leave()
        assert handle.credentials == ()


@pytest.mark.requirement("P7.17", "P6.20")
async def test_of_a_subscription_and_a_listing_the_handle_alone_has_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.subscribe, "job_1")
        request = await connection.expect("job.subscribe")
        payload = {
            "job_id": "job_1",
            "current_status": "running",
            "request_id": request["id"],
            "credentials": [wire(1)],
        }
        await connection.say("job.subscribed", payload, job_id="job_1")
        assert [credential.id for credential in call.value.credentials] == ["cred_1"]
        assert call.value.subscribed.credentials is None
        listing = Call(nursery, anext, client.list_jobs())
        request = await connection.expect("session.list_jobs")
        entry = {"job_id": "job_1", "agent": "a@1", "status": "running", "credentials": [wire(1)]}
        await connection.say("session.jobs", {"request_id": request["id"], "jobs": [entry], "next_cursor": None})
        (shown,) = listing.value
        assert shown.job_id == "job_1"
        assert shown.credentials is None
        await connection.result(1)
        assert call.value.credentials == ()


@pytest.mark.requirement("P6.9", "P9.10")
async def test_what_comes_again_behind_a_resume_is_what_is_good_now(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, connection, client), trio.open_nursery() as nursery:
        handle = await accept(nursery, client, connection, wire(1))
        await rotate(connection, 1, id="cred_1", value=f"{CANARY}new")
        await connection.drop()
        again = await played.next()
        await again.welcome("rt_2")
        payload = {"job_id": "job_1", "request_id": "msg_old", "credentials": [wire(1, value=f"{CANARY}new")]}
        await again.say("job.accepted", payload, job_id="job_1")
        await again.replayed()
        assert handle.credentials[0].value.reveal() == f"{CANARY}new"


def test_reading_credentials_and_rotations() -> None:
    assert read_credentials([]) == {}
    assert list(read_credentials([wire(2), wire(1)])) == ["cred_2", "cred_1"]
    assert read_rotation({"phase": "credential_rotated"}) == ("", None)
    assert read_rotation({"message": 5, "id": "", "value": ""}) == ("", None)
    for body in LAYOUTS.values():
        assert CANARY not in str(without_value(body))
        assert "cred_1" in str(without_value(body))
    assert without_value({"a": 1, "details": {"b": 2}}) == {"a": 1, "details": {"b": 2}}
