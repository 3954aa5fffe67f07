"""What a pattern covers."""

from __future__ import annotations

import pytest
from authority.reference import ALPHABETS, any_pattern, covers, lease_of, strings
from hypothesis import given, settings
from hypothesis import strategies as st

from arcp_trio.authority.lease import Lease
from arcp_trio.wire.errors import PermissionDeniedError

YES, NO = True, False

TABLE: list[tuple[str, str, str, bool]] = [
    # Anchored, and everything but "*" is literal.
    ("fs.read", "/ws", "/ws", YES),
    ("fs.read", "/ws", "/ws/a", NO),
    ("fs.read", "/ws", "/wsx", NO),
    ("fs.read", "/ws", "/a/ws", NO),
    ("fs.read", "/", "/", YES),
    ("fs.read", "/", "/a", NO),
    ("fs.read", "/a[bc]?.{d,e}+$(x|y)", "/ab.d", NO),
    ("fs.read", "/a[bc]?.{d,e}+$(x|y)", "/a[bc]?.{d,e}+$(x|y)", YES),
    ("fs.read", "/Data", "/data", NO),
    ("fs.read", "/data/é", "/data/é", YES),
    # "*" stays in its segment, and a segment that is only "*" is not empty.
    ("fs.read", "/ws/*", "/ws/a", YES),
    ("fs.read", "/ws/*", "/ws/.hidden", YES),
    ("fs.read", "/ws/*", "/ws/a/b", NO),
    ("fs.read", "/ws/*", "/ws", NO),
    ("fs.read", "/ws/a*", "/ws/a", YES),
    ("fs.read", "/ws/*.txt", "/ws/.txt", YES),
    ("fs.read", "/ws/*.txt", "/ws/a.txt.bak", NO),
    ("fs.read", "/ws/a*b*c", "/ws/abc", YES),
    ("fs.read", "/ws/a*b*c", "/ws/axbxbxc", YES),
    ("fs.read", "/ws/a*b*c", "/ws/ac", NO),
    ("fs.read", "/ws/a*a", "/ws/a", NO),
    ("fs.read", "/ws/a*a", "/ws/aa", YES),
    ("fs.read", "/*/b", "/a/b", YES),
    ("fs.read", "/*/b", "/b", NO),
    # "**" is any number of segments, none included.
    ("fs.read", "/ws/**", "/ws", YES),
    ("fs.read", "/ws/**", "/ws/a", YES),
    ("fs.read", "/ws/**", "/ws/a/b/c", YES),
    ("fs.read", "/ws/**", "/wsx", NO),
    ("fs.read", "/**", "/", YES),
    ("fs.read", "/**", "/a/b", YES),
    ("fs.read", "/**/b", "/b", YES),
    ("fs.read", "/**/b", "/a/a/b", YES),
    ("fs.read", "/**/b", "/a/bb", NO),
    ("fs.read", "/a/**/b/**/c", "/a/b/c", YES),
    ("fs.read", "/a/**/b/**/c", "/a/c/b/b/c", YES),
    ("fs.read", "/a/**/b/**/c", "/a/c/b", NO),
    ("fs.read", "/a/**/*", "/a", NO),
    # Names are divided by dots, slashes and colons; which one it is matters.
    ("tool.call", "*", "search", YES),
    ("tool.call", "*", "fs.search", NO),
    ("tool.call", "fs.*", "fs.read", YES),
    ("tool.call", "fs.*", "fs.read.all", NO),
    ("tool.call", "fs.*", "fs:read", NO),
    ("tool.call", "mcp:github/*", "mcp:github/search", YES),
    ("tool.call", "mcp:github/*", "mcp:github:search", NO),
    ("tool.call", "fs.**", "fs", YES),
    ("tool.call", "fs.**", "fs.read:all/now", YES),
    ("tool.call", "fs.**", "fs:read", NO),
    ("tool.call", "fs.**", "fsx", NO),
    ("tool.call", "**", "a:b/c.d", YES),
    ("tool.call", "**.read", "read", YES),
    ("tool.call", "**.read", "a:b.read", YES),
    ("tool.call", "**.read", "a:read", NO),
    ("tool.call", "a.**:b", "a:b", YES),
    ("tool.call", "a.**:b", "a.x:b", YES),
    ("tool.call", "a.**:b", "a:x:b", NO),
    ("tool.call", "**.a:**", "a.x.a:y", YES),
    ("tool.call", "a@1", "a@1", YES),
    ("tool.call", "*", "a@1", YES),
    # Unknown namespaces have names (P9.1).
    ("x.own", "queue/*", "queue/a", YES),
    ("x.own", "queue/*", "queue/a.b", NO),
    ("x.own", "postgres://db/**", "postgres://db/a", YES),
    # Models: a slash divides, and nothing else.
    ("model.use", "tier-fast/*", "tier-fast/small-3.5:latest", YES),
    ("model.use", "tier-fast/*", "tier-fast/a/b", NO),
    ("model.use", "anthropic/claude-3-haiku-*", "anthropic/claude-3-haiku-20240307", YES),
    ("model.use", "anthropic/claude-3-haiku-*", "anthropic/claude-3-opus-1", NO),
    ("model.use", "*", "gpt-4o", YES),
    ("model.use", "*", "openai/gpt-4o", NO),
    ("model.use", "/models/**", "/models/llama", YES),
    # Agents: a name is any version, a version is one segment.
    ("agent.delegate", "helper", "helper", YES),
    ("agent.delegate", "helper", "helper@1.0.0", YES),
    ("agent.delegate", "helper", "helper2@1.0.0", NO),
    ("agent.delegate", "team.*", "team.helper@2.0", YES),
    ("agent.delegate", "team.*", "team.a.b@2.0", NO),
    ("agent.delegate", "*", "helper@1.0.0", YES),
    ("agent.delegate", "**", "team.helper@1.0.0", YES),
    ("agent.delegate", "helper@1.*", "helper@1.2.3", YES),
    ("agent.delegate", "helper@1.*", "helper@10.0", NO),
    ("agent.delegate", "helper@1.*", "helper", NO),
    ("agent.delegate", "helper@*", "helper", NO),
    ("agent.delegate", "helper@**", "helper", YES),
    ("agent.delegate", "**@2", "team.helper@2", YES),
    ("agent.delegate", "**@2", "2", NO),
    ("agent.delegate", "a.**", "a@b", YES),
    # URLs: the host is one segment, and so is the port.
    ("net.fetch", "https://example.com", "https://example.com/", YES),
    ("net.fetch", "https://example.com", "https://example.com/a", NO),
    ("net.fetch", "https://example.com/**", "https://example.com", YES),
    ("net.fetch", "https://example.com/**", "https://example.com/a/b/", YES),
    ("net.fetch", "https://example.com/**", "http://example.com/a", NO),
    ("net.fetch", "https://example.com/**", "https://example.com.evil.com/a", NO),
    ("net.fetch", "https://example.com/a/", "https://example.com/a", NO),
    ("net.fetch", "https://example.com/a/*", "https://example.com/a/", NO),
    ("net.fetch", "https://example.com/a", "https://example.com/a?any=thing#part", YES),
    ("net.fetch", "https://*.example.com/**", "https://a.b.example.com/x", YES),
    ("net.fetch", "https://*.example.com/**", "https://example.com/x", NO),
    ("net.fetch", "https://*.example.com/**", "https://evilexample.com/x", NO),
    ("net.fetch", "https://*/**", "https://example.com/x", YES),
    ("net.fetch", "https://**", "https://example.com/x/y", YES),
    ("net.fetch", "https://**/x", "https://example.com/a/x", YES),
    # A port that is not the default only where it is named.
    ("net.fetch", "https://*/**", "https://example.com:8443/x", NO),
    ("net.fetch", "https://*:8443/**", "https://example.com:8443/x", YES),
    ("net.fetch", "https://*:8443/**", "https://example.com/x", NO),
    ("net.fetch", "https://*:*/**", "https://example.com:8443/x", YES),
    ("net.fetch", "https://*:*/**", "https://example.com/x", YES),
    ("net.fetch", "https://example.com:443/x", "https://example.com/x", YES),
    ("net.fetch", "http://example.com:443/x", "http://example.com/x", NO),
    ("net.fetch", "http://127.0.0.*:8000/**", "http://127.0.0.1:8000/x", YES),
]


