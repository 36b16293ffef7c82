"""Model: everything that turns pixels to symbols and back, in integers; its file form and lookup.

A model file is what `program/file.py` writes: Programs, tables, gains and text. Its identity is the
first 8 bytes of the SHA-256 of the file; streams carry it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lichen.entropy.tables import Tables
from lichen.errors import ContractError, ModelError
from lichen.program import Program
from lichen.program import file as program_file
from lichen.program.check import infer_shapes, macs_per_pixel

FORMAT = 1
POSITIONS = 800  # quality 0..100 in eighths
GAIN_ROWS = 51  # rows of the gain tables, evenly spaced over the positions
ROW_STEP = POSITIONS // (GAIN_ROWS - 1)
Order = Literal["factorised", "hyperprior", "channel-wise"]
ORDERS: tuple[Order, ...] = ("factorised", "hyperprior", "channel-wise")
# Programs of each decoding order, as `codec.py` runs them.
PROGRAMS: dict[str, set[str]] = {
    "factorised": {"g_a", "quantize", "g_s"},
    "hyperprior": {"g_a", "h_a", "quantize", "h_s", "g_s"},
}


@dataclass(frozen=True, eq=False)
class Model:
    """Programs, tables and gains of one set of weights.

    programs: by name; which ones depends on `order`.
    tables: all entropy tables; hyper-synthesis indices count from table 0.
    z_tables: uint16 (Z,), the table of each hyper-latent channel (factorised: of each latent's).
    gain, inverse_gain: int16 (GAIN_ROWS, M), each 1..32767; quality runs down the rows.
    reduction: pictures are padded to a multiple of this; one row of a stripe is this many lines.
    digest: 8 bytes, the identity of the file that the model was read from or written to.
    """

    name: str
    order: Order
    reduction: int
    programs: Mapping[str, Program]
    tables: Tables
    z_tables: NDArray[np.uint16]
    gain: NDArray[np.int16]
    inverse_gain: NDArray[np.int16]
    metadata: Mapping[str, str] = field(default_factory=dict)
    digest: bytes = b""

    def gains(self, position: int) -> dict[str, NDArray[np.int32]]:
        """Give the gain vectors of a quality position 0..800: linear between rows, in integers."""
        if not 0 <= position <= POSITIONS:
            raise ContractError(f"a quality position is 0..{POSITIONS}, not {position}")
        row, part = divmod(position, ROW_STEP)
        after = min(row + 1, GAIN_ROWS - 1)
        vectors = {}
        for name, table in (("gain", self.gain), ("inverse_gain", self.inverse_gain)):
            before, behind = (table[i].astype(np.int32) for i in (row, after))
            mixed = before * (ROW_STEP - part) + behind * part
            vectors[name] = (mixed + ROW_STEP // 2) // ROW_STEP  # half up: docs/stream.md
        return vectors

    def to_bytes(self) -> bytes:
        """Give the model file; equal models give equal bytes."""
        arrays: dict[str, NDArray[Any]] = {
            "z_tables": self.z_tables,
            "gain": self.gain,
            "inverse_gain": self.inverse_gain,
        }
        arrays |= {f"tables.{k}": v for k, v in self.tables.to_arrays().items()}
        descriptions = {}
        for name, program in self.programs.items():
            descriptions[name], parts = program_file.pack_program(program, name)
            arrays |= parts
        document = {
            "format": FORMAT,
            "name": self.name,
            "order": self.order,
            "reduction": self.reduction,
            "programs": descriptions,
        }
        text = {"lichen": json.dumps(document, separators=(",", ":")), **self.metadata}
        return program_file.to_bytes(arrays, text)


def digest_of(data: bytes) -> bytes:
    """Give the 8 bytes by which streams name the model file with this content."""
    return hashlib.sha256(data).digest()[:8]


def from_bytes(data: bytes) -> Model:
    """Read and check a model file. Raises ModelError."""
    arrays, metadata = program_file.from_bytes(data)
    try:
        document = json.loads(metadata.pop("lichen"))
        if document["format"] != FORMAT:
            raise ModelError(
                f"the model file has format {document['format']}, this build reads {FORMAT}: "
                "upgrade lichen"
            )
        programs = {
            str(name): program_file.unpack_program(description, arrays)
            for name, description in document["programs"].items()
        }
        tables = Tables.from_arrays(
            {k.removeprefix("tables."): v for k, v in arrays.items() if k.startswith("tables.")}
        )
        model = Model(
            str(document["name"]),
            document["order"],
            int(document["reduction"]),
            programs,
            tables,
            arrays["z_tables"],
            arrays["gain"],
            arrays["inverse_gain"],
            metadata,
            digest_of(data),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"not a lichen model file ({type(error).__name__}: {error}); "
            "give one that `lichen lower` or a release has written"
        ) from error
    _check(model)
    return model


def _check(model: Model) -> None:
    """Raise ModelError unless the parts fit together as `codec.py` will use them."""
    wanted = PROGRAMS.get(model.order)
    if wanted is None or not wanted <= set(model.programs):
        raise ModelError(
            f"model {model.name}: order {model.order!r} needs Programs {sorted(wanted or ())}, "
            f"found {sorted(model.programs)}"
        )
    if model.reduction not in (16, 32, 64):
        raise ModelError(f"model {model.name}: reduction must be 16, 32 or 64")
    for name in ("gain", "inverse_gain"):
        table = getattr(model, name)
        if table.dtype != np.int16 or table.ndim != 2 or len(table) != GAIN_ROWS:
            raise ModelError(f"model {model.name}: {name} must be int16 ({GAIN_ROWS}, channels)")
        if table.min() < 1:
            raise ModelError(f"model {model.name}: {name} must be 1..32767")
    if model.z_tables.dtype != np.uint16 or int(model.z_tables.max()) >= len(model.tables):
        raise ModelError(f"model {model.name}: z_tables must be uint16 below {len(model.tables)}")


def read(path: Path) -> Model:
    """Read a model file from disk. Raises ModelError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}: {error.strerror}") from error
    return from_bytes(data)


