"""Answering scrapes and probes over HTTP: /metrics, /healthz and /readyz."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Self

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from edgeasd.errors import UnavailableError
from edgeasd.health.metrics import Metrics

_CLIENT_TIMEOUT_S = 2.0


class MetricsServer:
    """Serves one client at a time from a thread named `metrics`; UnavailableError when the port is taken."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        port: int,
        address: str = "127.0.0.1",
        healthy: Callable[[], bool] = lambda: True,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        try:
            self._server = _Server((address, port), _handler(metrics, healthy, ready))
        except OSError as exc:
            raise UnavailableError(f"metrics: cannot listen on {address}:{port}: {exc.strerror}") from exc
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics")
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Server(socketserver.TCPServer):
    """Without the name look-up that http.server makes when it binds."""

    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hung up."""


def _handler(metrics: Metrics, healthy: Callable[[], bool], ready: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
    checks = {"/healthz": healthy, "/readyz": ready}

    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
            elif path in checks:
                good = checks[path]()
                self._answer(200 if good else 503, b"ok\n" if good else b"not ok\n", "text/plain")
            else:
                self._answer(404, b"/metrics, /healthz and /readyz are served here\n", "text/plain")

        def _answer(self, code: int, body: bytes, content_type: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
            """Say nothing: a scrape every few seconds is no news."""

    return Handler
