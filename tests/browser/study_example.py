"""A small study, made up, for the tests of its page: two boards, three models."""

from __future__ import annotations

from lichen.study.result import (
    Advice,
    BoardResult,
    Check,
    Constant,
    Curve,
    Direction,
    DirectionResult,
    DpuResult,
    Effect,
    Energy,
    LayerResult,
    LayerVerdict,
    ModelResult,
    OperationCount,
    PartResult,
    PipelineResult,
    PlaceCount,
    Predictor,
    Quality,
    ResourceUse,
    RooflinePoint,
    StagePlanResult,
    Study,
    Variant,
    Video,
)

HOSTILE = 'x<script>alert("1")</script>&y'
BOARDS = {"kv260": (1248, 144, 64, 117120, 1, 300.0), "zcu102": (2520, 912, 0, 274080, 3, 281.0)}
VERDICTS = (
    LayerVerdict("dpu", "", "kernel 1-16", "UG1414 3.5", ""),
    LayerVerdict("rewrite", "output_padding is 1", "output_padding must be 0", "dpu.md 1.3",
                 "a 6x6 kernel with a row of zeros"),
    LayerVerdict("cpu", "no such operation", "add, mul only", "UG1414 3.5", ""),
    LayerVerdict("free", "fused", "", "", ""),
)  # fmt: skip
KINDS = ("conv", "deconv", "gdn", "relu")


def board(name: str) -> BoardResult:
    """Make a board with its true counts."""
    dsp, bram, uram, lut, cores, clock = BOARDS[name]
    return BoardResult(
        name, name.upper(), "a part", dsp, bram, uram, lut, 2 * lut, 4608 * bram + 36864 * uram,
        19.2, "B4096", cores, clock, 2.048 * cores * clock, 300.0, 0.85 * dsp * 0.6,
        ("DS891, table 1",),
    )  # fmt: skip


def part(name: str, directions: tuple[Direction, ...], kmac: float) -> PartResult:
    """Make a part of four layers, one for each place."""
    layers = tuple(
        LayerResult(f"{name}.{i}", kind, "5x5 /2, 128 -> 128", 0.5**i, kmac / 2 if i < 2 else 0.0,
                    1000, 1000, 8.0, 4.0, 1, verdict, 1000 * (i < 2))
        for i, (kind, verdict) in enumerate(zip(KINDS, VERDICTS))
    )  # fmt: skip
    roofline = tuple(
        RooflinePoint(b, 20 + kmac, 400 + kmac, 600.0, "memory", 3e5 / kmac / 62.2) for b in BOARDS
    )
    return PartResult(
        name, directions, kmac, 4000, 4000, 2000, 12.0, 64.0, 1, None, 5000, 10000,
        tuple(OperationCount(kind, 1, kmac / 2 if i < 2 else 0.0) for i, kind in enumerate(KINDS)),
        roofline, layers,
    )  # fmt: skip


