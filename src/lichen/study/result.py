"""What a study finds, as data: one tree of frozen dataclasses that JSON can hold.

    Study
      boards[]                      what was asked for, and what each board has
      models[]
        parts[]                     g_a, g_s, h_a, h_s, slices, lrp: costs, roofline points
          operations[]              histogram by kind
          layers[]                  every layer, with its DPU verdict
        directions[]                encode and decode: the sums of the parts that run in them
        dpu[]                       by board, direction and variant ("as published", "rewritten")
        pipeline[]                  by board and direction
        advice[]                    changes and their predicted effect
        quality                     rate-distortion, and where it comes from
      predictors[]                  how wrong each formula has been, row by row, worst first
      curves[]                      peers and classical codecs, for the chart

Units are in the names. "per pixel" is per pixel of picture. None: not known or not applicable;
the field beside it says why where that is not plain. Board and model names are keys: they join the
lists. `to_json` gives plain dicts and lists. `study.study(names, boards, video)` makes it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lichen.boards.vitis_ai.rules import LayerVerdict

Direction = Literal["encode", "decode"]
Variant = Literal["as published", "rewritten"]


@dataclass(frozen=True)
class LayerResult:
    """One layer. shape: such as "5x5 /2, 128 -> 192"; scale: its output's rows per picture row.

    cycles_dpu: of one B4096 core for one frame of the study's video, in the place that `dpu` says
    after rewriting; 0 where nothing runs there.
    """

    name: str  # dotted, as in the module
    kind: str  # "conv", "deconv", "gdn", "relu", "attention", ... (study.layers.Kind)
    shape: str
    scale: float
    kmac_per_pixel: float
    parameters: int
    weight_bytes_8bit: int
    input_bytes_per_pixel: float
    output_bytes_per_pixel: float
    runs: int  # times in one pass of the part (1, unless shared weights are used again)
    dpu: LayerVerdict
    cycles_dpu: int


@dataclass(frozen=True)
class OperationCount:
    """How many layers of a kind there are, and their products."""

    kind: str
    count: int
    kmac_per_pixel: float


@dataclass(frozen=True)
class RooflinePoint:
    """A part on a board's roofline, one B4096 core... all cores together.

    intensity: MAC per byte of DRAM traffic (weights once a frame, activations of every layer in and
    out, 8 bits). attainable: the lower of the compute roof and bandwidth * intensity.
    intensity_fused counts only the part's inputs, outputs and weights: what a pipeline of layers
    needs (weights on chip do not count there).
    """

    board: str
    intensity_mac_per_byte: float
    intensity_fused_mac_per_byte: float | None  # None: no bytes at all
    attainable_gmac_per_s: float
    bound: Literal["memory", "compute"]
    frames_per_second_at_roof: float


@dataclass(frozen=True)
class PartResult:
    """One part of a model. Line buffers: rows that windows must hold for a picture of that width,
    at 8 bits (and 16 where a tensor is s16 in the integer model), no DRAM."""

    name: str
    directions: tuple[Direction, ...]
    kmac_per_pixel: float
    parameters: int
    weight_bytes_8bit: int
    weight_bytes_4bit: int
    activation_peak_bytes_per_pixel: float  # of the tensors that live at once
    activation_total_bytes_per_pixel: float  # written by all layers and read by the next, 8 bits
    serial_steps: int  # passes that wait for one another in decoding; 1: none
    receptive_field_pixels: int | None  # side; None: not local (global attention) or unknown
    line_buffer_bytes_1920: int
    line_buffer_bytes_3840: int
    operations: tuple[OperationCount, ...]
    roofline: tuple[RooflinePoint, ...]
    layers: tuple[LayerResult, ...]


@dataclass(frozen=True)
class DirectionResult:
    """What encoding or decoding a picture takes: sums of the parts that run in it."""

    direction: Direction
    kmac_per_pixel: float
    parameters: int
    weight_bytes_8bit: int
    weight_bytes_4bit: int
    activation_peak_bytes_per_pixel: float
    activation_total_bytes_per_pixel: float
    serial_steps: int
    line_buffer_bytes_1920: int
    line_buffer_bytes_3840: int
    symbols_per_pixel: float  # to entropy-code, latents and hyper-latents
    gmac_per_s_at_video: float  # that the video asks for


@dataclass(frozen=True)
class PlaceCount:
    """How many layers of a part go where."""

    part: str
    dpu: int
    cpu: int
    rewrite: int
    free: int


@dataclass(frozen=True)
class DpuResult:
    """A direction of a model on a board's DPU, for one frame of the study's video.

    dpu_ms is the predicted time of all DPU subgraphs on ONE core, the sum of compute_ms, memory_ms,
    weights_ms and overhead_ms (memory_ms: loads and saves that multiplying does not hide; overhead:
    calls and layers). frames_per_second: of the DPU alone, all cores at work on different frames,
    so an upper bound of the system's. cpu_ms_at_least: traffic of the operations left to the CPU
    at the full DRAM bandwidth; a lower bound, computing not counted. entropy_ms: symbols at the
    measured time per symbol of one A53 core; None where the source has none for the board.
    """

    board: str
    direction: Direction
    variant: Variant
    cores: int
    clock_mhz: float
    runs_on_dpu_share: float  # of the products
    places: tuple[PlaceCount, ...]
    subgraphs: int  # DPU subgraphs; a CPU operation between them cuts
    calls_per_frame: int  # with serial steps counted each time
    dpu_ms: float
    compute_ms: float
    memory_ms: float
    weights_ms: float
    overhead_ms: float
    efficiency: float  # MAC / (peak * dpu_ms), one core; MACs as the layers count them
    frames_per_second: float
    cpu_ms_at_least: float
    entropy_ms: float | None
    meets_video: bool  # frames_per_second >= the video's
    limits: tuple[str, ...]  # what stands in the way, worst first, each one sentence


@dataclass(frozen=True)
class StagePlanResult:
    """A stage of the folded pipeline, with its memories where they lie on that board."""

    name: str
    operation: str
    multipliers: int
    cycles: int
    busy_share: float
    dsp: int
    bram36: float
    uram: int
    lut: int
    ff: int


@dataclass(frozen=True)
class ResourceUse:
    """One resource of a part. available: all of it; limit: what a core may take."""

    resource: Literal["dsp", "bram36", "uram", "lut", "ff"]
    used: float
    limit: float
    available: float

    @property
    def share(self) -> float:
        """Of what the part has; infinite where it has none and some is needed."""
        if self.available:
            return self.used / self.available
        return float("inf") if self.used else 0.0


@dataclass(frozen=True)
class PipelineResult:
    """A direction of a model as our pipeline core on a board.

    exact: from the stages of a real folding (`lichen synth`); otherwise the closed formulas of the
    same folding (products per DSP, weight and line memory) on the layer list, for a model with
    operations that have no hardware or that no folding fits: what it would take at least.
    """

    board: str
    direction: Direction
    lowers: bool  # to the integer contract
    lowers_reason: str
    has_hardware: bool
    missing: tuple[str, ...]  # operations without hardware, "GDN: a ReLU (output type u8)"
    exact: bool
    fits: bool
    limit: str  # what limits and by how much, one sentence; "" where it fits
    resources: tuple[ResourceUse, ...]
    cycles_per_frame: int | None
    cycles_per_pixel: float | None
    frames_per_second: float | None  # at the assumed clock, of the folding shown
    frames_per_second_at_most: float | None  # by the DSPs alone: LIMIT * DSP * 2 * clock / MAC
    clock_mhz: float
    meets_video: bool
    lag_lines: float | None
    dsp_for_video: int  # that the video's products need at full occupancy
    on_chip_bytes: int  # weights (8 bits) and lines at the video's width
    on_chip_bytes_available: int
    stages: tuple[StagePlanResult, ...]


@dataclass(frozen=True)
class Effect:
    """A figure before and after a change. higher_is_better tells which way is good."""

    quantity: str  # such as "decode, zcu102: DPU ms per frame"
    unit: str
    before: float
    after: float
    higher_is_better: bool

    @property
    def factor(self) -> float:
        """After / before; infinite from 0."""
        return self.after / self.before if self.before else float("inf")


@dataclass(frozen=True)
class Advice:
    """A change of the model and what the same formulas predict of the changed layer list.

    costs: what is known of the loss in quality, with its source; "not known" where nothing is.
    """

    title: str
    change: str
    reason: str
    needs_training: bool
    costs: str
    source: str
    effects: tuple[Effect, ...]


@dataclass(frozen=True)
class Curve:
    """Points of rate and PSNR on Kodak (mean of pictures). origin: measured here or published."""

    name: str
    origin: Literal["measured", "published"]
    kind: Literal["model", "peer", "classical"]
    source: str
    bpp: tuple[float, ...]
    psnr_rgb_db: tuple[float, ...]
    decode_kmac_per_pixel: float | None
    decode_kmac_source: str  # "" where None
    bd_rate_vs_jpeg_percent: float | None
    bd_rate_vs_bpg_percent: float | None
    bd_rate_vs_vtm_percent: float | None


@dataclass(frozen=True)
class Energy:
    """Energy that a source gives for a model like this one."""

    nanojoule_per_pixel: float
    what: str  # device, what was coded, what the figure holds
    source: str
    derived: str  # how it follows from what the source says; "" where it stands there


@dataclass(frozen=True)
class Quality:
    """What a model buys. curves: names in Study.curves, measured ones first."""

    curves: tuple[str, ...]
    note: str  # "" or why there is none, or what differs from the model studied
    energy: tuple[Energy, ...]


@dataclass(frozen=True)
class ModelResult:
    """One model. recognised: by the catalogue; otherwise counted layer by layer, parts being the
    top-level modules (and `note` says what is not known)."""

    name: str
    title: str
    paper: str
    origin: Literal["catalogue", "checkpoint", "module"]
    recognised: bool
    note: str
    arguments: dict[str, Any]
    parameters: int
    order: str  # of decoding: "factorised", "hyperprior", "channel-wise", "unknown"
    slices: int
    reduction: int | None  # pictures are padded to a multiple of this
    lowers: bool  # to the integer contract
    lowers_reason: str
    parts: tuple[PartResult, ...]
    directions: tuple[DirectionResult, ...]
    dpu: tuple[DpuResult, ...]
    pipeline: tuple[PipelineResult, ...]
    advice: tuple[Advice, ...]
    quality: Quality


@dataclass(frozen=True)
class BoardResult:
    """A board as its file describes it. peak: one DPU core, 8 bits."""

    name: str
    title: str
    device: str
    dsp: int
    bram36: int
    uram: int
    lut: int
    ff: int
    on_chip_bytes: int
    dram_gbyte_per_s: float
    dpu_architecture: str
    dpu_cores: int
    dpu_clock_mhz: float
    dpu_peak_gmac_per_s: float  # all cores
    pipeline_clock_mhz: float  # assumed
    pipeline_peak_gmac_per_s: float  # two products per DSP, all of the LIMIT share
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Video:
    """What is to be coded."""

    width: int
    height: int
    frames_per_second: float


@dataclass(frozen=True)
class Check:
    """A prediction beside a measurement. error_percent: (predicted / measured - 1) * 100."""

    name: str
    predicted: float
    measured: float
    unit: str
    error_percent: float
    role: Literal["fit", "check"]  # whether constants were fitted on this row
    source: str
    note: str


@dataclass(frozen=True)
class Constant:
    """A fitted constant of a predictor."""

    name: str
    value: float
    unit: str
    meaning: str


@dataclass(frozen=True)
class Predictor:
    """A set of formulas and its errors; checks are sorted, worst first.

    name: "dpu subgraphs", "dpu networks", "pipeline cycles", "pipeline resources".
    missing: "" or why there are no checks (a file of results that is not there yet).
    """

    name: str
    title: str
    command: str  # that makes the checks anew
    target: str  # what it should keep to, in words
    constants: tuple[Constant, ...]
    checks: tuple[Check, ...]
    missing: str

    @property
    def worst_percent(self) -> float | None:
        """Largest |error|."""
        return max((abs(check.error_percent) for check in self.checks), default=None)


@dataclass(frozen=True)
class Study:
    """All of it."""

    lichen_version: str
    date: str  # ISO 8601
    seconds: float  # that the study took
    video: Video
    boards: tuple[BoardResult, ...]
    models: tuple[ModelResult, ...]
    predictors: tuple[Predictor, ...]
    curves: tuple[Curve, ...]
    notes: tuple[str, ...] = field(default=())  # what a reader must know about the method

    def to_json(self) -> dict[str, Any]:
        """Give plain dicts, lists, strings and numbers; infinite numbers become None."""
        value = _plain(asdict(self))
        assert isinstance(value, dict)
        return value


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
        case _:
            return value
