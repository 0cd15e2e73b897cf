"""A look at the PulseAudio server behind a device: which microphone our stream hangs on, and whether one has come.

When a microphone goes, the server moves its streams to another one, without an error and often without a hole in the
sound: the stream goes on, and what it brings is some other room. Only the server knows, so it is asked, over a
connection of our own (libpulse is there wherever ALSA's plugin for it is). pipewire-pulse answers the same questions.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)

_READY, _FAILED = 4, 5
_NO_AUTOSPAWN = 1
_SUBSCRIBE_TO = 0x0002 | 0x0020
"""Sources and source outputs."""
_FACILITY, _SOURCE, _KIND, _NEW = 0x0F, 1, 0x30, 0x00
_RETRY_S = 0.5
_GREETING_S = 0.05
_ANSWER_S = 0.2
"""The server answers in a millisecond, or stands still."""
_STEPS = 100


@dataclass(frozen=True, slots=True)
class PulseDevice:
    """What an ALSA device of type pulse stands for."""

    server: str | None
    """None: the server that PULSE_SERVER or the settings of the user name."""
    source: str | None
    """None: whichever the server holds for the default one."""


class SoundServer:
    """A connection to a sound server that is kept up, or tried for twice a second; nothing here ever blocks for long.

    For one thread. OSError, AttributeError or MemoryError where libpulse is missing, old or may not call back.
    """

    def __init__(self, device: PulseDevice, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._device = device
        self._monotonic_s = monotonic_s
        self._library = _load_libpulse()
        self._callbacks = (
            _OnEvent(self._take_event),
            _OnInfo(self._take_source),
            _OnInfo(self._take_output),
        )
        self._loop: int = self._library.pa_mainloop_new()
        self._context: int | None = None
        self._dial_due_s = 0.0
        self._subscribed = False
        self._news = False
        self._stale = True  # something about our streams may have changed since we last asked
        self._listed = False
        self._source_index: int | None = None
        self._on_source = False
        self._seen_on_source = False

    def news(self) -> bool:
        """Return whether a microphone has come, or the server, since this was last asked."""
        self._turn()
        if self._context is not None and not self._subscribed:  # greetings take three turns: not one a call
            self._await(lambda: self._subscribed or self._context is None, self._monotonic_s() + _GREETING_S)
        news, self._news = self._news, False
        return news

    def opened(self) -> None:
        """Take note that a stream from the device has been opened by name."""
        self._stale, self._seen_on_source = True, False
        self._ask()
        self._news = False  # whatever it was, we have it

    def strayed(self) -> bool:
        """Return whether the stream was seen on its microphone, and hangs on another one now."""
        self._turn()
        if self._stale:
            self._ask()
        return self._seen_on_source and not self._on_source

    def close(self) -> None:
        """Give the connection up."""
        self._hang_up()
        self._library.pa_mainloop_free(self._loop)

    def _turn(self) -> None:
        """Do what can be done without waiting."""
        if self._context is None:
            self._dial()
        for _ in range(_STEPS):
            if self._library.pa_mainloop_iterate(self._loop, 0, None) <= 0:
                break
        if self._context is None:
            return
        state = self._library.pa_context_get_state(self._context)
        if state >= _FAILED:
            self._hang_up()
        elif state == _READY and not self._subscribed:
            self._subscribed = self._news = self._stale = True
            self._library.pa_context_set_subscribe_callback(self._context, self._callbacks[0], None)
            self._forget(self._library.pa_context_subscribe(self._context, _SUBSCRIBE_TO, None, None))

    def _dial(self) -> None:
        if self._monotonic_s() < self._dial_due_s:
            return
        self._dial_due_s = self._monotonic_s() + _RETRY_S
        server = None if self._device.server is None else self._device.server.encode()
        self._context = self._library.pa_context_new(self._library.pa_mainloop_get_api(self._loop), b"edgeasd")
        self._library.pa_context_connect(self._context, server, _NO_AUTOSPAWN, None)

    def _hang_up(self) -> None:
        if self._context is not None:
            self._library.pa_context_disconnect(self._context)
            self._library.pa_context_unref(self._context)
        self._context, self._subscribed = None, False

    def _ask(self) -> None:
        """Ask on which microphone our streams hang; keep the old answer when none comes in time."""
        until_s = self._monotonic_s() + _ANSWER_S
        self._await(lambda: self._subscribed, until_s)
        if not self._subscribed or self._device.source is None:
            return
        was_on_source = self._on_source
        self._stale = self._listed = self._on_source = False
        self._source_index = None
        name = self._device.source.encode()
        self._forget(self._library.pa_context_get_source_info_by_name(self._context, name, self._callbacks[1], None))
        self._forget(self._library.pa_context_get_source_output_info_list(self._context, self._callbacks[2], None))
        self._await(lambda: self._listed, until_s)
        if not self._listed:
            self._stale, self._on_source = True, was_on_source
        self._seen_on_source = self._seen_on_source or self._on_source

    def _await(self, fulfilled: Callable[[], bool], until_s: float) -> None:
        self._turn()
        while not fulfilled() and (left_s := until_s - self._monotonic_s()) > 0.0:
            if self._library.pa_mainloop_prepare(self._loop, round(1e6 * left_s)) < 0:
                return
            self._library.pa_mainloop_poll(self._loop)
            self._library.pa_mainloop_dispatch(self._loop)
            self._turn()

    def _forget(self, operation: int | None) -> None:
        if operation:
            self._library.pa_operation_unref(operation)

    def _take_event(self, _context: int, event: int, _index: int, _userdata: int) -> None:
        self._stale = True
        if event & _FACILITY == _SOURCE and event & _KIND == _NEW:
            self._news = True

    def _take_source(self, _context: int, info: int | None, _end: int, _userdata: int) -> None:
        if info:
            self._source_index = ctypes.cast(info, POINTER(_SourceInfo)).contents.index

    def _take_output(self, _context: int, info: int | None, end: int, _userdata: int) -> None:
        if end or not info:
            self._listed = True
            return
        output = ctypes.cast(info, POINTER(_SourceOutputInfo)).contents
        owner = self._library.pa_proplist_gets(output.proplist, b"application.process.id")
        if owner == str(os.getpid()).encode() and output.source == self._source_index:
            self._on_source = True


def sound_server_of(name: str) -> SoundServer | None:
    """Return a look at the server behind an ALSA device; None for a device without one, and without libpulse."""
    device = pulse_device(name)
    if device is None:
        return None
    try:
        return SoundServer(device)
    except (OSError, AttributeError, MemoryError) as error:  # MemoryError: under MemoryDenyWriteExecute
        _log.warning("device=%s: nobody tells when its sound server changes microphones (%s)", name, error)
        return None


def pulse_device(name: str) -> PulseDevice | None:
    """Return what ALSA's configuration says of a device of type pulse; None for any other device."""
    try:
        alsa = ctypes.CDLL("libasound.so.2")
    except OSError:
        return None
    top, found = c_void_p(), c_void_p()
    if alsa.snd_config_update_ref(ctypes.byref(top)) < 0:
        return None
    try:
        if alsa.snd_config_search_definition(top, b"pcm", name.encode(), ctypes.byref(found)) < 0:
            return None
        try:
            if _text(alsa, found, b"type") != "pulse":
                return None
            return PulseDevice(_text(alsa, found, b"server"), _text(alsa, found, b"device"))
        finally:
            alsa.snd_config_delete(found)
    finally:
        alsa.snd_config_unref(top)


