"""Sound that moves, stalls, lies and changes its shape: what a microphone source makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeasd.capture.microphone import MicrophoneSource
from edgeasd.clock import FrameClock
from edgeasd.records import AudioBlock, Gap, LossReason
from tests.fake_card import FakeCard, FakeError, FakeServer, S, accounted_s, after_reads, gaps, listen


def test_a_stream_that_the_sound_server_moved_is_dropped_unheard_and_opened_again_by_name(tmp_path: Path) -> None:
    card = FakeCard()
    server = FakeServer(card, strays_at=20)
    items, source = listen(card, tmp_path, until=after_reads(card, 40), server=server)
    assert len(card.asked) == 2
    assert server.opened_at == [1, 21]
    ((first_frame, n_frames, reason),) = gaps(items)
    assert (first_frame, n_frames, reason) == (19 * 1600, 1600, LossReason.DEVICE_ABSENT)  # the block of the move
    assert source.trouble is None
    assert server.closed


def test_news_from_the_sound_server_end_a_long_wait(tmp_path: Path) -> None:
    card = FakeCard(open_error=FakeError("No such entity", -9999))
    server = FakeServer(card, news_after_s=50.0)

    def plug_in(_source: MicrophoneSource, item: AudioBlock | Gap) -> bool:
        if card.now_ns > (1000 + 50) * S:
            card.open_error = None
        return isinstance(item, AudioBlock)

    items, _ = listen(card, tmp_path, until=plug_in, server=server)
    assert 50.0 < accounted_s(items) < 52.0  # without: 0.5 + 1 + 2 + .. + 16 + 30 s


def test_a_stream_that_goes_on_behind_a_long_hole_is_opened_again_by_name(tmp_path: Path) -> None:
    card = FakeCard(lost_s_at={30: 1.6})
    began_ns = card.now_ns
    items, source = listen(card, tmp_path, until=after_reads(card, 100))
    assert len(card.asked) == 2
    assert [reason for _, _, reason in gaps(items)] == [LossReason.OVERRUN, LossReason.DEVICE_ABSENT]
    assert accounted_s(items) == pytest.approx((card.now_ns - began_ns) / S, abs=0.01)
    assert source.trouble is None


def test_time_in_which_the_machine_was_suspended_is_a_gap(tmp_path: Path) -> None:
    card = FakeCard(lost_s_at={30: 8 * 3600.0})
    began_ns = card.now_ns
    clock = FrameClock(16_000, utc_ns=lambda: card.now_ns, monotonic_ns=lambda: card.now_ns)
    stamped: list[tuple[int, int]] = []

    def stamp(_source: MicrophoneSource, item: AudioBlock | Gap) -> bool:
        if isinstance(item, AudioBlock):
            clock.observe(item.first_frame + len(item.samples), item.captured_ns)
            stamped.append((clock.utc_ns(item.first_frame), item.captured_ns - S // 10))
        else:
            clock.reset()
        return card.n_reads >= 100

    items, _ = listen(card, tmp_path, until=stamp)
    assert accounted_s(items) == pytest.approx((card.now_ns - began_ns) / S, abs=0.01)
    assert sum(n_frames for _, n_frames, _ in gaps(items)) == pytest.approx(8 * 3600 * 16_000, abs=800)
    settled = [(told, true) for told, true in stamped if true > card.now_ns - 3 * S]
    assert all(abs(told - true) < S // 20 for told, true in settled)


def test_twenty_seconds_that_come_as_one_burst_are_no_loss(tmp_path: Path) -> None:
    card = FakeCard(lost_s_at={50: 20.0}, burst_at=range(51, 251))
    items, _ = listen(card, tmp_path, until=after_reads(card, 400))
    assert list(gaps(items)) == []
    assert len(card.asked) == 1


def test_a_card_half_a_percent_slow_is_accounted_for_by_the_clock(tmp_path: Path) -> None:
    card = FakeCard(wrong_rates_hz=(16_000,), speed=0.995)
    began_ns = card.now_ns
    items, _ = listen(card, tmp_path, until=after_reads(card, 3000))
    assert accounted_s(items) == pytest.approx((card.now_ns - began_ns) / S, abs=0.3)


def test_a_card_that_comes_back_with_fewer_channels_is_opened_with_those(tmp_path: Path) -> None:
    card = FakeCard(max_channels=4, gone_at=(20,))

    def shrink(_source: MicrophoneSource, _item: AudioBlock | Gap) -> bool:
        card.max_channels = 4 if card.n_reads < 19 else 2
        return card.n_reads >= 40

    listen(card, tmp_path, until=shrink, channel="mix")
    assert [n_channels for n_channels, _ in card.asked] == [4, 2]


def test_a_card_that_comes_back_under_another_name_is_not_taken_for_the_one_that_went(tmp_path: Path) -> None:
    card = FakeCard(gone_at=(20,))
    troubles: list[str] = []

    def rename(source: MicrophoneSource, _item: AudioBlock | Gap) -> bool:
        card.name = "other (hw:0,0)" if card.n_reads >= 19 and len(troubles) < 3 else "card (hw:0,0)"
        if source.trouble is not None:
            troubles.append(str(source.trouble))
        return card.n_reads >= 40

    items, source = listen(card, tmp_path, until=rename)
    assert "card: no such microphone; there is other (hw:0,0)" in troubles
    assert {reason for _, _, reason in gaps(items)} == {LossReason.DEVICE_ABSENT}
    assert source.trouble is None


def test_a_microphone_that_is_away_for_long_costs_no_fresh_list_at_each_attempt(tmp_path: Path) -> None:
    card = FakeCard(open_error=FakeError("No such entity", -9999))
    items, _ = listen(card, tmp_path, until=lambda *_: card.now_ns > (1000 + 3600) * S)
    assert accounted_s(items) > 3500
    assert len(card.asked) > 100
    assert card.n_looks == 1  # PortAudio does not give back all that one costs


def test_a_lost_microphone_is_told_before_it_is_looked_for(tmp_path: Path) -> None:
    card = FakeCard(gone_at=(20,))
    items: list[Gap] = []

    def watch(_source: MicrophoneSource, item: AudioBlock | Gap) -> bool:
        if isinstance(item, Gap) and not items:
            items.append(item)
            assert len(card.asked) == 1
        return card.n_reads >= 40

    listen(card, tmp_path, until=watch)
    assert items
