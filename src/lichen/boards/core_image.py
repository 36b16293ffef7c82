"""Core image: the weights of a model in the words that a core's load stream takes.

The words depend on how the core is folded. `lichen build` writes them beside the bitfile, so that
a board needs neither Amaranth nor a minute to find them; for other weights `of_core` makes them.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lichen.errors import DeviceError
from lichen.model import GAIN_ROWS, ROW_STEP, Model, nearest_row
from lichen.rtl.words import blocks, multipliers

if TYPE_CHECKING:  # Amaranth
    from lichen.rtl.codec import Decoder, Encoder

SUFFIX = ".load.npz"
FORMAT = 2


@dataclass(frozen=True)
class CoreImage:
    """What to load into a core.

    core: "encoder" or "decoder". layout: of the core that it fits, as its register says. digest:
    of the weights, 8 bytes. reduction: pictures are padded to a multiple of this. words: uint32
    (n,), all memories. What depends on the quality: gains: (memory, vector's name), lanes: values
    of a word there; z_tables: for each level (memory, content) with the tables of z, levels:
    which one each of the GAIN_ROWS rows uses. delay_bytes: of DRAM, of each delay outside of the
    chip.
    """

    core: str
    layout: int
    model: str
    digest: bytes
    reduction: int
    words: NDArray[np.uint32]
    gains: tuple[tuple[int, str], ...]
    lanes: int
    z_tables: tuple[tuple[tuple[int, bytes], ...], ...]
    levels: tuple[int, ...]
    delay_bytes: tuple[int, ...]

    def quality_words(self, model: Model, position: int) -> NDArray[np.uint32]:
        """Give the words that set rate gains and tables of z of a quality position, 0..800."""
        vectors = model.gains(position)
        gains = [(n, multipliers(vectors[name], self.lanes)) for n, name in self.gains]
        level = self.z_tables[self.levels[nearest_row(position)]]
        return blocks([*gains, *level])

    def write(self, path: Path) -> None:
        """Write it to a file that ends in SUFFIX."""
        about = {"format": FORMAT, "core": self.core, "layout": self.layout, "model": self.model,
                 "digest": self.digest.hex(), "reduction": self.reduction,
                 "gains": self.gains, "lanes": self.lanes, "levels": self.levels,
                 "z_memories": [[n for n, _ in level] for level in self.z_tables],
                 "delay_bytes": self.delay_bytes}  # fmt: skip
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        tables = {
            f"z.{k}.{n}": np.frombuffer(content, "<u4")
            for k, level in enumerate(self.z_tables)
            for n, content in level
        }
        with path.open("wb") as file:
            np.savez_compressed(file, about=text, words=self.words, **tables)


# What reading a damaged zip may raise, beside the errors of its contents.
FAULTS = (BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def read(path: Path) -> CoreImage:
    """Read what `write` wrote. Raises DeviceError where it is damaged."""
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as found:
            about: dict[str, Any] = json.loads(found["about"].tobytes())
            words = found["words"]
            if about.pop("format") != FORMAT or words.dtype != np.uint32 or words.ndim != 1:
                raise ValueError(f"not of format {FORMAT}")
            about["z_tables"] = tuple(
                tuple((int(n), found[f"z.{k}.{int(n)}"].tobytes()) for n in level)
                for k, level in enumerate(about.pop("z_memories"))
            )
        about["gains"] = tuple((int(n), str(name)) for n, name in about["gains"])
        for name in ("delay_bytes", "levels"):
            about[name] = tuple(map(int, about[name]))
        about["digest"] = bytes.fromhex(about["digest"])
        return CoreImage(words=words, **about)
    except (*FAULTS, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise DeviceError(
            f"{path} is damaged ({error}): copy it again, or run `lichen build`"
        ) from error


def of_core(core: Encoder | Decoder, model: Model, layout: int) -> CoreImage:
    """Make the image of a model for a core of its shape."""
    from lichen.program import ops
    from lichen.rtl.codec import Encoder
    from lichen.rtl.top import delay_bytes

    encodes = isinstance(core, Encoder)
    network = (core.analysis if isinstance(core, Encoder) else core.synthesis).network
    gains = []
    for stage in core.plan.graph.stages:
        if isinstance(stage.op, ops.Scale) and isinstance(stage.op.multiplier, str):
            gains.append((network.numbers[stage.name], stage.op.multiplier))
    rows = np.stack([model.tables_at(row * ROW_STEP) for row in range(GAIN_ROWS)])
    _, firsts, levels = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    z_tables = tuple(tuple(core.z_contents(model, int(row) * ROW_STEP)) for row in firsts)
    return CoreImage(
        "encoder" if encodes else "decoder", layout, model.name, model.digest, model.reduction,
        core.contents(model, 0), tuple(gains), core.plan.lanes, z_tables,
        tuple(levels.flatten().tolist()), delay_bytes(core),
    )  # fmt: skip
