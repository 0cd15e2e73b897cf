"""PortAudio bears no two threads at a time, whatever the streams they use: nobody may call it while another does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeasd.capture.alsa import Alsa
from edgeasd.capture.microphone import MicrophoneSource
from edgeasd.capture.portaudio import PortAudio
from edgeasd.capture.soundserver import SoundServer
from edgeasd.capture.source import SourceSpec
from tests.fake_card import FakeCard, FakeStream

_NAMES = ("mic_a", "mic_b", "mic_c")


class Meeting:
    """Counts who is inside, and how often two were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.n_calls = self.n_meetings = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        alone = self._lock.acquire(blocking=False)
        self.n_calls += 1
        self.n_meetings += not alone
        try:
            time.sleep(0.001)
            yield
        finally:
            if alone:
                self._lock.release()


class WatchedStream(FakeStream):
    def __init__(self, meeting: Meeting, card: FakeCard, **options: Any) -> None:
        self._meeting = meeting
        with meeting.call():
            super().__init__(card, **options)

    def abort(self, ignore_errors: bool) -> None:
        with self._meeting.call():
            super().abort(ignore_errors)

    @property
    def read_available(self) -> int:
        with self._meeting.call():
            return super().read_available

    def read(self, n_frames: int) -> tuple[bytes, bool]:
        with self._meeting.call():
            return super().read(n_frames)


class WatchedCard(FakeCard):
    meeting: Meeting

    def RawInputStream(self, **options: Any) -> FakeStream:  # noqa: N802  # as sounddevice spells it
        return WatchedStream(self.meeting, self, **options)


def test_sources_that_open_read_and_lose_their_cards_never_meet_inside_portaudio(tmp_path: Path) -> None:
    meeting = Meeting()
    cards = {name: WatchedCard(name=name, gone_at=(7, 20)) for name in _NAMES}
    for card in cards.values():
        card.meeting = meeting
    audio = PortAudio(load=lambda: cards[threading.current_thread().name], probe=list)

    def server_of(_device: str) -> SoundServer | None:
        with meeting.call():  # it reads the configuration of ALSA, which PortAudio holds
            return None

    def listen(name: str) -> None:
        source = MicrophoneSource(
            SourceSpec(name=name, device=name, rate_hz=16_000),
            audio=audio,
            alsa=Alsa(tmp_path, tmp_path, tmp_path),
            monotonic_ns=lambda: cards[name].now_ns,
            pause=cards[name].pause,
            server_of=server_of,
        )
        for _ in source.blocks():
            if cards[name].n_reads >= 40:
                source.close()

    threads = [threading.Thread(target=listen, args=(name,), name=name) for name in _NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert [card.n_reads for card in cards.values()] == [40] * len(_NAMES)
    assert meeting.n_calls > 3 * 120
    assert meeting.n_meetings == 0
