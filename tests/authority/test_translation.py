"""What errors of upstream services become: those of libraries that nobody here has ever seen."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest

from arcp_trio.authority.translation import Translator, translate, translate_budget_error
from arcp_trio.wire.errors import ARCPError, BudgetExhaustedError, JobTimeoutError


class Response:
    """An answer as HTTP libraries keep it: what was read of its body is in a private attribute."""

    def __init__(self, status: int, content: bytes | None = None) -> None:
        self.status_code = status
        self._content = content

    @property
    def text(self) -> str:
        raise AssertionError("this would read from the network")

    content = body = text


class UpstreamError(Exception):
    """An error of a library: attributes as they are given."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args)
        vars(self).update(attributes)


class OddError(Exception):
    """An error each of whose attributes raises something."""

    @property
    def status(self) -> int:
        raise RuntimeError("no status without a request")

    status_code = response = status


def answer(status: int, body: Any) -> UpstreamError:
    """The error of a client that raises for a status and keeps the response."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return UpstreamError(f"{status} for url", response=Response(status, content))


BUDGET_ERRORS: list[Callable[[], BaseException]] = [
    lambda: UpstreamError("Payment Required", status=402),
    lambda: UpstreamError("Payment Required", status_code=402),
    lambda: UpstreamError("Payment Required", status=HTTPStatus.PAYMENT_REQUIRED),
    lambda: UpstreamError("Payment Required", response=Response(402)),
    lambda: UpstreamError("no body", status=None, response=Response(402)),
    lambda: UpstreamError("You exceeded your current quota, please check your plan", status=429),
    lambda: UpstreamError("Budget has been exceeded! Current cost: 1.2, max budget: 1.0", status_code=429),
    lambda: UpstreamError("Error code: 429", status_code=429, code="insufficient_quota"),
    lambda: UpstreamError("Error code: 429", status_code=429, type="budget_exceeded"),
    lambda: UpstreamError("429", status_code=429, message="Your credit balance is too low"),
    lambda: UpstreamError("429", status_code=429, body={"type": "insufficient_quota", "message": "m"}),
    lambda: answer(429, {"error": {"message": "m", "type": "insufficient_quota", "code": None}}),
    lambda: answer(429, {"error": {"message": "Budget has been exceeded! Team=t", "type": "x", "code": "429"}}),
    lambda: answer(429, {"errors": [{"detail": "The monthly spend limit of this key is reached"}]}),
    lambda: answer(429, {"error": "insufficient credits"}),
    lambda: answer(429, {"detail": "Out of credits"}),
    lambda: answer(429, {"error": {"details": [{"reason": "BILLING_DISABLED"}]}}),
    lambda: answer(429, b"quota exceeded"),
    # A code outweighs what the text beside it mentions, and says it whatever the status.
    lambda: answer(429, {"error": {"code": "insufficient_quota", "message": "see our page on rate limits"}}),
    lambda: answer(400, {"error": {"type": "budget_exceeded", "code": "400"}}),
    lambda: answer(403, {"code": "INSUFFICIENT_CREDITS"}),
]

OTHER_ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError("the budget is exceeded"),
    lambda: UpstreamError("over budget", status=500),
    lambda: UpstreamError("over budget", status=400),
    lambda: UpstreamError("over budget", status="402"),
    lambda: UpstreamError("over budget", status=True),
    lambda: UpstreamError("insufficient_quota", status=503, code="insufficient_quota"),
    lambda: UpstreamError("slow down", status=429),
    lambda: UpstreamError("429", status_code=429, code="rate_limit_exceeded"),
    # Limits on how fast pass by themselves, whatever they mention.
    lambda: UpstreamError("Rate limit reached on tokens per min (TPM). See your billing page", status=429),
    lambda: answer(429, {"error": {"type": "rate_limit_error", "message": "your organisation's quota is used"}}),
    lambda: answer(429, {"error": {"message": "Quota exceeded for requests per minute. Please retry in 22s"}}),
    lambda: answer(429, {"error": {"message": "Quota exceeded", "details": [{"reason": "RATE_LIMIT_EXCEEDED"}]}}),
    lambda: answer(429, b"\xff\xfe\x00"),
    lambda: answer(429, [1, [2], None, {"error": 5, "message": {"budget": 1}}]),
    lambda: OddError("402"),
    lambda: UpstreamError("429", status=429, response=object(), body=object()),
]


@pytest.mark.requirement("P9.9", "B16")
@pytest.mark.parametrize("make", BUDGET_ERRORS)
def test_a_budget_error_of_an_upstream_is_recognised(make: Callable[[], BaseException]) -> None:
    translated = translate_budget_error(make())
    assert isinstance(translated, BudgetExhaustedError)
    assert (translated.code, translated.retryable) == ("BUDGET_EXHAUSTED", False)
    assert translated.details in ({"upstream_status": status} for status in (400, 402, 403, 429))


@pytest.mark.requirement("P9.9", "B16")
@pytest.mark.parametrize("make", OTHER_ERRORS)
def test_another_error_of_an_upstream_is_none(make: Callable[[], BaseException]) -> None:
    assert translate_budget_error(make()) is None


@pytest.mark.requirement("P9.9", "L24", "P14.2")
def test_what_an_upstream_says_is_not_passed_on() -> None:
    error = answer(402, {"error": {"message": "key sk-canary of alice@example.com has no budget"}})
    translated = translate_budget_error(error)
    assert translated is not None
    assert "canary" not in repr(translated) + str(translated.details) + translated.message


@pytest.mark.requirement("P9.9")
def test_a_body_of_any_size_and_depth_is_looked_at_for_a_moment() -> None:
    deep: Any = {"code": "insufficient_quota"}
    for _ in range(50):
        deep = {"error": deep}
    wide = {"errors": [{"message": "x" * 10_000}] * 10_000}
    beyond = {"message": "x" * 5_000 + "budget"}
    for body in (deep, wide, beyond, b"x" * 10**7, b"[" * 10**6):
        assert translate_budget_error(answer(429, body)) is None


@pytest.mark.requirement("P9.9")
def test_a_users_translators_are_asked_first_and_in_order() -> None:
    asked: list[str] = []

    def make(name: str, answered: ARCPError | None) -> Translator:
        def translator(error: BaseException) -> ARCPError | None:
            asked.append(name)
            return answered

        return translator

    error = UpstreamError("Payment Required", status=402)
    mine = JobTimeoutError("mine")
    assert translate(error, [make("a", None), make("b", mine), make("c", None)]) is mine
    assert asked == ["a", "b"]
    assert isinstance(translate(error, [make("d", None)]), BudgetExhaustedError)
    assert translate(ValueError("v"), [make("e", None)]) is None


@pytest.mark.requirement("P9.9")
def test_a_translator_that_fails_is_logged_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: BaseException) -> ARCPError | None:
        raise KeyError("a bug in the translator")

    class Confused:
        def __call__(self, error: BaseException) -> ARCPError | None:
            return "BUDGET_EXHAUSTED"  # type: ignore[return-value]

    mine = BudgetExhaustedError("mine")
    with caplog.at_level(logging.ERROR, "arcp_trio.authority"):
        assert translate(ValueError("v"), [broken, Confused(), lambda error: mine]) is mine
        assert translate(ValueError("v"), [broken]) is None
    said = [record.getMessage() for record in caplog.records]
    assert ["broken" in line for line in said] == [True, False, True]
    assert "Confused" in said[1]
    assert "str" in said[1]
    assert caplog.records[0].exc_info is not None


def test_what_ends_a_program_goes_through_a_translator() -> None:
    def interrupted(error: BaseException) -> ARCPError | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translate(ValueError("v"), [interrupted])
