"""Memory and streams on a GPU: what is copied there comes back, and what was taken is given back."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest

from edgeasd.engine.cuda import Stream, find_gpu
from edgeasd.engine.machine import gpu_name, has_module

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_name() is None, reason="no CUDA device"),
    pytest.mark.skipif(not has_module("cuda.bindings"), reason="cuda-bindings is not installed"),
]


def _there_and_back(stream: Stream) -> None:
    stream.make_current()
    buffer, other = stream.allocate((8, 3, 5)), stream.allocate((8, 3, 5))
    values = np.arange(120, dtype=np.float32).reshape(8, 3, 5)
    buffer.host[:], other.host[:] = values, -1.0
    stream.upload(buffer, 8)
    stream.upload(other, 8)
    stream.wait()
    buffer.host[:] = 0.0
    stream.download(buffer, 6)
    stream.wait()
    np.testing.assert_array_equal(buffer.host[:6], values[:6])
    assert (buffer.host[6:] == 0.0).all()


def test_the_gpu_is_described_by_what_a_plan_depends_on() -> None:
    gpu = find_gpu()
    assert gpu.name == gpu_name()
    assert re.fullmatch(r"\d+\.\d", gpu.capability)
    assert re.fullmatch(r"1\d\.\d", gpu.driver)


def test_as_many_windows_as_asked_for_come_back() -> None:
    stream = Stream()
    _there_and_back(stream)
    stream.close()


def test_a_thread_that_did_not_open_it_may_use_it() -> None:
    stream = Stream()
    failures: list[BaseException] = []

    def use() -> None:
        try:
            _there_and_back(stream)
        except BaseException as exc:  # noqa: BLE001  # it is looked at in the test's own thread
            failures.append(exc)

    using = threading.Thread(target=use)
    using.start()
    using.join()
    stream.close()
    assert failures == []


def test_what_was_taken_is_given_back() -> None:
    from cuda.bindings import runtime

    stream = Stream()
    _, free_bytes, _ = runtime.cudaMemGetInfo()
    for _ in range(3):
        again = Stream()
        again.allocate((64, 1 << 20))  # 256 MiB on the GPU, as much on the host
        again.close()
    _, after_bytes, _ = runtime.cudaMemGetInfo()
    assert free_bytes - after_bytes < 64 << 20
    stream.close()
