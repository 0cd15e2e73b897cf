"""What no rig without hardware brings about: overflows, lost frames, wrong rates, cards in use. Faults are injected."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeasd.capture.alsa import Alsa
from edgeasd.capture.microphone import Backoff, MicrophoneSource
from edgeasd.capture.portaudio import PortAudio
from edgeasd.capture.source import SourceSpec
from edgeasd.capture.stream import AppearedError, open_stream
from edgeasd.errors import UnavailableError
from edgeasd.records import AudioBlock, Gap, LossReason
from tests.fake_card import FakeCard, FakeError, FakeStream, S, after_reads, gaps, listen


def test_a_healthy_card_has_no_gaps(tmp_path: Path) -> None:
    card = FakeCard()
    items, source = listen(card, tmp_path, until=after_reads(card, 100))
    assert list(gaps(items)) == []
    assert source.trouble is None
    assert sum(len(item.samples) for item in items if isinstance(item, AudioBlock)) == 100 * 1600


def test_overflow_flag_marks_the_spot(tmp_path: Path) -> None:
    card = FakeCard(overflow_at=(1, 5))  # a flag on the first block says nothing: there was no sound before it
    items, _ = listen(card, tmp_path, until=after_reads(card, 10))
    assert list(gaps(items)) == [(4 * 1600, 1, LossReason.OVERRUN)]


@pytest.mark.parametrize("rates_hz", [(16_000,), (48_000,)])
def test_lost_sound_becomes_a_gap_of_its_length(tmp_path: Path, rates_hz: tuple[int, ...]) -> None:
    card = FakeCard(rates_hz=rates_hz, lost_s_at={30: 0.3})
    began_ns = card.now_ns
    items, _ = listen(card, tmp_path, until=after_reads(card, 100))
    ((first_frame, n_frames, reason),) = gaps(items)
    assert 30 * 1600 < first_frame < 75 * 1600
    assert n_frames == pytest.approx(4800, abs=32)
    assert reason is LossReason.OVERRUN
    n_accounted = sum(len(item.samples) if isinstance(item, AudioBlock) else item.n_frames for item in items)
    assert n_accounted == pytest.approx((card.now_ns - began_ns) * 16_000 / S, abs=32)


def test_lost_device_is_reopened_and_the_time_accounted_for(tmp_path: Path) -> None:
    card = FakeCard(gone_at=(20,))

    def pass_time(source: MicrophoneSource, item: AudioBlock | Gap) -> bool:
        if isinstance(item, AudioBlock) and card.n_reads == 19:
            card.now_ns += 7 * S  # as if the read that fails had hung this long
        return card.n_reads >= 40

    items, source = listen(card, tmp_path, until=pass_time)
    lost = [gap for gap in gaps(items) if gap[2] is LossReason.DEVICE_ABSENT]
    assert lost[0][0] == 19 * 1600
    assert sum(gap[1] for gap in lost) == pytest.approx(7 * 16_000, abs=1)
    assert source.trouble is None


def test_reopening_in_no_time_still_leaves_a_mark(tmp_path: Path) -> None:
    card = FakeCard(gone_at=(20,))
    items, _ = listen(card, tmp_path, until=after_reads(card, 40))
    assert list(gaps(items)) == [(19 * 1600, 1, LossReason.DEVICE_ABSENT)]


def test_card_that_opens_but_gives_nothing_is_not_tried_in_a_tight_loop(tmp_path: Path) -> None:
    card = FakeCard(gone_at=(1, 2, 3, 4))
    items, source = listen(card, tmp_path, until=after_reads(card, 10))
    waited_s = sum(n_frames for _, n_frames, _ in gaps(items)) / 16_000
    assert 4.5 < waited_s < 10  # 0.5, 1, 2 and 4 s, give or take a quarter
    assert source.trouble is None


def test_opens_at_a_rate_the_card_has_and_resamples(tmp_path: Path) -> None:
    card = FakeCard(rates_hz=(44_100,))
    items, _ = listen(card, tmp_path, until=after_reads(card, 50))
    assert [rate_hz for _, rate_hz in card.asked] == [16_000, 48_000, 44_100]
    heard = sum(len(item.samples) for item in items if isinstance(item, AudioBlock))
    assert 80_000 <= heard < 81_600  # blocks of 0.1 s, the first longer by what the resampler holds back


def test_native_rate_that_is_set_is_the_only_one_tried(tmp_path: Path) -> None:
    card = FakeCard(rates_hz=(44_100,))
    _, source = listen(card, tmp_path, until=lambda *_: True, native_rate_hz=48_000)
    assert [rate_hz for _, rate_hz in card.asked] == [48_000]
    assert "opens at none of 48000 Hz" in str(source.trouble)


@pytest.mark.parametrize(("channel", "n_opened", "value"), [(0, 1, 0.0), (1, 2, 1.0), ("mix", 2, 0.5)])
def test_channel_is_picked_or_mixed(tmp_path: Path, channel: int | str, n_opened: int, value: float) -> None:
    card = FakeCard()
    items, _ = listen(card, tmp_path, until=after_reads(card, 3), channel=channel)
    assert card.asked == [(n_opened, 16_000)]
    assert isinstance(items[0], AudioBlock)
    assert set(items[0].samples) == {value}


def test_plugin_that_offers_any_number_of_channels_mixes_itself(tmp_path: Path) -> None:
    card = FakeCard(max_channels=32)
    listen(card, tmp_path, until=after_reads(card, 3), channel="mix")
    assert card.asked == [(1, 16_000)]


def test_channel_that_is_not_there_is_named(tmp_path: Path) -> None:
    _, source = listen(FakeCard(), tmp_path, until=lambda *_: True, channel=2)
    assert str(source.trouble) == "card: has 2 channels, no channel 2 (counted from 0)"


def test_card_in_use_says_by_whom(tmp_path: Path) -> None:
    status = tmp_path / "asound/card0/pcm0c/sub0/status"
    status.parent.mkdir(parents=True)
    status.write_text("owner_pid   : 7\n")
    (tmp_path / "7").mkdir()
    (tmp_path / "7/comm").write_text("arecord\n")
    (tmp_path / "asound/cards").write_text(" 0 [Card           ]: USB-Audio - Card\n                      A card\n")
    card = FakeCard(open_error=FakeError("Device unavailable", -9985))
    items, source = listen(card, tmp_path, until=lambda *_: True)
    assert "in use by arecord (pid 7)" in str(source.trouble)
    assert all(isinstance(item, Gap) for item in items)


def test_card_that_delivers_another_rate_is_tried_at_its_others(tmp_path: Path) -> None:
    card = FakeCard(rates_hz=(16_000, 48_000), wrong_rates_hz=(16_000,), speed=3.0)
    troubles: list[str] = []

    def watch(source: MicrophoneSource, item: AudioBlock | Gap) -> bool:
        if source.trouble is not None:
            troubles.append(str(source.trouble))
        return card.asked[-1][1] == 48_000 and isinstance(item, AudioBlock)

    listen(card, tmp_path, until=watch)
    assert card.now_ns < (1000 + 70) * S
    assert "delivers 48000 frames a second where it promised 16000" in troubles[0]


def test_card_without_a_true_rate_counts_as_absent(tmp_path: Path) -> None:
    card = FakeCard(rates_hz=(16_000,), wrong_rates_hz=(16_000,), speed=1.5)
    _, source = listen(
        card, tmp_path, until=lambda source, _: "none of its rates" in str(source.trouble), native_rate_hz=16_000
    )
    assert source.trouble is not None


@pytest.mark.parametrize(
    ("wanted", "seen", "recalls"),
    [
        ("late", ["Card: x (hw:0,0)", "Late: x (hw:1,0)"], True),
        ("late", ["Card: x (hw:0,0)"], False),
        ("late", [], False),
        ("old", ["Old: x (hw:2,0)"], True),  # its number now belongs to another card
    ],
)
def test_open_streams_are_recalled_only_for_a_device_that_has_come(
    tmp_path: Path, wanted: str, seen: list[str], recalls: bool
) -> None:
    (tmp_path / "asound").mkdir()
    (tmp_path / "asound/cards").write_text(" 0 [Card           ]: USB-Audio - Card\n                      A card\n")
    card = FakeCard(name="Old: x (hw:0,0)" if wanted == "old" else "Card: x (hw:0,0)")
    audio = PortAudio(load=lambda: card, probe=lambda: seen)
    alsa = Alsa(tmp_path, tmp_path, tmp_path)
    with audio.session() as session:
        other = FakeStream(card, channels=1, samplerate=16_000)
        other.start()
        audio.opened()
        assert session.fresh
    spec = SourceSpec(name="mic", device=wanted, rate_hz=16_000)
    with pytest.raises(AppearedError if recalls else UnavailableError):
        open_stream(spec, audio=audio, alsa=alsa)
    assert audio.recalled == recalls
    audio.close(other)
    assert not audio.recalled


def test_backoff_doubles_from_half_a_second_to_thirty_with_jitter() -> None:
    middle = Backoff(uniform=lambda: 0.5)
    assert [middle.next_s() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    middle.reset()
    assert middle.next_s() == 0.5
    for uniform in (lambda: 0.0, lambda: 1.0):
        backoff = Backoff(uniform=uniform)
        assert all(0.5 <= backoff.next_s() <= 30 for _ in range(12))
    low, high = Backoff(uniform=lambda: 0.0), Backoff(uniform=lambda: 1.0)
    low.next_s()
    high.next_s()
    assert (low.next_s(), high.next_s()) == (0.75, 1.25)
