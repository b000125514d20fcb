"""The floors of docs/architecture.md hold: every import goes down, and the core touches nothing but bytes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import TestCase

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
MOST_LINES = 500

CORE_FORBIDDEN = {"twisted", "OpenSSL", "socket", "os", "time", "random"}
# `random` is forbidden as a module that draws; its class, of which an instance is passed in, may be named.
CORE_ALLOWED_NAMES = {"random": {"Random"}}
CORE_STOREYS = {"links": 1, "ring": 2, "nat": 2, "dht": 3, "leases": 4, "node": 5}
"""The storeys of the core, each of which knows only those below; whatever is not named here is the ground that all stand on."""


class Import(NamedTuple):
    """One import statement's target, with the names it takes from it."""

    module: str
    names: tuple[str, ...]
    line: int
    type_checking: bool


def floors() -> dict[str, tuple[int, set[str]]]:
    """The table of docs/architecture.md: package -> (floor, what it may not touch besides)."""
    table: dict[str, tuple[int, set[str]]] = {}
    for number, modules, forbidden in re.findall(r"(?m)^\| (\d) \|([^|]*)\|([^|]*)\|$", ARCHITECTURE.read_text()):
        own = re.findall(r"`(\w+)`", modules)
        other = set(re.findall(r"\w+", forbidden)) | (set(own) if "each other" in forbidden else set())
        table |= {module: (int(number), other - {module}) for module in own}
    return table


