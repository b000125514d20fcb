"""sendmsg(2) and recvmsg(2) with structures that are built once.

Python's own calls take a list of buffers and describe each of them to the kernel anew, which costs more than sealing a run of
datagrams does. Here the description, an array of `iovec`, belongs to the buffers and is made with them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from ipop_tx.wire.datagram import HEADER_BYTES

UDP_SEGMENT, UDP_GRO = 103, 104
"""Socket options of level IPPROTO_UDP and types of ancillary data (linux/udp.h); not in the socket module."""

MOST_NAMES = 4096
_ADDRESS_BYTES = 28  # sockaddr_in6
_SIZE, _INT = struct.Struct("=H"), struct.Struct("=i")
_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.sendmsg, _libc.recvmsg, _libc.readv):
    _call.argtypes, _call.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int), ctypes.c_ssize_t
_WOULD_BLOCK = (errno.EAGAIN, errno.EWOULDBLOCK)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vector", ctypes.c_void_p),
        ("vector_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Cmsghdr(ctypes.Structure):
    _fields_ = (("length", ctypes.c_size_t), ("level", ctypes.c_int), ("type", ctypes.c_int))


def _address(buffer: bytearray | memoryview) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class Layout(list[Any]):
    """Writable buffers (`memoryview` or `bytearray`) with their description. Its items never change, only their contents."""

    def __init__(self, buffers: Sequence[memoryview | bytearray]) -> None:
        super().__init__(buffers)
        self.vector = (_Iovec * len(self))()
        for entry, buffer in zip(self.vector, self, strict=True):
            entry.base, entry.length = _address(buffer), len(buffer)
        self.address = ctypes.addressof(self.vector)
        self.whole = [len(buffer) for buffer in self]

    def filled(self, size: int, total: int) -> tuple[int, int]:
        """How many buffers `total` bytes in datagrams of `size` fill, and how much of the last of them."""
        if len(self.whole) == 1:
            return 1, total
        before = (total - 1) // size
        return 2 * before + 2, total - size * before - HEADER_BYTES


class Outgoing:
    """Sends the beginning of a layout as datagrams of one size, cut by the kernel."""

    def __init__(self) -> None:
        self._header = _Msghdr()
        self._control = ctypes.create_string_buffer(socket.CMSG_SPACE(_SIZE.size))
        cmsg = _Cmsghdr.from_buffer(self._control)
        cmsg.length, cmsg.level, cmsg.type = socket.CMSG_LEN(_SIZE.size), socket.IPPROTO_UDP, UDP_SEGMENT
        self._header.control = ctypes.addressof(self._control)
        self._pointer = ctypes.addressof(self._header)
        self._names: dict[bytes, ctypes.Array[ctypes.c_char]] = {}
        self._size_at = socket.CMSG_LEN(0)
        self._control_bytes = len(self._control)
        # What the header says now.
        self._size = 0
        self._sockaddr = b""

    def send(self, fd: int, layout: Layout, size: int, total: int, sockaddr: bytes) -> None:
        """Send `total` bytes in datagrams of `size` to a native address. Raises `OSError`."""
        header = self._header
        if sockaddr is not self._sockaddr:
            self._aim(sockaddr)
        if total <= size:
            header.control_length = 0
        else:
            header.control_length = self._control_bytes
            if size != self._size:
                self._size = size
                _SIZE.pack_into(self._control, self._size_at, size)
        filled, left = layout.filled(size, total)
        header.vector, header.vector_length = layout.address, filled
        last = layout.vector[filled - 1]
        last.length = left
        sent = _libc.sendmsg(fd, self._pointer, 0)
        last.length = layout.whole[filled - 1]
        if sent < 0:
            raise _failure()

    def _aim(self, sockaddr: bytes) -> None:
        name = self._names.get(sockaddr)
        if name is None:
            if len(self._names) >= MOST_NAMES:
                self._names.clear()
            name = self._names[sockaddr] = ctypes.create_string_buffer(sockaddr, len(sockaddr))
        self._header.name, self._header.name_length = ctypes.addressof(name), len(sockaddr)
        self._sockaddr, self._name = sockaddr, name


class Incoming:
    """Receives a run into a layout, with its sender's native address and the size of its datagrams."""

    def __init__(self) -> None:
        self.size = 0
        """Of each datagram of the run received last, but for the last one of them."""
        self._header = _Msghdr()
        self._name = bytearray(_ADDRESS_BYTES)
        self._control = bytearray(socket.CMSG_SPACE(ctypes.sizeof(ctypes.c_int)))
        self._control_bytes = len(self._control)
        self._size_at = socket.CMSG_LEN(0)
        self._header.name, self._header.control = _address(self._name), _address(self._control)
        self._pointer = ctypes.addressof(self._header)

    def into(self, layout: Layout) -> None:
        """From now on receive into this layout."""
        self._header.vector, self._header.vector_length = layout.address, len(layout)

    def receive(self, fd: int) -> tuple[int, bytes]:
        """Total bytes of the next run, and its sender; -1 when none waits: an exception would cost more than the call. Raises `OSError`."""
        header = self._header
        header.name_length, header.control_length = _ADDRESS_BYTES, self._control_bytes
        total = _libc.recvmsg(fd, self._pointer, 0)
        if total < 0:
            if ctypes.get_errno() in _WOULD_BLOCK:
                return -1, b""
            raise _failure()
        self.size = _INT.unpack_from(self._control, self._size_at)[0] if header.control_length else total
        return total, bytes(self._name[: header.name_length])


def readv(fd: int, layout: Layout) -> int:
    """As `os.readv`, but 0 when there is nothing to read yet. Raises `OSError`."""
    size: int = _libc.readv(fd, layout.address, len(layout.whole))
    if size < 0:
        if ctypes.get_errno() in _WOULD_BLOCK:
            return 0
        raise _failure()
    return size


def native_address(family: socket.AddressFamily, address: tuple[str, int] | tuple[str, int, int, int]) -> bytes:
    """A socket address as the kernel has it (ip(7), ipv6(7)). Raises `OSError` when its host is not numeric."""
    head = family.to_bytes(2, sys.byteorder) + address[1].to_bytes(2, "big")
    packed = socket.inet_pton(family, address[0].partition("%")[0])
    if family == socket.AF_INET:
        return head + packed + bytes(8)
    flow, scope = (address[2], address[3]) if len(address) == 4 else (0, 0)
    return head + flow.to_bytes(4, "big") + packed + scope.to_bytes(4, sys.byteorder)


def python_address(native: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """The same as Python has it."""
    port = int.from_bytes(native[2:4], "big")
    if len(native) < _ADDRESS_BYTES:
        return socket.inet_ntop(socket.AF_INET, native[4:8]), port
    scope = int.from_bytes(native[24:28], sys.byteorder)
    return socket.inet_ntop(socket.AF_INET6, native[8:24]), port, int.from_bytes(native[4:8], "big"), scope


def segment_ancillary(size: int) -> list[tuple[int, int, bytes]]:
    """Tells Python's `sendmsg` to have a run cut into datagrams of `size` bytes."""
    return [(socket.IPPROTO_UDP, UDP_SEGMENT, _SIZE.pack(size))]
