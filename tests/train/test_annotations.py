"""Tables of marked events: of one recording, or of many in one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeasd.errors import InputError
from edgeasd_train.corpus.annotations import Annotation, Marks, annotations_for, read_annotations, read_marks


def table(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_annotations_are_sorted_and_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    text = "\ufeffonset,offset,label\r\n7,8.5,\r\n1.25,2,\u00e9\r\n"
    assert read_annotations(table(tmp_path / "a.csv", text)) == [
        Annotation(1.25, 2.0, "\u00e9"),
        Annotation(7.0, 8.5, ""),
    ]


def test_rows_of_other_files_are_passed_over(tmp_path: Path) -> None:
    path = table(tmp_path / "all.csv", "file,onset,offset\na.wav,1,2\nb.wav,3,4\n,5,6\nb.wav,x,\n")
    assert read_annotations(path, files=("a.wav",)) == [Annotation(1, 2), Annotation(5, 6)]
    recording = tmp_path / "sub" / "a.wav"
    assert len(annotations_for(recording, path, label="sub/a.wav")) == 2
    with pytest.raises(InputError, match=r"a\.csv: annotations cannot be read"):
        annotations_for(recording, None, label="sub/a.wav")
    nothing = table(tmp_path / "none.csv", "file,onset,offset\nb.wav,3,4\n")
    with pytest.raises(InputError, match=r"holds no event of a\.wav"):
        annotations_for(recording, nothing, label="a.wav")


def test_marks_are_found_by_name_or_by_the_end_of_the_path(tmp_path: Path) -> None:
    rows = ["file,onset,offset,label", "one.wav,5,6,late", "./day/one.wav,1,2,early", f"{tmp_path}/two.wav,0,1,"]
    rows += ["night\\one.wav,3,4,"]
    marks = read_marks(table(tmp_path / "m.csv", "\n".join(rows)))
    assert len(marks) == 4
    assert marks.of(Path("day/one.wav")) == [Annotation(1, 2, "early"), Annotation(5, 6, "late")]
    assert marks.of(Path("data/night/one.wav")) == [Annotation(3, 4), Annotation(5, 6, "late")]
    assert marks.of(tmp_path / "two.wav") == [Annotation(0, 1)]
    assert marks.of(Path("two.wav")) == marks.of(Path("someone.wav")) == []
    assert {file for file, _ in marks} == {"one.wav", "day/one.wav", f"{tmp_path}/two.wav", "night/one.wav"}
    assert list(Marks({})) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("file,onset,offset\na.wav,1,2\na.wav,3\n", "line 3 has no onset and offset"),
        ("file,onset\na.wav,1\n", "line 2 has no onset and offset"),
        ("file,onset,offset\na.wav,2,1\n", "line 2: the onset 2 is not before the offset 1"),
        ("file,onset,offset\na.wav,nan,1\n", "line 2: the onset"),
        ("file,onset,offset\n\n\na.wav,0,inf\n", "line 4: the onset"),
        ("onset,offset\n1,2\n", "line 2 names no file"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_faulty_table_is_refused_by_line(tmp_path: Path, text: str | bytes, fault: str) -> None:
    with pytest.raises(InputError, match=fault) as caught:
        read_marks(table(tmp_path / "m.csv", text))
    assert caught.value.exit_code == 66


def test_the_table_of_a_real_scene_is_read(recordings: Path) -> None:
    events = annotations_for(recordings / "streams" / "compressor.flac", None, label="compressor.flac")
    assert len(events) > 5
    assert all(event.label and event.offset_s > event.onset_s for event in events)