@pytest.mark.requirement("P9.2", "P9.3", "G03")
@pytest.mark.parametrize(("namespace", "pattern", "target", "expected"), TABLE)
def test_what_a_pattern_covers(namespace: str, pattern: str, target: str, expected: bool) -> None:
    lease = lease_of(namespace, pattern)
    assert lease.covers(namespace, target) is expected
    # Among others, before and behind it, in a lease with other namespaces, and after it was shown and read again.
    others = {"fs.write": ["/x"], namespace: [*ELSEWHERE[namespace], pattern, *ELSEWHERE[namespace]]}
    among = Lease.read(others, None, now_ms=0)
    assert among.covers(namespace, target) is expected
    assert Lease.read(among.grants, None, now_ms=0).covers(namespace, target) is expected
    assert among.at_rest().covers(namespace, target) is expected


ELSEWHERE = {
    "fs.read": ["/nowhere/*/else", "/**/nowhere"],
    "tool.call": ["nowhere.*", "nowhere:**"],
    "x.own": ["nowhere.*", "nowhere:**"],
    "model.use": ["nowhere/*"],
    "agent.delegate": ["nowhere", "nowhere@*"],
    "net.fetch": ["https://nowhere.example/*", "http://**/nowhere"],
}


@pytest.mark.requirement("P9.4", "G02")
def test_what_a_lease_does_not_name_it_does_not_grant() -> None:
    lease = lease_of("fs.read", "/**")
    assert lease.covers("fs.read", "/a")
    for namespace in ("tool.call", "fs.write", "net.fetch", "agent.delegate", "model.use", "fs", "fs.read.x", ""):
        assert not lease.covers(namespace, "/a")
        assert not lease.covers(namespace, "a")
    assert not any(Lease.EMPTY.covers(namespace, "a") for namespace in ("tool.call", "model.use", "x.y"))


@pytest.mark.requirement("P9.7")
def test_a_budget_covers_nothing() -> None:
    assert not lease_of("cost.budget", "USD:1").covers("cost.budget", "USD:1")


@pytest.mark.requirement("P9.2", "G08")
@pytest.mark.parametrize("namespace", sorted(ALPHABETS))
@settings(deadline=None, max_examples=40, print_blob=True)
@given(data=st.data())
def test_the_matcher_says_what_the_reference_says(namespace: str, data: st.DataObject) -> None:
    """Of every string over a small alphabet, up to a length; through the API that users have."""
    pattern = data.draw(any_pattern(namespace))
    lease = lease_of(namespace, pattern)
    (canonical,) = lease.grants[namespace]
    for target in strings(ALPHABETS[namespace], 6):
        text = "/" + target if namespace == "fs.read" else target
        try:
            shown = lease.canonical(namespace, text)
        except PermissionDeniedError:
            assert not lease.covers(namespace, text)
        else:
            assert lease.covers(namespace, text) is covers(namespace, canonical, shown), (canonical, shown)