def installed() -> list[Path]:
    """List the model files that came with the package; the first is the default."""
    folder = Path(__file__).parent / "weights"
    return sorted(folder.glob("*.safetensors"))


def default() -> Model:
    """Read the model that `encode` uses when it is given none."""
    paths = installed()
    if not paths:
        raise ModelError("no model came with this installation of lichen; reinstall it")
    return read(paths[0])


def find(digest: bytes) -> Model:
    """Read the installed model with this digest. Raises ModelError naming those there are."""
    models = []
    for path in installed():
        data = path.read_bytes()
        found = digest_of(data)
        if found == digest:
            return from_bytes(data)
        models.append(f"{path.stem} ({found.hex()})")
    raise ModelError(
        f"the stream was made with weights {digest.hex()}; installed are "
        f"{', '.join(models) or 'none'}: give that model file (--model FILE) or install the "
        "lichen release that made the stream"
    )


def named(name: str) -> Model:
    """Read the installed model with this name. Raises ModelError naming those there are."""
    paths = {path.stem: path for path in installed()}
    if name not in paths:
        raise ModelError(
            f"no model file and no installed model is called {name!r}; installed are "
            f"{', '.join(paths) or 'none'}"
        )
    return read(paths[name])


def kmac_per_pixel(model: Model) -> tuple[float, float]:
    """Count thousands of 8-bit multiply-accumulates per pixel, to encode and to decode."""
    side = model.reduction
    y = infer_shapes(model.programs["g_a"], {"x": (3, side, side)})["y"][1]
    reductions = {"g_a": 1, "h_a": side // y, "h_s": side, "quantize": side // y, "g_s": side // y}
    counts = {
        name: macs_per_pixel(program, reductions[name]) / 1000
        for name, program in model.programs.items()
        if name in reductions
    }
    decoder = counts.get("h_s", 0.0) + counts["g_s"]
    return sum(counts.values()) - counts["g_s"], decoder