def imports(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import of a module, wherever it stands. `package` resolves the relative ones."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno, id(node) in guarded)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield Import(module, tuple(alias.name for alias in node.names), node.lineno, id(node) in guarded)


def unit(module: str) -> str:
    """The part of ipop_tx that has a floor: ipop_tx.core.ring.ring -> core; ipop_tx itself -> ''."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def targets(found: Import) -> list[str]:
    """The modules of ipop_tx that an import may load: `from ipop_tx import config` loads one by name."""
    if found.module == "ipop_tx":
        return [f"ipop_tx.{name}" for name in found.names if name not in ("Node", "load_config", "__version__")]
    return [found.module] if found.module.startswith("ipop_tx.") else []


def offences(module: str, source: str, table: dict[str, tuple[int, set[str]]]) -> Iterator[str]:
    """Each import of `module` that the floors forbid, as a sentence."""
    own = unit(module)
    if own not in table:
        yield f"{module}: {own} stands on no floor of docs/architecture.md"
        return
    floor, forbidden = table[own]
    package = module if module.endswith("__init__") else module.rpartition(".")[0]
    for found in imports(ast.parse(source), package):
        for target in targets(found):
            other = unit(target)
            if other == own or (module == "ipop_tx.interfaces" and other == "values" and found.type_checking):
                continue
            if other not in table:
                yield f"{module}:{found.line}: {other} stands on no floor"
            elif other in forbidden:
                yield f"{module}:{found.line}: may not import {target}"
            elif table[other][0] > floor or (table[other][0] == floor and floor in (2, 3)):
                yield f"{module}:{found.line}: imports {target}, which is no floor below"
        top = found.module.partition(".")[0]
        if own == "core" and top in CORE_FORBIDDEN and not (found.names and set(found.names) <= CORE_ALLOWED_NAMES.get(top, set())):
            yield f"{module}:{found.line}: core may not touch {top}"


def storey(module: str) -> tuple[str, int]:
    """Name and storey of a part of the core: ipop_tx.core.ring.fingers -> ring, 2."""
    name = module.split(".")[2] if module.count(".") > 1 else ""
    return name, CORE_STOREYS.get(name, 0)


def climbs(module: str, source: str) -> Iterator[str]:
    """Each import of a module of the core from a storey that is not below its own, as a sentence."""
    own, height = storey(module)
    for found in imports(ast.parse(source), module.rpartition(".")[0]):
        names = [f"{found.module}.{name}" for name in found.names] if found.module == "ipop_tx.core" else [found.module]
        for target in names:
            other, high = storey(target)
            if target.startswith("ipop_tx.core.") and high and other != own and high >= height:
                yield f"{module}:{found.line}: imports {target}, which is no storey below"


def sources() -> Iterator[tuple[str, str, Path]]:
    """(module, text, path) of every module of ipop_tx."""
    for path in sorted((ROOT / "ipop_tx").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module != "ipop_tx.__init__":
            yield module, path.read_text(), path


class Floors(TestCase):
    """docs/architecture.md against the imports."""

    def test_table(self) -> None:
        table = floors()
        self.assertEqual(table["core"][0], 2)
        self.assertEqual({floor for floor, _ in table.values()}, {0, 1, 2, 3, 4, 5})
        self.assertTrue(table["core"][1] >= CORE_FORBIDDEN, "the table and this test name the same modules")
        self.assertTrue(table["session"][1] >= {"identity", "forwarding", "transport", "core"})

    def test_imports_go_down(self) -> None:
        table = floors()
        found = [offence for module, text, _ in sources() for offence in offences(module, text, table)]
        self.assertEqual(found, [], "\n".join(found))

    def test_storeys_of_the_core(self) -> None:
        found = [climb for module, text, _ in sources() if unit(module) == "core" for climb in climbs(module, text)]
        self.assertEqual(found, [], "\n".join(found))
        for text in ("from ipop_tx.core.dht.views import Views", "from ipop_tx.core import node", "from ipop_tx.core.nat import check"):
            self.assertEqual(len(list(climbs("ipop_tx.core.ring.ring", text))), 1, text)

    def test_an_offence_is_found(self) -> None:
        for module, text in [
            ("ipop_tx.core.ring.ring", "import os"),
            ("ipop_tx.core.ring.ring", "import random"),
            ("ipop_tx.core.ring.ring", "def f():\n    from time import monotonic"),
            ("ipop_tx.core.ring.ring", "import os.path"),
            ("ipop_tx.core.ring.ring", "from twisted.internet import defer"),
            ("ipop_tx.core.ring.ring", "from ipop_tx.session import dtls"),
            ("ipop_tx.core.ring.ring", "from ...session import dtls"),
            ("ipop_tx.session.dtls", "from ipop_tx.identity import keys"),
            ("ipop_tx.session.dtls", "from ipop_tx.core.ring.ring import Ring"),
            ("ipop_tx.session.dtls", "if TYPE_CHECKING:\n    from ipop_tx.core.ring.ring import Ring"),
            ("ipop_tx.wire.relay", "from ipop_tx import app"),
            ("ipop_tx.config", "import ipop_tx.wire"),
            ("ipop_tx.services.tap", "from ipop_tx.cli import main"),
            ("ipop_tx.attic.old", ""),
        ]:
            self.assertEqual(len(list(offences(module, text, floors()))), 1, f"{module}: {text}")

    def test_what_is_allowed(self) -> None:
        for module, text in [
            (
                "ipop_tx.core.ring.ring",
                "from random import Random\nimport heapq\nfrom ipop_tx.wire import relay\nfrom ipop_tx.core import ident",
            ),
            ("ipop_tx.interfaces", "if TYPE_CHECKING:\n    from ipop_tx.values import Peer"),
            ("ipop_tx.app", "from ipop_tx.services.tap import TapService\nfrom ipop_tx import config"),
            ("ipop_tx.cli.live", "from . import tables"),
        ]:
            self.assertEqual(list(offences(module, text, floors())), [])


class Files(TestCase):
    """What every file keeps to."""

    def test_length(self) -> None:
        every = [path for part in ("ipop_tx", "tests", "benchmarks", "twisted") for path in sorted((ROOT / part).rglob("*.py"))]
        self.assertTrue(every)
        long = [f"{path.relative_to(ROOT)}: {count}" for path in every if (count := len(path.read_text().splitlines())) > MOST_LINES]
        self.assertEqual(long, [])

    def test_plugin_directory_is_no_package(self) -> None:
        """An __init__.py there would hide twisted itself, or its other plugins."""
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])

    def test_every_package_has_its_sentence(self) -> None:
        for module, text, _ in sources():
            self.assertTrue(ast.get_docstring(ast.parse(text)), f"{module} has no docstring")
