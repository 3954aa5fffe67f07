"""What must hold of a job and those below it, whatever happened: no child outlives its parent, one terminal each."""

from __future__ import annotations

from helpers import Frame, terminals

import arcp_trio
from arcp_trio.records import JobRecord

__all__ = ["check_family"]


def check_family(frames: list[Frame], runtime: arcp_trio.Runtime, label: object) -> dict[str, str]:
    """Check all jobs of one session that saw each of them begin and end; return how each ended."""
    parents: dict[str, str | None] = {}
    ended: dict[str, str] = {}
    told: dict[str, str] = {}
    for frame in frames:
        kind, job_id = frame["type"], frame.get("job_id", "")
        if kind == "job.accepted":
            parent = parents[job_id] = frame["payload"].get("parent_job_id")
            # A child is told of by its parent first, and begins while that runs.
            if parent is not None:
                assert told[job_id] == parent, label
                assert parent not in ended, label
        elif kind == "job.event" or frame in terminals([frame]):
            assert job_id in parents, (label, "an event before its acceptance")
            assert job_id not in ended, (label, "an event behind the terminal one")
            if kind != "job.event":
                ended[job_id] = frame["payload"]["final_status"]
                running = [child for child, parent in parents.items() if parent == job_id and child not in ended]
                assert running == [], (label, "outlived by its children")
            elif frame["payload"]["kind"] == "delegate":
                told[frame["payload"]["body"]["child_job_id"]] = job_id
    assert parents.keys() == ended.keys(), (label, "a job without an end")
    assert set(told) == {child for child, parent in parents.items() if parent is not None}, label
    numbered = [frame["event_seq"] for frame in frames if "event_seq" in frame]
    assert numbered == list(range(1, len(numbered) + 1)), label
    acks = {frame["job_id"] for frame in frames if frame["type"] == "job.cancelled"}
    assert {ended[job_id] for job_id in acks} <= {"cancelled"}, label
    for job_id, status in ended.items():
        record = runtime._directory.find(job_id)
        assert isinstance(record, JobRecord), label
        assert (record.status, record.parent_job_id) == (status, parents[job_id]), label
    statistics = runtime.statistics()
    counts = (statistics.jobs_accepted, statistics.terminals_published, statistics.tear_downs)
    assert counts == (len(parents),) * 3, (label, counts)
    assert (statistics.jobs_running, statistics.bugs) == (0, 0), label
    return ended
