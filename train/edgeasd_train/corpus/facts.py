"""What the name of a recording says about it, after the conventions of DCASE's task 2, 2020 to 2026.

fan/train/normal_id_00_00000012.wav                            2020; the evaluation's test clips: id_01_00000012
fan/source_test/section_00_source_test_normal_0012.wav         2021; evaluation: section_03_source_test_0012
fan/train/section_00_source_train_normal_0012_m-n_W.wav        2022 on; evaluation: section_03_test_0012, _0012
fan/supplemental/section_00_source_supplemental_machine_0012   2025 on; section_00_noise_supplemental_normal_0012
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from edgeasd.errors import InputError

Domain = Literal["source", "target", ""]
Split = Literal["train", "test", ""]
Label = Literal["normal", "anomaly", ""]
Attributes = tuple[tuple[str, str], ...]

DOMAIN_CODES: Mapping[Domain, int] = MappingProxyType({"source": 0, "target": 1, "": -1})

_ID = re.compile(r"(?:(normal|anomaly)_)?id_(\d{2})_(\d{8})", re.ASCII)
_SECTION = re.compile(r"section_(\d{2})_((?:[a-z]+_)*)\d{4,}(?:_(.+))?", re.ASCII)
_FOLDERS: Mapping[str, tuple[Split, Domain]] = {
    "train": ("train", ""),
    "test": ("test", ""),
    "source_test": ("test", "source"),
    "target_test": ("test", "target"),
    "supplemental": ("", ""),
}
"""Folders that clips lie in, and the split and domain each stands for."""
_NAMELESS = ("", ".", "..")
_WORDS = frozenset(
    {"source", "target", "train", "test", "normal", "anomaly", "supplemental", "machine", "clean", "noise"}
)
"""What may stand between the section and the index of a clip."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a recording from its name; all unknown unless the name is one of DCASE's."""

    machine: str
    """The folder above that of the split, such as fan."""
    section: int = -1
    """Number after section_ or id_; -1 is unknown."""
    domain: Domain = ""
    split: Split = ""
    """Empty where unknown, and for supplemental clips."""
    label: Label = ""
    """Empty where unknown: in test clips of an evaluation, and in supplemental ones."""
    attributes: Attributes = ()
    """What else the name says, as (key, value); a last word without a value has an empty one."""

    @property
    def known(self) -> bool:
        """Return whether the name is one of DCASE's."""
        return self.section >= 0


UNKNOWN = Facts("")


def facts_of(path: Path | str, attributes: Mapping[str, Attributes] | None = None) -> Facts:
    """Return what name and folders of the recording at `path` say; UNKNOWN when the name is none of DCASE's.

    `attributes`, from `read_attributes`, go before those in the name. A name without domain, split and label, such as
    section_03_0000, counts only within the folder of a split: others call their recordings so as well.
    """
    folders, _, name = os.fspath(path).rpartition(os.sep)
    stem = name[: name.rfind(".")] if "." in name else name
    if "id_" not in stem and not stem.startswith("section_"):
        return UNKNOWN
    above, _, folder = folders.rpartition(os.sep)
    if above in _NAMELESS or folder in _NAMELESS:  # a path from within the tree
        above, _, folder = os.path.realpath(folders).rpartition(os.sep)
    found = _facts(stem, above.rpartition(os.sep)[2], folder) if folder in _FOLDERS else _facts(stem, folder, "")
    if attributes and found.known and stem in attributes:
        return replace(found, attributes=attributes[stem])
    return found


def _facts(stem: str, machine: str, folder: str) -> Facts:
    split, domain = _FOLDERS.get(folder, ("", ""))
    if (by_section := _SECTION.fullmatch(stem)) is not None:
        section, words, rest = by_section.groups()
        said = _said(words)
        if said is None or not (words or folder in _FOLDERS):
            return UNKNOWN
        split = "" if said.is_supplemental else said.split or split
        return Facts(machine, int(section), said.domain or domain, split, said.label, pairs(rest or ""))
    if (by_id := _ID.fullmatch(stem)) is not None and (by_id[1] or folder in _FOLDERS):
        return Facts(machine, int(by_id[2]), domain, split, cast("Label", by_id[1] or ""))
    return UNKNOWN


@dataclass(frozen=True, slots=True)
class _Said:
    """What the words between section and index say."""

    domain: Domain
    split: Split
    label: Label
    is_supplemental: bool


@lru_cache(maxsize=256)
def _said(words: str) -> _Said | None:
    """Return what `source_train_normal_` says; None when it holds a word that DCASE does not use."""
    said = words.split("_")[:-1]
    if not _WORDS.issuperset(said):
        return None
    domain: Domain = "source" if "source" in said else "target" if "target" in said else ""
    if "supplemental" in said:  # normal is said there of noise without the machine, too
        return _Said(domain, "", "", is_supplemental=True)
    split: Split = "train" if "train" in said else "test" if "test" in said else ""
    label: Label = "normal" if "normal" in said else "anomaly" if "anomaly" in said else ""
    return _Said(domain, split, label, is_supplemental=False)


def pairs(text: str) -> Attributes:
    """Return `car_A1_spd_28V` as (key, value) pairs; noAttribute, which hides them, as none."""
    if not text or text == "noAttribute":
        return ()
    words = text.split("_")
    return tuple((key, words[i + 1] if i + 1 < len(words) else "") for i, key in enumerate(words) if i % 2 == 0)


def read_attributes(path: Path) -> dict[str, Attributes]:
    """Return the attributes of each clip, by its name without folder and suffix, from an attributes_0X.csv.

    Columns: file_name, d1p, d1v, d2p, d2v and so on: parameter and value in turn. InputError names the faulty line.
    """
    found: dict[str, Attributes] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header[:1] != ["file_name"] or len(header) % 2 == 0:
                raise InputError(f"{path}: line 1 is not file_name, d1p, d1v, ...")
            for row in rows:
                if len(row) > len(header):
                    raise InputError(f"{path}: line {rows.line_num} has {len(row)} cells, the header {len(header)}")
                cells = [cell.strip() for cell in row]
                if cells and cells[0]:
                    keys, values = cells[1::2], cells[2::2]
                    found[Path(cells[0]).stem] = tuple((k, v) for k, v in zip(keys, values, strict=False) if k)
    except OSError as exc:
        raise InputError(f"{path}: attributes cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InputError(f"{path}: attributes cannot be read: {exc}") from exc
    return found
