"""How our client finds whom a frame is for, where the recorded conversations do not reach (interop.md, 3.3, 3.10)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from interop.recorded import Frame, number
from interop.scripted import FakeRuntime, open_scripted

import arcp_trio

WELCOMES = {
    "python": number(716).frame,
    "typescript": number(426).frame,
    "go": number(270).frame,
    "ruby": number(565).frame,
    "ours": {
        "arcp": "1.1",
        "id": "msg_1",
        "type": "session.welcome",
        "session_id": "sess_1",
        "payload": {
            "runtime": {"name": "ours", "version": "1"},
            "runtime_name": "ours",
            "capabilities": {"features": ["x-arcp-trio.replies"]},
        },
    },
}

Outcome = arcp_trio.JobHandle | arcp_trio.CancelOutcome | arcp_trio.ARCPError


@attrs.define
class Call:
    """A call of the client in a task of its own."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    outcome: Outcome | None = None

    @property
    def handle(self) -> arcp_trio.JobHandle:
        assert isinstance(self.outcome, arcp_trio.JobHandle), self.outcome
        return self.outcome

    async def run(self, function: Callable[[], Awaitable[Outcome]]) -> None:
        with self.scope:
            try:
                self.outcome = await function()
            except arcp_trio.ARCPError as exc:
                self.outcome = exc


