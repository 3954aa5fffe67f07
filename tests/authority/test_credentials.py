"""Secrets, credentials, and what a provisioner may not hand out."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from decimal import Decimal
from typing import Any

import attrs
import orjson
import pytest

from arcp_trio import (
    Credential,
    CredentialConstraints,
    CredentialRequest,
    InvalidRequestError,
    IssuedCredential,
    PermissionDeniedError,
    Secret,
)
from arcp_trio.authority.credentials import find_excess

CANARY = "sk-canary-0123456789abcdef"


def make(**changes: Any) -> Credential:
    credential = Credential(id="cred_1", scheme="bearer", value=Secret(CANARY), endpoint="https://gateway.example/v1")
    return attrs.evolve(credential, **changes)


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.requirement("P14.2", "C07")
def test_a_secret_shows_itself_to_whoever_asks_for_it_and_to_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(CANARY)
    issued = IssuedCredential(handle="h-1", value=CANARY, endpoint="https://gateway.example/v1")
    assert secret.reveal() == issued.value.reveal() == CANARY
    holders: list[Any] = [secret, make(), issued, [secret], {"a": secret}, attrs.asdict(make())]
    for holder in holders:
        for text in (str(holder), repr(holder), f"{holder}", f"{holder!s:>80}", "%s" % (holder,), ascii(holder)):  # noqa: UP031
            assert CANARY not in text
        caplog.clear()
        logging.getLogger("test").warning("%s %r", holder, holder)
        assert CANARY not in caplog.text
    assert f"{secret:>20}".endswith("<Secret>")
    error = ValueError(secret)
    assert CANARY not in "".join(traceback.format_exception(error))


@pytest.mark.requirement("P14.2", "C07")
def test_a_secret_gets_into_no_json_and_no_pickle() -> None:
    for write in (pickle.dumps, json.dumps, orjson.dumps, copy.copy(pickle.dumps)):
        for holder in (Secret(CANARY), [Secret(CANARY)]):
            with pytest.raises(TypeError) as caught:
                write(holder)
            assert CANARY not in str(caught.value)
    with pytest.raises(TypeError):
        pickle.dumps(make())


def test_secrets_are_compared_and_copied() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != Secret("aa")
    assert Secret("ä\ud800") == Secret("ä\ud800")
    # A plain text beside it would have been compared in the open.
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    secret = Secret("a")
    assert copy.deepcopy([secret])[0] is secret
    assert copy.copy(secret) is secret
    with pytest.raises(ValueError, match="empty"):
        Secret("")
    with pytest.raises(TypeError, match="got bytes"):
        Secret(b"abc")  # type: ignore[arg-type]


# --- where a credential may be presented ------------------------------------------------------------

INSIDE = [
    "https://gateway.example/v1",
    "https://gateway.example/v1/",
    "https://gateway.example/v1/chat/completions",
    "https://gateway.example/v1/chat?stream=1",
    "https://gateway.example:443/v1/chat",
    "HTTPS://GATEWAY.example/v1/chat",
    "https://gateway.example/v1/../v1/chat",
]
OUTSIDE = [
    "http://gateway.example/v1/chat",
    "https://gateway.example/v10/chat",
    "https://gateway.example/v1x",
    "https://gateway.example/",
    "https://gateway.example/v1/../admin",
    "https://gateway.example/v1/%2e%2e/admin",
    "https://gateway.example:8443/v1/chat",
    "https://evil.example/v1/chat",
    "https://gateway.example.evil.example/v1",
    "https://gateway.example@evil.example/v1",
    "https://user:pw@gateway.example/v1/chat",
    "https://evil.example/https://gateway.example/v1",
    "https://evil.example\\@gateway.example/v1",
    "//gateway.example/v1",
    "/v1/chat",
    "ftp://gateway.example/v1",
    "javascript:alert(1)",
    "",
    "https://gateway.example/v1/a\r\nHost: evil",
]


@pytest.mark.requirement("P9.11")
@pytest.mark.parametrize("url", INSIDE)
def test_a_credential_is_presented_at_its_endpoint(url: str) -> None:
    assert make().present(url) == CANARY
    assert make().headers_for(url) == {"Authorization": f"Bearer {CANARY}"}


@pytest.mark.requirement("P9.11")
@pytest.mark.parametrize("url", OUTSIDE)
def test_a_credential_is_presented_nowhere_else(url: str) -> None:
    for present in (make().present, make().headers_for):
        with pytest.raises(PermissionDeniedError) as caught:
            present(url)
        assert CANARY not in str(caught.value)


@pytest.mark.requirement("P9.11")
@pytest.mark.parametrize("endpoint", ["https://*.example/v1", "https://gateway.example/v1?a=b", "gateway.example", "*"])
def test_an_endpoint_that_is_none_is_no_place_to_present_at(endpoint: str) -> None:
    with pytest.raises(PermissionDeniedError):
        make(endpoint=endpoint).present("https://gateway.example/v1")


def test_an_endpoint_of_a_whole_origin() -> None:
    credential = make(endpoint="https://gateway.example/")
    for path in ("", "/", "/v1", "/a/b"):
        assert credential.present(f"https://gateway.example{path}") == CANARY
    with pytest.raises(PermissionDeniedError):
        credential.present("https://gateway.example.evil/")


def test_headers_are_for_what_fits_into_one() -> None:
    url = "https://gateway.example/v1"
    for credential in (make(scheme="basic"), make(value=Secret("two words")), make(value=Secret("a\r\nX: y"))):
        with pytest.raises(InvalidRequestError):
            credential.headers_for(url)
        assert credential.present(url) == credential.value.reveal()


# --- the wire -------------------------------------------------------------------------------------


@pytest.mark.requirement("P9.10")
def test_a_credential_comes_back_from_the_wire() -> None:
    credential = make(profile="openai", constraints={"cost.budget": ["USD:5.00"]})
    assert Credential.from_wire(json.loads(json.dumps(credential.to_wire()))) == credential
    assert Credential.from_wire(make().to_wire()) == make()
    assert set(make().to_wire()) == {"id", "scheme", "value", "endpoint"}
    # What is only advice is dropped where it is something else.
    assert Credential.from_wire({**make().to_wire(), "profile": 5, "constraints": []}) == make()


@pytest.mark.parametrize("name", ["id", "scheme", "value", "endpoint"])
def test_a_credential_without_a_field_is_refused_without_a_word_of_its_value(name: str) -> None:
    for wrong in (None, "", 5, ["x"]):
        wire = {**make().to_wire(), name: wrong}
        with pytest.raises(InvalidRequestError) as caught:
            Credential.from_wire(wire)
        assert name in caught.value.message
        assert CANARY not in caught.value.message


def test_constraints_on_the_wire() -> None:
    assert CredentialConstraints().to_wire() == {}
    constraints = CredentialConstraints(budget=("USD:1",), models=("a/*",), expires_at="2099-01-01T00:00:00Z")
    assert constraints.to_wire() == {
        "cost.budget": ["USD:1"],
        "model.use": ["a/*"],
        "allowed_models": ["a/*"],
        "expires_at": "2099-01-01T00:00:00Z",
    }
    # No model at all is something else than no word about models.
    assert CredentialConstraints(models=()).to_wire() == {"model.use": [], "allowed_models": []}


# --- what is held against the lease -----------------------------------------------------------------

REQUEST = CredentialRequest(
    job_id="job_1",
    principal="me",
    agent="a@1.0.0",
    lease={},
    budget={"USD": Decimal("5.00")},
    models=("tier-fast/*", "claude-*"),
    expires_at="2099-01-01T00:00:00Z",
    trace_id="0" * 31 + "1",
)


def issued(**changes: Any) -> IssuedCredential:
    constraints = {name: changes.pop(name) for name in ("budget", "models", "expires_at") if name in changes}
    credential = IssuedCredential(
        handle="h-1",
        value=CANARY,
        endpoint="https://gateway.example/v1",
        constraints=CredentialConstraints(**constraints),
    )
    return attrs.evolve(credential, **changes)


def excess(candidate: object, **changes: Any) -> str | None:
    return find_excess(candidate, attrs.evolve(REQUEST, **changes), max_bytes=4096)


@pytest.mark.requirement("P9.11", "C14")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": ("USD:5.00",), "models": ("tier-fast/*",), "expires_at": "2099-01-01T00:00:00Z"},
        {"budget": ("USD:5",)},
        {"budget": ("USD:4.999999",)},
        {"budget": ()},
        {"models": ()},
        {"models": ("tier-fast/gpt", "claude-3-*")},
        {"expires_at": "2098-12-31T23:59:59.999Z"},
        {"expires_at": "2001-01-01T00:00:00Z"},
    ],
)
def test_what_is_within_the_lease_may_be_handed_out(changes: dict[str, Any]) -> None:
    assert excess(issued(**changes)) is None


@pytest.mark.requirement("P9.11", "C14")
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"expires_at": "2099-01-01T00:00:00.001Z"}, "later than the lease's"),
        ({"expires_at": "2098-01-01T00:00:00+00:00"}, "expires_at: expected a time in UTC"),
        ({"expires_at": "2098-01-01T00:00:00"}, "expires_at: expected a time in UTC"),
        ({"expires_at": "soon"}, "expires_at: expected a time in UTC"),
        ({"budget": ("USD:5.01",)}, "more than the lease leaves"),
        ({"budget": ("EUR:1",)}, "more than the lease leaves"),
        ({"budget": ("USD",)}, "cost.budget"),
        ({"budget": ("USD:1", "USD:1")}, "cost.budget"),
        ({"models": ("tier-*/*",)}, "model.use"),
        ({"models": ("**",)}, "model.use"),
        ({"models": ("tier-fast/**",)}, "model.use"),
        ({"models": ("",)}, "model.use"),
    ],
)
def test_what_is_wider_than_the_lease_is_refused(changes: dict[str, Any], problem: str) -> None:
    assert problem in (excess(issued(**changes)) or "")


@pytest.mark.requirement("P9.11")
def test_a_job_without_bounds_has_none_upstream_either() -> None:
    wide = issued(budget=("EUR:1000",), models=("**",), expires_at="2199-01-01T00:00:00Z")
    assert excess(wide, budget={}, models=None, expires_at=None) is None
    assert excess(issued(models=("a",)), models=()) is not None
    # A counter below zero leaves nothing; nothing is what may be handed out then.
    assert excess(issued(budget=("USD:0",)), budget={"USD": Decimal(-3)}) is None
    assert excess(issued(budget=("USD:0.01",)), budget={"USD": Decimal(-3)}) is not None


@pytest.mark.requirement("P9.10", "P14.2")
@pytest.mark.parametrize(
    ("candidate", "problem"),
    [
        ({"handle": "h"}, "expected an IssuedCredential, got dict"),
        (None, "expected an IssuedCredential, got NoneType"),
        (issued(handle=""), "handle"),
        (issued(handle="a\nb"), "handle"),
        (issued(handle=f"key/{CANARY}"), "handle: the value is in it"),
        (issued(value="a\nb"), "value"),
        (issued(endpoint=""), "endpoint"),
        (issued(endpoint="gateway.example"), "endpoint"),
        (issued(endpoint="ftp://gateway.example"), "endpoint"),
        (issued(endpoint="https://gateway.example/*"), "endpoint"),
        (issued(endpoint="https://gateway.example/v1?key=1"), "endpoint"),
        (issued(value="\ud800"), "expected texts"),
        (issued(profile=b"openai"), "expected texts"),
        (issued(scheme=5), "scheme"),
        (issued(handle=5), "handle"),
        (issued(value="x" * 5000), "credential_bytes"),
    ],
)
def test_what_is_no_credential_is_refused_without_a_word_of_its_value(candidate: object, problem: str) -> None:
    found = excess(candidate)
    assert found is not None
    assert problem in found
    assert CANARY not in found
