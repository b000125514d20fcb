"""Serves one file over HTTP by sendfile, so that a transfer measures the network and not the server: ADDRESS PORT FILE."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path


def serve(address: str, port: int, path: Path) -> None:
    """Answer every request on `address`:`port` with the file, for ever."""
    with socket.create_server((address, port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer, args=(connection, path), daemon=True).start()


def _answer(connection: socket.socket, path: Path) -> None:
    with connection, path.open("rb") as file, suppress(ConnectionError):  # a client may go when it likes
        request = b""
        while b"\r\n\r\n" not in request:
            received = connection.recv(4096)
            if not received:
                return
            request += received
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {path.stat().st_size}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendfile(file)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
