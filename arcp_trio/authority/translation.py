"""What an upstream's own errors mean here: a call refused because a budget is used up is BUDGET_EXHAUSTED (P9.9).

An agent's libraries raise classes that this package cannot know, so the default translator goes by what an error
carries: a status, a code, a text. It looks only at what is there: nothing is read from a network, and no more than the
beginning of a body. What an upstream says is not passed on: it may hold anything.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..wire.errors import ARCPError, BudgetExhaustedError
from ..wire.jsontext import decode_json

__all__ = ["Translator", "translate", "translate_budget_error"]

logger = logging.getLogger("arcp_trio.authority")

Translator = Callable[[BaseException], ARCPError | None]
"""Returns what an agent's exception is in terms of the protocol, or ``None`` where it has nothing to say of it."""

_PAYMENT_REQUIRED = 402
_TOO_MANY_REQUESTS = 429
_CLIENT_ERRORS = range(400, 500)

# These say it whatever the status: gateways send them with 400 and 403 too.
_UNMISTAKABLE = frozenset(
    {
        "billing_hard_limit_reached",
        "budget_exceeded",
        "insufficient_balance",
        "insufficient_credits",
        "insufficient_funds",
        "insufficient_quota",
    }
)

# Of a body this much is looked at, and of its values so many, so deep: it comes from outside.
_MAX_TEXT = 4096
_MAX_BODY = 64 * 1024
_MAX_VALUES = 64
_MAX_DEPTH = 4

_CODE_KEYS = ("code", "type", "reason", "status", "error")
_TEXT_KEYS = ("message", "detail", "error_description", "error", "title")
_NESTED_KEYS = ("error", "errors", "detail", "details")

_BUDGET = re.compile(
    r"budget|quota|billing|payment.required|spend(ing)?.?(limit|cap)|credit.?balance|out.of.credits?"
    r"|insufficient.?(funds|credits?|balance)|credits?.?(exhausted|depleted|exceeded)"
)
# A limit on how fast, not on how much: it passes by itself, and the texts that tell of one like to name quotas and
# billing pages too.
_RATE = re.compile(
    r"rate.?limit|too.many.requests|throttl|retry.(in|after)|\b[rt]p[md]\b"
    r"|(per|/).?(second|sec|minute|min|hour|day|user)\b"
)


def translate(error: BaseException, translators: Sequence[Translator]) -> ARCPError | None:
    """Return what ``error`` is in terms of the protocol.

    Args:
        error: What an agent's code raised; no ARCPError, which is that already.
        translators: The user's, asked in this order; :func:`translate_budget_error` is asked last.

    Returns:
        The first answer, or ``None``. A translator that raises, or answers with something else, is logged and skipped:
        it must not hide the error that it was asked about.
    """
    for translator in (*translators, translate_budget_error):
        name = getattr(translator, "__qualname__", type(translator).__qualname__)
        try:
            translated: object = translator(error)
        except Exception:
            logger.exception("translator %s of errors failed; skipped", name)
            continue
        if isinstance(translated, ARCPError):
            return translated
        if translated is not None:
            logger.error(
                "translator %s of errors returned %s, not an ARCPError; skipped", name, type(translated).__name__
            )
    return None


def translate_budget_error(error: BaseException) -> ARCPError | None:
    """Recognise an upstream's budget error by its status and what it says; the default translator.

    Args:
        error: Any exception. Its ``status``, ``status_code`` and those of its ``response`` are looked at: 402 is a
            budget error; so is 429 where a code or a text, of the exception or of a body that was read already, speaks
            of a budget or a quota, and of no rate; and every 4xx with a code like ``insufficient_quota``.

    Returns:
        BUDGET_EXHAUSTED, never retryable, with the status in its details, or ``None``.
    """
    response = _look(error, "response")
    status = _status_of(error) or _status_of(response)
    if status not in _CLIENT_ERRORS or not (status == _PAYMENT_REQUIRED or _speaks_of_budget(status, error, response)):
        return None
    return BudgetExhaustedError(
        "an upstream service refused a call: its budget is used up", details={"upstream_status": status}
    )


def _look(holder: Any, name: str) -> Any:
    """Return an attribute of a class that nobody here knows: reading one may run anything, and raise it."""
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001  # what an odd class raises says nothing about its error
        return None


def _status_of(holder: Any) -> int:
    for name in ("status", "status_code"):
        value = _look(holder, name)
        if isinstance(value, int):
            return int(value)
    return 0


def _speaks_of_budget(status: int, error: BaseException, response: Any) -> bool:
    codes: list[str] = []
    texts: list[str] = []
    for name, found in (("code", codes), ("type", codes), ("message", texts)):
        value = _look(error, name)
        if isinstance(value, str):
            found.append(value)
    texts += [text for text in error.args if isinstance(text, str)]
    for body in (_look(error, "body"), *_bodies_of(response)):
        _read_body(body, codes, texts)
    codes, texts = ([text[:_MAX_TEXT].lower() for text in found[:_MAX_VALUES]] for found in (codes, texts))
    if not _UNMISTAKABLE.isdisjoint(codes):
        return True
    if status != _TOO_MANY_REQUESTS:
        return False
    # A code was made for programs to read: it outweighs what the texts beside it mention.
    if any(_BUDGET.search(code) and not _RATE.search(code) for code in codes):
        return True
    said = [*codes, *texts]
    return any(map(_BUDGET.search, said)) and not any(map(_RATE.search, said))


def _bodies_of(response: Any) -> Iterator[Any]:
    """Return what a response has of its body.

    From its instance's own dictionary: a property, as ``text`` is one in several libraries, would read the rest of the
    body from the network, in the middle of the loop.
    """
    try:
        attributes = vars(response)
    except TypeError:
        return
    yield from (attributes.get(name) for name in ("_content", "content", "text", "body", "_body"))


def _read_body(body: Any, codes: list[str], texts: list[str]) -> None:
    """Collect the codes and texts of a body: JSON as services write it, decoded or not, or any text."""
    if isinstance(body, (bytes, bytearray)):
        body = bytes(body[:_MAX_BODY]).decode(errors="replace")
    if isinstance(body, str):
        text = body[:_MAX_BODY]
        try:
            body = decode_json(text)
        except ValueError:
            texts.append(text)
            return
    level = [body]
    for _ in range(_MAX_DEPTH):
        objects = [value for value in level if isinstance(value, Mapping)][:_MAX_VALUES]
        for value in objects:
            codes += [value[key] for key in _CODE_KEYS if isinstance(value.get(key), str)]
            texts += [value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)]
        nested = [value.get(key) for value in objects for key in _NESTED_KEYS]
        level = [item for value in nested for item in (value if isinstance(value, list) else [value])][:_MAX_VALUES]
