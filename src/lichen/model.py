"""Model: everything that turns pixels to symbols and back, in integers; its file form and lookup.

A model file is what `program/file.py` writes: Programs, tables, gains and text. (A few models run
in float: `floating.py`. Their files hold a network in the place of Programs.) Its identity is the
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

from lichen import floating, flow
from lichen.entropy.tables import Tables
from lichen.errors import ContractError, ModelError
from lichen.program import Program
from lichen.program import file as program_file
from lichen.program.check import infer_shapes, macs_per_pixel

FORMAT = 1
DEFAULT = "student-s"  # the installed model that encodes where none is named
# What reading a document that is not ours may raise: of other keys, types, sizes, depths.
FAULTS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
POSITIONS = 800  # quality 0..100 in eighths
GAIN_ROWS = 51  # rows of the gain tables, evenly spaced over the positions
ROW_STEP = POSITIONS // (GAIN_ROWS - 1)
Order = Literal["factorised", "hyperprior", "channel-wise"]
ORDERS: tuple[Order, ...] = ("factorised", "hyperprior", "channel-wise")
# Programs of each decoding order, as `codec.py` runs them.
PROGRAMS: dict[str, set[str]] = {
    "factorised": {"g_a", "quantize", "g_s"},
    "hyperprior": {"g_a", "h_a", "quantize", "h_s", "g_s"},
    "channel-wise": {"g_a", "h_a", "h_s", "g_s"},  # and those of each slice: k = 0, 1, ..
}
SLICE_PROGRAMS = ("context", "quantize", "refine")  # context.k, quantize.k, refine.k


@dataclass(frozen=True, eq=False)
class Model:
    """Programs, tables and gains of one set of weights.

    programs: by name; which ones depends on `order`.
    tables: all entropy tables; hyper-synthesis indices count from table 0.
    z_tables: uint16, the table of each channel of z: (Z,), or (GAIN_ROWS, Z) where it depends on
    the quality as the gains do; factorised: (GAIN_ROWS, M), of each latent channel.
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

    @property
    def network(self) -> floating.Network | None:
        """The weights of a model that runs in float; none where Programs hold integers."""
        return floating.network_of(self.programs)

    @property
    def slices(self) -> int:
        """Count the slices of a channel-wise model."""
        return sum(name.startswith("context.") for name in self.programs)

    @property
    def z_channels(self) -> int:
        """Count the channels that z_tables speaks of: of z, or of a factorised model's latents."""
        return int(self.z_tables.shape[-1])

    def tables_at(self, position: int) -> NDArray[np.uint16]:
        """Give the table of each channel of z (factorised: of each latent) at a position 0..800.

        That is the nearest row of z_tables, where it has rows. Returns uint16 (z_channels,).
        """
        rows = self.z_tables
        tables: NDArray[np.uint16] = rows[nearest_row(position)] if rows.ndim > 1 else rows
        return tables

    def to_bytes(self) -> bytes:
        """Give the model file; equal models give equal bytes."""
        arrays: dict[str, NDArray[Any]] = {
            "z_tables": self.z_tables,
            "gain": self.gain,
            "inverse_gain": self.inverse_gain,
        }
        arrays |= {f"tables.{k}": v for k, v in self.tables.to_arrays().items()}
        document: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "order": self.order,
            "reduction": self.reduction,
        }
        if self.network is not None:
            document["arithmetic"] = floating.ARITHMETIC
            document["network"], parts = floating.pack(self.network)
            arrays |= parts
        else:
            document["programs"] = {}
            for name, program in self.programs.items():
                document["programs"][name], parts = program_file.pack_program(program, name)
                arrays |= parts
        text = {"lichen": json.dumps(document, separators=(",", ":")), **self.metadata}
        return program_file.to_bytes(arrays, text)


