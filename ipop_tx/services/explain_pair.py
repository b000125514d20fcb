"""`ipop explain A B`, asked at neither: what the registers and both ends tell a third member. A's way to B only A knows."""

from __future__ import annotations

from typing import Any

from ipop_tx.errors import IpopError
from ipop_tx.services.explain import Explain
from ipop_tx.services.settings import PolicyService
from ipop_tx.services.verdicts import Step, explanation, step

_OF_THE_END = frozenset({"certificate", "clock", "name", "lease", "link", "tap"})
"""Steps that are as true for another asker as for us, when they speak of the other end."""
_OURS = frozenset({"certificate-good-here", "lease-held-here"})


async def explain_pair(explain: Explain, policy: PolicyService, source: str, target: str, service: str) -> dict[str, Any]:
    """What `Explain.explain` tells of each end, and the policy between them."""
    steps: list[Step] = []
    for end in (source, target):
        told = await explain.explain(end, service, False)
        steps += [Step(one["code"], one["sentence"]) for one in told["steps"] if _is_of_the_end(one)]
    try:
        verdict = await policy.judge(source, target, service)
    except IpopError as error:
        steps.append(step("policy-unknown", why=error.sentence))
    else:
        words = {"service": service, "there": target, "rule": verdict["rule"] or "default"}
        none = verdict["default"] is None
        steps.append(
            step("policy-none" if none else "policy-allows" if verdict["allowed"] else "policy-drops-pair", **words, source=source)
        )
    steps.append(step("path-of-others", source=source, target=target, service=service))
    return {"source": source, "target": target, "name": "", "service": service, "probed": False, **explanation(steps)}


def _is_of_the_end(one: dict[str, Any]) -> bool:
    if one["step"] not in _OF_THE_END or one["code"] in _OURS:
        return False
    return one["code"].endswith("-there") or one["verdict"] != "fault" or one["step"] in ("name", "link")
