"""Driver: pictures through a core, whatever link it is behind.

    with Driver(link, image, model) as driver:
        chunks = driver.encode(pixels, position)

One driver, two worlds: over `SimulationLink` it runs a core in simulation, over a board's link the
same core there. Registers: `lichen.rtl.registers`; transfers: the AXI DMA's two channels.

    reset -> sizes, delays -> (weights, gains) -> run -> receive, send -> status
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from lichen import container
from lichen.boards.core_image import CoreImage
from lichen.boards.link import Link
from lichen.errors import DeviceError, ImageError, StreamError
from lichen.model import Model
from lichen.rtl.registers import (
    BOARDS,
    CORES,
    LOAD,
    MAGIC,
    REGISTERS,
    RESET,
    STATE,
    STATUS,
    VERSION,
    fields,
    register,
)

PIXEL_BYTES = 3
SETTLE_READS = 1000  # of a register that follows within microseconds
NO_WEIGHTS = bytes(8)  # the digest after configuration
LOAD_BYTES = 1 << 17  # of a transfer: no more than the input buffer of a small core
SPARE_BYTES = 4096  # that a stream may take beyond the bytes of its pixels

# What the fields of `status` say: chunks.Framing and rans_decoder.Status.
FRAMING = ("", "a chunk's type is wrong", "a length breaks a rule or is too long for the core",
           "a checksum does not fit", "the bytes end within a chunk", "stripes are missing or too "
           "many")  # fmt: skip
SUBSTREAM = ("", "words are missing", "a coder's state is wrong", "an escaped symbol is wrong",
             "a symbol is out of range", "words are left over")  # fmt: skip


@dataclass(frozen=True)
class Counters:
    """What the core counted of a picture, in cycles of its clock but for the bytes.

    latency: from its first beat in to its first beat out. The waits are of both streams since the
    core's reset: beats that waited, and a side that waited for beats.
    """

    stream_bytes: int
    picture_cycles: int
    latency_cycles: int
    input_waits: int
    input_starved: int
    output_waits: int
    output_starved: int


class Driver:
    """Drive one core.

    link: to the core. image: what it must be loaded with. model: whose weights these are. board:
    the name of the board that it must have been folded for, or None. timeout_s: for a picture; the
    link's where it is not given.

    Raises DeviceError where there is no core, another one, or one of another version or shape. A
    core that holds other weights is loaded with the right ones.
    """

    def __init__(
        self,
        link: Link,
        image: CoreImage,
        model: Model,
        *,
        board: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.link, self.image, self.model = link, image, model
        self.timeout_s = link.timeout_s if timeout_s is None else timeout_s
        self.loads = 0  # times that weights were loaded
        self._position: int | None = None  # whose gains are in the core
        self._running: tuple[int, ...] | None = None  # what it was set to since its reset
        if image.digest != model.digest:
            raise DeviceError(
                f"the words are of weights {image.digest.hex()}, the model is {model.name} "
                f"({model.digest.hex()}): make the image of this model"
            )
        self._check(board)
        self.limits = {n: self.read(f"{n}_limit") for n in ("width", "height", "stripe")}
        self._reset()
        found = self._digest()
        if found != model.digest or found == NO_WEIGHTS:
            self.load()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the core in reset, its weights in it."""
        self._reset()
        self.link.close()

    def read(self, name: str) -> int:
        """Read a register by name."""
        return self.link.read(register(name).address)

    def write(self, name: str, value: int) -> None:
        """Write a register by name."""
        self.link.write(register(name).address, value)

    # What the core is

    def _check(self, board: str | None) -> None:
        where = self.link.name
        magic = self.read("magic")
        if magic != MAGIC:
            raise DeviceError(
                f"{where}: no lichen core answers: expected {MAGIC:#010x} at its address, found "
                f"{magic:#010x}. Is the right bitfile loaded?"
            )
        found = self.read("version")
        if found != VERSION:
            raise DeviceError(
                f"{where}: the core has registers of version {found}, this lichen drives version "
                f"{VERSION}: build the bitfile anew, or use the lichen that built it"
            )
        found = self.read("core")
        if found != CORES[self.image.core]:
            names = {value: name for name, value in CORES.items()}
            raise DeviceError(
                f"{where}: expected the {self.image.core} core, found "
                f"{names.get(found, f'number {found}')}"
            )
        found = self.read("board")
        if board is not None and found != BOARDS[board]:
            names = {value: name for name, value in BOARDS.items()}
            raise DeviceError(
                f"{where}: the core was built for {names.get(found, f'board {found}')}, not for "
                f"{board}: give --device {names.get(found, '...')} or load {board}'s bitfile"
            )
        found = self.read("layout")
        if found != self.image.layout:
            raise DeviceError(
                f"{where}: the core has layout {found:#010x}, the weights of {self.model.name} are "
                f"laid out for {self.image.layout:#010x}: it was built for a model of another "
                "shape, another size or by another lichen; build it anew with this model"
            )

    def _digest(self) -> bytes:
        low, high = self.read("digest_low"), self.read("digest_high")
        return (high << 32 | low).to_bytes(8, "little")

    def load(self) -> None:
        """Load the weights, and write their digest once they are in. Raises DeviceError."""
        self.write("digest_low", 0)
        self.write("digest_high", 0)
        self._load(self.image.words)
        digest = int.from_bytes(self.image.digest, "little")
        self.write("digest_low", digest & 0xFFFF_FFFF)
        self.write("digest_high", digest >> 32)
        self._position = None
        self.loads += 1

    def _load(self, words: NDArray[np.uint32]) -> None:
        """Send words of the load stream to a core that is out of reset; leave it in reset."""
        self._reset()
        before = self.read("loaded")
        self.write("control", LOAD)
        data = np.ascontiguousarray(words, "<u4").view(np.uint8)
        for first in range(0, len(data), LOAD_BYTES):
            self.link.send(data[first : first + LOAD_BYTES])
            self._wait("loading weights")
        wanted = before + len(words) & 0xFFFF_FFFF
        if not self._follows("loaded", wanted):
            taken = self.read("loaded") - before & 0xFFFF_FFFF
            error = self._error(f"{len(words)} words were sent, the core took {taken}")
            self.recover()
            raise error
        self._reset()

    def _follows(self, name: str, value: int) -> bool:
        """Whether a register comes to a value within a short time."""
        return any(self.read(name) == value for _ in range(SETTLE_READS))

    def _reset(self) -> None:
        """Hold the core in reset until nothing of it is on the way to DRAM."""
        self._running = None
        self.write("control", RESET)
        if not any(not fields(STATE, self.read("state"))["busy"] for _ in range(SETTLE_READS)):
            raise self._error("transfers of a delay do not end: does its DRAM answer?")

    def recover(self) -> None:
        """Give up the picture on the way: the next one finds core and DMA as after a start."""
        self.link.stop()
        self._reset()

    # Pictures

    def encode(self, pixels: NDArray[np.uint8], position: int, stripe: int = 1) -> bytes:
        """Encode pixels (H, W, 3) at a quality position 0..800; gives the `S` chunks.

        stripe: rows of 64 lines in a stripe. Raises ImageError where the picture is too large for
        the core, DeviceError for all that goes wrong.
        """
        return next(self.encode_all([pixels], position, stripe))

    def encode_all(
        self, pictures: Iterable[NDArray[np.uint8]], position: int, stripe: int = 1
    ) -> Iterator[bytes]:
        """Encode pictures of one size, as `encode`; each is sent while the one before is coded."""
        size: tuple[int, int] | None = None

        def check(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            nonlocal size
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != PIXEL_BYTES:
                raise ImageError(
                    f"pixels must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}"
                )
            height, width = pixels.shape[:2]
            self._require(width, height, stripe, ImageError)
            if size not in (None, (width, height)):
                raise ImageError(
                    f"all pictures must have one size, not {size} and then {width, height}"
                )
            size = width, height
            return np.ascontiguousarray(pixels).reshape(-1)

        pictures = iter(pictures)
        try:
            first = check(next(pictures))
        except StopIteration:
            return
        assert size is not None
        self._configure(*size, stripe, position)
        data = chain([first], (check(pixels) for pixels in pictures))
        for found, status in self._run(data, first.size + SPARE_BYTES):
            if status["overflow"]:
                raise DeviceError(
                    f"{self.link.name}: a stripe takes more bytes than the core holds: choose a "
                    "lower quality"
                )
            yield found.tobytes()

    def decode(
        self, chunks: bytes, width: int, height: int, position: int, stripe: int = 1
    ) -> NDArray[np.uint8]:
        """Decode the chunks that follow a stream's start; gives pixels (height, width, 3).

        Raises StreamError where the core found them damaged or the picture is too large for it; the
        next picture is decoded as if nothing had happened. Raises DeviceError for other failures.
        """
        return next(self.decode_all([chunks], width, height, position, stripe))

    def decode_all(
        self, streams: Iterable[bytes], width: int, height: int, position: int, stripe: int = 1
    ) -> Iterator[NDArray[np.uint8]]:
        """Decode pictures of one size, as `decode`; each is sent while one before is decoded."""
        self._require(width, height, stripe, StreamError)
        size = PIXEL_BYTES * width * height

        def check(chunks: bytes) -> NDArray[np.uint8]:
            if not chunks:
                raise StreamError("the stream has no chunks: get the file again")
            return np.frombuffer(chunks, np.uint8)

        self._configure(width, height, stripe, position)
        for found, status in self._run((check(chunks) for chunks in streams), size):
            self._check_stream(status)
            if len(found) != size:
                error = self._error(f"expected {size} bytes of pixels, received {len(found)}")
                self.recover()
                raise error
            yield found.reshape(height, width, PIXEL_BYTES)

    def _check_stream(self, status: dict[str, int]) -> None:
        problems = [
            *(f"z: {SUBSTREAM[n]}" for n in [status["z"]] if n),
            *(f"y: {SUBSTREAM[n]}" for n in [status["y"]] if n),
            *(FRAMING[n] for n in [status["framing"]] if n),
        ]
        if problems:
            raise StreamError(
                f"the stream is damaged, says the {self.link.name}: {'; '.join(problems)}. Get the "
                "file again"
            )

    def _require(
        self, width: int, height: int, stripe: int, kind: type[ImageError] | type[StreamError]
    ) -> None:
        """Refuse what the core was not built for."""
        limit = self.limits
        if not 1 <= width <= limit["width"] or not 1 <= height <= limit["height"]:
            raise kind(
                f"the picture is {width}x{height}, the {self.image.core} core was built for up to "
                f"{limit['width']}x{limit['height']}: scale it, cut it, or build a larger core"
            )
        if not 1 <= stripe <= limit["stripe"]:
            lines = container.ROW_LINES
            raise kind(
                f"the stripes have {stripe * lines} lines, the core holds up to "
                f"{limit['stripe'] * lines}: encode with --stripe {limit['stripe'] * lines}"
            )

    def _configure(self, width: int, height: int, stripe: int, position: int) -> None:
        """Set the core to a picture, unless it is so already."""
        wanted = (width, height, stripe, position)
        if self._running == wanted:
            return
        self._reset()
        for number, size in enumerate(self.image.delay_bytes):
            self.write(f"delay_{number}", self.link.delay_page(number, size))
        rows = -(-height // container.ROW_LINES)
        values = {"width": width, "height": height, "stripe": stripe, "stripes": -(-rows // stripe)}
        for name, value in values.items():
            self.write(name, value)
        if self._position != position:
            self._position = None
            self._load(self.image.quality_words(self.model, position))
            self.write("position", position)
            self._position = position
        self.write("control", 0)
        self._running = wanted

    def _run(
        self, pictures: Iterable[NDArray[np.uint8]], room: int
    ) -> Iterator[tuple[NDArray[np.uint8], dict[str, int]]]:
        """Send pictures, receive what becomes of each, with its status.

        The next one is sent as soon as the DMA has taken the one before. One that is on the way
        when the caller gives up is dropped.
        """
        assert self._running is not None
        what = "a picture of {}x{}".format(*self._running)
        pictures = iter(pictures)
        following = next(pictures, None)
        on_the_way = 0
        try:
            if following is not None:
                self.link.receive(room)
                self.link.send(following)
                on_the_way = 1
            while on_the_way:
                number = self.read("pictures") + 1
                following = next(pictures, None)
                if following is not None:
                    self._wait(f"sending {what}", received=False)
                    self.link.send(following)
                    on_the_way += 1
                self._wait(what, sent=False)
                found = self.link.received()
                if not self._follows("pictures", number):
                    raise self._timed_out(f"the status of {what}")
                on_the_way -= 1
                status = fields(STATUS, self.read("status"))
                if status["memory"]:
                    raise self._error("a delay in DRAM was answered by an error")
                if on_the_way:
                    self.link.receive(room)
                yield found, status
        except DeviceError:
            if self._running is not None:
                self.recover()
            raise
        finally:
            if on_the_way and self._running is not None:
                self.recover()

    def counters(self) -> Counters:
        """Give what the core counted of the last picture."""
        return Counters(**{name: self.read(name) for name in Counters.__dataclass_fields__})

    # Errors

    def _wait(self, what: str, *, sent: bool = True, received: bool = True) -> None:
        """Wait for transfers; where they fail, leave core and DMA ready for the next ones."""
        try:
            done = self.link.wait(self.timeout_s, sent=sent, received=received)
        except DeviceError:
            self.recover()
            raise
        if not done:
            raise self._timed_out(what)

    def _timed_out(self, what: str) -> DeviceError:
        error = self._error(f"{what} took longer than {self.timeout_s:g} s")
        self.recover()
        return error

    def _error(self, what: str) -> DeviceError:
        """Make an error that says what state core and DMA are in."""
        names = [r.name for r in REGISTERS if r.access != "stream" and r.address >= 0x20]
        found = ", ".join(f"{name} {self.read(name):#x}" for name in names)
        state = fields(STATE, self.read("state"))
        doing = ", ".join(f"{name} {value}" for name, value in state.items())
        return DeviceError(
            f"{self.link.name}: {what}. State: {doing}; {self.link.state()}; registers: {found}"
        )