class Table:
    """A client of ours and the runtime that the test plays, with the steps that all tests need."""

    def __init__(self, client: arcp_trio.Client, fake: FakeRuntime, nursery: trio.Nursery) -> None:
        self.client = client
        self._fake = fake
        self._nursery = nursery
        self._numbers = 0

    def start(self, function: Callable[[], Awaitable[Outcome]]) -> Call:
        call = Call()
        self._nursery.start_soon(call.run, function)
        return call

    async def submit(self, **more: Any) -> tuple[Call, Frame]:
        """Start a submit; return it and the frame that it sent."""
        call = self.start(partial(self.client.submit, "echo", **more))
        return call, await self._fake.receive("job.submit")

    async def cancel(self, handle: arcp_trio.JobHandle) -> tuple[Call, Frame]:
        """Start a cancel; return it and the frame that it sent."""
        call = self.start(handle.cancel)
        return call, await self._fake.receive("job.cancel")

    async def nothing_is_sent(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await self._fake.receive("nothing")
        assert scope.cancelled_caught

    async def say(self, frame_type: str, payload: Frame, **fields: Any) -> None:
        """Send a frame, and let the client take it."""
        self._numbers += 1
        frame = {"arcp": "1.1", "id": f"m{self._numbers}", "type": frame_type, "payload": payload, **fields}
        await self._fake.send(frame)
        await trio.testing.wait_all_tasks_blocked()

    async def accept(self, frame: Frame, job_id: str, *, by: str = "request_id", **more: Any) -> None:
        """Accept a submit, saying which by one means alone."""
        payload = {"job_id": job_id, "agent": "echo", **more}
        fields: Frame = {"job_id": job_id}
        if by in ("request_id", "reply_to"):
            payload[by] = frame["id"]
        elif by == "correlation_id":
            fields[by] = frame["id"]
        elif by == "trace_id":
            fields[by] = frame["trace_id"]
        elif by == "payload.trace_id":
            payload["trace_id"] = frame["trace_id"]
        else:
            assert by == "order"
        await self.say("job.accepted", payload, **fields)

    async def running(self, job_id: str = "job_running") -> arcp_trio.JobHandle:
        """Return the handle of a job that runs."""
        call, frame = await self.submit()
        await self.accept(frame, job_id)
        return call.handle

    async def result(self, job_id: str, value: Any) -> None:
        await self.say("job.result", {"final_status": "success", "result": value}, job_id=job_id)

    async def log(self, job_id: str, message: str) -> None:
        await self.say("job.event", {"kind": "log", "body": {"message": message}}, job_id=job_id)

    async def drop(self) -> None:
        await self._fake.abort()
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def sit_down(
    runtime: str = "ours", *, limits: arcp_trio.ClientLimits | None = None
) -> AsyncGenerator[Table, None]:
    with trio.fail_after(30):
        async with open_scripted(WELCOMES[runtime], limits=limits) as (client, fake), trio.open_nursery() as nursery:
            yield Table(client, fake, nursery)
            nursery.cancel_scope.cancel()


def messages(events: list[arcp_trio.Event | arcp_trio.Skipped]) -> list[str]:
    return [event.body["message"] for event in events if isinstance(event, arcp_trio.Event)]


# --- acceptances ----------------------------------------------------------------------------------


@pytest.mark.requirement("P5.3a", "P7.2", "D24", "D31")
@pytest.mark.parametrize("by", ["request_id", "reply_to", "correlation_id", "trace_id", "payload.trace_id"])
async def test_an_acceptance_is_found_by_any_of_its_correlators(by: str) -> None:
    async with sit_down() as table:
        calls = [await table.submit() for _ in range(3)]
        for index in (2, 0, 1):
            await table.accept(calls[index][1], f"job_{index}", by=by)
        assert [call.handle.job_id for call, _ in calls] == ["job_0", "job_1", "job_2"]


@pytest.mark.requirement("D31")
async def test_without_any_correlator_the_oldest_submit_was_accepted() -> None:
    async with sit_down() as table:
        first, frame = await table.submit()
        second, _ = await table.submit()
        await table.accept(frame, "job_0", by="order")
        await table.accept(frame, "job_1", by="order")
        assert (first.handle.job_id, second.handle.job_id) == ("job_0", "job_1")


@pytest.mark.requirement("D31", "E01", "K02")
@pytest.mark.parametrize(
    ("runtime", "by", "proves"),
    [
        # What Python's acceptances name, its refusals do not: of two submits, who would the refused one be?
        ("python", "request_id", False),
        ("typescript", "trace_id", False),
        ("go", "trace_id", False),
        ("ruby", "reply_to", True),
    ],
)
async def test_submits_wait_for_each_other_until_the_runtime_has_shown_that_it_correlates(
    runtime: str, by: str, proves: bool
) -> None:
    async with sit_down(runtime) as table:
        first, frame = await table.submit()
        others = [table.start(partial(table.client.submit, "echo", index)) for index in range(2)]
        await table.nothing_is_sent()
        await table.accept(frame, "job_0", by=by)
        assert first.handle.job_id == "job_0"
        second = await table._fake.receive("job.submit")
        # The two behind it were waiting for each other already; from now on…
        await table.nothing_is_sent()
        await table.accept(second, "job_1", by=by)
        third = await table._fake.receive("job.submit")
        fourth = table.start(partial(table.client.submit, "echo", 4))
        if not proves:
            await table.nothing_is_sent()
            await table.accept(third, "job_2", by=by)
        frame = await table._fake.receive("job.submit")
        await table.accept(frame, "job_3", by=by)
        assert fourth.handle.job_id == "job_3"
        if proves:
            await table.accept(third, "job_2", by=by)
        assert sorted(call.handle.job_id for call in others) == ["job_1", "job_2"]


@pytest.mark.requirement("D31")
async def test_a_refusal_that_names_its_request_shows_it_too() -> None:
    async with sit_down("go") as table:
        refused, frame = await table.submit()
        await table.say("session.error", {"code": "AGENT_NOT_AVAILABLE", "request_id": frame["id"]})
        assert isinstance(refused.outcome, arcp_trio.AgentNotAvailableError)
        await table.submit()
        await table.submit()


@pytest.mark.requirement("D31")
async def test_a_runtime_of_ours_need_not_show_it_first() -> None:
    async with sit_down("ours") as table:
        for _ in range(3):
            await table.submit()


@pytest.mark.requirement("D31", "D32")
@pytest.mark.parametrize("runtime", ["ours", "typescript"])
async def test_an_acceptance_of_a_child_never_answers_a_submit(runtime: str) -> None:
    async with sit_down(runtime) as table:
        parent = await table.running("job_parent")
        call, frame = await table.submit()
        await table.accept({"id": "", "trace_id": ""}, "job_child", by="order", parent_job_id="job_parent")
        assert call.outcome is None
        # What follows of the child is nobody's, and no answer either.
        await table.log("job_child", "from the child")
        await table.say(
            "job.error",
            {"final_status": "error", "code": "TIMEOUT"},
            job_id="job_child",
            trace_id=parent.trace_id,
        )
        assert call.outcome is None
        await table.accept(frame, "job_mine", by="trace_id")
        assert call.handle.job_id == "job_mine"
        await table.result("job_mine", 1)
        assert [event async for event in call.handle.events()] == []
        assert parent.status == "running"


@pytest.mark.requirement("K02", "Z13")
@pytest.mark.parametrize(
    ("runtime", "by"),
    [
        ("ours", "request_id"),
        ("python", "request_id"),
        ("ruby", "reply_to"),
        ("go", "trace_id"),
        ("typescript", "trace_id"),
    ],
)
async def test_the_acceptance_of_a_caller_who_has_left_answers_nobody_else(runtime: str, by: str) -> None:
    async with sit_down(runtime) as table:
        left, frame_of_left = await table.submit()
        left.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not table.client._session.pending.submits
        call, frame = await table.submit()
        await table.accept(frame_of_left, "job_left", by=by)
        await table.log("job_left", "not for you")
        # It fails; that is no refusal of the other.
        await table.say(
            "job.error",
            {"final_status": "error", "code": "INTERNAL_ERROR", "message": "not yours"},
            job_id="job_left",
            trace_id=frame_of_left["trace_id"],
        )
        assert call.outcome is None
        await table.accept(frame, "job_mine", by=by)
        assert call.handle.job_id == "job_mine"
        await table.result("job_mine", 1)
        assert await call.handle.result() == 1
        assert [event async for event in call.handle.events()] == []


@pytest.mark.requirement("K02", "P11.1")
@pytest.mark.parametrize("runtime", ["go", "typescript"])
async def test_a_trace_that_many_submits_share_is_not_lost_with_one_of_their_callers(runtime: str) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with sit_down(runtime) as table:
        left, _ = await table.submit(trace_id=trace_id)
        left.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        call, frame = await table.submit(trace_id=trace_id)
        await table.accept(frame, "job_mine", by="trace_id")
        assert call.handle.job_id == "job_mine"


@pytest.mark.requirement("D33")
async def test_the_same_job_for_two_submits_is_one_handle() -> None:
    async with sit_down() as table:
        first = await table.running("job_1")
        call, frame = await table.submit(idempotency_key="k")
        await table.accept(frame, "job_1")
        assert call.handle is first
        await table.result("job_1", 1)
        assert await first.result() == 1


# --- what comes before an acceptance --------------------------------------------------------------


@pytest.mark.requirement("D32")
async def test_what_comes_before_its_acceptance_is_kept_for_the_right_job() -> None:
    async with sit_down() as table:
        first, frame_1 = await table.submit()
        second, frame_2 = await table.submit()
        for index in range(3):
            await table.log("job_2", f"b{index}")
            await table.log("job_1", f"a{index}")
        await table.log("job_of_nobody", "noise")
        await table.result("job_2", "b")
        await table.accept(frame_1, "job_1")
        await table.accept(frame_2, "job_2")
        await table.result("job_1", "a")
        assert messages([event async for event in first.handle.events()]) == ["a0", "a1", "a2"]
        assert messages([event async for event in second.handle.events()]) == ["b0", "b1", "b2"]
        assert (await first.handle.result(), await second.handle.result()) == ("a", "b")
        # With no submit outstanding nothing can be early.
        assert not table.client._session.early.frames
        assert table.client._session.early.count == 0
        await table.log("job_3", "late")
        assert not table.client._session.early.frames


@pytest.mark.requirement("D32", "K08")
async def test_what_is_kept_early_is_bounded_and_the_end_is_kept() -> None:
    async with sit_down("ruby", limits=arcp_trio.ClientLimits(early_frames=3)) as table:
        call, frame = await table.submit()
        for index in range(10):
            await table.log("job_1", str(index))
            await table.log(f"job_of_nobody_{index}", "noise")
        assert table.client._session.early.count == 3
        assert len(table.client._session.early.frames) <= 3
        await table.result("job_1", "the end")
        await table.result("job_of_nobody", "noise")
        assert table.client._session.early.count == 3
        await table.accept(frame, "job_1", by="reply_to")
        # Without its end the job would seem to run for ever.
        assert await call.handle.result() == "the end"
        assert messages([event async for event in call.handle.events()]) == ["0"]


@pytest.mark.requirement("D32", "L24")
async def test_a_job_that_failed_before_its_acceptance_is_no_refusal_where_acceptances_come_late() -> None:
    async with sit_down("ruby") as table:
        call, frame = await table.submit()
        await table.say(
            "job.error", {"job_id": "job_1", "final_status": "error", "code": "INTERNAL_ERROR"}, job_id="job_1"
        )
        assert call.outcome is None
        await table.accept(frame, "job_1", by="reply_to")
        with pytest.raises(arcp_trio.InternalError):
            await call.handle.result()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.requirement("P12.2", "D14", "E01")
@pytest.mark.parametrize("frame_type", ["session.error", "job.error"])
@pytest.mark.parametrize("by", ["request_id", "reply_to", "correlation_id", "id"])
async def test_a_refusal_is_found_by_any_of_its_correlators(frame_type: str, by: str) -> None:
    async with sit_down() as table:
        running = await table.running()
        first, frame_1 = await table.submit()
        second, frame_2 = await table.submit()
        cancel, frame_3 = await table.cancel(running)

        async def refuse(frame: Frame, code: str) -> None:
            payload = {"code": code, "message": "no", "retryable": True}
            if by in ("request_id", "reply_to"):
                await table.say(frame_type, {**payload, by: frame["id"]})
            else:
                await table.say(frame_type, payload, **{by: frame["id"]})

        await refuse(frame_2, "AGENT_NOT_AVAILABLE")
        assert isinstance(second.outcome, arcp_trio.AgentNotAvailableError)
        assert second.outcome.retryable is True
        assert first.outcome is cancel.outcome is None
        await refuse(frame_3, "PERMISSION_DENIED")
        assert isinstance(cancel.outcome, arcp_trio.PermissionDeniedError)
        assert first.outcome is None
        await table.accept(frame_1, "job_1")
        assert first.handle.status == running.status == "running"


@pytest.mark.requirement("P12.2", "D15", "E01")
async def test_an_error_that_names_nothing_fails_no_running_job() -> None:
    async with sit_down("python") as table:
        running = await table.running()
        # With nothing outstanding it is an announcement.
        await table.say("session.error", {"code": "INVALID_REQUEST", "message": "what was that?"})
        call, _ = await table.submit()
        await table.say("session.error", {"code": "AGENT_NOT_AVAILABLE", "message": "no"})
        assert isinstance(call.outcome, arcp_trio.AgentNotAvailableError)
        assert running.status == "running"
        await table.result("job_running", 1)
        assert await running.result() == 1


@pytest.mark.requirement("P12.2", "D15", "E01", "K02")
async def test_an_error_that_names_nothing_beside_a_submit_and_a_cancel() -> None:
    async with sit_down("python") as table:
        running = await table.running()
        cancel, _ = await table.cancel(running)
        call, _ = await table.submit()
        # No cancel is refused with this: it must be the submit, which nothing else would ever end.
        await table.say("session.error", {"code": "INVALID_REQUEST", "message": "no"})
        assert isinstance(call.outcome, arcp_trio.InvalidRequestError)
        assert cancel.outcome is None
        call, frame = await table.submit()
        # And no submit with this.
        await table.say("session.error", {"code": "JOB_NOT_FOUND", "message": "no"})
        assert isinstance(cancel.outcome, arcp_trio.JobNotFoundError)
        assert call.outcome is None
        await table.accept(frame, "job_1")
        assert call.handle.status == running.status == "running"


@pytest.mark.requirement("P12.2", "D15", "E01")
@pytest.mark.parametrize("code", ["INVALID_REQUEST", "AGENT_NOT_AVAILABLE", "JOB_NOT_FOUND", "INTERNAL_ERROR"])
async def test_an_error_that_names_nothing_beside_two_submits_fails_neither(code: str) -> None:
    async with sit_down() as table:
        running = await table.running()
        calls = [await table.submit() for _ in range(2)]
        await table.say("session.error", {"code": code, "message": "who?"})
        assert [call.outcome for call, _ in calls] == [None, None]
        # Nor does one that answers somebody else.
        await table.say("session.error", {"code": code, "message": "no", "request_id": "msg_another"})
        assert [call.outcome for call, _ in calls] == [None, None]
        for index, (call, frame) in enumerate(calls):
            await table.accept(frame, f"job_{index}")
            assert call.handle.status == "running"
        assert running.status == "running"


@pytest.mark.requirement("P12.2", "E01")
async def test_an_error_that_answers_a_caller_who_has_left_is_not_why_the_connection_ends() -> None:
    async with sit_down() as table:
        running = await table.running()
        await table.say("session.error", {"code": "AGENT_NOT_AVAILABLE", "message": "no", "request_id": "msg_left"})
        await table.say("session.error", {"code": "INVALID_REQUEST", "message": "unknown envelope type"})
        await table.drop()
        with pytest.raises(arcp_trio.ConnectionLostError):
            await running.result()


@pytest.mark.requirement("P12.2", "K02")
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("UNAUTHENTICATED", arcp_trio.UnauthenticatedError),
        ("HEARTBEAT_LOST", arcp_trio.HeartbeatLostError),
        ("RESUME_WINDOW_EXPIRED", arcp_trio.ResumeWindowExpiredError),
        ("INTERNAL_ERROR", arcp_trio.InternalError),
    ],
)
async def test_an_error_that_ends_the_connection_is_what_its_calls_raise(
    code: str, error: type[arcp_trio.ARCPError]
) -> None:
    async with sit_down() as table:
        running = await table.running()
        await table.say("session.error", {"code": code, "message": "the end"})
        assert running.status == "running"
        call, _ = await table.submit()
        await table.drop()
        assert type(call.outcome) is error
        for attempt in range(2):
            with pytest.raises(error, match="the end") as caught:
                await running.result()
            assert type(caught.value) is error, attempt
        with pytest.raises(error, match="the end"):
            await table.client.submit("echo")


