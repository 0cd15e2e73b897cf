"""A machine without a network: a node in a network namespace of its own, to which a way out can be built later."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _UP = 0x8914, 0x1
_CHUNK = 65_536

Made = TypeVar("Made")


def can_isolate() -> bool:
    """Return whether this process may make network namespaces."""
    return os.geteuid() == 0 and Path("/proc/self/ns/net").exists()


def without_network(start: Callable[[], Made]) -> Made:
    """Call `start` where there is no network at all, not even loopback: processes that it starts stay there."""

    def isolated() -> Made:
        _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET))
        return start()

    return _in_own_thread(isolated)


class WayOut:
    """Loopback for an isolated process, and one port of it that leads to the same port out here."""

    def __init__(self, pid: int, port: int) -> None:
        self._port = port
        self._listener = _in_own_thread(lambda: _listen_beside(pid, port))
        self._relays: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(10.0)
        self._listener.close()
        for relay in self._relays:  # each ends with its connection
            relay.join(10.0)

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                inner.close()
                continue
            relay = threading.Thread(target=_relay, args=(inner, outer))
            self._relays.append(relay)
            relay.start()


def _listen_beside(pid: int, port: int) -> socket.socket:
    with open(f"/proc/{pid}/ns/net") as namespace:
        _check(ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET))
    listener = socket.socket()
    fcntl.ioctl(listener, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _UP))
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def _relay(inner: socket.socket, outer: socket.socket) -> None:
    """Pass on both ways until either end closes."""
    with inner, outer:
        way_back = threading.Thread(target=_pump, args=(outer, inner))
        way_back.start()
        _pump(inner, outer)
        way_back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _in_own_thread(work: Callable[[], Made]) -> Made:
    """Run what changes the namespace of its thread in one that ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
