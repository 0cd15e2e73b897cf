"""Telling systemd how we are: plain datagrams, as sd_notify(3) sends them."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

NS_PER_US = 1000
_ASK_EVERY_S, _ASK_FOR_S = 10.0, 30.0


class Notifier:
    """Sends states to the socket that systemd names in NOTIFY_SOCKET; without one, does nothing.

    A datagram that cannot be sent is logged and forgotten: a supervisor that is away must not stop what it supervises.
    """

    def __init__(self, socket_path: str | None) -> None:
        # A leading '@' stands for the NUL of an abstract socket.
        self._address = "\0" + socket_path[1:] if socket_path and socket_path.startswith("@") else socket_path

    def ready(self, status: str = "") -> None:
        """Say that start-up, or a reload, is complete."""
        self._send("READY=1", *([f"STATUS={_line(status)}"] if status else []))

    def status(self, text: str) -> None:
        """Say in words how it goes; `systemctl status` shows it."""
        self._send(f"STATUS={_line(text)}")

    def watchdog(self) -> None:
        """Say that there was progress."""
        self._send("WATCHDOG=1")

    def stuck(self, status: str) -> None:
        """Say that there will be no progress any more: systemd does at once what it does when the watchdog runs out."""
        self._send("WATCHDOG=trigger", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // NS_PER_US}")

    def stopping(self) -> None:
        """Say that the shutdown has begun."""
        self._send("STOPPING=1")

    def extend_timeout(self, timeout_s: float) -> None:
        """Ask for so much more time to start, to reload or to stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(timeout_s * 1e6)}")

    @contextmanager
    def patience(self, status: str, *, limit_s: float = 1800.0) -> Iterator[None]:
        """Ask again and again, from a thread, for more time to start while something long is done, up to `limit_s`."""
        self.status(status)
        done = threading.Event()

        def ask() -> None:
            until_s = time.monotonic() + limit_s
            while not done.wait(_ASK_EVERY_S) and time.monotonic() < until_s:
                self.extend_timeout(_ASK_FOR_S)

        asking = threading.Thread(target=ask, name="patience", daemon=True)
        asking.start()
        try:
            yield
        finally:
            done.set()
            asking.join()

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(0.0)  # a supervisor that does not read must not hold us up
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError as exc:
            log.debug("systemd was not told %s: %s", assignments[0], exc)


def watchdog_s(watchdog_usec: str | None) -> float | None:
    """Return after how long without progress systemd starts us again, from WATCHDOG_USEC; None: nobody watches."""
    if watchdog_usec is None or not watchdog_usec.isdecimal() or int(watchdog_usec) == 0:
        return None
    return int(watchdog_usec) / 1e6


def _line(text: str) -> str:
    """Return text that cannot smuggle in another assignment."""
    return " ".join(text.split())
