"""Following a job of another session (P7.17 to P7.20)."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import pytest
import trio
import trio.testing
from helpers import QUIET_FEATURES, Frame, RawClient, Script, connect_raw, make_hello, terminals
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions.resuming import drop, lines, resume, sequence
from sessions.test_resume import Lines

import arcp_trio
from arcp_trio.sessions.auth import Principal

JOB_SEQ = "x-vendor.arcp-trio.job_seq"


def job_numbers(frames: list[Frame]) -> list[int]:
    return [frame["extensions"][JOB_SEQ] for frame in frames if "event_seq" in frame]


async def subscribe(client: RawClient, job_id: str, **payload: Any) -> Frame:
    request_id = await client.request("job.subscribe", {"job_id": job_id, **payload})
    return await client.receive_until(lambda frame: frame["payload"].get("request_id") == request_id)


@pytest.mark.requirement("P7.17", "Q07", "C07", "Q16")
async def test_what_job_subscribed_says(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        lease = {"fs.read": ["/a/**"]}
        job_id = await owner.submit("gate", lease_request=lease)
        await owner.settle()
        observer = await connect_raw(runtime)
        answer = await subscribe(observer, job_id)
        payload = answer["payload"]
        assert answer["type"] == "job.subscribed"
        assert (answer["job_id"], answer["trace_id"]) == (job_id, payload["trace_id"])
        assert "event_seq" not in answer
        request_id = payload.pop("request_id")
        assert payload.pop("reply_to") == answer["correlation_id"] == request_id
        assert payload.pop("trace_id") == owner.received[-1]["trace_id"]
        assert payload == {
            "job_id": job_id,
            "current_status": "running",
            "agent": "gate@1.0.0",
            "lease": lease,
            "parent_job_id": None,
            "subscribed_from": 1,
            "replayed": False,
        }
        script.gate.set()
        frames = await observer.settle()
        # Only what came after, in this session's own numbers.
        assert [frame["type"] for frame in frames] == ["job.result"]
        assert sequence(frames) == [1]
        assert job_numbers(frames) == [2]


@pytest.mark.requirement("P7.17", "P7.18", "Q05", "S04")
@pytest.mark.parametrize(("after", "wanted"), [(None, [1, 2, 3, 4, 5]), (0, [1, 2, 3, 4, 5]), (2, [3, 4, 5]), (9, [])])
async def test_the_history_is_joined_to_what_is_live(after: int | None, wanted: list[int]) -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("lines")
        await script.say(*"abcde")
        observer = await connect_raw(runtime)
        payload: dict[str, Any] = {"history": True}
        if after is not None:
            payload["from_event_seq"] = after
        answer = await subscribe(observer, job_id, **payload)
        assert (answer["payload"]["replayed"], answer["payload"]["subscribed_from"]) == (True, 5)
        await script.say("f", None)
        frames = await observer.settle()
        assert job_numbers(frames) == [*wanted, 6, 7]
        assert sequence(frames) == list(range(1, len(frames) + 1))
        # With the times at which they were said.
        theirs = {job_numbers([frame])[0]: frame for frame in await owner.settle() if "event_seq" in frame}
        for frame in frames:
            mine = theirs[frame["extensions"][JOB_SEQ]]
            assert (frame["payload"], frame["timestamp"]) == (mine["payload"], mine["timestamp"])


@pytest.mark.requirement("P7.17")
async def test_from_event_seq_without_history_is_ignored() -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("lines")
        await script.say("a", "b")
        observer = await connect_raw(runtime)
        answer = await subscribe(observer, job_id, from_event_seq=0)
        assert answer["payload"]["replayed"] is False
        await script.say("c")
        assert lines(await observer.settle()) == ["c"]


@pytest.mark.requirement("P7.18")
async def test_a_history_that_does_not_reach_back_says_so() -> None:
    script = Lines()
    limits = arcp_trio.Limits(history_events=3)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("lines")
        await script.say(*"abcdefgh")
        observer = await connect_raw(runtime)
        answer = await subscribe(observer, job_id, history=True)
        assert answer["payload"]["truncated_before"] == 6
        assert job_numbers(await observer.settle()) == [6, 7, 8]
        other = await connect_raw(runtime)
        answer = await subscribe(other, job_id, history=True, from_event_seq=5)
        assert "truncated_before" not in answer["payload"]
        assert job_numbers(await other.settle()) == [6, 7, 8]


@pytest.mark.requirement("P7.20", "Q08", "Q09")
@pytest.mark.parametrize("history", [False, True])
async def test_a_job_that_has_ended(script: Script, history: bool) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("flood", 3)
        await owner.settle()
        observer = await connect_raw(runtime)
        for number in (0, 1):
            answer = await subscribe(observer, job_id, history=history)
            assert (answer["payload"]["current_status"], answer["payload"]["subscribed_from"]) == ("success", 4)
            frames = await observer.settle()
            assert job_numbers(frames) == ([1, 2, 3, 4] if history else [4])
            assert sequence(frames)[0] == 1 + number * len(frames)
            assert frames[-1]["payload"]["result"] == 3


@pytest.mark.requirement("P7.20", "Q04")
async def test_subscribing_twice_is_one_subscription() -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("lines")
        await script.say("a")
        observer = await connect_raw(runtime)
        assert (await subscribe(observer, job_id, history=True))["payload"]["replayed"] is True
        assert (await subscribe(observer, job_id, history=True))["payload"]["replayed"] is False
        assert (await subscribe(owner, job_id, history=True))["payload"]["replayed"] is False
        await script.say("b", None)
        for client in (observer, owner):
            await client.settle()
            assert lines(client.received) == ["a", "b"]
            assert len(terminals(client.received)) == 1


@pytest.mark.requirement("P7.20", "Q10")
async def test_unsubscribing() -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("lines")
        observer = await connect_raw(runtime)
        await subscribe(observer, job_id)
        await script.say("a")
        for _ in range(2):
            await observer.request("job.unsubscribe", {"job_id": job_id})
        await observer.request("job.unsubscribe", {}, job_id="job_unknown")
        # A job's own session stays told, whatever it says.
        await owner.request("job.unsubscribe", {"job_id": job_id})
        await owner.settle()
        await script.say("b", None)
        assert lines(await observer.settle()) == ["a"]
        await owner.settle()
        assert lines(owner.received) == ["a", "b"]
        assert len(terminals(owner.received)) == 1
        await observer.request("job.unsubscribe", {"job_id": job_id})
        await observer.request("job.unsubscribe")
        (refusal,) = await observer.settle()
        assert refusal["payload"]["code"] == "INVALID_REQUEST"


@pytest.mark.requirement("P6.12", "Q10")
async def test_subscriptions_go_with_their_session(autojump_clock: trio.testing.MockClock) -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("lines")
        observer = await connect_raw(runtime)
        await subscribe(observer, job_id)
        (actor,) = runtime._directory.actors()
        assert actor.feed.followers == 2
        await drop(observer)
        # It waits for its client, who may come back.
        assert actor.feed.followers == 2
        await script.say("a")
        await trio.sleep(601)
        assert actor.feed.followers == 1
        await script.say("b", None)
        assert lines(await owner.settle()) == ["a", "b"]


@pytest.mark.requirement("P6.9", "S23")
async def test_a_subscription_goes_on_after_a_resume() -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("lines")
        observer = await connect_raw(runtime)
        await subscribe(observer, job_id)
        await script.say("a")
        await observer.settle()
        await drop(observer)
        await script.say("b")
        observer = await resume(runtime, observer, 1)
        await script.say("c", None)
        frames = await observer.settle()
        assert lines(frames) == ["b", "c"]
        assert len(terminals(frames)) == 1


@pytest.mark.requirement("L06", "P7.13")
@pytest.mark.parametrize("agent", ["sleep", "gate"])
async def test_whoever_follows_gets_the_end_however_it_comes(script: Script, agent: str) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit(agent)
        observer = await connect_raw(runtime)
        await subscribe(observer, job_id)
        if agent == "sleep":
            await owner.request("job.cancel", {"job_id": job_id})
        else:
            script.gate.set()
        for client in (owner, observer):
            await client.settle()
            assert len(terminals(client.received, job_id)) == 1
        # The acknowledgement is the submitter's alone.
        acks = [[frame["type"] for frame in client.received].count("job.cancelled") for client in (owner, observer)]
        assert acks == [agent == "sleep", 0]


class Policy(arcp_trio.ObservationPolicy):
    """Auditors see the jobs of "me"; "guest" may know that they exist."""

    def observable(self, principal: Principal) -> Collection[str]:
        return ("me",) if principal.name == "auditor" else ()

    def visibility(self, principal: Principal, owner: str, agent: str) -> arcp_trio.Visibility:
        if principal.name == "broken":
            raise RuntimeError("a bug in a policy")
        if principal.name == "guest":
            return arcp_trio.Visibility.KNOWN
        return super().visibility(principal, owner, agent)


@pytest.mark.requirement("P7.12", "P7.19", "Q01", "Q15", "L17", "L25")
async def test_who_may_observe(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="arcp_trio.audit")
    async with arcp_trio.open_runtime(script.agents, observation=Policy()) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("gate")
        answers = {}
        for name in ("auditor", "guest", "other", "broken"):
            client = await connect_raw(runtime, principal=name)
            for verb in ("job.subscribe", "job.cancel"):
                request_id = await client.request(verb, {"job_id": job_id})
                answer = await client.receive_until(
                    lambda frame, wanted=request_id: frame["payload"].get("request_id") == wanted
                )
                answers[name, verb] = answer["payload"].get("code", answer["type"])
            await client.request("session.ping", {"nonce": name})
            await client.receive_until("session.pong")
        assert answers == {
            ("auditor", "job.subscribe"): "job.subscribed",
            ("auditor", "job.cancel"): "PERMISSION_DENIED",
            ("guest", "job.subscribe"): "PERMISSION_DENIED",
            ("guest", "job.cancel"): "PERMISSION_DENIED",
            ("other", "job.subscribe"): "JOB_NOT_FOUND",
            ("other", "job.cancel"): "JOB_NOT_FOUND",
            ("broken", "job.subscribe"): "INTERNAL_ERROR",
            ("broken", "job.cancel"): "INTERNAL_ERROR",
        }
        decisions = {
            (record.arcp_principal, record.arcp_action, record.arcp_decision)  # type: ignore[attr-defined]
            for record in caplog.records
            if record.name == "arcp_trio.audit" and record.arcp_job == job_id and record.arcp_owner == "me"  # type: ignore[attr-defined]
        }
        assert decisions == {
            ("auditor", "subscribe", "granted"),
            ("auditor", "cancel", "denied"),
            ("guest", "subscribe", "denied"),
            ("guest", "cancel", "denied"),
            ("other", "subscribe", "denied"),
            ("other", "cancel", "denied"),
        }
        assert runtime.statistics().jobs_running == 1


@pytest.mark.requirement("P6.19", "P7.19", "Q01")
async def test_what_a_policy_lets_a_listing_show(script: Script) -> None:
    class Half(Policy):
        def visibility(self, principal: Principal, owner: str, agent: str) -> arcp_trio.Visibility:
            return arcp_trio.Visibility.OBSERVABLE if agent.startswith("gate@") else arcp_trio.Visibility.HIDDEN

    async with arcp_trio.open_runtime(script.agents, observation=Half()) as runtime:
        owner = await connect_raw(runtime)
        jobs = [await owner.submit(agent) for agent in ("gate", "sleep", "gate")]
        listed = {}
        for name in ("me", "auditor", "other"):
            client = await connect_raw(runtime, principal=name)
            own = await client.submit("sleep")
            found: list[str] = []
            cursor: dict[str, Any] = {}
            while True:
                await client.request("session.list_jobs", {"limit": 1, **cursor})
                page = (await client.receive_until("session.jobs"))["payload"]
                found += [job["job_id"] for job in page["jobs"]]
                if page["next_cursor"] is None:
                    break
                cursor = {"cursor": page["next_cursor"]}
            assert found.pop() == own
            listed[name] = found
        assert listed == {"me": jobs, "auditor": [jobs[0], jobs[2]], "other": []}


@pytest.mark.requirement("P7.19", "Q01")
async def test_a_hidden_job_and_none_are_answered_alike(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("gate")
        other = await connect_raw(runtime, principal="other")
        answers = []
        for name in (job_id, "job_unknown"):
            answer = await subscribe(other, name, history=True)
            answers.append({key: answer["payload"][key] for key in ("code", "message", "retryable")})
        assert answers[0] == answers[1]
        assert answers[0]["code"] == "JOB_NOT_FOUND"


@pytest.mark.requirement("P6.4", "Q14")
async def test_without_the_feature(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        features = [feature for feature in QUIET_FEATURES if feature != "subscribe"]
        client = await connect_raw(runtime, hello=make_hello(features=features))
        job_id = await client.submit("gate")
        answer = await subscribe(client, job_id)
        assert answer["payload"]["code"] == "INVALID_REQUEST"
        assert "'subscribe'" in answer["payload"]["message"]


@pytest.mark.requirement("P5.5", "P7.17")
@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"job_id": ""},
        {"job_id": 1},
        {"job_id": "J", "history": 1},
        {"job_id": "J", "from_event_seq": "1"},
        {"job_id": "J", "history": True, "from_event_seq": -1},
        {"job_id": "J", "history": True, "from_event_seq": 2**63},
        {"job_id": "J", "history": True, "from_event_seq": 1.5},
    ],
)
async def test_bad_requests(script: Script, payload: dict[str, Any]) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit("gate")
        observer = await connect_raw(runtime)
        if payload.get("job_id") == "J":
            payload = {**payload, "job_id": job_id}
        await observer.request("job.subscribe", payload)
        (answer,) = await observer.settle()
        assert answer["payload"]["code"] in ("INVALID_REQUEST", "JOB_NOT_FOUND")
        assert (answer["payload"]["code"] == "JOB_NOT_FOUND") == (payload.get("job_id") == "")
        (actor,) = runtime._directory.actors()
        assert actor.feed.followers == 1


async def test_the_cap_on_subscriptions(script: Script) -> None:
    limits = arcp_trio.Limits(subscriptions=2)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        owner = await connect_raw(runtime)
        jobs = [await owner.submit("gate") for _ in range(3)]
        observer = await connect_raw(runtime)
        answers = [await subscribe(observer, job_id) for job_id in [*jobs, jobs[0]]]
        assert [answer["type"] for answer in answers] == [
            "job.subscribed",
            "job.subscribed",
            "session.error",
            "job.subscribed",
        ]
        assert answers[2]["payload"]["details"] == {"limit": "subscriptions", "value": 2}
        assert answers[2]["payload"]["retryable"] is True


@pytest.mark.requirement("P6.18", "P7.17", "Q13")
async def test_histories_wait_until_their_reader_has_room(autojump_clock: trio.testing.MockClock) -> None:
    """Thirty histories at once are more than may be unsent: none is lost, and nobody is closed for it."""
    agents = arcp_trio.Agents()

    @agents.register("talk")
    async def talk(job: arcp_trio.JobContext, value: Any) -> None:
        for number in range(900):
            await job.log("info", f"{number} " + "x" * 100)
        await trio.sleep_forever()

    limits = arcp_trio.Limits(waiting_subscribes=28)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        owner = await connect_raw(runtime)
        jobs = [await owner.submit("talk") for _ in range(30)]
        await owner.settle()
        observer = await connect_raw(runtime)
        (session,) = [each for each in runtime._sessions._sessions.values() if each.session_id == observer.session_id]
        requests = [observer.make("job.subscribe", {"job_id": job_id, "history": True}) for job_id in jobs]
        await observer.send(*requests)
        most = 0
        subscribed: set[str] = set()
        heard: dict[str, list[int]] = {job_id: [] for job_id in jobs}
        while sum(map(len, heard.values())) < 900 * len(jobs):
            frame = await observer.receive()
            most = max(most, session.stream.unsent_events)
            if frame["type"] == "job.subscribed":
                subscribed.add(frame["job_id"])
            elif JOB_SEQ in frame.get("extensions", {}):
                assert frame["job_id"] in subscribed
                heard[frame["job_id"]].append(frame["extensions"][JOB_SEQ])
        assert all(numbers == list(range(1, 901)) for numbers in heard.values())
        assert most <= limits.window_events // 2
        assert runtime.statistics().connections == 2


@pytest.mark.requirement("P7.17", "P8.2", "S17", "Q05")
@settings(max_examples=60, deadline=None)
@given(
    before=st.integers(0, 30),
    between=st.integers(0, 30),
    after=st.integers(0, 30),
    start=st.integers(0, 40),
    reads=st.booleans(),
    resumes=st.booleans(),
)
def test_no_gap_and_no_repeat_at_the_join(
    *, before: int, between: int, after: int, start: int, reads: bool, resumes: bool
) -> None:
    """Whenever somebody joins, whether the request waits in a buffer, and whether the connection breaks behind it."""

    async def main() -> None:
        script = Lines()
        async with arcp_trio.open_runtime(script.agents) as runtime:
            owner = await connect_raw(runtime)
            job_id = await owner.submit("lines")
            await script.say(*map(str, range(before)))
            observer = await connect_raw(runtime)
            await observer.request("job.subscribe", {"job_id": job_id, "history": True, "from_event_seq": start})
            for number in range(between):
                script.send.send_nowait(str(before + number))
                if reads:
                    await trio.testing.wait_all_tasks_blocked()
            frames = await observer.settle()
            if resumes:
                await drop(observer)
            await script.say(*(str(before + between + number) for number in range(after)), None)
            if resumes:
                observer = await resume(runtime, observer, max([0, *sequence(frames)]))
            frames += await observer.settle()
            (subscribed,) = [frame for frame in frames if frame["type"] == "job.subscribed"]
            joined = subscribed["payload"]["subscribed_from"]
            total = before + between + after + 1
            wanted = [*range(start + 1, joined + 1), *range(joined + 1, total + 1)]
            assert job_numbers(frames) == wanted
            assert sequence(frames) == list(range(1, len(wanted) + 1))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.requirement("P7.18", "M03")
async def test_histories_are_bounded_together(script: Script) -> None:
    limits = arcp_trio.Limits(history_bytes=3000, histories_bytes=10_000)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        owner = await connect_raw(runtime)
        ended = [await owner.submit("flood", 20) for _ in range(10)]
        await owner.settle()
        histories = runtime._directory.histories
        assert 7000 < histories.used <= 10_000
        observer = await connect_raw(runtime)
        answers = [await subscribe(observer, job_id, history=True) for job_id in (ended[0], ended[-1])]
        # The oldest went whole, the newest has its newest events.
        assert answers[0]["payload"]["truncated_before"] == 21
        assert 1 < answers[1]["payload"]["truncated_before"] < 21
        frames = await observer.settle()
        assert job_numbers(frames)[-1] == 21


@pytest.mark.requirement("P7.17", "D46", "P5.3a")
async def test_a_client_that_loses_what_comes_with_the_answer_gets_it_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("lines")
        await script.say("a", "b")
        for compat, seconds in (("python", 0.02), ("spec", 0)):
            observer = await connect_raw(runtime, compat=compat)
            started = trio.current_time()
            await subscribe(observer, job_id, history=True)
            assert trio.current_time() == started
            # What has nothing to do with it does not wait.
            if seconds:
                await observer.request("session.ping", {"nonce": "n"})
                await observer.receive_until("session.pong")
                assert trio.current_time() == started
            await observer.receive_until("job.event")
            assert trio.current_time() - started == pytest.approx(seconds)
            await observer.receive_until("job.event")
        # Closed in the pause, it is told all the same.
        observer = await connect_raw(runtime, compat="python")
        await observer.send(
            observer.make("job.subscribe", {"job_id": job_id, "history": True}), observer.make("session.close")
        )
        assert (await observer.receive_close()).code == 1000
        assert lines(observer.received) == ["a", "b"]
        # Broken in the pause, it is told by the next connection.
        observer = await connect_raw(runtime, compat="python")
        await subscribe(observer, job_id, history=True)
        await drop(observer)
        observer = await resume(runtime, observer, 0)
        assert lines(await observer.settle()) == ["a", "b"]
        assert runtime.statistics().timers <= 2
