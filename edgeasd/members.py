"""The file of a bundle: a plain zip of stored members, read at a cost that what it claims cannot raise."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from pathlib import Path

from edgeasd.errors import BundleError

MIB = 1 << 20
_END_OF_ZIP_BYTES = 22
_MAX_DIRECTORY_BYTES = 4096


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file that ends as a zip does; BundleError for anything else, before it is read."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError("is not a file")
            if status.st_size > max_bytes:
                raise BundleError(f"is {status.st_size // MIB} MiB long, the limit is {max_bytes // MIB}")
            file.seek(max(0, status.st_size - _END_OF_ZIP_BYTES))
            _check_end(file.read(), n_bytes=status.st_size)  # before a large file that is no bundle is read
            file.seek(0)
            return file.read(status.st_size + 1)  # as much as is asked for is allocated at once
    except OSError as exc:
        raise BundleError(f"cannot be read: {exc.strerror}") from exc


def open_zip(data: bytes, *, max_directory_bytes: int = _MAX_DIRECTORY_BYTES) -> zipfile.ZipFile:
    """Open a zip whose directory is small and ends the file, so that reading it is cheap whatever it claims."""
    _check_end(data[-_END_OF_ZIP_BYTES:], n_bytes=len(data), max_directory_bytes=max_directory_bytes)
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, OSError, UnicodeDecodeError, NotImplementedError) as exc:
        raise BundleError(f"is not a zip file that can be read: {exc}") from exc


def _check_end(end: bytes, *, n_bytes: int, max_directory_bytes: int = _MAX_DIRECTORY_BYTES) -> None:
    if len(end) < _END_OF_ZIP_BYTES or not end.startswith(b"PK\5\6") or end[-2:] != b"\0\0":
        raise BundleError("is not a whole zip file")
    directory_bytes, directory_start = struct.unpack("<2I", end[12:20])
    if directory_bytes > max_directory_bytes:
        raise BundleError(f"has a directory of {directory_bytes} bytes, the limit is {max_directory_bytes}")
    if directory_start + directory_bytes + len(end) != n_bytes:
        raise BundleError("is not a plain zip file: something lies before or behind it")


def read_member(archive: zipfile.ZipFile, name: str, limit_bytes: int) -> bytes:
    """Return a member; BundleError where it is compressed, too large or not whole."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise BundleError(f"{name}: is compressed, members are stored")
    if info.file_size > limit_bytes:
        raise BundleError(f"{name}: is {info.file_size} bytes long, the limit is {limit_bytes}")
    try:
        data = archive.read(info)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as exc:
        raise BundleError(f"{name}: cannot be read: {exc}") from exc
    if len(data) != info.file_size:
        raise BundleError(f"{name}: is cut short")
    return data
