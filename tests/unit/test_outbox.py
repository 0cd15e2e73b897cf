"""The outbox on real files: kept over restarts and kills, bounded, and never stopped by its own corruption."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeasd.errors import CannotWriteError, TemporaryError
from edgeasd.publish.identity import StateLock, next_boot
from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox, OutboxLimits

NOW_NS = 1_795_165_590_500_000_000
DAY_NS = 86_400 * 1_000_000_000


def parcel(number: int, kind: Kind = Kind.SCORE, *, n_bytes: int = 0) -> Parcel:
    body = json.dumps({"n": number, "late": False, "pad": "x" * n_bytes}).encode()
    return Parcel(f"edgeasd/w/mic0/{kind}", kind, body, id=f"u:1:{number}", number=number)


def scores(*numbers: int) -> list[Parcel]:
    return [parcel(number) for number in numbers]


def events(*numbers: int) -> list[Parcel]:
    return [parcel(number, Kind.EVENT) for number in numbers]


def ids(parcels: list[Parcel] | None) -> list[str]:
    assert parcels is not None
    return [each.id for each in parcels]


def held(outbox: Outbox) -> list[str]:
    return [
        message_id for lane in ("event", "score") for message_id in ids(outbox.rows(lane, after_row=0, limit=10_000))
    ]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "state") as opened:
        yield opened


def test_what_was_put_is_there_after_a_restart_in_order(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(scores(1, 2), durable=False)
        outbox.put(events(3), durable=True)
    with Outbox(tmp_path) as outbox:
        assert held(outbox) == ["u:1:3", "u:1:1", "u:1:2"]
        assert (outbox.depth("event"), outbox.depth("score"), outbox.depth()) == (1, 2, 3)
        found = outbox.rows("score", after_row=0, limit=1)
        assert found is not None
        assert (found[0].body, found[0].topic, found[0].kind) == (parcel(1).body, parcel(1).topic, Kind.SCORE)


def test_rows_and_ids_are_never_used_twice(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        first = outbox.identity
        outbox.put(events(1), durable=True)
        rows = outbox.rows("event", after_row=0, limit=9)
        assert rows is not None
        outbox.remove(rows)
        assert outbox.depth() == 0
    with Outbox(tmp_path) as outbox:
        outbox.put(events(2), durable=True)
        again = outbox.rows("event", after_row=0, limit=9)
        assert again is not None
        assert again[0].row > rows[0].row
        assert outbox.identity.node_uuid == first.node_uuid
        assert outbox.identity.boot_epoch == first.boot_epoch + 1
        assert outbox.identity.message_id(1) != first.message_id(1)


def test_second_process_on_the_same_directory_is_told_to_come_back_later(outbox: Outbox, tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match=r"in use by another edgeasd, process \d+") as caught:
        Outbox(tmp_path / "state")
    assert caught.value.exit_code == 75
    assert outbox.put(scores(1), durable=False)


def test_directory_is_free_again_after_close(tmp_path: Path) -> None:
    Outbox(tmp_path).close()
    with StateLock(tmp_path):
        pass


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="state directory"):
        Outbox(tmp_path / "file" / "state")


def test_garbled_identity_gives_a_new_uuid(tmp_path: Path) -> None:
    before = next_boot(tmp_path)
    (tmp_path / "identity.json").write_text('{"node_uuid": "')
    after = next_boot(tmp_path)
    assert after.node_uuid != before.node_uuid
    assert next_boot(tmp_path).node_uuid == after.node_uuid


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_corrupt_file_is_set_aside_and_a_new_one_begun(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "outbox.db").write_bytes(content)
    (tmp_path / "outbox.db-wal").write_bytes(b"\1" * 5000)
    (tmp_path / "outbox.db.corrupt-1").write_bytes(b"older")
    with Outbox(tmp_path) as outbox:
        assert outbox.put(events(1), durable=True)
        assert held(outbox) == ["u:1:1"]
        assert outbox.durable
    (aside,) = tmp_path.glob("outbox.db.corrupt-*")
    assert aside.read_bytes() == content


def test_corruption_met_while_running_costs_the_backlog_not_the_process(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put([parcel(n, n_bytes=500) for n in range(2000)], durable=False)
    content = bytearray((tmp_path / "outbox.db").read_bytes())
    content[8192:-8192] = b"\xa5" * (len(content) - 16384)
    with Outbox(tmp_path) as outbox:
        (tmp_path / "outbox.db").write_bytes(content)
        outbox._database._db.execute("PRAGMA shrink_memory")
        outbox.put(scores(1), durable=False)
        outbox.rows("score", after_row=0, limit=5000)
        assert outbox.put([*events(2), *scores(3)], durable=True)
        assert outbox.depth("score") < 2000
        assert held(outbox)[0] == "u:1:2"
        assert held(outbox)[-1] == "u:1:3"
        assert outbox.last_row("score") > 2000
    assert len(list(tmp_path.glob("outbox.db.corrupt-*"))) == 1


def test_file_of_a_newer_edgeasd_is_set_aside(tmp_path: Path) -> None:
    Outbox(tmp_path).close()
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with Outbox(tmp_path) as outbox:
        assert outbox.put(scores(1), durable=False)
    assert len(list(tmp_path.glob("outbox.db.corrupt-*"))) == 1


def test_when_rows_run_out_the_oldest_scores_go_first_and_events_last(tmp_path: Path) -> None:
    with Outbox(tmp_path, limits=OutboxLimits(max_rows=6)) as outbox:
        outbox.put(scores(1, 2, 3), durable=False)
        outbox.put(events(4, 5), durable=True)
        outbox.put(scores(6), durable=False)
        outbox.put(events(7), durable=True)
        assert held(outbox) == ["u:1:4", "u:1:5", "u:1:7", "u:1:2", "u:1:3", "u:1:6"]
        outbox.put(events(8, 9, 10, 11), durable=True)
        assert held(outbox) == [f"u:1:{n}" for n in (5, 7, 8, 9, 10, 11)]
        assert outbox.dropped == 5
        gap = outbox.gap()
        assert gap is not None
        assert (gap.from_id, gap.to_id, gap.count) == ("u:1:1", "u:1:6", 5)


def test_scores_never_push_events_out_however_many_they_are(tmp_path: Path) -> None:
    with Outbox(tmp_path, limits=OutboxLimits(max_rows=5)) as outbox:
        outbox.put(events(1, 2, 3), durable=True)
        outbox.put(scores(*range(4, 14)), durable=False)
        assert held(outbox) == ["u:1:1", "u:1:2", "u:1:3", "u:1:12", "u:1:13"]
        outbox.put(events(14, 15), durable=True)
        assert outbox.put(scores(16), durable=False)
        assert held(outbox) == [f"u:1:{n}" for n in (1, 2, 3, 14, 15)]
        gap = outbox.gap()
        assert gap is not None
        assert (gap.from_id, gap.to_id, gap.count) == ("u:1:4", "u:1:16", 11)
        assert outbox.dropped == 11


def test_scores_never_push_events_out_of_a_full_file(tmp_path: Path) -> None:
    with Outbox(tmp_path, limits=OutboxLimits(max_bytes=1 << 19)) as outbox:
        n_events = 0
        while not outbox.dropped:
            outbox.put([parcel(n_events, Kind.EVENT, n_bytes=500)], durable=False)
            n_events += 1
        n_dropped, n_held = outbox.dropped, outbox.depth()
        for number in range(n_events, n_events + 50):
            outbox.put([parcel(number, n_bytes=2000)], durable=False)
        assert outbox.depth("event") == n_held
        assert outbox.dropped > n_dropped or outbox.depth("score") == 0
        assert outbox.put([parcel(n_events + 50, Kind.EVENT, n_bytes=2000)], durable=True)


def test_gap_record_grows_until_it_is_settled_and_outlives_restarts(tmp_path: Path) -> None:
    limits = OutboxLimits(max_rows=2)
    with Outbox(tmp_path, limits=limits) as outbox:
        assert outbox.gap() is None
        outbox.put(scores(1, 2), durable=False)
        outbox.put(scores(3), durable=False)
    with Outbox(tmp_path, limits=limits) as outbox:
        outbox.put(scores(4), durable=False)
        gap = outbox.gap()
        assert gap is not None
        assert (gap.from_id, gap.to_id, gap.count) == ("u:1:1", "u:1:2", 2)
        outbox.settle_gap(parcel(5, Kind.GAP))
        assert ids(outbox.rows("event", after_row=0, limit=9)) == ["u:1:5"]
        made_room = outbox.gap()
        assert made_room is not None
        assert (made_room.from_id, made_room.count) == ("u:1:3", 1)


@pytest.mark.parametrize("max_bytes", [1 << 20, 4 << 20])
def test_files_stay_within_the_byte_limit_while_the_newest_are_kept(tmp_path: Path, max_bytes: int) -> None:
    n_messages, peak_bytes = 9_000, 0
    with Outbox(tmp_path, limits=OutboxLimits(max_bytes=max_bytes)) as outbox:
        outbox.put(events(*range(20)), durable=True)
        for first in range(20, n_messages, 20):
            assert outbox.put([parcel(n, n_bytes=500) for n in range(first, first + 20)], durable=False)
            peak_bytes = max(peak_bytes, sum(file.stat().st_size for file in tmp_path.iterdir()))
        kept = held(outbox)
        assert kept[:20] == [f"u:1:{n}" for n in range(20)]
        assert kept[-1] == f"u:1:{n_messages - 1}"
        assert outbox.dropped == n_messages - len(kept) == n_messages - outbox.depth() > 0
        assert outbox._database._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert peak_bytes <= 1.15 * max_bytes
    assert peak_bytes >= 0.5 * max_bytes


def test_old_messages_expire_but_not_those_stamped_before_the_clock_was_set(tmp_path: Path) -> None:
    now_ns = 0

    def open_at(ns: int) -> Outbox:
        nonlocal now_ns
        now_ns = ns
        return Outbox(tmp_path, limits=OutboxLimits(max_age_s=7 * 86400.0), utc_ns=lambda: now_ns)

    with open_at(NOW_NS - 8 * DAY_NS) as outbox:
        outbox.put(scores(1), durable=False)
        outbox.put(events(2), durable=True)
    with open_at(NOW_NS - 6 * DAY_NS) as outbox:
        outbox.put(events(3), durable=True)
    with open_at(DAY_NS) as outbox:  # 1970: no clock yet
        outbox.put(scores(4), durable=False)
    with open_at(NOW_NS) as outbox:
        outbox.put(events(5), durable=True)
        assert held(outbox) == ["u:1:3", "u:1:5", "u:1:4"]
        assert outbox.dropped == 2


def test_quarantine_keeps_the_newest_with_their_reasons(tmp_path: Path) -> None:
    with Outbox(tmp_path, limits=OutboxLimits(max_quarantined=3)) as outbox:
        outbox.put(events(*range(5)), durable=True)
        for stored in outbox.rows("event", after_row=0, limit=9) or []:
            outbox.quarantine(stored, reason="refused")
        outbox.quarantine(parcel(5, n_bytes=20_000), reason="too long")
        assert outbox.depth() == 0
        assert outbox.quarantined == 6
        kept = outbox._database._db.execute("SELECT id, reason, length(body) FROM quarantine ORDER BY row").fetchall()
    assert [row[:2] for row in kept] == [("u:1:3", "refused"), ("u:1:4", "refused"), ("u:1:5", "too long")]
    assert kept[-1][2] == 8192


def test_emptied_outbox_gives_its_space_back(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put([parcel(n, n_bytes=500) for n in range(8000)], durable=False)
        grown_bytes = sum(file.stat().st_size for file in tmp_path.iterdir())
        while outbox.depth():
            outbox.remove(outbox.rows("score", after_row=0, limit=1000) or [])
        assert grown_bytes > 4 << 20
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1 << 20


WRITER = """
import sys
from pathlib import Path
from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox

outbox = Outbox(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    message_id = outbox.identity.message_id(number)
    outbox.put([Parcel("t", Kind.EVENT, b"{}", id=message_id)], durable=True)
    print(message_id, flush=True)
"""


def test_every_put_that_returned_survives_kill_9(tmp_path: Path) -> None:
    committed: list[str] = []
    for n_lines in (1, 40, 7, 90):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            committed += [writer.stdout.readline().strip() for _ in range(n_lines)]
            writer.send_signal(signal.SIGKILL)
            committed += [line.strip() for line in writer.stdout if line.endswith("\n")]
    assert all(committed)
    with Outbox(tmp_path) as outbox:
        kept = held(outbox)
        assert len(kept) == len(set(kept))
        assert set(committed) <= set(kept)
        assert len(kept) <= len(committed) + 4  # at most one a kill was committed and not yet told
        assert outbox._database._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
