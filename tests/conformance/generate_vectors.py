"""Make the conformance vectors: python tests/conformance/generate_vectors.py [--check]

Writes tests/conformance/vectors (the manifest, streams, Programs) and the counts in
docs/conformance.md. What a case must give is computed by the reference executor. The models are
tiny_models.py's, which are read, not made; the installed ones are pinned as they are, so that new
weights need a new set. With --check nothing is written, and the exit code says whether the set is
what this script makes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import rans_cases
import refusals
from forge import chunk, forge, header_of, micro_model, parts_of
from harness import Case, cases
from numpy.typing import NDArray
from PIL import Image
from tiny_models import picture

from lichen import model as models
from lichen.api import Codec
from lichen.conformance import FORMAT, KINDS, Recorder, digest_of_array, digests_of_picture
from lichen.executors import Executor, ReferenceExecutor
from lichen.model import GAIN_ROWS, ROW_STEP, Model
from lichen.picture import from_image
from lichen.program import file as program_file
from lichen.program import run

VECTORS = Path(__file__).parent / "vectors"
PAGE = Path(__file__).parent.parent.parent / "docs" / "conformance.md"
BEGIN, END = "<!-- counts: written by tests/conformance/generate_vectors.py -->\n", "<!-- end -->\n"
SAMPLE = Path(__file__).parent.parent / "samples" / "kodim23.webp"
Z_ENDS = np.array([127, -128, 0, 127, 127, -128, -128, 1])
EDGES = (
    "conv-shifts-0-to-31-s8-s8", "conv-int32-limit", "conv-s16-bytes", "conv-ties-1-s",
    "conv-ties-4-u", "conv-ties-7-s8", "conv-ties-8-to-29", "conv-padding",
    "conv-7to14-3x3-s1-g7-6x9-u8", "conv-7to14-3x3-s1-g7-6x9-s16", "conv-8to8-3x3-s1-g8-9x17-u8",
    "conv-16to8-3x3-s1-g2-8x9-u8", "conv-4to6-4x4-s2-g1-9x10-u8", "conv-6to6-1x3-s1-g1-5x19-u8",
    "gdn-edges-p1-forward-0", "gdn-edges-p1-inverse-16", "gdn-edges-p2-forward-0",
    "gdn-edges-p2-inverse-8",
)  # fmt: skip
EDGE_WORDS = ("add-ties", "twice", "table-index", "clamp", "slice", "vector", "square-limit")
SLOW = {"slow": ["reference", "torch", "onnx", "rtl"]}
LARGE = {"slow": ["rtl"]}  # hundreds of channels: scripts/bench-rtl simulates these


class Set:
    """The vectors as they come to be: files by name, cases in order."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.files: dict[str, bytes] = {}
        self.cases: list[dict[str, Any]] = []
        self.models: dict[str, Model] = {}
        for path in sorted((VECTORS / "models").glob("*.safetensors")):
            if path.stem != "micro":
                self.add_model(f"models/{path.name}", path.read_bytes())
        self.add_model("models/micro.safetensors", micro_model().to_bytes())
        for path in models.installed():
            self.add_model(f"installed/{path.name}", path.read_bytes())

    def add_model(self, name: str, data: bytes) -> None:
        self.files[name] = data
        self.models[name] = models.from_bytes(data)

    def model(self, name: str) -> tuple[str, Model]:
        """Find a model by the stem of its file."""
        return next((file, m) for file, m in self.models.items() if Path(file).stem == name)

    def stream(self, name: str, model: str, data: bytes, **fields: Any) -> dict[str, Any]:
        """Add a valid stream; returns its case."""
        file, read = self.model(model)
        recorder = Recorder(self.executor)
        found = Codec(read, executor=recorder).decode(data)
        self.files[f"streams/{name}.lic"] = data
        case = {"kind": "stream", "name": name, "model": file, "file": f"streams/{name}.lic"}
        expected = {"picture": digests_of_picture(found), "points": recorder.points}
        self.cases.append({**case, **expected, **fields})
        return self.cases[-1]

    def encoded(self, name: str, model: str, source: str, **options: Any) -> None:
        """Add a stream that encoding a picture gives."""
        recorder = Recorder(self.executor)
        file, read = self.model(model)
        large = LARGE if file.startswith("installed/") else {}
        image = Image.open(BytesIO(self.files[source]))
        encoded = Codec(read, executor=recorder).encode(from_image(image), **options)
        case = self.stream(name, model, encoded.data)
        points = {k: v for k, v in recorder.points.items() if k not in case["points"]}
        both = recorder.points.keys() & case["points"].keys()
        assert all(recorder.points[k] == case["points"][k] for k in both), name
        case |= {"source": source, "encode": options, "encode_points": points, **large}

    def forged(
        self, name: str, model: str, width: int, height: int, z: Any, symbols: Any,
        slow: bool = False, chunks: dict[str, bytes] | None = None, **header: Any,
    ) -> bytes:  # fmt: skip
        """Add a stream of any hyper-latents and symbols."""
        _, read = self.model(model)
        fields = header_of(read, width, height, **header)
        data = forge(read, self.executor, fields, z, symbols, **chunks or {})
        self.stream(name, model, data, **SLOW if slow else {})
        return data

    def picture(self, name: str, pixels: NDArray[np.uint8]) -> str:
        """Add a PNG; the file that is there stays if it holds these pixels, whoever packed it."""
        path = VECTORS / "pictures" / f"{name}.png"
        image = Image.fromarray(pixels)
        if path.is_file() and np.array_equal(np.asarray(Image.open(path)), pixels):
            data = path.read_bytes()
        else:
            buffer = BytesIO()
            image.save(buffer, "PNG", optimize=True)
            data = buffer.getvalue()
        self.files[f"pictures/{name}.png"] = data
        return f"pictures/{name}.png"


