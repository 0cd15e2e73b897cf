"""`edgeasd watch`: a live view of any broker's edgeasd topics."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from edgeasd.commands.board import Board, NodeView, SourceView
from edgeasd.commands.common import ConfigOption, MqttOption
from edgeasd.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgeasd.settings import Settings

_FRAME_S = 0.25
_MAX_WAITING = 2000
_BLOCKS = "".join(chr(0x2581 + step) for step in range(8))

Mail = tuple[str, bytes]


def watch(
    mqtt: MqttOption = None,
    *,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Show this node only.")] = None,
    duration_s: Annotated[float | None, typer.Option("--duration", metavar="SECONDS", help="Stop after this.")] = None,
    config: ConfigOption = None,
) -> None:
    """Watch what the nodes of a broker say, live."""
    from edgeasd.settings import load_settings

    settings = load_settings(config, {"mqtt": {"url": mqtt}})
    if settings.mqtt.address is None:
        raise UsageError("no broker: give --mqtt URL, or mqtt.url in the settings")
    board = Board(settings.mqtt.base_topic, node=node)
    mailbox = Mailbox()
    with subscribed(settings, mailbox):
        mail = mailbox.mail(None if duration_s is None else time.monotonic() + duration_s)
        try:
            if sys.stdout.isatty():
                _draw(board, mail, settings)
            else:
                _print_lines(board, mail)
        except KeyboardInterrupt:
            pass  # the way to leave


class Mailbox:
    """Hands messages from the network thread to the terminal; holds 2000, drops the oldest beyond and counts them."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Mail] = queue.Queue(_MAX_WAITING)
        self.n_dropped = 0
        self.refusal: str | None = None
        """Why the broker does not let us in."""

    def put(self, topic: str, payload: bytes) -> None:
        """Add a message; never waits."""
        while True:
            try:
                return self._queue.put_nowait((topic, payload))
            except queue.Full:
                self.n_dropped += 1
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    continue

    def mail(self, until: float | None) -> Iterator[Mail | None]:
        """Yield messages, and None when a frame's time has passed without one; ends at monotonic second `until`."""
        while until is None or time.monotonic() < until:
            if self.refusal is not None:
                raise UnavailableError(self.refusal)
            try:
                yield self._queue.get(timeout=_FRAME_S)
            except queue.Empty:
                yield None


class subscribed:  # noqa: N801  # reads as a verb: with subscribed(..)
    """Keeps a subscription to all edgeasd topics while entered; connects again by itself."""

    def __init__(self, settings: Settings, mailbox: Mailbox) -> None:
        from edgeasd.commands.client import make_client

        address = settings.mqtt.address
        assert address is not None
        self._client = make_client(settings, role="watch")
        self._client.on_connect = self._on_connect
        self._client.on_message = lambda _client, _data, message: mailbox.put(message.topic, bytes(message.payload))
        self._mailbox = mailbox
        self._filter = f"{settings.mqtt.base_topic}/#"
        self._url = settings.mqtt.url
        self._client.reconnect_delay_set(1, 10)
        self._client.connect_async(address[0], address[1], keepalive=30)

    def __enter__(self) -> None:
        self._client.loop_start()

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _client: object, _data: object, _flags: object, reason: object, _properties: object) -> None:
        if getattr(reason, "is_failure", False):
            self._mailbox.refusal = f"the broker at {self._url} refuses us: {reason}"
        else:
            self._client.subscribe(self._filter, qos=0)
            print(f"connected to {self._url}", file=sys.stderr)


def _print_lines(board: Board, mail: Iterator[Mail | None]) -> None:
    for item in mail:
        line = None if item is None else board.take(*item)
        if line is not None:
            print(line, flush=True)


def _draw(board: Board, mail: Iterator[Mail | None], settings: Settings) -> None:
    from rich.live import Live

    drawn = 0.0
    with Live(auto_refresh=False, screen=True) as live:
        for item in mail:
            if item is not None:
                board.take(*item)
            if time.monotonic() - drawn >= _FRAME_S:
                live.update(picture(board, settings.mqtt.url or ""), refresh=True)
                drawn = time.monotonic()


def picture(board: Board, url: str) -> RenderableType:
    """Return the board as rich draws it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"edgeasd at {url}", title_justify="left", expand=True, pad_edge=False)
    for column in ("node", "source", "score", "p", "", "level", "state"):
        table.add_column(column, no_wrap=True, ratio=1 if column == "" else None)
    for name, node in sorted(board.nodes.items()):
        for source, view in sorted(node.sources.items()) or [("-", SourceView())]:
            table.add_row(name, source, *_cells(view), _state(node, view))
    events = [Text(line, overflow="ellipsis", no_wrap=True) for line in reversed(board.events)]
    waiting = [] if board.nodes else [Text("waiting for messages ..", style="dim")]
    return Group(table, *waiting, Text(), *events)


def _cells(view: SourceView) -> tuple[RenderableType, ...]:
    from rich.text import Text

    spark = Text()
    top = 1.5 * (view.threshold or max(view.scores, default=1.0)) or 1.0
    for score in view.scores:
        block = _BLOCKS[max(0, min(7, int(8 * score / top)))]
        spark.append(block, style="red" if view.threshold is not None and score >= view.threshold else "green")
    score_text = f"{view.scores[-1]:.2f}" if view.scores else "-"
    p_text = "-" if view.p_value is None else f"{view.p_value:.0e}"
    level = "-" if view.rms_dbfs is None else f"{view.rms_dbfs:.0f} dBFS"
    return score_text, p_text, spark, level


def _state(node: NodeView, view: SourceView) -> RenderableType:
    from rich.text import Text

    if node.status in ("offline", "stopped"):
        return Text(node.status, style="yellow")
    if view.fault:
        return Text("FAULT", style="bold yellow")
    return Text("ALARM", style="bold red") if view.alarm else Text(view.status, style="green")
