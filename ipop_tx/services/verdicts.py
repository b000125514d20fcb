"""The verdicts of `ipop explain`: a stable code each, where in the chain it stands, what it does to traffic, the sentence with the mend.

docs/explain.md lists them; a test holds the two together. `{there}` is the other node, `{here}` this one; other words are named by code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

OK, FAULT, UNKNOWN = "ok", "fault", "unknown"
STOPS, HARMS = "stops", "harms"
"""What a fault does: no packet passes; or they pass, but slower, or not for long."""

STEPS = (
    "node", "state", "certificate", "clock", "ring", "name", "dns", "lease", "tap", "route", "policy", "link", "path", "nat", "transport",
    "mtu", "delivery", "service",
)  # fmt: skip
"""In the order in which they are told."""


class Verdict(NamedTuple):
    """What a code means."""

    step: str
    verdict: str
    effect: str
    sentence: str


class Step(NamedTuple):
    """One line of an explanation."""

    code: str
    sentence: str

    @property
    def about(self) -> Verdict:
        """What its code means."""
        return CODES[self.code]

    def to_json(self) -> dict[str, Any]:
        """As the control socket gives it."""
        about = self.about
        return {"step": about.step, "code": self.code, "verdict": about.verdict, "effect": about.effect or None, "sentence": self.sentence}


def explanation(steps: list[Step]) -> dict[str, Any]:
    """The steps in the order of the chain, with what to mend first; as the control socket gives them."""
    ordered = sorted(steps, key=lambda one: STEPS.index(one.about.step))
    first = cause(ordered)
    verdict = FAULT if first else UNKNOWN if any(one.about.verdict == UNKNOWN for one in ordered) else OK
    return {"verdict": verdict, "cause": first.to_json() if first else None, "steps": [one.to_json() for one in ordered]}


def step(code: str, **words: object) -> Step:
    """A line with this code; `words` fill its sentence."""
    return Step(code, CODES[code].sentence.format(**words))


def cause(steps: list[Step]) -> Step | None:
    """What to mend first: the first fault that stops traffic, else the first that harms it; that nothing runs here follows from others."""
    faults = [one for one in steps if one.about.verdict == FAULT]
    faults.sort(key=lambda one: one.code == "node-down")
    return next((one for one in faults if one.about.effect == STOPS), faults[0] if faults else None)


def _ok(step: str, sentence: str) -> Verdict:
    return Verdict(step, OK, "", sentence)


def _unknown(step: str, sentence: str) -> Verdict:
    return Verdict(step, UNKNOWN, "", sentence)


def _stops(step: str, sentence: str) -> Verdict:
    return Verdict(step, FAULT, STOPS, sentence)


def _harms(step: str, sentence: str) -> Verdict:
    return Verdict(step, FAULT, HARMS, sentence)


CODES: dict[str, Verdict] = {
    # here, before anybody is asked
    "node-runs": _ok("node", "the daemon of {here} runs"),
    "node-down": _stops("node", "no daemon runs here: {mend}"),
    "state-good": _ok("state", "the disk of {path} has room and can be written"),
    "disk-full": _harms(
        "state", "the disk of {path} is full: free some space; until then this node keeps no registers and loses its lease"
    ),
    "disk-read-only": _harms("state", "{path} cannot be written: mount its disk read-write; until then this node keeps no registers"),
    "disk-full-there": _harms("state", "the disk of {there}'s state is full: free some space on it"),
    "disk-read-only-there": _harms("state", "the state of {there} cannot be written: mount its disk read-write"),
    "certificate-good": _ok("certificate", "the certificates of both ends are good"),
    "certificate-good-here": _unknown("certificate", "this node's certificate is good; that of {there} is not known"),
    "certificate-expired-here": _stops("certificate", "this node's certificate ended on {date}: have it admitted anew (ipop join)"),
    "certificate-expired-there": _stops(
        "certificate", "the certificate of {there} has ended: have it admitted anew (ipop join, on {there})"
    ),
    "certificate-refused-here": _stops("certificate", "{there} refuses this node's certificate: see its log, and compare the two clocks"),
    "certificate-refused-there": _stops("certificate", "the certificate of {there} is refused ({why})"),
    "revoked-here": _stops("certificate", "this node was thrown out of the network: remove its state directory and join anew"),
    "revoked-there": _stops(
        "certificate", "{there} was thrown out of the network on {date}: to have it back, remove its state directory and join it anew"
    ),
    "clocks-agree": _ok("clock", "the clocks of both ends agree to within {seconds} s"),
    "clock-unknown": _unknown("clock", "the clock of {there} is not known, since it did not answer"),
    "clock-wrong-here": _harms("clock", "this machine's clock is {seconds} s {way}: set it (NTP), else certificates are refused"),
    "clock-wrong-there": _harms("clock", "the clock of {there} is {seconds} s {way}: set it (NTP), else certificates are refused"),
    "clocks-apart": _harms("clock", "the clock of {there} is {seconds} s {way} this one's, and nobody else can be asked: set both (NTP)"),
    "clock-before-certificate": _stops("clock", "{why}: this machine's clock is wrong, so set it (NTP)"),
    "on-ring": _ok("ring", "this node is on the ring, linked to {links} members"),
    "alone": _stops(
        "ring", "this node has no link to any member ({why}): see whether it gets out, and name a reachable one in node.bootstrap"
    ),
    # who is it
    "name-found": _ok("name", "{target} is {there}, ident {ident}"),
    "name-unknown": _stops("name", "nobody in this network is called {target}: ipop peers names those who are linked"),
    "name-uncertain": _unknown("name", "who {target} is cannot be told just now ({why})"),
    "address-unowned": _stops("name", "no node has the address {target}: see there whether its daemon runs, and ipop status"),
    "address-outside": _stops(
        "name", "{target} is outside the network's ranges {pool} and {prefix}: ask for the address that ipop status shows there"
    ),
    "target-is-here": _stops("name", "{target} is this node itself: name another one"),
    "dns-asks-us": _ok("dns", "the programs of this machine ask the daemon for names"),
    "dns-off": _ok("dns", "the daemon answers no names to programs (dns.listen); ipop itself needs none"),
    "dns-not-asked": _stops(
        "dns", "this machine's resolver does not ask the daemon: put 'nameserver {server}' first into {file}, or see dns.system"
    ),
    "dns-broken": _stops("dns", "{why}"),
    "leases-held": _ok("lease", "{here} has {own} and {there} has {address}, both leased"),
    "lease-held-here": _unknown("lease", "{here} has {own} leased; what {there} has is not known"),
    "lease-missing-here": _stops("lease", "this node has no address ({why}): once that is mended it takes one by itself"),
    "lease-missing-there": _stops(
        "lease", "the network knows no lease of {there}: see ipop lease list there; ipop lease renew makes it anew"
    ),
    "lease-expired-here": _stops("lease", "this node's lease has run out: see ipop status for why it could not be renewed"),
    "lease-expired-there": _stops("lease", "the lease of {target} has run out: start the daemon of {there}, or let it reach a majority"),
    # this machine
    "tap-up": _ok("tap", "the interface {tap} is up"),
    "tap-none": _stops("tap", "this node has no interface of the network: set tap.enabled = true in node.toml and restart it"),
    "tap-gone": _stops("tap", "the interface {tap} is gone, removed or renamed: restart the daemon, which makes it"),
    "tap-down": _stops("tap", "the interface {tap} is down: ip link set {tap} up, then restart the daemon"),
    "tap-none-there": _stops("tap", "{there} has no interface of the network: set tap.enabled = true in its node.toml and restart it"),
    "tap-gone-there": _stops("tap", "the interface of {there} was removed: restart its daemon, which makes it"),
    "tap-down-there": _stops("tap", "the interface of {there} is down: ip link set ipop0 up there, then restart its daemon"),
    "route-good": _ok("route", "the kernel sends {address} to {tap}, and {there} its answers"),
    "route-good-here": _unknown("route", "the kernel sends {address} to {tap}; whether {there} does so with answers is not known"),
    "route-unknown": _unknown("route", "no address of {target} is known to ask the kernel about"),
    "route-elsewhere": _stops(
        "route", "the kernel sends {address} to {interface}: remove that route (ip route get {address}; ip route del ...)"
    ),
    "route-missing": _stops("route", "the kernel has no route to {address}: put back the one of {tap} (restart the daemon)"),
    "pool-overlaps": _stops(
        "route",
        "{interface} uses {range}, which overlaps this network: give that other network another range, or this machine another network",
    ),
    "route-elsewhere-there": _stops(
        "route", "the kernel of {there} sends answers to this node elsewhere: there, ip route get {own} and remove that route"
    ),
    "pool-overlaps-there": _stops("route", "another interface of {there} has a range that overlaps this network: renumber one of the two"),
    # policy
    "policy-none": _ok("policy", "the network has no policy: all is allowed"),
    "policy-allows": _ok("policy", "both ends allow {service}, by {rule}"),
    "policy-allows-here": _unknown("policy", "this end allows {service} ({rule}); what {there} does is not known"),
    "policy-drops-here": _stops("policy", "the policy of this end drops {service} to {there}: add a rule for it (ipop policy set)"),
    "policy-drops-pair": _stops("policy", "the policy drops {service} from {source} to {there}: add a rule for it (ipop policy set)"),
    "policy-unknown": _unknown("policy", "what the policy says cannot be told ({why})"),
    "policy-drops-there": _stops(
        "policy",
        "{there} drops {service} by its policy, version {theirs}, while this node has version {ours}: add a rule, or wait until both agree",
    ),
    # between
    "link-up": _ok("link", "there is a link to {there}, and it answers"),
    "link-refused": _stops("link", "{there} and this node do not let each other in ({why})"),
    "peer-down": _stops("link", "{there} answers nobody who was asked: start its daemon, or mend its network"),
    "peer-unreachable": _stops(
        "link", "{there} does not answer this node, while {witness} reaches it: see what blocks UDP and TLS between here and there"
    ),
    "link-unknown": _unknown("link", "no link was tried to {target}"),
    "path-direct": _ok("path", "direct, by {endpoint}"),
    "path-relayed": _ok("path", "by way of {relay} ({why})"),
    "path-of-others": _unknown("path", "only {source} knows its way to {target}: there, ipop explain {target} {service}"),
    "path-unknown": _unknown("path", "there is no path to tell of without a link"),
    "nat-open": _ok("nat", "no NAT keeps the two apart"),
    "nat-unknown": _unknown("nat", "what the NATs do is not known yet: ipop netcheck looks"),
    "nat-blocks": _harms(
        "nat", "the NATs let no direct path through ({why}): forward UDP port {port} at one of them, or let it be mapped (nat.port_mapping)"
    ),
    "transport-udp": _ok("transport", "UDP"),
    "transport-other": _ok("transport", "{scheme}, since {why}"),
    "transport-unknown": _unknown("transport", "not known without a direct path"),
    "udp-blocked-here": _harms(
        "transport", "no UDP leaves this site: let UDP out in its firewall (destination port of the peers, mostly 4500)"
    ),
    "udp-blocked-there": _harms("transport", "no UDP leaves the site of {there}: let UDP out in its firewall (mostly port 4500)"),
    "udp-blocked": _harms(
        "transport", "UDP is not answered between here and {there}, so {scheme} is used: let UDP port 4500 pass at both sites"
    ),
    "mtu-good": _ok("mtu", "datagrams of {mtu} bytes pass"),
    "mtu-not-probed": _unknown("mtu", "{mtu} bytes are taken for granted: --probe tries"),
    "mtu-unknown": _unknown("mtu", "not measured without a direct path by UDP"),
    "mtu-hole": _stops(
        "mtu", "datagrams of {mtu} bytes vanish on the way while small ones pass: raise the MTU of that path to 1280 or more"
    ),
    # at the other end
    "not-probed": _unknown("delivery", "no packet was sent: --probe sends one"),
    "probe-answered": _ok("delivery", "a packet went to {there}'s kernel and the answer came back"),
    "probe-unsure": _unknown("delivery", "nothing answered the probe, and {there} cannot be asked why"),
    "probe-impossible": _unknown("delivery", "no probe was sent ({why})"),
    "firewall-here": _stops(
        "delivery", "a packet to {address} never reached the interface {tap}: a firewall here drops it (nft list ruleset, chain output)"
    ),
    "firewall-back": _stops(
        "delivery",
        "the answer of {there} reached the interface {tap} but no program: a firewall here drops it (nft list ruleset, chain input)",
    ),
    "firewall-there": _stops(
        "delivery", "the kernel of {there} got {service} and gave no answer: a firewall there drops it (nft list ruleset there)"
    ),
    "packets-lost": _stops(
        "delivery", "packets to {there} leave this node and do not arrive, or their answers: see ipop status for lost records"
    ),
    "service-answers": _ok("service", "{service} answers at {there}"),
    "service-listens": _ok("service", "{there} says that a program waits at {service}"),
    "service-closed": _stops("service", "no program at {there} listens to {service}: start it, and let it listen on {address}"),
    "service-unknown": _unknown("service", "whether anything waits at {service} is not known"),
}
