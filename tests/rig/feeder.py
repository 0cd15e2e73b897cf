"""A publisher fed faster than life, in a process of its own so that its memory can be looked at.

    python -m tests.rig.feeder PORT STATE_DIR SPEEDUP

What a node with one microphone says in a second, two scores, a level and now and then an event and a health report, is
said SPEEDUP times in a second, and the waits between attempts to connect are shorter in the same measure. JSON lines on
stdout, 20 in a second, tell the figures of `PublisherStats` and the resident memory. Ends on SIGTERM.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path

from edgeasd.publish.message import Message
from edgeasd.publish.mqtt import MqttPublisher
from edgeasd.publish.outbox import Outbox
from edgeasd.publish.target import MqttOptions, MqttTarget
from edgeasd.records import Level
from tests.system.mqtt_rig import WIRE, event, score, utc_ns

_SCORES_PER_S = 2
_EVENT_EVERY_S = 60
_TELL_EVERY_S = 0.05


def main() -> None:
    """Publish until told to stop."""
    port, state_dir, speedup = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    options = MqttOptions(retry_min_s=1.0 / speedup, retry_max_s=60.0 / speedup)
    with Outbox(state_dir) as outbox:
        publisher = MqttPublisher(MqttTarget("127.0.0.1", port), wire=WIRE, outbox=outbox, options=options)
        began_s = told_s = time.monotonic()
        for second, messages in enumerate(_messages()):
            for message in messages:
                publisher.publish(message)
            if time.monotonic() - told_s >= _TELL_EVERY_S:
                told_s = time.monotonic()
                _tell(publisher, second)
            if stop.wait(max(0.0, began_s + second / speedup - time.monotonic())):
                break
        publisher.close(4.0)


def _messages() -> Iterator[list[Message]]:
    """Yield what is said in each second of a node's life."""
    for second in count():
        said = [score(_SCORES_PER_S * second + number) for number in range(_SCORES_PER_S)]
        said.append(WIRE.level("mic0", Level(-30.0, -10.0, 0.0, 0.0), ts_ns=utc_ns(0)))
        if second % _EVENT_EVERY_S == 0:
            said.append(event(f"{second}"))
        yield said


def _tell(publisher: MqttPublisher, second: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    told = {"second": second, "rss_bytes": pages * resource.getpagesize(), **asdict(publisher.stats())}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