def encoded_cases(out: Set) -> None:
    """Add sizes at every boundary, qualities, grey, stripes; every model that is there."""
    tiny = [Path(name).stem for name in out.models if name.startswith("models/")]
    sizes = [(1, 1), (1, 65), (65, 1), (63, 64), (64, 64), (64, 65), (65, 63), (127, 9), (129, 5),
             (15, 16), (16, 17), (3, 130)]  # fmt: skip
    for turn, (width, height) in enumerate(sizes):
        source = out.picture(f"{width}x{height}", smooth(height, width))
        name = tiny[turn % len(tiny)]
        out.encoded(f"size-{width}x{height}-{name}", name, source, quality=60, digest=turn % 2 == 0)
    source = out.picture("33x20", smooth(20, 33))
    for name in tiny:
        for position in (0, 400, 800):
            quality = position / 8
            out.encoded(f"position-{position}-{name}", name, source, quality=quality, digest=True)
    for position in (1, 15, 16, 17, 799):
        out.encoded(f"position-{position}-student", "student", source, quality=position / 8)
    for name in tiny:  # the last position of a row of tables, and the first of the next
        tables = out.model(name)[1].z_tables
        if tables.ndim == 1:
            continue
        changes = [k for k in range(1, GAIN_ROWS) if not np.array_equal(tables[k], tables[k - 1])]
        for position in (k * ROW_STEP - ROW_STEP // 2 - d for k in changes[:1] for d in (1, 0)):
            out.encoded(f"position-{position}-{name}", name, source, quality=position / 8)
    grey = out.picture("grey-30x21", smooth(21, 30)[..., 1])
    for name in tiny:
        out.encoded(f"grey-{name}", name, grey, quality=70, digest=True)
    tall = out.picture("8x200", smooth(200, 8))
    for turn, stripe in enumerate((1, 2, 3, 4, 1024)):
        name = tiny[turn % len(tiny)]
        out.encoded(f"stripe-{stripe}-{name}", name, tall, quality=50, stripe=stripe, digest=True)
    crop = Image.open(SAMPLE).convert("RGB").crop((500, 250, 564, 304))
    shipped = out.picture("sample-64x54", np.asarray(crop))
    shipped_grey = out.picture("sample-grey-64x54", np.asarray(crop.convert("L")))
    for file in out.models:
        if not file.startswith("installed/"):
            continue
        name = Path(file).stem
        for quality in range(0, 101, 10):
            out.encoded(f"{name}-quality-{quality}", name, shipped, quality=quality, digest=True)
        out.encoded(f"{name}-grey", name, shipped_grey, quality=50, digest=True)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """Give pixels (H, W, 3) with edges and ends of the range that pack small."""
    return picture(height, width, 3) // 32 * 36


def forged_cases(out: Set) -> None:
    """Add what no picture leads to: ends of ranges, every length of an escape, largest sizes."""
    ends = {"highest": [32767], "lowest": [-32768], "both": [32767, -32768, -32768, 0]}
    for file in list(out.models):
        if file.startswith("models/"):
            name = Path(file).stem
            for which, symbols in ends.items():
                out.forged(f"symbols-{which}-{name}", name, 20, 9, Z_ENDS, symbols, digest=True)
    steps = [s * 8**k + d for k in range(5) for s in (1, -1) for d in (-1, 0, 1)]
    for position in (0, 400, 800):
        out.forged(f"escapes-{position}-micro", "micro", 70, 65, np.arange(-128, 128, 5),
                   [*steps, -300, 299, 32766], position=position)  # fmt: skip
    out.forged("width-65535-micro", "micro", 65535, 1, [0], [-2], slow=True)
    out.forged("height-65535-micro", "micro", 1, 65535, [0], [-2], slow=True, stripe=1024)
    out.forged("stripes-of-one-row-micro", "micro", 1, 640, [0, 5], [-2, 0], stripe=1)


def container_cases(out: Set) -> None:
    """Add what the container allows: metadata, alpha, chunks to be skipped, lengths of varints."""
    plain = ("micro", 5, 3, [1], [0, 1, -2])
    texts = {"icc": b"profile", "exif": b"II*\0", "xmp": b"<x/>"}
    for name, text in texts.items():
        out.forged(f"only-{name}-micro", *plain, chunks={name: text})
    alpha = refusals.png(5, 3, bytes(range(0, 255, 17)))
    out.forged("alpha-micro", *plain, chunks={"alpha": alpha})
    out.forged("alpha-grey-micro", *plain, chunks={"alpha": alpha}, channels=1, digest=True)
    everything = out.forged(
        "everything-micro", *plain, chunks={**texts, "alpha": alpha}, digest=True
    )
    for size in (127, 128, 16384):
        out.forged(f"length-{size}-micro", *plain, chunks={"icc": bytes(size)})
    parts = parts_of(everything)
    skipped = chunk(b"a", b"") + chunk(b"z", b"\0" * 200) + chunk(b"s", b"S")
    out.stream("skipped-chunks-micro", "micro", parts[0] + b"".join(skipped + p for p in parts[1:]))


def refused_cases(out: Set) -> None:
    file, model = out.model("micro")
    for name, error, data in refusals.refusals(model, out.executor):
        out.files[f"refuse/{name}.lic"] = data
        out.cases.append(
            {"kind": "refuse", "name": name, "model": file, "file": f"refuse/{name}.lic",
             "error": error}
        )  # fmt: skip


def program_cases(out: Set) -> None:
    """Add Programs, all of one operation in one file."""
    groups: dict[str, list[Case]] = {}
    for case in chosen():
        groups.setdefault(case.name.split("-")[0], []).append(case)
    for group, members in groups.items():
        arrays: dict[str, NDArray[Any]] = {}
        text: dict[str, str] = {}
        for case in members:
            description, parts = program_file.pack_program(case.program, case.name)
            text[case.name] = json.dumps(description, separators=(",", ":"))
            arrays |= parts
            for name, array in (*case.inputs.items(), *case.vectors.items()):
                arrays[f"{case.name}/{name}"] = np.ascontiguousarray(array)
            expected = run(case.program, case.inputs, case.vectors)
            digests = {name: digest_of_array(array) for name, array in expected.items()}
            out.cases.append(
                {"kind": "program", "name": case.name, "file": f"programs/{group}.safetensors",
                 "outputs": digests}
            )  # fmt: skip
        out.files[f"programs/{group}.safetensors"] = program_file.to_bytes(arrays, text)


def chosen() -> Iterator[Case]:
    """Choose of the cases of the harness: those at the edges, and of the others small ones."""
    sizes: dict[str, int] = {}
    for case in cases():
        _, parts = program_file.pack_program(case.program, case.name)
        arrays = (*case.inputs.values(), *parts.values())
        size = sum(array.nbytes for array in arrays)
        group = case.name.split("-")[0]
        if case.name == "program-names":
            continue  # names that another language's reader of JSON may not take
        edge = case.name.startswith(EDGES) or any(word in case.name for word in EDGE_WORDS)
        room = sizes.get(group, 0) + size < 4_000
        if not edge and room:
            sizes[group] = sizes.get(group, 0) + size
        if edge or room:
            yield case


def build(executor: Executor) -> tuple[dict[str, bytes], bytes]:
    """Give all files but the manifest, and the manifest."""
    out = Set(executor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoded_cases(out)
        forged_cases(out)
        container_cases(out)
        refused_cases(out)
        program_cases(out)
        out.cases += rans_cases.rans_cases()
    names = [(case["kind"], case["name"]) for case in out.cases]
    assert len(set(names)) == len(names), "two cases have the same name"
    files = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(out.files.items())}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in out.cases)
    manifest = (
        f'{{"format":{FORMAT},\n"files":{json.dumps(files, indent=0)},\n"cases":[\n{lines}\n]}}\n'
    )
    kept = {name: data for name, data in out.files.items() if not name.startswith("installed/")}
    return kept, manifest.encode()


