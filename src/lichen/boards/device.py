"""Device: where cores are, by name: a board, or the simulation; and the codec that uses them.

    kv260, zcu102   this machine is the board; its bitfile comes with the package of `lichen build`
    sim             the cores for the KV260 in Verilator: slow, and the same bits

With PYNQ, the package's bitfile is loaded unless it is there already. Without, firmware is loaded
beforehand, by xmutil or fpgautil (docs/boards.md).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lichen import codec, container
from lichen import model as models
from lichen.api import Codec
from lichen.boards import core_image, record
from lichen.boards.address_map import CoreName, stem
from lichen.boards.board import board
from lichen.boards.board_link import BoardLink
from lichen.boards.core_image import CoreImage
from lichen.boards.driver import Driver
from lichen.boards.firmware import INSTALLED
from lichen.boards.link import Link
from lichen.boards.linux_board import LinuxBoard
from lichen.boards.pynq_board import PynqBoard
from lichen.boards.recording import RecordingLink
from lichen.errors import DeviceError, LichenError, ModelError
from lichen.model import Model
from lichen.picture import Picture, grey_of_rgb

Device = Literal["kv260", "zcu102", "sim"]
DEVICES: tuple[Device, ...] = ("kv260", "zcu102", "sim")
SIMULATED = "kv260"
STRIPE = 1  # rows of 64 lines: what every core holds


def open_driver(
    device: Device, core: CoreName, model: Model | None = None, *, session: Path | None = None
) -> Driver:
    """Open a core of a device, with the weights of a model (by default lichen's own) in it.

    session: write all that passes the link down there. Raises DeviceError, and ModelError for a
    model that the core was not built for.
    """
    model = model or models.default()
    if device == "sim":
        from lichen.boards.simulated import simulated  # Amaranth

        link, image = simulated(model, core, SIMULATED)
    else:
        image = board_image(device, core, model)
        link = board_link(device, core)
    if session is not None:
        link = RecordingLink(link, session)
    return Driver(link, image, model, board=SIMULATED if device == "sim" else device)


def package_folder(device: str) -> Path | None:
    """Find the folder of a board's package: that of PYNQ, or that of the firmware."""
    found = find_spec(stem(device).replace("-", "_"))
    if found is not None and found.submodule_search_locations:
        return Path(next(iter(found.submodule_search_locations)))
    folder = Path(INSTALLED) / stem(device)
    return folder if folder.is_dir() else None


def board_link(device: str, core: CoreName) -> Link:
    """Open the link to a core of this machine. Raises DeviceError."""
    folder = package_folder(device)
    bitfile = None if folder is None else folder / f"{stem(device)}.bit"
    if bitfile is None or not bitfile.is_file():
        return BoardLink(LinuxBoard(core))
    return BoardLink(PynqBoard(bitfile, core))


def board_image(device: str, core: CoreName, model: Model) -> CoreImage:
    """Find the words of a model for a core that was built, or make them. Raises DeviceError."""
    folder = package_folder(device)
    if folder is None:
        raise DeviceError(
            f"there is no package for the {board(device).title}: install what `lichen package` "
            f"made, or copy its firmware to {INSTALLED}/{stem(device)} (docs/boards.md)"
        )
    made = record.read(folder)
    if core not in made.cores:
        raise DeviceError(
            f"{made.stem} has {', '.join(made.cores)}, no {core}: build it with --core {core} or "
            "both"
        )
    path = folder / made.image_name(core)
    if path.is_file():
        found = core_image.read(path)
        if found.digest == model.digest:
            return found
    try:
        from lichen.boards.simulated import image_for
    except ImportError as error:
        raise ModelError(
            f"{path.name} is not for model {model.name} ({model.digest.hex()}), and to make its "
            "words takes Amaranth: pip install amaranth, or `lichen build` with this model"
        ) from error
    return image_for(made, core, model)


class DeviceCodec(Codec):
    """Encode and decode on a device; streams and pixels are those of the processor's codec.

    opener: gives the driver of a core with the weights of a model in it; drivers stay open until
    `close`. Raises as Codec does, and DeviceError.
    """

    def __init__(
        self,
        opener: Callable[[CoreName, Model], Driver],
        model: Model | None = None,
        *,
        threads: int = 1,
    ) -> None:
        super().__init__(model, threads=threads)
        self._opener = opener
        self._drivers: dict[tuple[CoreName, bytes], Driver] = {}

    def __enter__(self) -> DeviceCodec:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the drivers."""
        for driver in self._drivers.values():
            driver.close()
        self._drivers.clear()

    def driver(self, core: CoreName, model: Model) -> Driver:
        """Give the driver of a core, opened when it is first wanted."""
        if model.network is not None or model.order != "hyperprior":
            raise LichenError(
                f"model {model.name} has no core: cores are for integer models of the order "
                "'hyperprior', like the student"
            )
        key = core, model.digest
        if key not in self._drivers:
            self._drivers[key] = self._opener(core, model)
        return self._drivers[key]

    def _coder(self, picture: Picture, stripe: int) -> Callable[[int], codec.Coded]:
        driver = self.driver("encoder", self.model)

        def code(position: int) -> codec.Coded:
            chunks = driver.encode(np.ascontiguousarray(picture.rgb), position, stripe)
            return codec.Coded(position, stripe, container.read_stripes(chunks), {})

        return code

    def _pixels(
        self, model: Model, header: container.Header, stripes: tuple[tuple[bytes, bytes], ...]
    ) -> NDArray[np.uint8]:
        chunks = container.write_stripes(stripes)
        driver = self.driver("decoder", model)
        return driver.decode(chunks, header.width, header.height, header.position, header.stripe)

    def _digest(self, picture: Picture, coded: codec.Coded) -> bytes:
        """Decode on the processor: a board may have the encoder core alone."""
        nothing = bytes(container.DIGEST_BYTES)
        header = container.read_header(self._wrap(picture, b"", coded, nothing))
        pixels = super()._pixels(self.model, header, coded.stripes)
        return codec.pixel_digest(pixels if picture.pixels.shape[2] == 3 else grey_of_rgb(pixels))
