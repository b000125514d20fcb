"""Through proxies: what is said to them, byte by byte; whole connections by them; and which one is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse, RemoteMisbehaviour, Unreachable
from ipop_tx.identity.credentials import GuestCredentials
from ipop_tx.identity.keys import generate_key
from ipop_tx.services.pump import Pump
from ipop_tx.transport.lines import TlsLine
from ipop_tx.transport.proxy import ANSWER_BYTES, bypassed, chooser, proxy_from, tunnel
from ipop_tx.values import Endpoint, Proxy
from tests.proxy import SmallProxyFactory
from tests.tls import Members, TlsCase

TARGET = Endpoint("tls", "203.0.113.7", 443)
SIXTH = Endpoint("tls", "2001:db8::7", 443)
HTTP, SOCKS = Proxy("http", "192.0.2.1", 3128), Proxy("socks5", "192.0.2.1", 1080)


class ParseTests(SynchronousTestCase):
    """How proxies are written."""

    def test_good(self) -> None:
        for text, wanted in (
            ("http://192.0.2.1:3128", HTTP),
            ("socks5h://192.0.2.1", SOCKS),
            ("HTTP://Proxy.example.net/", Proxy("http", "proxy.example.net", 8080)),
            ("socks5://me:p%3Aw@[2001:db8::1]:9", Proxy("socks5", "2001:db8::1", 9, "me", "p:w")),
        ):
            self.assertEqual(Proxy.parse(text), wanted)
        self.assertEqual(str(Proxy.parse("socks5://me:secret@[2001:db8::1]:9")), "socks5://[2001:db8::1]:9")

    @settings(deadline=None)
    @given(st.text(max_size=40) | st.text("htps5ock:/@.[]0123456789", max_size=40).map(lambda tail: "http://" + tail))
    def test_any_text(self, text: str) -> None:
        """Good, or an error of ours."""
        try:
            proxy = Proxy.parse(text)
        except LocalMisuse:
            return
        self.assertTrue(0 < proxy.port < 65536 and proxy.host)

    def test_environment(self) -> None:
        """As curl reads it: https_proxy before all_proxy, a bare host is one for HTTP; no_proxy with addresses, ranges and *."""
        self.assertEqual(proxy_from({"all_proxy": "socks5://192.0.2.1", "https_proxy": "192.0.2.1:3128", "http_proxy": "x"}), HTTP)
        self.assertEqual(proxy_from({"ALL_PROXY": "socks5://192.0.2.1"}), SOCKS)
        self.assertIsNone(proxy_from({"http_proxy": "http://192.0.2.1", "https_proxy": " "}))
        self.assertIn("https_proxy", str(self.assertRaises(LocalMisuse, proxy_from, {"https_proxy": "ftp://x"})))
        for text, found in (
            ("*", True),
            ("203.0.113.0/24,x", True),
            ("x 203.0.113.7", True),
            ("203.0.113.8,example.net,", False),
            ("", False),
        ):
            self.assertEqual(bypassed("203.0.113.7", {"no_proxy": text}), found)
        self.assertTrue(bypassed("2001:db8::7", {"NO_PROXY": "[2001:db8::7]"}))

    def test_choice(self) -> None:
        """A proxy of the configuration is always taken, `none` never one, nothing leaves it to the environment."""
        environment = {"https_proxy": "http://192.0.2.1:3128", "no_proxy": "203.0.113.7"}
        for wanted, host, chosen in (
            (SOCKS, "203.0.113.7", SOCKS),
            (False, "203.0.113.9", None),
            (None, "203.0.113.7", None),
            (None, "203.0.113.9", HTTP),
        ):
            self.assertEqual(chooser(wanted, environment)(host), chosen)
        self.assertRaises(LocalMisuse, chooser(None, {"https_proxy": "nonsense://"}), "203.0.113.9")
        self.assertIsNone(chooser(False, {"https_proxy": "nonsense://"})("203.0.113.9"), "a bad one does no harm to those who want none")


class TunnelTests(SynchronousTestCase):
    """What is said."""

    def test_http(self) -> None:
        for target, name in ((TARGET, b"203.0.113.7:443"), (SIXTH, b"[2001:db8::7]:443")):
            way = tunnel(HTTP, target)
            self.assertEqual(way.opening, b"CONNECT " + name + b" HTTP/1.1\r\nHost: " + name + b"\r\n\r\n")
            answer = b"HTTP/1.1 200 Yes\r\nX: y\r\n\r\n"
            for at in range(len(answer)):
                self.assertFalse(way.done)
                self.assertEqual(way.receive(answer[at : at + 1]), b"")
            self.assertEqual((way.done, way.rest), (True, b""))
        way = tunnel(HTTP, TARGET)
        way.receive(answer + b"beyond")
        self.assertEqual((way.done, way.rest), (True, b"beyond"))

    def test_http_with_password(self) -> None:
        self.assertIn(b"Proxy-Authorization: Basic dTpw\r\n", tunnel(HTTP._replace(user="u", password="p"), TARGET).opening)

    def test_http_refuses(self) -> None:
        for answer, words in (
            (b"HTTP/1.1 407 Who?\r\n\r\n", "put the user and password"),
            (b"HTTP/1.0 403 No\x1b[2J\r\n\r\n", "403 No[2J"),
            (b"SSH-2.0\r\n\r\n", "does not speak HTTP"),
            (b"x" * (ANSWER_BYTES + 1), "no end"),
        ):
            error = self.assertRaises(EnvironmentProblem, tunnel(HTTP, TARGET).receive, answer)
            self.assertIn(words, str(error))
            self.assertIn("http://192.0.2.1:3128", str(error))

    def socks(self, proxy: Proxy, target: Endpoint, *answers: bytes, whole: bool = True) -> tuple[Any, list[bytes]]:
        """Both sides of a talk, answers given whole or byte by byte."""
        way = tunnel(proxy, target)
        said = [way.opening]
        for answer in answers:
            parts = [answer] if whole else [answer[at : at + 1] for at in range(len(answer))]
            said.append(b"".join(way.receive(part) for part in parts))
        return way, said

    def test_socks(self) -> None:
        for whole in (True, False):
            way, said = self.socks(SOCKS, TARGET, b"\x05\x00", b"\x05\x00\x00\x01" + bytes(6), whole=whole)
            self.assertEqual([part.hex() for part in said], ["050100", "05010001cb00710701bb", ""])
            self.assertTrue(way.done)
            way, said = self.socks(SOCKS, SIXTH, b"\x05\x00", b"\x05\x00\x00\x03\x03abc\x00\x01", whole=whole)
            self.assertEqual(said[1].hex(), "05010004" + "20010db8000000000000000000000007" + "01bb")
            self.assertTrue(way.done)

    def test_socks_with_password_and_haste(self) -> None:
        """All of the proxy's answers at once, and more behind them."""
        proxy = SOCKS._replace(user="u", password="pw")
        way, said = self.socks(proxy, TARGET, b"\x05\x02" + b"\x01\x00" + b"\x05\x00\x00\x04" + bytes(18) + b"beyond")
        self.assertEqual([part.hex() for part in said], ["05020002", "01017502" + b"pw".hex() + "05010001cb00710701bb"])
        self.assertEqual((way.done, way.rest), (True, b"beyond"))

    def test_socks_refuses(self) -> None:
        for answers, words in (
            ((b"HTTP/1.1 400\r\n",), "does not speak SOCKS5"),
            ((b"\x05\xff",), "another authentication"),
            ((b"\x05\x02",), "another authentication"),
            ((b"\x05\x00", b"\x05\x05\x00\x01\x00"), "connection refused"),
            ((b"\x05\x00", b"\x05\x77\x00\x01\x00"), "makes no sense"),
            ((b"\x05\x00", b"\x05\x00\x00\x09\x00"), "makes no sense"),
        ):
            self.assertIn(words, str(self.assertRaises(EnvironmentProblem, self.socks, SOCKS, TARGET, *answers)))
        proxy = SOCKS._replace(user="u", password="p")
        self.assertIn("does not take", str(self.assertRaises(EnvironmentProblem, self.socks, proxy, TARGET, b"\x05\x02\x01\x01")))

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=60), max_size=6), st.sampled_from([HTTP, SOCKS, SOCKS._replace(user="u")]))
    def test_any_answers(self, answers: list[bytes], proxy: Proxy) -> None:
        """An error of ours, or waiting, or done."""
        way = tunnel(proxy, TARGET)
        try:
            for answer in answers:
                if not way.done:
                    way.receive(answer)
        except EnvironmentProblem as error:
            self.assertNotIn("\n", str(error))