@pytest.mark.requirement("D14", "X4", "E01")
async def test_a_job_error_of_a_job_that_never_was_refuses_the_oldest_submit() -> None:
    async with sit_down("typescript") as table:
        running = await table.running()
        call, _ = await table.submit()
        await table.say("job.error", {"final_status": "error", "code": "AGENT_NOT_AVAILABLE"}, job_id="job_fresh")
        assert isinstance(call.outcome, arcp_trio.AgentNotAvailableError)
        assert running.status == "running"


@pytest.mark.requirement("D14", "P7.14")
async def test_a_late_answer_to_a_cancel_refuses_no_submit() -> None:
    async with sit_down("typescript") as table:
        ended = await table.running("job_ended")
        cancel, _ = await table.cancel(ended)
        # The job ends as the cancel is on its way; the runtime then knows no such job.
        await table.result("job_ended", 1)
        assert cancel.outcome == arcp_trio.CancelOutcome(applied=False, status="success")
        call, frame = await table.submit()
        await table.say("job.error", {"final_status": "error", "code": "JOB_NOT_FOUND"}, job_id="job_ended")
        assert call.outcome is None
        await table.accept(frame, "job_1", by="trace_id")
        assert call.handle.job_id == "job_1"


@pytest.mark.requirement("D34", "X14")
@pytest.mark.parametrize("ended", [False, True])
async def test_a_conflicting_key_on_an_existing_job_refuses_the_submit_and_not_the_job(ended: bool) -> None:
    async with sit_down("typescript") as table:
        innocent = await table.running("job_1")
        if ended:
            await table.result("job_1", 1)
        call, _ = await table.submit(idempotency_key="k")
        await table.say("job.error", {"final_status": "error", "code": "DUPLICATE_KEY"}, job_id="job_1")
        assert isinstance(call.outcome, arcp_trio.DuplicateKeyError)
        if not ended:
            assert innocent.status == "running"
            await table.result("job_1", 1)
        assert await innocent.result() == 1


