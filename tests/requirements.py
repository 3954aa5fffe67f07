"""The numbered requirements, in a few words each, and what this version leaves out of one.

A row of the README's conformance table says "yes" only if a test that is marked with the number ran and
passed, and nothing stands here as missing from it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

REQUIREMENTS: dict[str, tuple[str, str]] = {
    "P4.1": ("WebSocket: one envelope in each text frame, at /arcp", ""),
    "P4.2": ("stdio: one envelope on each line", ""),
    "P4.3": ("In memory: frames are encoded and decoded all the same", ""),
    "P4.4": ("Frame sizes are bounded in both directions", ""),
    "P4.5": ("Close codes", ""),
    "P5.1": ("The envelope and its fields", ""),
    "P5.2": ("Versions: 1 and 1.n; older protocols are told so", ""),
    "P5.3": ("Ids: prefix and monotonic ULID", ""),
    "P5.3a": ("What is sent satisfies the strictest known peers; dialects", ""),
    "P5.4": ("Unknown fields, kinds and types", ""),
    "P5.5": ("Malformed input: INVALID_REQUEST with its path, nothing disturbed", ""),
    "P5.6": ("Strict types; 64-bit integers; no NaN", ""),
    "P5.7": ("Retransmissions are recognised", ""),
    "P5.8": ("trace_id", ""),
    "P6.1": ("Hello within its deadline, bearer token, constant-time comparison", ""),
    "P6.2": ("Verifiers: slow, failing, restricting agents and leases", ""),
    "P6.3": ("Caps on sessions, jobs and connections", ""),
    "P6.4": ("Only negotiated features are used", ""),
    "P6.5": (
        "Features",
        "no lease_expires_at, cost.budget, model.use and provisioned_credentials yet",
    ),
    "P6.6": ("Welcome", ""),
    "P6.7": ("Resume", ""),
    "P6.8": ("Resume tokens rotate", ""),
    "P6.9": ("Replay without gap or repeat", ""),
    "P6.10": ("A failed resume tells nothing and costs nothing", ""),
    "P6.11": ("A resume takes over a half-open connection", ""),
    "P6.12": ("The resume window", ""),
    "P6.13": ("Heartbeats", ""),
    "P6.14": ("Heartbeat loss", ""),
    "P6.15": ("Acknowledgements", ""),
    "P6.16": ("What frees buffered events", ""),
    "P6.17": ("Back-pressure notice", ""),
    "P6.18": ("A consumer that is too slow is closed with 4001", ""),
    "P6.19": ("Listing jobs", ""),
    "P6.20": ("Entries of a listing", ""),
    "P6.21": ("session.close and session.bye", ""),
    "P7.1": ("Submit: all is validated before anything is created", ""),
    "P7.2": ("job.accepted precedes everything of the job", ""),
    "P7.3": ("input is any JSON value; max_runtime_sec is positive", ""),
    "P7.4": ("Idempotency keys", "the client's half: this runtime refuses keys"),
    "P7.5": ("DUPLICATE_KEY", ""),
    "P7.6": ("Two submits at once with one key", "the store's half: this runtime refuses keys"),
    "P7.7": ("The states and their names", ""),
    "P7.8": ("Exactly one terminal event for each job", ""),
    "P7.8a": ("final_status follows the cause", ""),
    "P7.9": ("What an agent's exception becomes", ""),
    "P7.10": ("max_runtime_sec; the first cause decides", ""),
    "P7.11": ("Nothing comes after the terminal event", ""),
    "P7.12": ("Who may cancel", ""),
    "P7.13": ("Cancel: acknowledged, then CANCELLED", ""),
    "P7.14": ("A cancel of a terminal job changes nothing", ""),
    "P7.15": ("A cancel before the agent's first step", ""),
    "P7.16": ("Agent versions", ""),
    "P7.17": ("Subscribe", ""),
    "P7.18": ("The job's own numbering", ""),
    "P7.19": ("Who may observe", ""),
    "P7.20": ("Finished jobs, repeated subscriptions", ""),
    "P8.1": ("Events: kind, ts, body; checked when emitted", ""),
    "P8.2": ("event_seq: 1, 2, 3 for each session", ""),
    "P8.3": ("The client detects gaps", ""),
    "P8.4": ("progress", ""),
    "P8.5": ("result_chunk", ""),
    "P8.6": ("Kinds that are the runtime's alone", ""),
    "P9.1": ("The grammar of leases", ""),
    "P9.2": ("Patterns", ""),
    "P9.3": ("Canonical targets", ""),
    "P9.4": ("Guarded operations", ""),
    "P9.5": ("Containment", ""),
    "P9.6": ("Lease expiry", ""),
    "P9.7": ("Budgets", ""),
    "P9.8": ("Models", ""),
    "P9.9": ("Upstream budget errors", ""),
    "P9.10": ("Provisioned credentials", ""),
    "P9.11": ("The provisioner's constraints", ""),
    "P10.1": ("Delegation", ""),
    "P10.2": ("A child's budget and expiry", ""),
    "P10.3": ("No child outlives its parent", ""),
    "P10.4": ("A failed child", ""),
    "P11.1": ("Trace propagation", ""),
    "P12.1": ("The fifteen codes and retryable", ""),
    "P12.2": ("An error ends its request only", ""),
    "P14.1": ("Origin and Host checks; no plain ws:// off loopback", ""),
    "P14.2": ("Secrets stay out of logs and reprs", ""),
    "P14.3": ("The store", "its files: this runtime writes none"),
    "P14.4": ("The defaults are in Limits", "those of what is there"),
}


def conformance_table(shown: AbstractSet[str], failed: AbstractSet[str]) -> str:
    """Draw the README's conformance table, as Markdown.

    Args:
        shown: The numbers of which a marked test ran and passed.
        failed: Those of which one failed, whatever else passed.
    """
    lines = ["| | requirement | shown |", "|---|---|---|"]
    for number, (text, missing) in REQUIREMENTS.items():
        if number in failed or number not in shown:
            answer = "not yet"
        elif missing:
            answer = f"partly: {missing}"
        else:
            answer = "yes"
        lines.append(f"| {number} | {text} | {answer} |")
    return "\n".join(lines) + "\n"
