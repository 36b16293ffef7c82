"""What to change in a model, and what each change is predicted to bring, by the study's formulas.

Candidates follow from what a model is made of; the change is made in its list of layers (or in its
arguments, and its layers are counted anew), and the same figures are computed before and after.
Given are the three best: first what takes most operations off the CPU that the DPU has nothing like
(GDN, attention), then what saves most time on the DPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lichen.models import catalogue
from lichen.study import changes, facts
from lichen.study.boards import Board
from lichen.study.facts import Facts
from lichen.study.layers import Layer
from lichen.study.models import Subject
from lichen.study.result import Advice, Effect, Video

BEST = 3
SAR = "CedricLeon/SAR_DDC_FPGA, the same model on a ZCU102"
Figures = dict[tuple[str, str, bool], float]  # (quantity, unit, higher is better): value


@dataclass(frozen=True)
class Candidate:
    """A change that may help. make: the facts of the changed model.

    foreign: it takes away operations that the DPU has nothing like.
    """

    title: str
    change: str
    reason: str
    needs_training: bool
    costs: str
    source: str
    make: Callable[[], Facts]
    foreign: bool = False


def for_model(
    subject: Subject, fact: Facts, targets: Sequence[Board], video: Video
) -> tuple[Advice, ...]:
    """Give the changes that would help most."""
    before = figures(fact, targets, video)
    ranked = []
    for candidate in candidates(subject, fact):
        after = figures(replace(candidate.make(), plans=fact.plans), targets, video)
        effects = tuple(
            Effect(quantity, unit, before[quantity, unit, higher], value, higher)
            for (quantity, unit, higher), value in after.items()
            if _differ(before.get((quantity, unit, higher), value), value)
        )
        if effects:
            advice = Advice(
                candidate.title, candidate.change, candidate.reason, candidate.needs_training,
                candidate.costs, candidate.source, effects,
            )  # fmt: skip
            saved = _time(before) - _time(after)
            ranked.append((candidate, saved, _left(before) - _left(after), advice))
    foreign = [entry for entry in ranked if entry[0].foreign and entry[2] > 0]
    first = max(foreign, key=lambda entry: entry[2], default=None)
    others = sorted((e for e in ranked if e is not first and e[1] > 0), key=lambda e: -e[1])
    best = [first, *others] if first is not None else others
    return tuple(entry[3] for entry in best[:BEST])


def _differ(a: float, b: float) -> bool:
    return abs(a - b) > 1e-3 * max(abs(a), abs(b))


def _left(values: Figures) -> float:
    return sum(v for (quantity, _, _), v in values.items() if "does not take" in quantity)


def _time(values: Figures) -> float:
    return sum(v for (quantity, unit, _), v in values.items() if unit == "ms" and "DPU" in quantity)


def figures(fact: Facts, targets: Sequence[Board], video: Video) -> Figures:
    """Compute what changes are judged by."""
    found: Figures = {}
    for which in facts.DIRECTIONS:
        result = facts.direction(fact, which, video)
        found[f"{which}: products", "kMAC/pixel", False] = result.kmac_per_pixel
        found[f"{which}: weights, 8 bits", "byte", False] = result.weight_bytes_8bit
        if which == "decode":
            found["decode: passes that wait for one another", "", False] = result.serial_steps
    for board in targets:
        for dpu in facts.on_dpu(fact, board, video):
            where = f"{dpu.direction}, {board.name}"
            left = sum(place.cpu + place.rewrite for place in dpu.places)
            if dpu.variant == "as published":
                found[f"{where}: layers that the DPU does not take", "", False] = left
                found[f"{where}: DPU calls per frame, as published", "", False] = dpu.subgraphs
                found[f"{where}: share of products on the DPU, as published", "%", True] = (
                    100 * dpu.runs_on_dpu_share
                )
                continue
            found[f"{where}: operations left to the CPU, rewritten", "", False] = left
            found[f"{where}: DPU time per frame, rewritten", "ms", False] = dpu.dpu_ms
            found[f"{where}: DPU frames per second, rewritten", "frames/s", True] = (
                dpu.frames_per_second
            )
        for core in facts.as_pipeline(fact, board, video):
            where = f"{core.direction}, {board.name}"
            found[f"{where}: DSPs that our core needs at least", "", False] = core.dsp_for_video
            found[f"{where}: kinds of operations without a stage", "", False] = len(core.missing)
            found[f"{where}: weights and lines on the chip", "byte", False] = core.on_chip_bytes
            for use in core.resources:
                if core.exact:
                    label = f"{where}: {use.resource} of our core as folded"
                    found[label, "", False] = use.used
    return found


def candidates(subject: Subject, fact: Facts) -> list[Candidate]:
    """List the changes that a model's layers invite."""
    kinds = {layer.kind for layer in fact.layers}
    found = []

    def layers_by(change: Callable[[Sequence[Layer]], list[Layer]]) -> Facts:
        return replace(fact, layers=change(fact.layers), programs=None)

    if "gdn" in kinds:
        found.append(
            Candidate(
                "ReLU instead of GDN",
                "every GDN and inverse GDN becomes a ReLU, or a LeakyReLU of slope 26/256",
                "squares, roots and divisions run on the CPU and cut the graph at each of them",
                True, "not known here; a student with more channels can win it back", SAR,
                lambda: layers_by(changes.without_gdn), foreign=True,
            )
        )  # fmt: skip
    if "softmax" in kinds:
        found.append(
            Candidate(
                "gates of convolutions instead of window attention",
                "a depthwise 3x3 and the 1x1 that is there instead of queries, keys and softmax; "
                "hard sigmoids",
                "products of two activations, softmax and shifts of windows run on the CPU",
                True, "not known", "dpu_rules: matmul, softmax, roll, permute",
                lambda: layers_by(changes.without_attention), foreign=True,
            )
        )  # fmt: skip
    if any(layer.kind == "deconv" and layer.output_padding for layer in fact.layers):
        found.append(
            Candidate(
                "transposed convolutions of 4x4 (for stride 2) instead of 5x5",
                "kernels of twice the stride, output_padding 0",
                "the DPU takes no output_padding; filled up to 6x6, as the exact rewriting does, "
                "each has 36 taps where 16 would do",
                True, "not known", SAR, lambda: layers_by(changes.smaller_deconvs),
            )
        )  # fmt: skip
    if not kinds & {"layer_norm", "pixel_unshuffle"} and {"g_a", "g_s"} <= set(fact.parts):
        found.append(
            Candidate(
                "half the channels on the finest grid",
                "the first layer of g_a gives half its channels, the last but one of g_s, too",
                "every channel there is computed, moved and kept in lines at the most positions",
                True, "not known", "the list of layers",
                lambda: layers_by(changes.narrower_finest),
            )
        )  # fmt: skip
    if subject.known:
        found += _by_arguments(subject, fact)
    return found