def counts(manifest: bytes, size: int) -> str:
    """Give the number of cases of each kind as Markdown, for docs/conformance.md."""
    found = Counter(case["kind"] for case in json.loads(manifest)["cases"])
    rows = "".join(f"| `{kind}` | {found[kind]} |\n" for kind in KINDS)
    return (
        f"| kind | cases |\n| --- | ---: |\n{rows}| all, {round(size / 1000)} kB | "
        f"{sum(found.values())} |\n"
    )


def with_counts(page: str, text: str) -> str:
    """Give the page with these counts between its marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + text + END + rest.split(END, 1)[1]


def main(check: bool) -> int:
    files, manifest = build(ReferenceExecutor())
    files["manifest.json"] = manifest
    there = {str(p.relative_to(VECTORS)): p for p in sorted(VECTORS.rglob("*")) if p.is_file()}
    changed = [name for name, data in files.items()
               if name not in there or there[name].read_bytes() != data]  # fmt: skip
    surplus = sorted(there.keys() - files.keys())
    for name in [] if check else changed:
        (VECTORS / name).parent.mkdir(parents=True, exist_ok=True)
        (VECTORS / name).write_bytes(files[name])
    for name in [] if check else surplus:
        there[name].unlink()
    size = sum(map(len, files.values()))
    page = PAGE.read_text("utf-8")
    if not check:
        PAGE.write_text(with_counts(page, counts(manifest, size)), "utf-8")
    print(f"{len(json.loads(manifest)['cases'])} cases, {len(files)} files, {size} bytes; "
          f"{len(changed)} files new or changed, {len(surplus)} too many")  # fmt: skip
    return int(check and bool(changed or surplus))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
