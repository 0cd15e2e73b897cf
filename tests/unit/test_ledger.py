"""Every frame once: scored, lost for a reason, or unexplained."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeasd.health.ledger import Account, Ledger
from edgeasd.records import LossReason, Skipped


def skip(first_frame: int, n_frames: int, reason: LossReason, source: str = "mic0") -> Skipped:
    return Skipped(source, first_frame, n_frames, reason)


def test_overlapping_windows_count_each_frame_once() -> None:
    ledger = Ledger()
    for first_frame in range(0, 10_000, 500):
        ledger.scored("mic0", first_frame, first_frame + 1000)
    account = ledger.account("mic0", 1000)
    assert account.scored_s == 10.5
    assert account.total_s == 10.5
    assert account.unexplained_s == 0.0


def test_reasons_are_told_apart_and_absence_from_loss() -> None:
    ledger = Ledger()
    ledger.scored("mic0", 0, 1000)
    ledger.skipped(skip(1000, 250, LossReason.OVERRUN))
    ledger.skipped(skip(1250, 750, LossReason.GAP))
    ledger.skipped(skip(2000, 5000, LossReason.DEVICE_ABSENT))
    ledger.skipped(skip(7000, 500, LossReason.GAP))
    ledger.scored("mic0", 7500, 8500)
    account = ledger.account("mic0", 1000)
    assert account.scored_s == 2.0
    assert account.dropped_s == {"overrun": 0.25, "gap": 1.25}
    assert account.absent_s == {"device_absent": 5.0}
    assert account.unexplained_s == 0.0
    assert account.total_s == 8.5


def test_what_is_jumped_over_without_a_word_shows() -> None:
    ledger = Ledger()
    ledger.scored("mic0", 100, 1100)
    ledger.skipped(skip(1200, 50, LossReason.LATE))
    account = ledger.account("mic0", 1000)
    assert account.unexplained_frames == 200
    assert account.total_frames == 1250


def test_what_is_settled_stays_settled() -> None:
    ledger = Ledger()
    ledger.scored("mic0", 0, 1000)
    ledger.skipped(skip(500, 500, LossReason.FAULT))
    ledger.scored("mic0", 0, 800)
    assert ledger.account("mic0", 1000) == Account(1000, 1000, {}, 0)
    ledger.skipped(skip(500, 750, LossReason.FAULT))
    assert ledger.account("mic0", 1000).dropped_s == {"fault": 0.25}


def test_sources_have_accounts_of_their_own() -> None:
    ledger = Ledger()
    ledger.scored("mic0", 0, 1000)
    ledger.skipped(skip(0, 400, LossReason.DEVICE_ABSENT, "mic1"))
    assert ledger.sources == ("mic0", "mic1")
    assert ledger.account("mic0", 1000).total_s == 1.0
    assert ledger.account("mic1", 1000).absent_s == {"device_absent": 0.4}
    assert ledger.account("mic2", 1000).total_s == 0.0


def test_record_that_ends_before_it_begins_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="not a stretch"):
        Ledger().scored("mic0", 100, 99)


STRETCHES = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(0, 1000), st.sampled_from([None, *LossReason])), max_size=40
)


@given(STRETCHES)
def test_parts_add_up_to_what_has_passed_whatever_is_entered(
    stretches: list[tuple[int, int, LossReason | None]],
) -> None:
    ledger, settled = Ledger(), dict[int, str]()
    for first_frame, n_frames, reason in stretches:
        end_frame = first_frame + n_frames
        if reason is None:
            ledger.scored("mic0", first_frame, end_frame)
        else:
            ledger.skipped(skip(first_frame, n_frames, reason))
        frontier = len(settled)
        for frame in range(frontier, end_frame):  # the oracle: one frame at a time
            settled[frame] = "unexplained" if frame < first_frame else reason.value if reason else "scored"
    account = ledger.account("mic0", 1)
    assert account.total_frames == len(settled)
    assert account.scored_frames == list(settled.values()).count("scored")
    assert account.unexplained_frames == list(settled.values()).count("unexplained")
    for reason, n_frames in account.lost_frames.items():
        assert n_frames == list(settled.values()).count(reason.value)


def test_readers_see_sums_that_hold_while_another_thread_writes() -> None:
    ledger = Ledger()

    def write() -> None:
        for n in range(5000):
            ledger.scored("mic0", 20 * n, 20 * n + 10)
            ledger.skipped(skip(20 * n + 10, 10, LossReason.LATE))

    writer = threading.Thread(target=write, name="writer")
    writer.start()
    seen = []
    while writer.is_alive():
        account = ledger.account("mic0", 1)
        seen.append(account.scored_frames - account.lost_frames.get(LossReason.LATE, 0))
        assert account.unexplained_frames == 0
    writer.join()
    assert set(seen) <= {0, 10}
    assert ledger.account("mic0", 1).total_frames == 100_000


def test_a_restarted_source_adds_to_what_was_settled() -> None:
    ledger = Ledger()
    ledger.scored("replay", 0, 16_000)
    ledger.restart("replay")
    ledger.scored("replay", 0, 8_000)

    account = ledger.account("replay", 16_000)
    assert (account.scored_frames, account.unexplained_frames) == (24_000, 0)