@pytest.mark.requirement("P7.9", "P7.13", "D34")
@pytest.mark.parametrize("runtime", ["ours", "typescript", "go", "python", "ruby"])
@pytest.mark.parametrize("code", ["DUPLICATE_KEY", "PERMISSION_DENIED", "JOB_NOT_FOUND"])
async def test_an_agent_that_raises_what_a_refusal_could_be_ends_its_job(runtime: str, code: str) -> None:
    """A terminal event that was taken for a refusal would leave the job running for ever."""
    async with sit_down(runtime) as table:
        running = await table.running()
        cancel, frame_of_cancel = await table.cancel(running)
        call, frame = await table.submit()
        # The end of a job has its trace; of the four servers only Ruby leaves it out, which names what it refuses.
        fields = {} if runtime == "ruby" else {"trace_id": running.trace_id}
        await table.say("job.error", {"final_status": "error", "code": code}, job_id="job_running", **fields)
        assert running.status == "error"
        with pytest.raises(arcp_trio.ARCPError) as caught:
            await running.result()
        assert caught.value.code == code
        if runtime == "ours":
            reply = {
                "request_id": frame_of_cancel["id"],
                "applied": False,
                "job_id": "job_running",
                "job_status": "error",
            }
            assert cancel.outcome is None
            await table.say("x-arcp-trio.reply", reply)
        assert cancel.outcome == arcp_trio.CancelOutcome(applied=False, status="error")
        assert call.outcome is None
        await table.accept(frame, "job_1")
        assert call.handle.job_id == "job_1"


