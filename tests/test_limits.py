"""Refused memory, refused threads, bombs, sudden death: an error, no crash and no half a file."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lichen import codec, container
from lichen import model as models
from lichen.api import Codec
from lichen.errors import DeviceError, LichenError, StreamError
from lichen.native import lib

TESTS = Path(__file__).parent
VECTORS = TESTS / "conformance" / "vectors"
MICRO = VECTORS / "models" / "micro.safetensors"
needs_native = pytest.mark.skipif(lib() is None, reason="the native module is not built")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of processes: Linux")


def script(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, which must end by itself."""
    path = str(Path(models.__file__).parent.parent)
    head = f"import sys; sys.path.insert(0, {path!r}); MICRO = {str(MICRO)!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, timeout=300,
        env={"PATH": "/usr/bin:/bin", **variables},
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done


@needs_native
@needs_linux
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_every_allocation_and_thread_of_the_native_module_refused_once(tmp_path: Path) -> None:
    library = tmp_path / "fail.so"
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", str(TESTS / "fuzz" / "fail_native.c"), "-ldl", "-o",
         str(library)], check=True,
    )  # fmt: skip
    done = script(
        """
import ctypes
import numpy as np
from pathlib import Path
from lichen import model as models
from lichen.errors import DeviceError
from lichen.executors import ReferenceExecutor
from lichen.executors.native import NativeExecutor
hook = ctypes.CDLL(None)
program = models.read(Path(MICRO)).programs["g_a"]
x = {"x": np.arange(3 * 64 * 64).astype(np.int8).reshape(3, 64, 64)}
expected = ReferenceExecutor().run(program, x)["y"]
for number in range(100):
    executor = NativeExecutor(threads=4)
    hook.fail_native_at(number)
    try:
        found = executor.run(program, x)["y"]
    except (MemoryError, DeviceError) as error:
        print(type(error).__name__)
        assert hook.fail_native_count() == 1
        found = executor.run(program, x)["y"]  # the same executor goes on
    else:
        assert hook.fail_native_count() == 0
        break
    assert np.array_equal(found, expected)
hook.fail_native_at(-1)
print(number, "refusals")
""",
        LD_PRELOAD=str(library),
    )
    assert done.stdout.split()[-2:] == ["5", "refusals"]  # pool, 3 threads, scratch memory
    assert {"MemoryError", "DeviceError"} <= set(done.stdout.split())


@needs_linux
def test_a_ceiling_of_memory_gives_an_error() -> None:
    """Decode and encode 2048 x 1024 under RLIMIT_AS, from too little to enough."""
    done = script(
        """
import resource
import numpy as np
from pathlib import Path
from lichen import Codec, model as models
from lichen.errors import LichenError
from lichen.picture import Picture
tool = Codec(models.read(Path(MICRO)))
pixels = np.zeros((1024, 2048, 3), np.uint8)
data = tool.encode(Picture(pixels), quality=10).data
def used():
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096
for work in (lambda: tool.decode(data), lambda: tool.encode(Picture(pixels), quality=10)):
    for megabytes in (0, 3, 14, 4096):
        tool = Codec(models.read(Path(MICRO)))
        resource.setrlimit(resource.RLIMIT_AS, (used() + megabytes * 2**20, -1))
        try:
            work()
            print("done", megabytes)
        except (MemoryError, LichenError) as error:
            print(type(error).__name__, megabytes)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
""",
        MALLOC_MMAP_THRESHOLD_="65536",  # so that what is freed is given back
    )
    lines = done.stdout.splitlines()
    assert lines[3] == lines[7] == "done 4096"
    assert sum(line.startswith("MemoryError") for line in lines) >= 2, lines


def test_refused_python_threads_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    tool = Codec(models.read(MICRO), threads=4)
    data = (VECTORS / "streams" / "stripes-of-one-row-micro.lic").read_bytes()
    tool.decode(data)

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(DeviceError, match="4 threads"):
        tool.decode(data)


@needs_native
@needs_linux
def test_a_limit_on_threads_is_an_error() -> None:
    """RLIMIT_NPROC counts all processes of a user; root may pass it, so another user's id helps."""
    done = script("""
import os, resource
import numpy as np
from pathlib import Path
from lichen import model as models
from lichen.errors import DeviceError
from lichen.executors.native import NativeExecutor
program = models.read(Path(MICRO)).programs["g_a"]
executor = NativeExecutor(threads=8)
if os.getuid() == 0:
    os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
try:
    executor.run(program, {"x": np.zeros((3, 64, 64), np.int8)})
    print("ran")
except DeviceError as error:
    print(error)
""")
    assert "8 threads were refused" in done.stdout


def test_a_few_bytes_do_not_take_the_memory_of_a_large_picture() -> None:
    """Headers of 2**28 pixels over a stripe of nothing: refused before the memory is taken."""
    done_header = container.Header(
        width=16384, height=16384, channels=3, alpha=False, digest=False, order=1,
        weights=models.read(MICRO).digest, position=0, stripe=1024,
    )  # fmt: skip
    tool = Codec(models.read(MICRO))
    tracker = pytest.importorskip("tracemalloc")
    for width, height in ((16384, 16384), (65535, 4096), (1, 65535)):
        header = replace(done_header, width=width, height=height)
        data = container.write(container.Stream(header, ((b"\0\0\1\0", b"\0" * 16),)))
        tracker.start()
        with pytest.raises(StreamError):
            tool.decode(data)
        assert tracker.get_traced_memory()[1] < 16 << 20
        tracker.stop()
    with pytest.raises(StreamError, match="limit"):
        tool.decode(data, max_pixels=65534)


def test_the_largest_pictures_alpha_must_have_its_size() -> None:
    """Vectors alpha-bomb and alpha-text-bomb hold a PNG that claims, or holds, far more."""
    for name in ("alpha-bomb", "alpha-text-bomb", "alpha-without-pixels"):
        data = (VECTORS / "refuse" / f"{name}.lic").read_bytes()
        with pytest.raises(StreamError, match="alpha"):
            Codec(models.read(MICRO)).decode(data)


@needs_linux
@pytest.mark.parametrize("seed", range(8))
def test_kill_9_leaves_no_half_written_stream(tmp_path: Path, seed: int) -> None:
    """scripts/bench-load does it 50 times. An older output stays whole until the new one is."""
    source, target = tmp_path / "in.png", tmp_path / "out.lic"
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(source)
    tool = Codec(models.read(MICRO))
    data = tool.encode(codec_picture(pixels), quality=[0, 30][seed % 2], digest=True).data
    if seed % 2:
        target.write_bytes(data)
    command = [sys.executable, "-m", "lichen", "encode", "--model", str(MICRO), "-q", "0",
               "--digest", str(source), str(target)]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    time.sleep(random.Random(seed).uniform(0.05, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = [tool.encode(codec_picture(pixels), quality=q, digest=True).data for q in (0, 30)]
    if target.exists():
        assert target.read_bytes() in whole


def codec_picture(pixels: np.ndarray) -> object:  # type: ignore[type-arg]
    from lichen.picture import Picture

    return Picture(pixels)


def test_codec_errors_are_lichens_own() -> None:
    """What stands behind the CRCs of a stream that a stranger made is refused, not a crash."""
    model = models.read(MICRO)
    header = container.Header(64, 64, 3, False, False, 1, model.digest, 0, 1)
    rng = np.random.default_rng(0)
    for _ in range(300):
        z, y = rng.bytes(int(rng.integers(0, 12))), rng.bytes(int(rng.integers(0, 40)))
        try:
            codec.decode(model, Codec(model).executor, header, ((z, y),))
        except LichenError:
            continue