class ThroughTests(TlsCase):
    """Whole connections, by transports and by lines."""

    async def test_transport(self) -> None:
        server, inbox, endpoint = self.listening()
        count = 0
        for kind in ("http", "socks5"):
            for user in (False, True):
                factory = SmallProxyFactory(kind, user)
                proxy = factory.listen(self)
                client, answers = self.dialling(self.members.member(f"{kind}{int(user)}"), proxy_of=lambda host, proxy=proxy: proxy)
                client.write(endpoint, b"by a proxy")
                count += 1
                await inbox.have(count)
                server.write(inbox.items[-1][0], b"and back")
                await answers.have(1)
                self.assertEqual((factory.connects, client.health()), ([("127.0.0.1", endpoint.port)], []))
                client.stop()

    async def test_refusals_are_told(self) -> None:
        """In the node's health, without the password."""
        _, _, endpoint = self.listening()
        proxy = SmallProxyFactory("http", user=True).listen(self)._replace(password="wrong")
        client, _ = self.dialling(self.members.member("client"), proxy_of=lambda host: proxy)
        client.write(endpoint, b"x")
        await self.becomes(lambda: client.health())
        self.assertIn("407", client.health()[0])
        self.assertNotIn("wrong", client.health()[0])

    async def test_nobody_behind_it(self) -> None:
        proxy = SmallProxyFactory("socks5").listen(self)
        client, _ = self.dialling(self.members.member("client"), proxy_of=lambda host: proxy)
        client.write(Endpoint("tls", "127.0.0.1", 9), b"x")
        await self.becomes(lambda: client.health())
        self.assertIn("connection refused", client.health()[0])

    async def test_a_bad_one_in_the_environment(self) -> None:
        """UDP does not care; whoever looks at the status learns why there is no TLS."""
        client, _ = self.dialling(self.members.member("client"), proxy_of=chooser(None, {"https_proxy": "nonsense://"}))
        client.write(Endpoint("tls", "127.0.0.1", 9), b"x")
        self.assertEqual(list(client), [])
        self.assertIn("https_proxy", client.health()[0])

    async def test_by_name(self) -> None:
        """Under the loop of the daemon, too."""
        _, inbox, endpoint = self.listening()
        for number, loop in enumerate((reactor, Pump(reactor))):
            proxy = SmallProxyFactory("http").listen(self)._replace(host="localhost")
            self.loop = loop
            client, _ = self.dialling(self.members.member(f"client{number}"), proxy_of=lambda host, proxy=proxy: proxy)
            client.write(endpoint, b"x")
            await inbox.have(number + 1)

    def line(self, endpoint: Endpoint, credentials: Any, proxy: Proxy | None = None) -> Any:
        """A line, made and used in a thread, since it blocks: one datagram there, one back."""

        def talk() -> bytes:
            line = TlsLine(endpoint, credentials, proxy, 5)
            try:
                line.send(b"may I?")
                return next(datagram for _ in range(50) for datagram in line.receive(0.1))
            finally:
                line.close()

        return deferToThread(talk)

    async def test_lines(self) -> None:
        """A guest's, with and without proxy."""
        server, inbox, endpoint = self.listening()
        guest = GuestCredentials(generate_key(), self.members.founder.fingerprint)
        for number, proxy in enumerate((None, SmallProxyFactory("http").listen(self), SmallProxyFactory("socks5", True).listen(self))):
            answer = self.line(endpoint, guest, proxy)
            await inbox.have(number + 1)
            server.write(inbox.items[-1][0], b"you may")
            self.assertEqual(await answer, b"you may")
        await self.becomes(lambda: not list(server))

    async def test_lines_that_do_not_come_about(self) -> None:
        """Each in an error of ours, or of the system's."""
        _, _, endpoint = self.listening()
        other = Members(Path(self.mktemp()), "other").founder
        wrong = SmallProxyFactory("http", True).listen(self)._replace(user="", password="")
        for credentials, proxy, where in ((other, None, endpoint), (other, wrong, endpoint), (other, None, endpoint._replace(port=9))):
            with self.assertRaises((IpopError, OSError)) as caught:
                await self.line(where, credentials, proxy)
            self.assertIsInstance(caught.exception, (Unreachable, EnvironmentProblem, RemoteMisbehaviour, ConnectionError))