def _text(alsa: ctypes.CDLL, compound: c_void_p, key: bytes) -> str | None:
    node, text = c_void_p(), c_char_p()
    if alsa.snd_config_search(compound, key, ctypes.byref(node)) < 0:
        return None
    if alsa.snd_config_get_string(node, ctypes.byref(text)) < 0 or text.value is None:
        return None
    return text.value.decode(errors="replace")


class _SampleSpec(ctypes.Structure):
    _fields_ = (("format", c_int), ("rate", c_uint32), ("channels", c_uint8))


class _ChannelMap(ctypes.Structure):
    _fields_ = (("channels", c_uint8), ("map", c_int * 32))


class _SourceInfo(ctypes.Structure):
    """The beginning of pa_source_info."""

    _fields_ = (("name", c_char_p), ("index", c_uint32))


class _SourceOutputInfo(ctypes.Structure):
    """The beginning of pa_source_output_info."""

    _fields_ = (
        ("index", c_uint32),
        ("name", c_char_p),
        ("owner_module", c_uint32),
        ("client", c_uint32),
        ("source", c_uint32),
        ("sample_spec", _SampleSpec),
        ("channel_map", _ChannelMap),
        ("buffer_usec", c_uint64),
        ("source_usec", c_uint64),
        ("resample_method", c_char_p),
        ("driver", c_char_p),
        ("proplist", c_void_p),
    )


_OnEvent = CFUNCTYPE(None, c_void_p, c_uint32, c_uint32, c_void_p)
_OnInfo = CFUNCTYPE(None, c_void_p, c_void_p, c_int, c_void_p)

_RESULTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "pa_mainloop_new": (c_void_p, ()),
    "pa_mainloop_free": (None, (c_void_p,)),
    "pa_mainloop_get_api": (c_void_p, (c_void_p,)),
    "pa_mainloop_iterate": (c_int, (c_void_p, c_int, c_void_p)),
    "pa_mainloop_prepare": (c_int, (c_void_p, c_int)),
    "pa_mainloop_poll": (c_int, (c_void_p,)),
    "pa_mainloop_dispatch": (c_int, (c_void_p,)),
    "pa_context_new": (c_void_p, (c_void_p, c_char_p)),
    "pa_context_connect": (c_int, (c_void_p, c_char_p, c_int, c_void_p)),
    "pa_context_disconnect": (None, (c_void_p,)),
    "pa_context_unref": (None, (c_void_p,)),
    "pa_context_get_state": (c_int, (c_void_p,)),
    "pa_context_set_subscribe_callback": (None, (c_void_p, _OnEvent, c_void_p)),
    "pa_context_subscribe": (c_void_p, (c_void_p, c_int, c_void_p, c_void_p)),
    "pa_context_get_source_info_by_name": (c_void_p, (c_void_p, c_char_p, _OnInfo, c_void_p)),
    "pa_context_get_source_output_info_list": (c_void_p, (c_void_p, _OnInfo, c_void_p)),
    "pa_operation_unref": (None, (c_void_p,)),
    "pa_proplist_gets": (c_char_p, (c_void_p, c_char_p)),
}


def _load_libpulse() -> ctypes.CDLL:
    library = ctypes.CDLL("libpulse.so.0")
    for name, (result, arguments) in _RESULTS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
