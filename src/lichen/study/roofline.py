"""Rooflines: products per byte of DRAM traffic against what a board computes and moves.

Williams, Waterman & Patterson 2009, "Roofline": attainable = min(peak, bandwidth * intensity).
"""

from __future__ import annotations

from collections.abc import Sequence

from lichen.study import costs
from lichen.study.boards import Board
from lichen.study.layers import Layer
from lichen.study.result import RooflinePoint


def point(layers: Sequence[Layer], part: str, board: Board, pixels: int) -> RooflinePoint:
    """Place a part on the roofline of a board's DPU, all cores, for frames of `pixels`.

    Traffic layer by layer: weights once a frame, every activation out and in. Fused: only what
    enters and leaves the part, its weights being on the chip.
    """
    own = costs.of_part(layers, part)
    members = {number for number, _ in own}
    macs = sum(layer.macs for _, layer in own)
    weights = costs.weight_bytes([layer for _, layer in own], 8)
    moved = costs.traffic([layer for _, layer in own]) + weights / pixels
    intensity = macs / moved if moved else 0.0
    fused = _border(layers, members)
    peak, bandwidth = board.dpu_peak_macs, board.dram_gbyte_per_s * 1e9
    attainable = min(peak, bandwidth * intensity)
    return RooflinePoint(
        board=board.name,
        intensity_mac_per_byte=intensity,
        intensity_fused_mac_per_byte=macs / fused if fused else None,
        attainable_gmac_per_s=attainable / 1e9,
        bound="compute" if attainable == peak else "memory",
        frames_per_second_at_roof=attainable / (macs * pixels) if macs else 0.0,
    )


def _border(layers: Sequence[Layer], members: set[int]) -> float:
    """Bytes per pixel that enter and leave a set of layers; what is read twice enters once."""
    entered: dict[int, float] = {}
    read_inside: set[int] = set()
    read_outside: set[int] = set()
    for number, layer in enumerate(layers):
        for source, values in zip(layer.sources, layer.input_values, strict=True):
            if number in members and source not in members:
                entered[source] = values
            if source in members:
                (read_inside if number in members else read_outside).add(source)
    left = {n for n in members if n in read_outside or n not in read_inside}
    return sum(entered.values()) + sum(layers[n].output_values for n in left)