@pytest.mark.requirement("P7.12", "D14", "D41")
@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "JOB_NOT_FOUND"])
async def test_a_cancel_that_is_refused_on_the_job_leaves_the_job_running(code: str) -> None:
    async with sit_down("typescript") as table:
        running = await table.running()
        cancel, _ = await table.cancel(running)
        await table.say("job.error", {"final_status": "error", "code": code}, job_id="job_running")
        assert isinstance(cancel.outcome, arcp_trio.ARCPError)
        assert cancel.outcome.code == code
        assert running.status == "running"
        await table.result("job_running", 1)
        assert await running.result() == 1


# --- cancels --------------------------------------------------------------------------------------


@pytest.mark.requirement("P7.13", "D39")
async def test_acknowledgements_without_an_id_answer_cancels_by_their_job() -> None:
    async with sit_down("go") as table:
        first = await table.running("job_1")
        second = await table.running("job_2")
        cancel_1, _ = await table.cancel(first)
        cancel_2, _ = await table.cancel(second)
        await table.say("job.cancelled", {"job_id": "job_2"}, job_id="job_2", event_seq=1)
        assert cancel_1.outcome is None
        assert cancel_2.outcome == arcp_trio.CancelOutcome(applied=True, status="cancelled")
        # By the envelope's alone; and an acknowledgement is not the end.
        await table.say("job.cancelled", {}, job_id="job_1")
        assert cancel_1.outcome == arcp_trio.CancelOutcome(applied=True, status="cancelled")
        assert first.status == second.status == "running"


