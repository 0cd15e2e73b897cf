"""The oracle of the soak must be able to fail: growth and loss are seen where they are, and not where they are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.rig.faults import Life
from tests.rig.samples import Sample
from tests.rig.soak import Outcome
from tests.rig.soakreport import verdict
from tests.rig.trend import trend
from tests.rig.witness import Books, Report, ledger_errors_s


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_slope_is_found_across_lives_of_different_heights(slope: float) -> None:
    rng = np.random.default_rng(0)
    times_s = np.arange(0.0, 1800.0, 5.0)
    curves = [
        (begin_s + times_s, level + slope * times_s / 3600.0 + rng.normal(scale=0.05, size=len(times_s)))
        for begin_s, level in ((0.0, 130.0), (2000.0, 150.0))
    ]
    found = trend(curves)
    assert found is not None
    assert found.low < slope < found.high
    assert found.high - found.low < 0.2


def test_few_points_make_no_slope() -> None:
    assert trend([(np.array([0.0, 60.0]), np.array([1.0, 2.0]))]) is None


def test_missing_number_is_a_hole_and_a_copy_is_none() -> None:
    books = Books()
    for seq in (1, 2, 2, 4):
        books.ids[f"uuid:3:{seq}"] += 1
        books.ends_ns[3, "edgeasd/n1/mic0/score"][seq] = 1_000_000_000 * seq
    (hole,) = books.holes()
    assert (hole.boot, hole.seq, hole.utc_ns) == (3, 3, 2_000_000_000)
    assert books.doubled == 1


def test_ledger_that_falls_behind_the_clock_is_seen() -> None:
    def report(uptime_s: float, scored_s: float) -> Report:
        account = {"scored_s": scored_s, "dropped_s": {"gap": 1.0}, "absent_s": {}, "unexplained_s": 0.0}
        return Report(uptime_s, uptime_s, {"mic0": account})

    assert ledger_errors_s([[report(10.0, 8.0), report(70.0, 68.0)]]) == [(0.0, 60.0)]
    assert ledger_errors_s([[report(10.0, 8.0), report(70.0, 65.0)]]) == [(-3.0, 60.0)]


def _outcome(*, mb_per_hour: float = 0.0) -> Outcome:
    """Return an hour of one life in which nothing went wrong."""
    times_s = [5.0 * number for number in range(720)]
    books = Books(fresh=[(at_s, 3.0) for at_s in times_s])
    for seq in range(1, 721):
        books.ids[f"uuid:1:{seq}"] += 1
        books.ends_ns[1, "edgeasd/n1/mic0/score"][seq] = 5_000_000_000 * seq
    return Outcome(
        began_s=0.0,
        ended_s=3600.0,
        inflicted=[],
        lives=[Life(1, 0.0, 3600.0, 0)],
        samples=[Sample(at_s, 1, 130.0 + mb_per_hour * at_s / 3600.0, 60.0, 26, 7, 0.0, 0, 0) for at_s in times_s],
        books=books,
        broker_kills_ns=[],
        events_committed=0,
        rows_left=0,
        quarantined=0,
        utc_offset_ns=0,
    )


def test_promise_is_kept_when_nothing_went_wrong_and_broken_by_growth_loss_or_silence() -> None:
    assert verdict(_outcome()).kept
    assert not verdict(_outcome(mb_per_hour=1.0)).kept
    assert not verdict(replace(_outcome(), events_committed=1)).kept
    assert not verdict(replace(_outcome(), rows_left=1)).kept
    assert not verdict(replace(_outcome(), books=Books())).kept
    holed = _outcome()
    del holed.books.ends_ns[1, "edgeasd/n1/mic0/score"][300]
    assert not verdict(holed).kept
    assert verdict(replace(holed, broker_kills_ns=[5_000_000_000 * 299])).kept