def model(name: str, kmac: float, fits: bool, curves: tuple[str, ...]) -> ModelResult:
    """Make a model of four parts that takes so many kMAC per pixel in each direction."""
    parts = (
        part("g_a", ("encode",), 0.8 * kmac), part("h_a", ("encode",), 0.1 * kmac),
        part("h_s", ("encode", "decode"), 0.1 * kmac), part("g_s", ("decode",), 0.9 * kmac),
    )  # fmt: skip
    ways: tuple[Direction, ...] = ("encode", "decode")
    variants: tuple[Variant, ...] = ("as published", "rewritten")
    directions = tuple(
        DirectionResult(d, kmac, 12000, 12000, 6000, 24.0, 256.0, 1, 9000, 18000, 0.7, 62.2 * kmac)
        for d in ways
    )
    dpu = tuple(
        DpuResult(
            b, d, v, BOARDS[b][4], BOARDS[b][5], 1.0 if i else 0.4,
            (PlaceCount("g_a", 1, 1, 1, 1),), 1 if i else 9, 9, kmac * (1 + i),
            kmac * (0.7 + i), 0.1 * kmac, 0.1 * kmac, 0.1 * kmac,
            0.9, 3000 / kmac, 0.0 if i else 12.0, 4.5, kmac < 80,
            () if i else ("GDN is in the way",),
        )
        for b in BOARDS for d in ways for i, v in enumerate(variants)
    )  # fmt: skip
    pipeline = tuple(
        PipelineResult(
            b, d, fits, "" if fits else "softmax", fits, () if fits else ("GDN: a ReLU",), fits,
            fits,
            "" if fits else "weights take 3 times the memory",
            (ResourceUse("dsp", 900, 0.85 * BOARDS[b][0], BOARDS[b][0]),
             ResourceUse("uram", 10, 0.85 * BOARDS[b][2], BOARDS[b][2])),
            9_000_000 if fits else None, 4.4 if fits else None, 33.0 if fits else None, 400 / kmac,
            300.0, fits, 300.0 if fits else None, 900, 3_000_000, 2_900_000,
            (StagePlanResult("g_a.0", "Conv", 64, 8_000_000, 0.9, 32, 4.0, 1, 800, 1600),) * fits,
        )
        for b in BOARDS for d in ways
    )  # fmt: skip
    advice = Advice("Replace GDN", "a ReLU in its place", "the DPU has no division", True,
                    "not known", "the paper",
                    (Effect("decode, kv260: DPU time", "ms", 10.0, 5.0, False),
                     Effect("encode: products", "kMAC/pixel", 8.0, 9.0, False)))  # fmt: skip
    return ModelResult(
        name, f"The model {name}", "A paper, 2020", "catalogue", True, "" if fits else "a note",
        {"n": 128}, 5_000_000, "hyperprior", 1, 64, fits, "" if fits else "softmax", parts,
        directions, dpu, pipeline, (advice,),
        Quality(curves, "", (Energy(120.0, "on a board", "a paper", "from its table"),)),
    )  # fmt: skip


def example() -> Study:
    """Make the study."""
    curves = (
        Curve("student-s", "measured", "model", "here", (0.2, 0.8, 1.6), (28.0, 33.0, 37.0), 8.9,
              "counted here", -35.0, 60.0, 95.0),
        Curve("minnen2020 (paper)", "published", "model", "ICIP 2020", (0.1, 0.6, 1.2),
              (29.0, 35.0, 38.0), 481.0, "counted here", -66.0, -20.5, 1.1),
        Curve("ELIC", "published", "peer", "CVPR 2022", (0.1, 0.9), (29.0, 37.0), 573.9, "HPCM",
              -68.0, -26.6, -7.0),
        Curve("VTM", "published", "classical", "CompressAI", (0.05, 0.4, 1.5), (28.0, 34.0, 40.0),
              None, "", -67.6, -18.0, 0.0),
        Curve("JPEG 4:2:0", "published", "classical", "CompressAI", (0.3, 0.9, 2.0),
              (27.0, 32.0, 36.0), None, "", 0.0, 143.0, 208.5),
    )  # fmt: skip
    checks = tuple(
        Check(
            f"net {i}", 10.0 * i * (1 + 0.01 * i), 10.0 * i, "ms", 1.0 * i, "check", "a table", ""
        )
        for i in range(5, 0, -1)
    )
    return Study(
        "0.0", "2026-11-22", 1.5, Video(1920, 1080, 30.0), tuple(board(name) for name in BOARDS),
        (model("student", 9.0, True, ("student-s",)),
         model("minnen2020", 480.0, False, ("minnen2020 (paper)",)),
         model(HOSTILE, 90.0, False, ())),
        (Predictor("dpu subgraphs", "DPU, subgraphs", "scripts/x", "within 6 %",
                   (Constant("call", 0.1, "ms", "per call"),), checks, ""),
         Predictor("pipeline cycles", "pipeline, cycles", "scripts/y", "within 2 %", (), (),
                   "no results yet")),
        curves, ("One note.",),
    )  # fmt: skip
