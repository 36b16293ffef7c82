"""Measure codecs on a folder of pictures, from the bytes of files and what they decode to.

`survey` finds the pictures, `measure` codes each of them with each codec at each quality, in this
process or in several.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lichen import files
from lichen.api import MAX_PIXELS
from lichen.errors import ImageError, LichenError
from lichen.evaluation import metrics
from lichen.evaluation.codecs import FileCodec, Spec, open_codec, round_trip_error
from lichen.evaluation.metrics import Pixels
from lichen.picture import ImageNotice

SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One picture through one codec at one quality.

    psnr, psnr_yuv: dB, infinite where nothing was lost. ms_ssim: 0..1; None where it was not
    measured. encode_s, decode_s: seconds of wall clock, bytes and pixels in memory.
    """

    size_bytes: int
    bpp: float
    psnr: float
    psnr_yuv: float
    ms_ssim: float | None
    encode_s: float
    decode_s: float

    @property
    def ms_ssim_db(self) -> float | None:
        return None if self.ms_ssim is None else metrics.ms_ssim_db(self.ms_ssim)


@dataclass(frozen=True)
class Survey:
    """The pictures of a folder: paths, and (width, height) of each; what could not be read."""

    folder: Path
    paths: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    skipped: tuple[str, ...]  # why, with the name first
    sha256: str  # of all pixels, picture after picture: which set this was, whatever it is called

    def __str__(self) -> str:
        count = len(self.paths)
        return f"{count} picture{'s' if count > 1 else ''} of {self.folder.resolve().name}"

    @property
    def too_small(self) -> tuple[str, ...]:
        """Names of pictures that MS-SSIM cannot measure."""
        return tuple(
            path.name
            for path, size in zip(self.paths, self.sizes)
            if min(size) < metrics.MS_SSIM_SIDE
        )


@dataclass
class Curve:
    """One codec on all pictures: images[name][i] was measured at qualities[i]."""

    label: str
    description: str
    qualities: tuple[float, ...]
    images: dict[str, list[Measured]] = field(default_factory=dict)

    def mean(self, column: str) -> list[float | None]:
        """Average a field of Measured over the pictures, for each quality.

        None where a picture has no value: a mean over the others would belong to another set than
        the rate does. "ms_ssim_db" is the mean MS-SSIM in dB, as CompressAI plots it.
        """
        if column == "ms_ssim_db":
            means = self.mean("ms_ssim")
            return [None if value is None else metrics.ms_ssim_db(value) for value in means]
        rows = zip(*([getattr(m, column) for m in row] for row in self.images.values()))
        return [None if None in row else statistics.fmean(row) for row in rows]

    def points(self, column: str) -> tuple[list[float], list[float]]:
        """Give mean rates and mean qualities, without qualities that a picture lacks."""
        pairs = zip(self.mean("bpp"), self.mean(column))
        known = [(r, q) for r, q in pairs if r is not None and q is not None]
        return [r for r, _ in known], [q for _, q in known]


def load(path: Path) -> Pixels:
    """Read a picture as RGB, as `lichen encode` does; alpha is left out. Raises ImageError."""
    picture = files.read_picture(path.read_bytes(), path.name, MAX_PIXELS)
    return np.ascontiguousarray(picture.rgb)


def survey(folder: Path) -> Survey:
    """Read every picture of a folder once. Unreadable ones are listed, and left out.

    Raises OSError where there is no folder and LichenError where it has no picture to read.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise LichenError(
            f"expected pictures ({', '.join(sorted(SUFFIXES))}) in {folder}, found none"
        )
    digest, good, sizes, skipped = hashlib.sha256(), [], [], []
    for path in paths:
        try:
            pixels = load(path)
        except ImageError as error:
            skipped.append(str(error))
            continue
        except OSError as error:
            skipped.append(f"{path.name}: {error.strerror or error}")
            continue
        digest.update(pixels.tobytes())
        good.append(path)
        sizes.append((pixels.shape[1], pixels.shape[0]))
    if not good:
        raise ImageError(f"none of the {len(paths)} pictures in {folder} can be read: {skipped[0]}")
    return Survey(folder, tuple(good), tuple(sizes), tuple(skipped), digest.hexdigest())


def measure_one(codec: FileCodec, pixels: Pixels, quality: float, with_ms_ssim: bool) -> Measured:
    """Encode, decode from the bytes alone, and compare. Raises what the codec raises."""
    start = time.perf_counter()
    data = codec.encode(pixels, quality)
    middle = time.perf_counter()
    decoded = codec.decode(data)
    end = time.perf_counter()
    if decoded.shape != pixels.shape:
        raise LichenError(f"decoded to the shape {decoded.shape}, not to {pixels.shape}")
    return Measured(
        size_bytes=len(data),
        bpp=8 * len(data) / (pixels.shape[0] * pixels.shape[1]),
        psnr=metrics.psnr(pixels, decoded),
        psnr_yuv=metrics.psnr_yuv(pixels, decoded),
        ms_ssim=metrics.ms_ssim(pixels, decoded) if with_ms_ssim else None,
        encode_s=middle - start,
        decode_s=end - middle,
    )


@dataclass(frozen=True)
class _Task:
    """One picture through one codec at all its qualities; `number` is the codec's."""

    number: int
    spec: Spec
    path: Path
    threads: int
    with_ms_ssim: bool


def measure(
    specs: Sequence[Spec],
    pictures: Survey,
    *,
    threads: int = 1,
    jobs: int = 1,
    with_ms_ssim: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Curve]:
    """Measure each codec on each picture at each of its qualities.

    threads: of one codec. jobs: processes; with several, times are those of a busy machine.
    progress: called with the pictures done and their total, counting each codec's. Raises
    LichenError, naming picture and codec, at the first failure; KeyboardInterrupt ends the
    processes too.
    """
    opened = [open_codec(spec, threads) for spec in specs]
    curves = [Curve(c.label, c.description, s.qualities) for c, s in zip(opened, specs)]
    tasks = [
        _Task(number, spec, path, threads, with_ms_ssim)
        for number, spec in enumerate(specs)
        for path in pictures.paths
    ]
    if jobs > 1:
        rows = _run_in_processes(tasks, jobs, progress)
    else:
        rows = []
        for task in tasks:
            rows.append(_run(task))
            progress(len(rows), len(tasks))
    for task, row in zip(tasks, rows):
        curves[task.number].images[task.path.name] = row
    return curves


def _run(task: _Task) -> list[Measured]:
    codec = open_codec(task.spec, task.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageNotice)  # the survey has said it
        pixels = load(task.path)
    quality, rows = task.spec.qualities[0], []
    try:
        codec.check(pixels, quality)
        for quality in task.spec.qualities:
            rows.append(measure_one(codec, pixels, quality, task.with_ms_ssim))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's writers and readers raise nearly anything
        raise round_trip_error(codec, task.path.name, quality, error) from error
    return rows


def _run_in_processes(
    tasks: Sequence[_Task], jobs: int, progress: Callable[[int, int], None]
) -> list[list[Measured]]:
    """Run tasks in `jobs` processes, none of which is left behind; results in their order."""
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # torch and forks do not mix
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)), context, _start_worker, (tasks[0].with_ms_ssim,)
    )
    try:
        futures = [pool.submit(_run, task) for task in tasks]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()  # raises at the first failure
            progress(done, len(tasks))
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise LichenError(
                "a process was killed, most likely for want of memory; use fewer --jobs"
            ) from error
        raise
    pool.shutdown()
    return [future.result() for future in futures]


def _start_worker(with_torch: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us
    if with_torch:
        import torch

        torch.set_num_threads(1)
