"""Witnesses of a ring of real daemons that die and come back: who has which address, and whether what was acknowledged is still there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from ipop_tx.errors import IpopError
from ipop_tx.lab import Lab
from ipop_tx.lab.node import TAP, LabNode
from ipop_tx.lab.waiting import holds_within
from ipop_tx.wire.address import mac_of

LOOK_EVERY = 0.02
"""Seconds between two looks at all TAPs."""
WRITE_EVERY = 0.05
"""Seconds between two requests of the writer."""
ENTRIES = 4
PATIENCE = 40.0
"""Seconds that a request to a daemon may take."""


class Thread:
    """Something done again and again beside everything else, until it is stopped. Give it `step`."""

    def __init__(self, every: float) -> None:
        self.faults: list[str] = []
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, once what is under way is done."""
        self._over.set()
        self._thread.join()

    def step(self) -> None:
        """Once."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._over.wait(self._every):
            try:
                self.step()
            except Exception as error:  # noqa: BLE001 a witness that has gone blind must not pass for one that saw nothing
                self.faults.append(f"{type(self).__name__} gave up: {error!r}")
                return


class Addresses(Thread):
    """Looks at all TAPs all the time: no address is ever on two of them, and none changes."""

    def __init__(self, nodes: Sequence[LabNode], expected: Mapping[str, str], every: float = LOOK_EVERY) -> None:
        super().__init__(every)
        self.looks = 0
        self.duplicates = 0
        self._nodes = nodes
        self._expected = expected
        """By name of the node."""
        self._seen: dict[str, str | None] = {}

    def step(self) -> None:
        """One look at all of them."""
        self.looks += 1
        now = {node.name: node.address_on_tap() for node in self._nodes}
        for name, address in now.items():
            if address not in (None, self._expected[name]) and address != self._seen.get(name):
                self.faults.append(f"{name} took {address}; before it had {self._expected[name]}")
        held = [address for address in now.values() if address is not None]
        if len(set(held)) < len(held) and now != self._seen:
            self.duplicates += 1
            self.faults.append(f"two nodes have one address: {now}")
        self._seen = now


class Writer(Thread):
    """Creates registers and counts others up, at nodes that run; keeps what was acknowledged."""

    def __init__(self, running: Callable[[], Sequence[LabNode]], rng: Random, every: float = WRITE_EVERY) -> None:
        super().__init__(every)
        self.created: dict[str, str] = {}
        self.counted: dict[str, int] = {}
        """The last number acknowledged, by the name of the node that counts."""
        self.unanswered = 0
        """Writes of which nobody knows: the daemon died over them, or no majority was to be had."""
        self._running = running
        self._rng = rng
        self._number = 0

    def step(self) -> None:
        """A few creates, and one number further, at one node."""
        running = self._running()
        if not running:
            return
        node = self._rng.choice(running)
        fresh = {self._rng.randbytes(20).hex(): self._rng.randbytes(30).hex() for _ in range(ENTRIES)}
        answers = self._ask(node, "create", [{"key": key, "text": value} for key, value in fresh.items()])
        self.created.update((answer["key"], fresh[answer["key"]]) for answer in answers if "error" not in answer)
        self._number += 1
        for answer in self._ask(node, "set", [{"key": f"count-{node.name}", "text": str(self._number)}]):
            if "error" not in answer:
                self.counted[node.name] = self._number

    def _ask(self, node: LabNode, what: str, entries: list[dict[str, str]]) -> list[dict[str, Any]]:
        try:
            answers: list[dict[str, Any]] = node.request("POST", f"/dht/{what}", {"entries": entries}, timeout=PATIENCE)["answers"]
        except IpopError:  # it was killed over it
            self.unanswered += len(entries)
            return []
        self.unanswered += sum("error" in answer for answer in answers)
        return answers

    def lost(self, node: LabNode) -> list[str]:
        """Everything that was acknowledged and that `node` does not read back, a sentence each. Raises `IpopError`."""
        return [*self._lost_registers(node), *self._lost_numbers(node)]

    def _lost_registers(self, node: LabNode) -> list[str]:
        keys, missing = list(self.created), []
        for at in range(0, len(keys), 256):
            answers = self._read(node, keys[at : at + 256])
            missing += [answer for answer in answers if answer.get("text") != self.created[answer["key"]]]
        return [f"{answer['key']} is lost: {answer.get('error', 'it holds something else')}" for answer in missing]

    def _lost_numbers(self, node: LabNode) -> list[str]:
        missing = []
        for name, number in self.counted.items():
            [answer] = self._read(node, [f"count-{name}"])
            if not answer.get("text", "").isdecimal() or int(answer["text"]) < number:
                missing.append(f"{name} had counted up to {number}, now it is {answer.get('text', answer.get('error'))}")
        return missing

    def _read(self, node: LabNode, keys: Sequence[str]) -> list[dict[str, Any]]:
        entries = [{"key": key} for key in keys]
        answers: list[dict[str, Any]] = node.request("POST", "/dht/get", {"entries": entries}, timeout=PATIENCE)["answers"]
        return answers


def neighbours_at_fault(nodes: Sequence[LabNode], idents: Mapping[str, bytes]) -> list[str]:
    """What the kernels of `nodes` learned by ARP, where that is not the MAC of who holds the address. `idents` by address."""
    faults = []
    for node in nodes:
        learned = json.loads(node.host.run(["ip", "-j", "neigh", "show", "dev", TAP], check=False).stdout or "[]")
        for entry in learned:
            owner = idents.get(entry["dst"])
            if owner is not None and "lladdr" in entry and entry["lladdr"] != mac_of(owner).hex(":"):
                faults.append(f"at {node.name} {entry['dst']} has the MAC {entry['lladdr']}, not that of its holder")
    return faults


def ring_faults(statuses: Mapping[str, dict[str, Any]]) -> list[str]:
    """Where the neighbours that nodes name are not those that they have; empty when the ring is whole. `statuses` by name, of all nodes."""
    order = sorted(statuses, key=lambda name: str(statuses[name]["ident"]))
    faults = []
    for place, name in enumerate(order):
        ring = statuses[name]["ring"]
        before, after = order[place - 1], order[(place + 1) % len(order)]
        if not ring["joined"]:
            faults.append(f"{name} is not on the ring")
        elif ring["predecessor"] != before or ring["successors"][:1] != [after]:
            faults.append(f"{name} stands between {ring['predecessor']} and {ring['successors'][:1]}, not {before} and {after}")
    return faults


def whole_within(seconds: float, running: Callable[[], Sequence[LabNode]], every: float) -> str:
    """Wait until the ring of all that run is whole, with a look `every` so many seconds; gives what is wrong in the end, if anything."""
    faults = ["nobody was asked"]

    def whole() -> bool:
        found = selves(running())
        faults[:] = ring_faults(found)
        faults.extend(f"{node.name} does not answer" for node in running() if node.name not in found)
        return not faults

    return "" if holds_within(seconds, whole, every) else faults[0]


def keep_logs(lab: Lab, place: Path) -> None:
    """Copy the logs of all daemons, and of what else ran, to a directory that stays."""
    place.mkdir(parents=True, exist_ok=True)
    for log in lab.scratch.glob("*/*.log"):
        with suppress(OSError):
            (place / f"{log.parent.name}-{log.name}").write_bytes(log.read_bytes())


def selves(nodes: Sequence[LabNode]) -> dict[str, dict[str, Any]]:
    """What every node says of itself, by name; those that do not answer are left out."""
    found = {}
    for node in nodes:
        with suppress(IpopError):
            found[node.name] = node.status()["self"]
    return found
