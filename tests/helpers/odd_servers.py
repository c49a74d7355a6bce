"""A server that logs clients in as any does, and then answers all commands with the same bytes, whatever they are."""

from __future__ import annotations

import socket
import threading
from typing import Final, Self

__all__ = ["OddServer"]

HELLO: Final = (
    b"%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.4\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:3\r\n"
    b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
)


class OddServer:
    """A context manager: it listens in the block, in threads.

    Attributes:
        url: of database 0.
        answer: to each command.
    """

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._threads = [threading.Thread(target=self._accept)]
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads[1:]:
            thread.join()
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=[connection]))
                self._threads[-1].start()
        except OSError:
            return

    def _serve(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(65536):
                commands = data.count(b"\r\n*") + data.startswith(b"*")
                logins = data.count(b"HELLO")
                connection.sendall(HELLO * logins + self.answer * max(0, commands - logins))
                if not self.answer:
                    connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