@pytest.mark.requirement("D39", "D40")
async def test_an_acknowledgement_that_trails_the_end_is_ignored() -> None:
    async with sit_down("go") as table:
        running = await table.running()
        cancel, _ = await table.cancel(running)
        await table.say(
            "job.error",
            {"final_status": "cancelled", "code": "CANCELLED"},
            job_id="job_running",
            trace_id=running.trace_id,
        )
        assert cancel.outcome == arcp_trio.CancelOutcome(applied=True, status="cancelled")
        await table.say("job.cancelled", {"job_id": "job_running"}, job_id="job_running")
        assert running.status == "cancelled"


@pytest.mark.requirement("P7.14", "L04")
async def test_a_late_cancel_takes_the_reply_of_a_runtime_of_ours() -> None:
    async with sit_down("ours") as table:
        running = await table.running()
        await table.result("job_running", 1)
        cancel, frame = await table.cancel(running)
        await table.say(
            "x-arcp-trio.reply",
            {"request_id": frame["id"], "applied": False, "job_id": "job_running", "job_status": "success"},
        )
        assert cancel.outcome == arcp_trio.CancelOutcome(applied=False, status="success")


@pytest.mark.requirement("K07")
async def test_no_cancel_is_sent_without_an_id() -> None:
    async with sit_down() as table:
        with pytest.raises(arcp_trio.InvalidRequestError, match="job_id"):
            await table.client.cancel_job("")
        await table.nothing_is_sent()


@pytest.mark.requirement("K02")
async def test_all_that_waits_fails_when_the_connection_goes() -> None:
    async with sit_down() as table:
        running = await table.running()
        call, _ = await table.submit()
        cancel, _ = await table.cancel(running)
        await table.drop()
        assert isinstance(call.outcome, arcp_trio.ConnectionLostError)
        assert isinstance(cancel.outcome, arcp_trio.ConnectionLostError)
        with pytest.raises(arcp_trio.ConnectionLostError):
            await running.result()
        with pytest.raises(arcp_trio.ConnectionLostError):
            await running.cancel()


# --- rubbish --------------------------------------------------------------------------------------


@pytest.mark.requirement("P5.4", "T01", "T02")
async def test_what_means_nothing_to_the_client_disturbs_nothing() -> None:
    async with sit_down() as table:
        running = await table.running()
        call, frame = await table.submit()
        for frame_type, payload in (
            ("job.accepted", {"job_id": 7}),
            ("job.accepted", {"job_id": "job_2", "request_id": "msg_another"}),
            ("job.event", {"kind": "log", "body": []}),
            ("job.result", {"final_status": 1}),
            ("job.error", {}),
            ("job.cancelled", {"job_id": []}),
            ("session.error", {"code": 3}),
            ("session.ping", {}),
            ("x-arcp-trio.reply", {"request_id": "msg_another"}),
            ("x-vendor.acme.news", {}),
            ("session.news", {}),
            ("job.subscribed", {}),
        ):
            await table.say(frame_type, payload, job_id="job_running")
            await table.say(frame_type, payload)
        assert call.outcome is None
        assert running.status == "running"
        await table.accept(frame, "job_1")
        await table.result("job_running", 1)
        assert await running.result() == 1
        assert call.handle.job_id == "job_1"
