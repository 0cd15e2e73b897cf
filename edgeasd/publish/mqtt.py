"""Publishing to an MQTT broker through the durable outbox."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

from edgeasd.errors import InputOutputError
from edgeasd.publish.backoff import Backoff, Complaints
from edgeasd.publish.commands import CommandBox
from edgeasd.publish.connection import UNSUPPORTED_PROTOCOL, Bell, Connection, Loss
from edgeasd.publish.intake import Intake
from edgeasd.publish.message import Message, Parcel, PublisherStats
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.session import Desk, Session
from edgeasd.publish.stock import Stock
from edgeasd.publish.target import MqttOptions, MqttTarget, MqttVersion, tls_context
from edgeasd.publish.wire import Wire

log = logging.getLogger(__name__)

_BROKER_BUSY = (0x88, 0x89)
"""Server unavailable, server busy: refusals that pass."""
_TAKEN_OVER = 0x8E
_SILENT_CLOSES = 3
"""A broker that does not know MQTT 5 may close the connection without a word; one that restarts does so less often."""
_STABLE_S = 60.0
_DIAL_S = 300.0
"""A name server that does not answer is asked again by the C library, for minutes, and nothing can interrupt that."""
_TALK_SHARE = 0.9
"""Of the time to close; the rest is for writing down what could not be said."""
_FAREWELL_S = 0.5
"""Of the time to close, what is kept for saying `stopped`."""


class MqttPublisher:
    """Delivers messages at least once, from one thread named `mqtt` that owns the connection.

    `publish` never waits for the network. An event is committed to the outbox, synchronously, before `publish`
    returns: committing it later in the owner thread would save the caller a fraction of a millisecond a few times an
    hour, and lose on kill -9 what the caller was told is safe. A score goes to a bounded queue in memory and from
    there to the broker, or to the outbox while the broker is away. Bounds, policies and counters: `Stock` for memory,
    `Outbox` for the disk. The owner of the outbox closes it, after this.
    """

    def __init__(
        self,
        target: MqttTarget,
        *,
        wire: Wire,
        outbox: Outbox,
        options: MqttOptions | None = None,
        commands: CommandBox | None = None,
    ) -> None:
        """`commands` is where commands from the broker are put; None takes none."""
        options = options or MqttOptions()
        self.commands = commands
        self._target = target
        self._options = replace(options, client_id=options.client_id or f"edgeasd-{wire.node}")
        self._wire = wire
        self._outbox = outbox
        self._tls = tls_context(target, options.tls_files)
        self._intake = Intake(outbox.identity, scores=options.scores)
        self._stock = Stock(outbox, max_waiting=options.max_waiting)
        self._complaints = Complaints(log)
        self._backoff = Backoff(min_s=options.retry_min_s, max_s=options.retry_max_s)
        pause = Backoff(min_s=options.retry_min_s, max_s=options.retry_max_s)
        self._desk = Desk(self._stock, outbox, self._complaints, pause, options.ack_timeout_s)
        self._version: MqttVersion = options.protocol
        self._silent_closes = 0
        self._session: Session | None = None
        self._connects = 0
        self._gaps_seen = -1
        self._failure: Exception | None = None
        self._turned_s = time.monotonic()
        self._dialling = False
        self._closing = threading.Event()
        self._close_by_s = 0.0
        self._farewell = True
        self._bell = Bell()
        self._take(self._intake.accept(wire.node_status("online")))
        # A name look-up cannot be interrupted: a process that ends must not wait for a resolver that never answers.
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def publish(self, message: Message) -> None:
        """Accept a message; raise InputOutputError once the publishing thread has died of a bug."""
        assert not self._closing.is_set(), "publish after close"
        if self._failure is not None:
            raise InputOutputError(f"the MQTT publisher has failed: {self._failure}") from self._failure
        self._take(self._intake.accept(message))
        if self._session is None:
            self._stock.spill()  # here too: the thread may be in a name look-up or a handshake for long
        self._bell.ring()

    def stats(self) -> PublisherStats:
        """Return how publishing fares."""
        session = self._session
        return PublisherStats(
            connected=session is not None,
            protocol=self._version,
            reconnects=max(self._connects - 1, 0),
            published=self._desk.published,
            in_flight=session.in_flight if session else 0,
            waiting=self._stock.waiting,
            spool_rows=self._outbox.depth(),
            dropped=self._outbox.dropped,
            discarded=self._stock.discarded,
            quarantined=self._outbox.quarantined,
            stalls=self._desk.stalls,
            commands=0 if self.commands is None else self.commands.taken,
            commands_refused=0 if self.commands is None else self.commands.refused,
            durable=self._outbox.durable,
        )

    def close(self, deadline_s: float, *, farewell: bool = True) -> bool:
        """Send what is at hand, say `stopped` and disconnect, within `deadline_s`; the outbox keeps the rest.

        Without `farewell` the connection is dropped instead, and the broker says `offline`: the last will.
        """
        if not self._closing.is_set():
            self._farewell = farewell
            self._take(self._intake.flush())
            self._close_by_s = time.monotonic() + _TALK_SHARE * deadline_s
            self._closing.set()
            self._bell.ring()
        self._thread.join(deadline_s)
        if self._thread.is_alive():  # in a name look-up or a handshake, which nothing can interrupt
            log.error("thread %s still runs after %.1f s", self._thread.name, deadline_s)
            self._stock.spill(force=True)
            return False
        self._bell.close()
        return self._failure is None

    def stalled_s(self) -> float:
        """Return for how long the thread has not turned; a look-up or handshake may take five minutes beside."""
        return max(0.0, time.monotonic() - self._turned_s - (_DIAL_S if self._dialling else 0.0))

    def _take(self, parcels: list[Parcel]) -> None:
        for parcel in parcels:
            limit = self._options.max_payload_bytes
            if len(parcel.body) > limit:
                reason = f"longer than {limit} bytes"
                self._complaints.warn(f"message quarantined: {reason} topic={parcel.topic}")
                self._outbox.quarantine(parcel, reason=reason)
            else:
                self._stock.offer(parcel, connected=self._session is not None)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                connection = self._dial()
                if connection is not None:
                    self._serve(connection)
                self._rest()
        except Exception as exc:
            log.exception("the MQTT publisher has failed")
            self._failure = exc
        finally:
            self._session = None
            self._stock.spill(force=True)

    def _dial(self) -> Connection | None:
        """Return a connection that the broker accepted, or None."""
        self._dialling = True
        try:
            connection = Connection(
                self._target,
                options=self._options,
                version=self._version,
                will=self._will(),
                tls=self._tls,
                commands=self.commands,
            )
        except (OSError, ValueError) as exc:  # ValueError: a host name that cannot be encoded
            self._complaints.warn(f"no connection to {self._target}: {exc}")
            return None
        finally:
            self._dialling, self._turned_s = False, time.monotonic()
        give_up_s = time.monotonic() + self._options.connect_timeout_s
        while not connection.accepted and connection.loss is None:
            self._turned_s = time.monotonic()
            left_s = give_up_s - time.monotonic()
            if left_s <= 0.0 or self._closing.is_set():
                hint = "; if the broker is an old one, set mqtt.protocol: 3.1.1" if self._version == "5" else ""
                connection.give_up(f"no answer to CONNECT{hint}")
            else:
                connection.step(self._bell, timeout_s=left_s)
        if connection.loss is None:
            return connection
        connection.give_up("refused")
        self._learn(connection.loss)
        return None

    def _learn(self, loss: Loss) -> None:
        """Draw conclusions from a connection that was made but not accepted."""
        if self._closing.is_set():
            return
        self._complaints.warn(f"no connection to {self._target}: {loss.reason}")
        silent = loss.by_peer and not loss.code
        self._silent_closes = self._silent_closes + 1 if silent else 0
        if self._version == "5" and (loss.code == UNSUPPORTED_PROTOCOL or self._silent_closes >= _SILENT_CLOSES):
            self._version = "3.1.1"
            self._complaints.warn("the broker does not speak MQTT 5, going on with 3.1.1: its refusals will be silent")
        elif silent and self._options.protocol == "5":
            self._version = "5"  # it was no better with 3.1.1
        elif loss.code and loss.code not in _BROKER_BUSY:
            self._backoff.slow_down()

    def _serve(self, connection: Connection) -> None:
        self._connects += 1
        self._silent_closes = 0
        log.info("connected to %s protocol=%s", self._target, self._version)
        connected_s = time.monotonic()
        self._stock.connected()
        self._gaps_seen = -1
        self._session = session = Session(connection, desk=self._desk)
        while connection.loss is None and not self._closing.is_set():
            self._turned_s = time.monotonic()
            self._outbox.tend()
            self._tell_of_gap()
            session.turn(self._bell)
            if self._stock.crowded:
                self._stock.spill(force=True)
        if connection.loss is None:
            self._finish(session)
            if self._farewell:
                connection.disconnect()
            else:
                connection.give_up("dropped, so that the last will is said")
        assert connection.loss is not None
        connection.give_up("over")
        self._session = None
        self._stock.disconnected(session.end(connection.loss))
        if not self._closing.is_set():
            self._complaints.warn(f"lost the connection to {self._target}: {connection.loss.reason}")
        if session.productive or time.monotonic() - connected_s > _STABLE_S:
            self._backoff.reset()
        if connection.loss.code == _TAKEN_OVER:
            self._complaints.warn(f"another client uses the id {self._options.client_id}")
            self._backoff.slow_down()

    def _finish(self, session: Session) -> None:
        self._say_until(session, self._close_by_s - _FAREWELL_S)
        if self._farewell:
            self._take(self._intake.accept(self._wire.node_status("stopped")))
            self._say_until(session, self._close_by_s)

    def _say_until(self, session: Session, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0.0:
            if not session.turn(self._bell, backlog=False, within_s=left_s):
                return

    def _tell_of_gap(self) -> None:
        """Turn the record of what a full outbox gave up into a message, once there is room for one."""
        recorded = self._outbox.recorded
        if self._gaps_seen == recorded or not self._outbox.roomy:
            return
        self._gaps_seen = recorded
        gap = self._outbox.gap()
        if gap is not None:
            (parcel,) = self._intake.accept(self._wire.gap(gap, ts_ns=time.time_ns()))
            if not self._outbox.settle_gap(parcel):
                self._gaps_seen = -1

    def _rest(self) -> None:
        """Wait before the next connection, moving scores to the outbox meanwhile."""
        until_s = time.monotonic() + self._backoff.next_s()
        while not self._closing.is_set() and (left_s := until_s - time.monotonic()) > 0.0:
            self._turned_s = time.monotonic()
            self._stock.spill()
            self._bell.sleep(min(left_s, 1.0))

    def _will(self) -> Parcel:
        (parcel,) = self._intake.accept(self._wire.node_status("offline"))
        return parcel