def nearest_row(position: int) -> int:
    """Give the row of the gain tables that is nearest to a quality position 0..800."""
    return (position + ROW_STEP // 2) // ROW_STEP


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
        programs: Mapping[str, Program]
        if document.get("arithmetic") == floating.ARITHMETIC:
            programs = floating.programs_of(floating.unpack(document["network"], arrays))
        else:
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
    except FAULTS as error:
        raise ModelError(
            f"not a lichen model file ({type(error).__name__}: {error}); "
            "give one that `lichen lower` or a release has written"
        ) from error
    _check(model)
    return model


def _check(model: Model) -> None:
    """Raise ModelError unless the parts fit together as `codec.py` will use them."""
    wanted = PROGRAMS[model.order] if model.order in ORDERS else None
    if wanted is None or not wanted <= set(model.programs):
        raise ModelError(
            f"model {model.name}: order {model.order!r} needs Programs {sorted(wanted or ())}, "
            f"found {sorted(model.programs)}"
        )
    if model.order == "channel-wise":
        _check_slices(model)
    if model.reduction not in (16, 32, 64):
        raise ModelError(f"model {model.name}: reduction must be 16, 32 or 64")
    for name in ("gain", "inverse_gain"):
        table = getattr(model, name)
        if table.dtype != np.int16 or table.ndim != 2 or len(table) != GAIN_ROWS:
            raise ModelError(f"model {model.name}: {name} must be int16 ({GAIN_ROWS}, channels)")
        if table.min() < 1:
            raise ModelError(f"model {model.name}: {name} must be 1..32767")
    if model.order == "factorised":
        _check_latents(model)
    if model.order == "factorised":
        shapes = [model.gain.shape]
    else:
        shapes = [(model.z_tables.shape or (0,))[-1:]]
        shapes += [(GAIN_ROWS, *shapes[0])]
    if model.z_tables.shape not in shapes or not model.z_tables.size:
        fitting = " or ".join(map(str, shapes))
        raise ModelError(
            f"model {model.name}: z_tables must have the shape {fitting}, "
            f"not {model.z_tables.shape}"
        )
    if model.z_tables.dtype != np.uint16 or int(model.z_tables.max()) >= len(model.tables):
        raise ModelError(f"model {model.name}: z_tables must be uint16 below {len(model.tables)}")
    if model.network is not None:
        return
    try:
        sizes = model.gain.shape[1], model.z_channels, len(model.tables)
        flow.check(model.order, model.programs, model.reduction, *sizes)
    except ContractError as error:
        raise ModelError(f"model {model.name}: {error}") from error


def _check_latents(model: Model) -> None:
    """Raise ModelError unless a factorised model has one latent for each square of its reduction.

    A decoder counts the symbols of a stripe by that, before it runs anything.
    """
    picture, latents = (3, model.reduction, model.reduction), (model.gain.shape[1], 1, 1)
    steps = (
        ("g_a", "x", picture, "y", latents),
        ("quantize", "y", latents, "symbols", latents),
        ("g_s", "symbols", latents, "x", picture),
    )
    for name, source, shape, output, expected in steps:
        program = model.programs[name]
        outputs = {tensor.name for tensor in program.outputs}
        try:
            found = infer_shapes(program, {source: shape})[output] if output in outputs else None
        except ContractError as error:
            raise ModelError(f"model {model.name}: {name} refuses {shape}: {error}") from error
        if found != expected:
            raise ModelError(
                f"model {model.name}: {name} must make {output!r} of shape {expected} from "
                f"{source!r} of {shape}, not {found}"
            )


def _check_slices(model: Model) -> None:
    """Raise ModelError unless a channel-wise model has the Programs of each of its slices."""
    for k in range(max(1, model.slices)):
        for name, output in zip(SLICE_PROGRAMS, ("index", "symbols", f"y.{k}"), strict=True):
            program = model.programs.get(f"{name}.{k}")
            if program is None or output not in {tensor.name for tensor in program.outputs}:
                raise ModelError(
                    f"model {model.name}: order {model.order!r} needs a Program {name}.{k} that "
                    f"gives {output!r}, found {sorted(model.programs)}"
                )


def read(path: Path) -> Model:
    """Read a model file from disk. Raises ModelError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}: {error.strerror}") from error
    try:
        return from_bytes(data)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def is_model_file(path: Path) -> bool:
    """Whether a file says that lichen wrote it, whole or damaged."""
    try:
        with path.open("rb") as file:
            return b'"lichen"' in file.read(2**16)
    except OSError:
        return False


def installed() -> list[Path]:
    """List the model files that came with the package; the first is the default."""
    folder = Path(__file__).parent / "weights"
    return sorted(folder.glob("*.safetensors"), key=lambda path: (path.stem != DEFAULT, path))


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


def kmac_per_pixel(model: Model, wide_factor: int = 2) -> tuple[float, float]:
    """Count thousands of 8-bit multiply-accumulates per pixel, to encode and to decode.

    wide_factor: what one counts that reads 16 bits. Those of a model that runs in float are in
    float.
    """
    if model.network is not None:
        return model.network.kmac_per_pixel
    side = model.reduction
    y = infer_shapes(model.programs["g_a"], {"x": (3, side, side)})["y"][1]
    reductions = {"g_a": 1, "h_s": side}  # of what else: that of y
    counts = {
        name: macs_per_pixel(program, reductions.get(name, side // y), wide_factor) / 1000
        for name, program in model.programs.items()
    }
    decoder = sum(
        count
        for name, count in counts.items()
        if name in ("h_s", "g_s") or name.startswith(("context.", "refine."))
    )
    return sum(counts.values()) - counts["g_s"], decoder
