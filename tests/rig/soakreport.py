"""What a soak came to: trends, ledger, conservation, and whether the promise was kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tests.rig.samples import Sample
from tests.rig.trend import Curve, Trend, trend
from tests.rig.witness import Hole, Report, ledger_errors_s

if TYPE_CHECKING:
    from tests.rig.soak import Outcome

MAX_RSS_MB_PER_H = 0.1
_MAX_LEDGER_ERROR_S = 1.0
"""A window: what is judged next is in no account yet."""
_MAX_LEDGER_SHARE = 0.001
_MAX_TAIL_S = 7.0
"""What a kill costs: scores of 5 s in memory, the window under way, and the delivery."""
_MIN_WARM_UP_S, _MAX_WARM_UP_S = 180.0, 1800.0
"""Of each life its first half is left out, within these bounds: caches fill, the write-ahead log finds its size."""
_BROKER_SAVES_S = 3.0
_QUIET_AFTER_S = 30.0
_FIGURES: dict[str, Callable[[Sample], float]] = {
    "resident memory, MB": lambda sample: sample.rss_mb,
    "of which private, MB": lambda sample: sample.private_mb,
    "descriptors": lambda sample: sample.descriptors,
    "threads": lambda sample: sample.threads,
    "outbox files, KiB": lambda sample: sample.outbox_bytes / 1024,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The figures of the promise."""

    text: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Conservation:
    """What became of the messages."""

    n_messages: int
    doubled: int
    lost: Sequence[Hole]
    """Holes that nothing explains."""
    broker_lost: int
    """Holes at a moment at which the broker was killed: acknowledged, and not saved by it."""
    events_missing: int
    tails_s: Sequence[float]
    """For each kill of the node and source: from the end of the last window that came to the kill."""


def print_report(outcome: Outcome) -> None:
    """Print everything as Markdown."""
    result = verdict(outcome)
    print(f"\n**{'kept' if result.kept else 'NOT kept'}**: {result.text}\n")
    if not outcome.books.fresh or not outcome.books.reports:
        return
    _print_trends(outcome)
    _print_lives(outcome)
    _print_ledger(outcome)
    _print_conservation(outcome)
    faults = Counter(fault.name for fault, _, _ in outcome.inflicted)
    print("\nFaults: " + "; ".join(f"{name} x{n}" for name, n in faults.items()) + ".")


def verdict(outcome: Outcome) -> Verdict:
    """Return the figures of the promise and whether they meet it."""
    memory = _trend(outcome, _FIGURES["resident memory, MB"])
    descriptors = _descriptor_growth(outcome)
    messages = conservation(outcome)
    errors = ledger_errors_s(_settled_reports(outcome))
    worst_s = max((abs(error_s) for error_s, _ in errors), default=0.0)
    share = sum(abs(error_s) for error_s, _ in errors) / max(1.0, sum(passed_s for _, passed_s in errors))
    unexplained_s = _unexplained_s(outcome)
    lost = len(messages.lost) + messages.events_missing + max(0, outcome.rows_left) + outcome.books.given_up
    tail_s = max(messages.tails_s, default=0.0)
    kept = (
        messages.n_messages > 0
        and _alive_at_the_end(outcome)
        and (memory is None or memory.low < MAX_RSS_MB_PER_H)
        and descriptors <= 1
        and lost == 0
        and unexplained_s == 0.0
        and (worst_s <= _MAX_LEDGER_ERROR_S or share <= _MAX_LEDGER_SHARE)
        and tail_s <= _MAX_TAIL_S
    )
    text = (
        f"{_memory_text(memory)}; descriptors {descriptors:+d}; {lost} of {messages.n_messages} messages lost, "
        f"{messages.doubled} doubled; unexplained {unexplained_s:g} s, ledger against clock {worst_s:.2f} s at most"
    )
    return Verdict(text, kept)


def _alive_at_the_end(outcome: Outcome) -> bool:
    """Return whether a fresh score came in the last tenth of the time."""
    last_s = max((at_s for at_s, _ in outcome.books.fresh), default=0.0)
    return last_s > outcome.ended_s - max(5.0, 0.1 * (outcome.ended_s - outcome.began_s))


def conservation(outcome: Outcome) -> Conservation:
    """Compare what was said with what came."""
    books = outcome.books
    lost = []
    broker_lost = 0
    for hole in books.holes():
        age_s = [(hole.utc_ns - kill_ns) / 1e9 for kill_ns in outcome.broker_kills_ns]
        if any(abs(one_s) <= _BROKER_SAVES_S for one_s in age_s):
            broker_lost += 1
        else:
            lost.append(hole)
    return Conservation(
        n_messages=len(books.ids),
        doubled=books.doubled,
        lost=lost,
        broker_lost=broker_lost,
        events_missing=outcome.events_committed - books.n_events_committed(),
        tails_s=_tails_s(outcome),
    )


