"""docs/study.md from its template: every figure in it is one of a study.

The template is the document with {names} in place of figures. `figures` gives a study's figures
their names; `fill` puts them in. A figure has three significant digits, or the places that follow
its name: {minnen2020.decode.kmac}, {predictors.cycles.worst:1}; {word:s} is text as it is.

    MODEL.weights_mb, .reach of a part...        of a model
    MODEL.encode.kmac ...                        of a direction
    MODEL.zcu102.decode.rewritten.fps ...        of a direction on a DPU
    MODEL.zcu102.decode.pipeline.fps ...         of a direction as our pipeline
    MODEL.advice.NUMBER.kmac ...                 of a change, decoding on the ZCU102
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping

from lichen.study.result import (
    DpuResult,
    ModelResult,
    PartResult,
    PipelineResult,
    Predictor,
    Study,
)
from lichen.study.tables import slug, write

Figure = float | int | str
NAME = re.compile(r"\{([a-z][\w.-]*)(?::(\w+))?\}")
ITEM = re.compile(r"(\d+\.|-) ")  # of a list
WIDTH = 100
BOUND_BY_PRODUCTS = ("minnen2020", "zou2022-wacnn")  # on the rooflines
SMALL = "student-s"  # what others are compared with
TINY = ("h_a", "h_s")  # subgraphs whose maps have 2 to 8 pixels


def fill(template: str, figures: Mapping[str, Figure]) -> str:
    """Put figures in the places of their names. Raises KeyError for a name that is none."""

    def value(match: re.Match[str]) -> str:
        found, form = figures[match[1]], match[2]
        if isinstance(found, str):
            return found
        return write(found) if form is None else f"{found:,.{int(form)}f}"

    return _wrapped(NAME.sub(value, template))


def _wrapped(text: str) -> str:
    """Break the lines of paragraphs and of items anew; tables, headings and code stay."""
    out: list[str] = []
    paragraph: list[str] = []
    code = False

    def flush() -> None:
        if paragraph:
            item = ITEM.match(paragraph[0])
            hang = " " * len(item[0]) if item else ""
            whole = " ".join(line.strip() for line in paragraph)
            out.append(
                textwrap.fill(
                    whole, WIDTH, subsequent_indent=hang, break_long_words=False,
                    break_on_hyphens=False,
                )
            )  # fmt: skip
            paragraph.clear()

    for line in text.split("\n"):
        code ^= line.startswith("```")
        if code or not line or line.startswith(("|", "#", "!", "`" * 3)):
            flush()
            out.append(line)
            continue
        if ITEM.match(line):
            flush()
        paragraph.append(line)
    flush()
    return "\n".join(out)


def names(template: str) -> list[str]:
    """List the figures that a template asks for."""
    return sorted({match[1] for match in NAME.finditer(template)})


def figures(study: Study, prefix: str = "") -> dict[str, Figure]:
    """Name what a study found. prefix: before every name, of a study that stands beside another."""
    found: dict[str, Figure] = {}
    for board in study.boards:
        found[f"{board.name}.dpu_gmac"] = board.dpu_peak_gmac_per_s
        found[f"{board.name}.pipeline_gmac"] = board.pipeline_peak_gmac_per_s
        pixels = study.video.width * study.video.height * study.video.frames_per_second
        found[f"{board.name}.pipeline_kmac"] = board.pipeline_peak_gmac_per_s * 1e6 / pixels
        found[f"{board.name}.dsp"] = int(0.85 * board.dsp)
        found[f"{board.name}.bram"] = int(0.85 * board.bram36)
        found[f"{board.name}.ridge"] = board.dpu_peak_gmac_per_s / board.dram_gbyte_per_s
        found[f"{board.name}.uram"] = int(0.85 * board.uram)
        found[f"{board.name}.lut"] = int(0.85 * board.lut)
    for model in study.models:
        of_model = _of_model(model, study)
        found |= {f"{model.name}.{name}": value for name, value in of_model.items()}
    points = [
        part.roofline[0].intensity_mac_per_byte
        for model in study.models
        if model.name in BOUND_BY_PRODUCTS
        for part in model.parts
    ]
    if points:
        found |= {"intensity.least": min(points), "intensity.most": max(points)}
    for curve in study.curves:
        if curve.bd_rate_vs_vtm_percent is not None:
            name = f"bd.{slug(curve.name)}".lower()
            found[name] = f"{curve.bd_rate_vs_vtm_percent:+.1f}"
    for predictor in study.predictors:
        found |= _of_predictor(predictor)
    return {prefix + name: value for name, value in found.items()}


def _of_model(model: ModelResult, study: Study) -> dict[str, Figure]:
    kmac = {part.name: part.kmac_per_pixel for part in model.parts}
    found: dict[str, Figure] = {
        "weights_mb": sum(part.weight_bytes_8bit for part in model.parts) / 1e6,
        "entropy_kmac": kmac.get("slices", 0.0) + kmac.get("lrp", 0.0),
    }
    kinds = Counter[str]()
    for part in model.parts:
        kinds.update({operation.kind: operation.count for operation in part.operations})
    found |= {f"count.{kind}": count for kind, count in kinds.items()}
    if model.quality.energy:
        found["energy"] = model.quality.energy[0].nanojoule_per_pixel
    small = next((other for other in study.models if other.name == SMALL), None)
    if small is not None:
        decode = [m.directions[1].kmac_per_pixel for m in (model, small)]
        found["times_student"] = decode[0] / decode[1]
    for part in model.parts:
        found |= {f"{part.name}.{name}": value for name, value in _of_part(part).items()}
    for d in model.directions:
        found |= {
            f"{d.direction}.kmac": d.kmac_per_pixel,
            f"{d.direction}.gmac_per_s": d.gmac_per_s_at_video,
            f"{d.direction}.weights_mb": d.weight_bytes_8bit / 1e6,
            f"{d.direction}.steps": d.serial_steps,
            f"{d.direction}.symbols": round(d.symbols_per_pixel, 2),
            f"{d.direction}.activations": d.activation_total_bytes_per_pixel,
        }
    for dpu in model.dpu:
        key = f"{dpu.board}.{dpu.direction}.{dpu.variant.split()[-1]}"
        found |= {f"{key}.{name}": value for name, value in _of_dpu(dpu).items()}
        if dpu.frames_per_second:  # nothing runs there: no speed
            found[f"{key}.times_short"] = study.video.frames_per_second / dpu.frames_per_second
    for core in model.pipeline:
        key = f"{core.board}.{core.direction}.pipeline"
        found |= {f"{key}.{name}": value for name, value in _of_pipeline(core).items()}
        weights = next(d for d in model.directions if d.direction == core.direction)
        found[f"{key}.weights_ratio"] = weights.weight_bytes_8bit / core.on_chip_bytes_available
    for advice in model.advice:
        for effect in advice.effects:
            for quantity, name in (
                ("decode: products", "kmac"),
                ("decode: passes that wait for one another", "steps"),
                ("decode, zcu102: DPU frames per second, rewritten", "fps"),
            ):
                if effect.quantity == quantity:
                    found[f"advice.{slug(advice.title).lower()}.{name}"] = effect.after
    return found


def _of_part(part: PartResult) -> dict[str, Figure]:
    counts = {operation.kind: operation.count for operation in part.operations}
    return {
        "kmac": part.kmac_per_pixel,
        "lines_mb": part.line_buffer_bytes_1920 / 1e6,
        "field": part.receptive_field_pixels or 0,
        "permutes": counts.get("permute", 0),
        "layer_norms": counts.get("layer_norm", 0),
        "intensity": part.roofline[0].intensity_mac_per_byte if part.roofline else 0.0,
    }


def _of_dpu(dpu: DpuResult) -> dict[str, Figure]:
    return {
        "fps": dpu.frames_per_second,
        "ms": dpu.dpu_ms,
        "overhead_ms": dpu.overhead_ms,
        "weights_ms": dpu.weights_ms,
        "efficiency": round(100 * dpu.efficiency),
        "share": 100 * dpu.runs_on_dpu_share,
        "subgraphs": dpu.subgraphs,
        "calls": dpu.calls_per_frame,
        "cpu_ms": dpu.cpu_ms_at_least,
        "entropy_ms": round(dpu.entropy_ms or 0.0),
    }


def _of_pipeline(core: PipelineResult) -> dict[str, Figure]:
    found: dict[str, Figure] = {"dsp": core.dsp_for_video}
    found |= {f"used_{name}": "not planned" for name in ("dsp", "bram36", "uram", "lut")}
    for use in core.resources:
        found[f"used_{use.resource}"] = use.used if use.used % 1 else int(use.used)
    if core.frames_per_second_at_most is not None:
        found["at_most"] = core.frames_per_second_at_most
    if core.frames_per_second is not None:
        found["fps"] = core.frames_per_second
    found["verdict"] = (
        f"{write(core.frames_per_second)} frames/s"
        if core.fits and core.frames_per_second is not None
        else f"does not fit: {core.limit}"
    )
    return found


def _of_predictor(predictor: Predictor) -> dict[str, Figure]:
    key = "predictors." + predictor.name.replace(" ", "_")
    groups = {"": list(predictor.checks)}
    if predictor.name == "dpu subgraphs":
        tiny = [c for c in predictor.checks if c.name.split(" (ZCU")[0].endswith(_tiny())]
        groups |= {".tiny": tiny, ".large": [c for c in predictor.checks if c not in tiny]}
    groups[".held_out"] = [check for check in predictor.checks if check.role == "check"]
    found: dict[str, Figure] = {
        f"{key}.names": len({check.name.split(" (")[0] for check in predictor.checks})
    }
    for group, checks in groups.items():
        errors = sorted(abs(check.error_percent) for check in checks)
        if not errors:
            continue
        worst = max(checks, key=lambda check: abs(check.error_percent))
        half = len(errors) // 2
        median = errors[half] if len(errors) % 2 else (errors[half - 1] + errors[half]) / 2
        found |= {
            f"{key}{group}.count": len(errors),
            f"{key}{group}.worst": errors[-1],
            f"{key}{group}.worst_name": worst.name,
            f"{key}{group}.median": median,
        }
    return found


def _tiny() -> tuple[str, ...]:
    return tuple(f"{part}{tool}" for part in TINY for tool in ("", ", by xdputil"))
