"""State files: whole or not at all, checked, private, one daemon at a time; and the disk under the DHT."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ipop_tx.errors import EnvironmentProblem, StateError
from ipop_tx.identity.keys import ensure_key, generate_key, point_of, read_key, write_key
from ipop_tx.identity.state import LEASE, NODE_KEY, StateDirectory
from ipop_tx.identity.store import MemoryReplicaStore, SqliteReplicaStore
from ipop_tx.interfaces import IReplicaStore


class StateCase(SynchronousTestCase):
    """A state directory of its own for each test."""

    def setUp(self) -> None:
        self.state = StateDirectory(Path(self.mktemp()) / "deep" / "state")

    def assertSays(self, call: object, *words: str) -> None:
        error = self.assertRaises(StateError, call)
        for word in words:
            self.assertIn(word, str(error))


class StateDirectoryTests(StateCase):
    """Each refusal names the file and the mend."""

    def test_modes(self) -> None:
        write_key(self.state, NODE_KEY, generate_key())
        self.assertEqual(self.state.path.stat().st_mode & 0o777, 0o700)
        self.assertEqual((self.state.path / NODE_KEY).stat().st_mode & 0o777, 0o600)

    def test_what_root_writes_belongs_to_the_directory_s_owner(self) -> None:
        """The daemon is another user than who types `ipop join`."""
        if os.geteuid() != 0:
            self.skipTest("giving files away needs root")
        owned = Path(self.mktemp())
        owned.mkdir()
        os.chown(owned, 4001, 4002)
        state = StateDirectory(owned / "node")
        state.write_json(LEASE, {"address": "10.128.0.1"})
        write_key(state, NODE_KEY, generate_key())
        store = SqliteReplicaStore(state.path / "replicas.db")
        store.put(1, b"key", b"value")
        store.commit()
        for path in (state.path, *state.path.iterdir()):
            self.assertEqual((path.stat().st_uid, path.stat().st_gid), (4001, 4002), path)
        store.close()

    def test_nothing_else_is_left_behind(self) -> None:
        self.state.write("node.crt", b"one")
        self.state.write("node.crt", b"two")
        self.assertEqual(os.listdir(self.state.path), ["node.crt"])
        self.assertEqual(self.state.read("node.crt"), b"two")

    def test_missing(self) -> None:
        self.assertSays(lambda: self.state.read("node.crt", "join first"), "node.crt is missing", "join first")

    def test_readable_by_others(self) -> None:
        key = ensure_key(self.state, NODE_KEY)
        path = self.state.path / NODE_KEY
        for mode in (0o640, 0o604, 0o660):
            path.chmod(mode)
            self.assertSays(lambda: read_key(self.state, NODE_KEY), str(path), f"chmod 600 {path}")
        path.chmod(0o600)
        self.assertEqual(point_of(read_key(self.state, NODE_KEY).public_key()), point_of(key.public_key()))

    def test_a_damaged_key_is_never_replaced(self) -> None:
        self.state.write(NODE_KEY, b"-----BEGIN PRIVATE KEY-----\nrubbish\n-----END PRIVATE KEY-----\n")
        before = self.state.read(NODE_KEY)
        self.assertSays(lambda: ensure_key(self.state, NODE_KEY), NODE_KEY, "damaged", "copy")
        self.assertEqual(self.state.read(NODE_KEY), before)

    def test_not_a_directory(self) -> None:
        file = Path(self.mktemp())
        file.write_text("")
        self.assertSays(StateDirectory(file).prepare, "is not a directory")
        self.assertSays(lambda: StateDirectory(file / "below").write("x", b""), "not a directory")

    def test_full_disk(self) -> None:
        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.state.write("node.crt", b"old")
        self.patch(os, "fsync", refuse)
        self.assertSays(lambda: self.state.write("node.crt", b"new"), "node.crt", "cannot be written", "no space left", "free some space")
        self.assertEqual(os.listdir(self.state.path), ["node.crt"])
        self.assertEqual(self.state.read("node.crt"), b"old")

    def test_json_round_trip(self) -> None:
        self.assertIsNone(self.state.read_json(LEASE))
        for number in range(3):
            self.state.write_json(LEASE, {"address": "10.128.0.7", "number": number})
            self.assertEqual(self.state.read_json(LEASE), {"address": "10.128.0.7", "number": number})

    def test_damaged_json_falls_back(self) -> None:
        self.state.write_json(LEASE, 1)
        self.state.write_json(LEASE, 2)
        path = self.state.path / LEASE
        whole = path.read_bytes()
        for damaged in (b"", whole[:-2], whole.replace(b"\n2", b"\n3"), b"\xff" * 99):
            path.write_bytes(damaged)
            self.state.notices.clear()
            self.assertEqual(self.state.read_json(LEASE), 1)
            self.assertEqual(self.state.notices, [f"{path} was damaged, so the version before it is used"])
            self.assertEqual(self.state.read_json(LEASE), 1)
            self.assertEqual(len(self.state.notices), 1, "it is whole again")
        self.state.write_json(LEASE, 4)
        self.assertEqual((self.state.read_json(LEASE), len(self.state.notices)), (4, 1))

    def test_a_crash_between_the_renames_loses_nothing(self) -> None:
        self.state.write_json(LEASE, 1)
        path = self.state.path / LEASE
        path.rename(self.state.path / f"{LEASE}.bak")
        self.assertEqual(self.state.read_json(LEASE), 1)

    def test_all_json_damaged(self) -> None:
        self.state.write_json(LEASE, 1)
        (self.state.path / LEASE).write_bytes(b"{}")
        self.assertEqual(self.state.read_json(LEASE), 1, "the very first version has a copy too")
        for name in (LEASE, f"{LEASE}.bak"):
            (self.state.path / name).write_bytes(b"{}")
        self.assertSays(lambda: self.state.read_json(LEASE), LEASE, "is damaged", "remove both")

    def test_two_daemons(self) -> None:
        self.state.prepare()
        program = (
            "import sys; from ipop_tx.identity.state import StateDirectory\n"
            "state = StateDirectory(sys.argv[1]); state.lock(); print('locked', flush=True); sys.stdin.read()"
        )
        command, environment = [sys.executable, "-c", program, str(self.state.path)], {"PYTHONPATH": ":".join(sys.path)}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
            assert other.stdout is not None and other.stdin is not None
            self.assertEqual(other.stdout.readline(), b"locked\n")
            self.assertSays(self.state.lock, f"process {other.pid}", str(self.state.path), "stop it")
            other.stdin.close()
            other.wait()
        self.state.lock()
        self.state.unlock()
        self.state.unlock()


class ReplicaStoreDemands:
    """What every replica store must do. `again` opens what a restart would find."""

    def again(self) -> SqliteReplicaStore | MemoryReplicaStore:
        raise NotImplementedError

    def test_interface(self) -> None:
        verifyObject(IReplicaStore, self.again())

    def test_only_what_was_committed_survives(self) -> None:
        store = self.again()
        store.put(2, b"key", b"value")
        store.put(1, b"", b"view")
        store.put(1, b"gone", b"x")
        store.delete(1, b"gone")
        store.delete(1, b"never")
        store.commit()
        store.put(2, b"key", b"newer")
        store.delete(1, b"")
        self.assertEqual(list(self.again().load()), [(1, b"", b"view"), (2, b"key", b"value")])

    def test_commits_follow_each_other(self) -> None:
        store = self.again()
        for number in range(3):
            store.put(0, b"key", b"%d" % number)
            store.commit()
            store.commit()
        self.assertEqual(list(self.again().load()), [(0, b"key", b"2")])


class MemoryReplicaStoreTests(ReplicaStoreDemands, SynchronousTestCase):
    """The store of simulations."""

    def setUp(self) -> None:
        self.store = MemoryReplicaStore()

    def again(self) -> MemoryReplicaStore:
        return self.store


class SqliteReplicaStoreTests(ReplicaStoreDemands, SynchronousTestCase):
    """The store of daemons, with a disk's troubles."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.opened: list[SqliteReplicaStore] = []

    def again(self) -> SqliteReplicaStore:
        for store in self.opened:
            store.close()
        store = SqliteReplicaStore(self.path)
        self.opened.append(store)
        self.addCleanup(store.close)
        return store

    def test_private(self) -> None:
        store = self.again()
        store.put(0, b"key", b"value")
        modes = {file.name: file.stat().st_mode & 0o777 for file in self.path.parent.glob(self.path.name + "*")}
        self.assertEqual(set(modes.values()), {0o600}, modes)

    def test_no_database(self) -> None:
        self.path.write_bytes(b"rubbish" * 1000)
        error = self.assertRaises(StateError, self.again)
        self.assertIn("is damaged", str(error))
        self.assertIn("move that file away", str(error))

    def test_damaged_page(self) -> None:
        store = self.again()
        for number in range(500):
            store.put(0, b"%d" % number, bytes(100))
        store.commit()
        store.close()
        raw = bytearray(self.path.read_bytes())
        raw[4096 * 3 : 4096 * 4] = b"\xff" * 4096
        self.path.write_bytes(raw)
        self.assertIn("is damaged", str(self.assertRaises(StateError, self.again)))

    def test_full(self) -> None:
        store = self.again()
        store._database.execute("PRAGMA max_page_count = 3")

        def fill() -> None:
            for number in range(500):
                store.put(0, b"%d" % number, bytes(100))
            store.commit()

        self.assertIn("the disk is full: free some space", str(self.assertRaises(EnvironmentProblem, fill)))
        self.assertRaises(EnvironmentProblem, store.commit)
        store._database.execute("PRAGMA max_page_count = 10000")
        store.commit()
        self.assertEqual(len(list(store.load())), 500, "what did not fit is written once there is room")

    def test_in_use(self) -> None:
        store = self.again()
        store._database.execute("BEGIN IMMEDIATE")
        other = SqliteReplicaStore(self.path)
        self.addCleanup(other.close)
        other._database.execute("PRAGMA busy_timeout = 0")
        other.put(0, b"", b"")
        self.assertIn("in use by another process", str(self.assertRaises(StateError, other.commit)))

    def test_no_such_directory(self) -> None:
        self.path = self.path / "nowhere" / "replicas.db"
        self.assertIn("make that directory writable", str(self.assertRaises(EnvironmentProblem, self.again)))