def _tails_s(outcome: Outcome) -> list[float]:
    """Return what every life that ended by SIGKILL had judged or heard, and not delivered, s."""
    found = []
    for boot, life in enumerate(outcome.lives, start=1):  # the node counts its starts as well
        if life.exit_code == -9 and life.ended_s is not None:
            ended_ns = life.ended_s * 1e9 + outcome.utc_offset_ns
            found += [(ended_ns - end_ns) / 1e9 for end_ns in outcome.books.last_end_ns(boot).values()]
    return found


def _curves(outcome: Outcome, figure: Callable[[Sample], float]) -> list[Curve]:
    """Return the course of a figure over the settled part of each life."""
    curves = []
    for number, life in enumerate(outcome.lives, start=1):
        lasted_s = (life.ended_s or outcome.ended_s) - life.began_s
        warm_up_s = min(_MAX_WARM_UP_S, max(_MIN_WARM_UP_S, lasted_s / 2))
        held = [one for one in outcome.samples if one.life == number and one.at_s >= life.began_s + warm_up_s]
        if len(held) > 1:
            curves.append((np.array([one.at_s for one in held]), np.array([figure(one) for one in held], float)))
    return curves


def _trend(outcome: Outcome, figure: Callable[[Sample], float]) -> Trend | None:
    return trend(_curves(outcome, figure))


