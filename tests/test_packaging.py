"""What `pip install .` puts on a machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest, TestCase

ROOT = Path(__file__).parent.parent
PARTS = ("pyproject.toml", "setup.cfg", "LICENSE", "README.md", "ipop_tx", "twisted")


def new_enough(package: str, major: int) -> bool:
    """Whether `package` is installed in version `major` or a later one."""
    try:
        return int(importlib.metadata.version(package).partition(".")[0]) >= major
    except importlib.metadata.PackageNotFoundError:
        return False


class Wheel(TestCase):
    """Built from a copy of the tree, without the network."""

    timeout = 120

    async def build(self) -> zipfile.ZipFile:
        """The wheel; skips when this interpreter lacks what builds one offline."""
        if importlib.util.find_spec("pip") is None:
            raise SkipTest("pip is not installed beside this Python")
        if not new_enough("setuptools", 77):
            raise SkipTest("setuptools 77 or newer is not installed beside this Python; pip install '.[dev]' brings it")
        tree, out = Path(self.mktemp()), Path(self.mktemp())
        tree.mkdir()
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
            elif source.exists():
                shutil.copy(source, tree / part)
        command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(tree)]
        output, errors, status = await getProcessOutputAndValue(sys.executable, command, env=None)
        self.assertEqual(status, 0, (output + errors).decode(errors="replace"))
        (wheel,) = out.glob("*.whl")
        archive = zipfile.ZipFile(wheel)
        self.addCleanup(archive.close)
        return archive

    async def test_contents(self) -> None:
        wheel = await self.build()
        names = set(wheel.namelist())
        for wanted in ("ipop_tx/py.typed", "ipop_tx/cli/main.py", "ipop_tx/config/load.py", "twisted/plugins/ipop_plugin.py"):
            self.assertIn(wanted, names)
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ipop_tx").rglob("*.py")}
        self.assertEqual(modules - names, set(), "every module is in the wheel")
        self.assertEqual([n for n in names if n.startswith("twisted/") and n != "twisted/plugins/ipop_plugin.py"], [])
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        self.assertIn("ipop = ipop_tx.cli.main:main", wheel.read(f"{info}/entry_points.txt").decode())
        self.assertIn("Version: 0.1.0\n", wheel.read(f"{info}/METADATA").decode())