def _rebuilt(subject: Subject, **arguments: object) -> Facts:
    """The facts of the same model with other arguments."""
    own = {key: value for key, value in subject.arguments.items() if key != "pruned"}
    module = catalogue.build(subject.family, own | arguments)
    return facts.of_subject(replace(subject, module=module, programs=None))


def _by_arguments(subject: Subject, fact: Facts) -> list[Candidate]:
    """Changes that a model of the catalogue knows by name."""
    own, found = subject.arguments, []
    slices = subject.slices
    if slices >= 4 and subject.family != "balle2018":
        half = slices // 2
        support = min(half, int(own.get("max_support_slices", half)))
        more = {"max_support_slices": support} if "max_support_slices" in own else {}
        found.append(
            Candidate(
                f"{half} slices instead of {slices}", f"slices = {half}",
                "every slice waits for the one before, and has three networks of its own",
                True, "not known", "Minnen & Singh 2020, section 2",
                lambda: _rebuilt(subject, slices=half, **more),
            )
        )  # fmt: skip
    if slices:
        m = round(256 * fact.latents)
        found.append(
            Candidate(
                "a checkerboard in two passes instead of slices",
                "anchors first, then the rest with a 5x5 context of them; no residual prediction",
                f"{slices} passes become two, and {3 * slices} networks become two runs of one",
                True,
                "published curves on Kodak against VTM: +1.1 % with slices (minnen2020-ChARM), "
                "+19.0 % for minnen2018 with a checkerboard, +3.9 % for cheng2020 with one",
                "He 2021, Checkerboard context model; docs/results/published.json",
                lambda: replace(
                    fact, layers=changes.checkerboard(fact.layers, m), steps={"slices": 2},
                    decoding_steps=3,
                ),
            )
        )  # fmt: skip
    if subject.family in ("balle2016", "balle2018", "minnen2020"):
        n = int(own["n"])
        known = subject.family == "balle2018" and n == 128
        found.append(
            Candidate(
                f"N = {n // 2} instead of {n}, by distillation", f"n = {n // 2}",
                "most products grow with the square of N",
                True,
                "-0.42 dB at -0.9 % of the rate for N = 64 of a scale hyperprior" if known
                else "not known for this model; -0.42 dB for N = 64 of a scale hyperprior",
                "arXiv 2509.10366, distillation of the scale hyperprior",
                lambda: _rebuilt(subject, n=n // 2),
            )
        )  # fmt: skip
    if subject.family == "student":
        found += _of_student(subject)
    return found


def _of_student(subject: Subject) -> list[Candidate]:
    own, found = subject.arguments, []
    width = int(own.get("width", 0))
    narrower = 3 * width // 4 // 8 * 8
    if narrower:
        found.append(
            Candidate(
                f"width {narrower} instead of {width}", f"width = {narrower}",
                "products and weights grow with the square of the width, lines with the width",
                True, "not known", "the list of layers", lambda: _rebuilt(subject, width=narrower),
            )
        )  # fmt: skip
    for side in ("encoder", "decoder"):
        counts = list(own.get(f"{side}_blocks", ()))
        grids = ("1/4", "1/8", "1/16")[-len(counts) :]
        place = max(range(len(counts)), key=counts.__getitem__, default=0)
        if counts and counts[place] > 1:
            fewer = [count - (k == place) for k, count in enumerate(counts)]
            found.append(
                Candidate(
                    f"{side}: {fewer[place]} residual blocks at {grids[place]} instead of "
                    f"{counts[place]}",
                    f"{side}_blocks = {fewer}",
                    "a block has two 3x3 convolutions and a delay on its grid",
                    True, "not known", "the list of layers",
                    _with(subject, f"{side}_blocks", fewer),
                )
            )  # fmt: skip
    return found


def _with(subject: Subject, key: str, value: object) -> Callable[[], Facts]:
    return lambda: _rebuilt(subject, **{key: value})