def _descriptor_growth(outcome: Outcome) -> int:
    """Return by how many descriptors the last tenth of a life exceeds its first tenth at most."""
    growth = []
    for _, values in _curves(outcome, _FIGURES["descriptors"]):
        n = max(1, len(values) // 10)
        growth.append(int(np.median(values[-n:]) - np.median(values[:n])))
    return max(growth, default=0)


def _settled_reports(outcome: Outcome) -> list[list[Report]]:
    """Return the reports of each life without those made while a fault was ending it: nobody accounts for the rest."""
    ending = [(began_s, ended_s) for fault, began_s, ended_s in outcome.inflicted if fault.restarts]
    return [
        [one for one in reports if not any(began_s <= one.at_s <= ended_s for began_s, ended_s in ending)]
        for reports in outcome.books.reports
    ]


def _unexplained_s(outcome: Outcome) -> float:
    lives = outcome.books.reports
    return float(sum(account["unexplained_s"] for reports in lives for account in reports[-1].accounts.values()))


def _memory_text(memory: Trend | None) -> str:
    if memory is None:
        return "too short for a slope of memory"
    told = "" if memory.low >= MAX_RSS_MB_PER_H or memory.high < MAX_RSS_MB_PER_H else ", not resolved in this time"
    return f"resident memory {memory} MB/h{told}"


def _print_trends(outcome: Outcome) -> None:
    print("| figure | first | last | highest | slope per hour (95 %) |\n|---|---|---|---|---|")
    for name, figure in _FIGURES.items():
        ends = f"{_ends(outcome, figure)} | {max(map(figure, outcome.samples)):.4g}"
        print(f"| {name} | {ends} | {_trend(outcome, figure)} |")
    rows = [sample.outbox_rows for sample in outcome.samples]
    print(f"| messages in the outbox | {rows[0]} | {outcome.rows_left} at the end | {max(rows)} | |")
    _print_delays(outcome)
    shares = [100 * share for share in _cpu_shares(outcome.samples)]
    print(f"| processor, % of a core | | | {max(shares):.3g} | median {np.median(shares):.3g} |")
    print("\nOf each life the first half is left out, 3 min at least, 30 at most; first and last: medians of the first")
    print("and the last tenth of what is left of the last life.")


def _ends(outcome: Outcome, figure: Callable[[Sample], float]) -> str:
    curves = _curves(outcome, figure)
    if not curves:
        return " | "
    n = max(1, len(curves[-1][1]) // 10)
    return f"{np.median(curves[-1][1][:n]):.4g} | {np.median(curves[-1][1][-n:]):.4g}"


def _print_delays(outcome: Outcome) -> None:
    for name, values in (("all", _delays(outcome, quiet=False)), ("quiet", _delays(outcome, quiet=True))):
        p50, p99 = np.percentile(values[:, 1], [50, 99])
        slope = trend([(values[:, 0], values[:, 1])])
        print(
            f"| window to subscriber, {name}, ms (of {len(values)}) | p50 {p50:.1f} | p99 {p99:.1f} "
            f"| {values[:, 1].max():.0f} | p50 {slope} |"
        )


def _delays(outcome: Outcome, *, quiet: bool) -> NDArray[np.float64]:
    values = np.array(outcome.books.fresh)
    if quiet:
        for _, began_s, ended_s in outcome.inflicted:
            values = values[(values[:, 0] < began_s - 2.0) | (values[:, 0] > ended_s + _QUIET_AFTER_S)]
    return values


def _cpu_shares(samples: Sequence[Sample]) -> list[float]:
    return [(b.cpu_s - a.cpu_s) / (b.at_s - a.at_s) for a, b in pairwise(samples) if a.life == b.life]


def _print_lives(outcome: Outcome) -> None:
    print("\n| life | s | ended by | memory first, last, MB | descriptors first, last |\n|---|---|---|---|---|")
    for number, life in enumerate(outcome.lives, start=1):
        held = [one for one in outcome.samples if one.life == number and one.at_s >= life.began_s + 30.0] or [
            one for one in outcome.samples if one.life == number
        ]
        memory = f"{held[0].rss_mb:.1f}, {held[-1].rss_mb:.1f}" if held else ""
        files = f"{held[0].descriptors}, {held[-1].descriptors}" if held else ""
        lasted_s = (life.ended_s or outcome.ended_s) - life.began_s
        print(f"| {number} | {lasted_s:.0f} | {life.exit_code} | {memory} | {files} |")


def _print_ledger(outcome: Outcome) -> None:
    wall_s = outcome.ended_s - outcome.began_s
    ends = [life.ended_s or outcome.ended_s for life in outcome.lives]
    up_s = sum(end_s - life.began_s for life, end_s in zip(outcome.lives, ends, strict=True))
    print("\n| source | clock, s | node down | scored | dropped | absent | unexplained | not in a report |")
    print("|---|---|---|---|---|---|---|---|")
    for source in sorted(outcome.books.reports[0][0].accounts):
        accounts = [reports[-1].accounts[source] for reports in outcome.books.reports]
        scored_s = sum(account["scored_s"] for account in accounts)
        dropped: Counter[str] = Counter()
        for account in accounts:
            dropped.update(account["dropped_s"])
        absent_s = sum(sum(account["absent_s"].values()) for account in accounts)
        unexplained_s = sum(account["unexplained_s"] for account in accounts)
        rest_s = up_s - scored_s - dropped.total() - absent_s - unexplained_s
        reasons = ", ".join(f"{reason} {seconds:.1f}" for reason, seconds in dropped.items()) or "0"
        cells = (
            f"{wall_s - up_s:.1f} | {scored_s:.1f} | {reasons} | {absent_s:.1f} | {unexplained_s:.1f} | {rest_s:.1f}"
        )
        print(f"| {source} | {wall_s:.1f} | {cells} |")
    errors = ledger_errors_s(_settled_reports(outcome))
    worst_s = max((abs(error_s) for error_s, _ in errors), default=0.0)
    share = sum(abs(error_s) for error_s, _ in errors) / max(1.0, sum(passed_s for _, passed_s in errors))
    print(f"\nBetween the first and the last report of a life ledger and clock differ by {worst_s:.2f} s at most")
    print(f"({100 * share:.3f} % in all). Not in a report: start-up, and what followed the last report of a life.")


def _print_conservation(outcome: Outcome) -> None:
    found = conservation(outcome)
    books = outcome.books
    print("\n| messages | |\n|---|---|")
    print(
        f"| numbered messages that came | {found.n_messages} ({len(books.fresh)} scores fresh, {books.n_late} late) |"
    )
    print(f"| copies of these | {found.doubled} ({100 * found.doubled / max(1, found.n_messages):.2f} %) |")
    print(f"| numbers missing below the highest | {len(found.lost)} |")
    print(f"| numbers missing where the broker was killed | {found.broker_lost} |")
    print(
        f"| events committed to the outbox, of which never came | {outcome.events_committed}, {found.events_missing} |"
    )
    aside = f"{books.given_up}, {outcome.quarantined}, {outcome.rows_left}"
    print(f"| given up by a full outbox, set aside, left over | {aside} |")
    tails = ", ".join(f"{tail_s:.1f}" for tail_s in found.tails_s) or "none"
    print(f"| sound before a kill -9 whose scores never came, s by source | {tails} |")
    print(f"| scores of faulty input | {books.n_invalid} |")
