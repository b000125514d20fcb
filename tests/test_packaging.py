"""What `pip install .` puts on a machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
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


class Units(TestCase):
    """The units of the Debian package, as far as they can be judged without a machine of their own (docs/service.md)."""

    async def test_hardened(self) -> None:
        """What systemd itself says, from 0 (best) to 100."""
        program = shutil.which("systemd-analyze")
        if program is None:
            raise SkipTest("systemd-analyze is not installed")
        words = ["security", "--no-pager", "--offline=true", "--threshold=25", str(ROOT / "packaging" / "ipop@.service")]
        out, err, status = await getProcessOutputAndValue(program, words, env=None)
        self.assertEqual(status, 0, (out + err).decode(errors="replace"))

    def test_programs_are_shipped(self) -> None:
        """What the units start is what tools/deb puts there."""
        started = set()
        for unit in (ROOT / "packaging").glob("*.service"):
            started |= set(re.findall(r"(?m)^Exec\w+=[-+]*(\S+)", unit.read_text()))
        self.assertEqual(started, {"/usr/bin/ipop", "/usr/lib/ipop-tx/twistd"})
        script = (ROOT / "tools" / "deb").read_text()
        for made in ('program "$root/usr/bin/ipop"', "lib=$root/usr/lib/ipop-tx", 'program "$lib/twistd"'):
            self.assertIn(made, script)
