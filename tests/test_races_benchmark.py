"""``benchmarks/races.py``: what it counts is what is wrong, and of this runtime it counts nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.verdicts import KINDS, UNANSWERED, judge

ROOT = Path(__file__).parent.parent
JOB = "job_1"


def frame(frame_type: str, **payload: Any) -> dict[str, Any]:
    return {"type": frame_type, "job_id": JOB, "payload": payload}


def line(text: str) -> dict[str, Any]:
    return frame("job.event", kind="log", body={"message": text})


ACK = frame("job.cancelled")
SUCCESS = frame("job.result", final_status="success", result="rested")
CANCELLED = frame("job.error", final_status="cancelled", code="CANCELLED")
LISTED_RUNNING = {"type": "session.jobs", "payload": {"jobs": [{"job_id": JOB, "status": "running"}]}}
LAGS = frame("job.event", kind="status", body={"phase": "back_pressure"})
GOOD = [line("one"), ACK, line("two"), CANCELLED]


def found(*views: list[dict[str, Any]]) -> set[str]:
    named = {f"follower {number}": view for number, view in enumerate(views)}
    return {kind for kind, _ in judge(JOB, named, frozenset(named))}


@pytest.mark.parametrize(
    ("views", "kinds"),
    [
        ([[line("one"), SUCCESS, SUCCESS]], {"double terminals"}),
        ([[line("one"), SUCCESS, CANCELLED]], {"double terminals", "status flips"}),
        ([[SUCCESS], [CANCELLED]], {"status flips", "followers that disagree"}),
        ([[SUCCESS, LISTED_RUNNING]], {"status flips"}),
        ([[SUCCESS, frame("x-arcp-trio.reply", job_status="cancelled")]], {"status flips"}),
        ([[frame("job.subscribed", current_status="success"), CANCELLED]], {"status flips"}),
        ([[ACK, SUCCESS]], {"acks without CANCELLED"}),
        ([[CANCELLED, ACK]], {"acks without CANCELLED"}),
        ([[SUCCESS, line("late")]], {"events after the terminal"}),
        ([[line("one")], [line("one"), SUCCESS]], {"missing terminals"}),
        ([[line("one"), line("two"), SUCCESS], [line("one"), SUCCESS]], {"followers that disagree"}),
        ([[line("two"), line("one"), SUCCESS], [line("one"), line("two"), SUCCESS]], {"followers that disagree"}),
    ],
)
def test_what_is_wrong_is_found(views: list[list[dict[str, Any]]], kinds: set[str]) -> None:
    assert found(*views) == kinds


@pytest.mark.parametrize(
    "views",
    [
        [GOOD],
        [GOOD, [frame("job.subscribed", current_status="running"), line("two"), CANCELLED]],
        [GOOD, [line("one"), LAGS, line("two"), CANCELLED]],
        [[LISTED_RUNNING, *GOOD], [frame("job.subscribed", current_status="cancelled"), CANCELLED]],
    ],
)
def test_what_is_right_is_not(views: list[list[dict[str, Any]]]) -> None:
    assert found(*views) == set()


def test_who_left_before_the_end_was_told_no_end() -> None:
    assert list(judge(JOB, {"left": [line("one"), ACK], "stayed": GOOD}, frozenset({"stayed"}))) == []


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.races", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.requirement("P7.8", "P7.13", "P7.14", "L01", "L02", "L05")
def test_a_few_jobs_over_websocket_and_nothing_is_wrong() -> None:
    done = run("--jobs", "10", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["wrong"] == dict.fromkeys(KINDS, 0), said
    assert said["jobs"] == len(said["races"]) == 10
    assert {race["way"] for race in said["races"]} == {"one", "two", "two sessions", "drop and resume", "late"}
    assert {race["outcome"] for race in said["races"]} <= {"success", "cancelled"}
    # Whoever cancels what has ended changes nothing.
    assert {race["outcome"] for race in said["races"] if race["way"] == "late"} == {"success"}


@pytest.mark.parametrize("arguments", [["--target", "somewhere"], ["--jobs", "0"]])
def test_what_cannot_be_raced_is_refused(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_the_plot_and_the_table_are_printed() -> None:
    done = run("--jobs", "5")
    assert done.returncode == 0, done.stderr
    assert UNANSWERED in done.stdout
    assert "cancel sent at" in done.stdout
