"""What models buy: curves on Kodak, measured here or published, and energy where a source gives it.

Files of results: published.json (curves of others), kodak.json and models.json (measured here by
`lichen eval`). BD-rates: `evaluation.bd_rate`, PCHIP, PSNR over RGB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lichen.errors import LichenError
from lichen.evaluation import published
from lichen.evaluation.bd_rate import bd_rate
from lichen.study.files import find
from lichen.study.models import CATALOGUE, Subject, full_arguments
from lichen.study.result import Curve, Energy, Quality

JPEG, BPG, VTM = "JPEG (Pillow 7.1.2, 4:2:0)", "BPG444 (x265, 8b)", "VTM"
MEASURED = ("kodak.json", "models.json")
CLASSICAL = {JPEG, BPG, VTM, "JPEG2000", "WebP", "HM", "AV1/AVIF-like (libaom)", "BPG420",
             "jpeg", "webp", "avif", "jxl"}  # fmt: skip
# Published curves of each model of the catalogue; those of CompressAI first where both are there.
OF_MODEL: dict[str, tuple[str, ...]] = {
    "balle2016": ("bmshj2018-factorized (CompressAI, MSE)", "bmshj2018-factorized (paper)"),
    "balle2018": ("bmshj2018-hyperprior (CompressAI, MSE)", "bmshj2018-hyperprior (paper)"),
    "balle2018-mean": ("mbt2018-mean (CompressAI, MSE)", "mbt2018-mean (paper)"),
    "minnen2020": ("minnen2020-ChARM cc10 (paper)",),
    "zou2022-wacnn": ("WACNN (Zou2022 CNN)",),
    "zou2022-stf": ("STF (Zou2022)",),
}
C3 = "google-deepmind/c3, baselines/kodak.py"
# Decoder's kMAC per pixel of peers, and who says so.
DECODERS: dict[str, tuple[float, str]] = {
    "EVC-L": (257.9, f"EVC Table 3, quoted in {C3}"),
    "EVC-M (mask decay)": (123.8, f"EVC Table 3, quoted in {C3}"),
    "EVC-S (mask decay)": (35.3, f"EVC Table 3, quoted in {C3}"),
    "COOL-CHIC": (0.8, C3),
    "COOL-CHICv2": (2.3, C3),
    "Cool-chic v5.0": (2.0, "README of Cool-chic: 1 to 2"),
    "shallow-ntc JPEG-like_syn": (16.4, "shallow-ntc, table of complexity, whole decoder / 2"),
    "shallow-ntc 2-layer_syn": (20.5, "shallow-ntc, table of complexity, whole decoder / 2"),
    "shallow-ntc 2-layer_syn+SGA": (20.5, "shallow-ntc, table of complexity, whole decoder / 2"),
    "mbt2018 (CompressAI, MSE, autoregressive)": (139.6, f"{C3}: 107.9 to 139.6"),
}
SAR = "CedricLeon/SAR_DDC_FPGA, results/date27/ladder"
PRIM = "arXiv 2509.10366, tables of the source"
PATCH, KODAK = 256 * 256, 768 * 512  # pixels
ENERGY: dict[str, tuple[Energy, ...]] = {
    "balle2016": (
        Energy(79e6 / PATCH, "encoding, ReLU for GDN, N = 128, ZCU102, 3 B4096, whole MPSoC",
               SAR, "79 mJ for a patch of 256 x 256 with two channels coded one by one"),
    ),
    "balle2018": (
        Energy(102e6 / PATCH, "encoding, ReLU for GDN, N = 128, ZCU102, 3 B4096, whole MPSoC",
               SAR, "102 mJ for a patch of 256 x 256 with two channels coded one by one"),
        Energy(1768e6 / KODAK, "N = 128, RTX 3090, whole GPU",
               PRIM, "1768 mJ for a Kodak picture of 768 x 512"),
    ),
}  # fmt: skip


def curves(kmacs: Mapping[str, float]) -> tuple[Curve, ...]:
    """List all curves. kmacs: the decoders' kMAC per pixel of studied models, by curve."""
    found: list[tuple[published.Published, str]] = []
    for name in MEASURED:
        path = find(name)
        labels = {curve.label for curve, _ in found}
        if path is not None:
            found += [
                (curve, "measured") for curve in published.read(path) if curve.label not in labels
            ]
    path = find("published.json")
    if path is not None:
        found += [(c, "published") for c in published.read(path) if "MS-SSIM)" not in c.label]
    anchors = {c.label: c for c, _ in found if c.label in (JPEG, BPG, VTM)}
    return tuple(_curve(c, origin, anchors, kmacs) for c, origin in found if "psnr" in c.quality)


def _curve(
    curve: published.Published, origin: str, anchors: Mapping[str, published.Published],
    kmacs: Mapping[str, float],
) -> Curve:  # fmt: skip
    decoder, source = DECODERS.get(curve.label, (None, ""))
    if curve.label in kmacs:
        decoder, source = kmacs[curve.label], "counted here"
    models = {name for names in OF_MODEL.values() for name in names}
    is_model = curve.label in models or curve.label.startswith("lichen:")
    kind = "classical" if curve.label in CLASSICAL else "model" if is_model else "peer"
    return Curve(
        name=curve.label,
        origin=origin,  # type: ignore[arg-type]
        kind=kind,  # type: ignore[arg-type]
        source=curve.source,
        bpp=curve.bpp,
        psnr_rgb_db=curve.quality["psnr"],
        decode_kmac_per_pixel=decoder,
        decode_kmac_source=source,
        bd_rate_vs_jpeg_percent=_against(anchors.get(JPEG), curve),
        bd_rate_vs_bpg_percent=_against(anchors.get(BPG), curve),
        bd_rate_vs_vtm_percent=_against(anchors.get(VTM), curve),
    )


def _against(anchor: published.Published | None, curve: published.Published) -> float | None:
    """BD-rate in percent; None where there is no anchor, no overlap or no SciPy."""
    if anchor is None or anchor.label == curve.label:
        return None
    try:
        rate = bd_rate(anchor.bpp, anchor.quality["psnr"], curve.bpp, curve.quality["psnr"])
    except LichenError:
        return None
    return round(rate.percent, 2)


def names_of(subject: Subject) -> tuple[str, ...]:
    """Names of the curves of a model: measured with its weights, or published for its size."""
    key = _paper_key(subject)
    own = (f"lichen:{subject.name}",) if f"lichen:{subject.name}" in _measured() else ()
    return own + OF_MODEL.get(key, ())


def _paper_key(subject: Subject) -> str:
    """The model of a paper at its published size that this is; "" where it is another."""
    if subject.name in OF_MODEL:
        return subject.name
    for key, (family, arguments, _, _) in CATALOGUE.items():
        if subject.family == family and subject.arguments == full_arguments(family, arguments):
            return key
    return ""


def _measured() -> set[str]:
    found: set[str] = set()
    for name in MEASURED:
        path = find(name)
        if path is not None:
            found |= {entry["name"] for entry in _entries(path)}
    return found


def _entries(path: Path) -> Sequence[dict[str, str]]:
    document = json.loads(path.read_text(encoding="utf-8"))
    entries: Sequence[dict[str, str]] = document.get("codecs", [])
    return entries


def quality(subject: Subject, known: Sequence[Curve]) -> Quality:
    """What a model buys; says why there is nothing where there is nothing."""
    names = tuple(name for name in names_of(subject) if any(c.name == name for c in known))
    note = ""
    if not names:
        note = "No curve: neither measured here nor published for these arguments."
    elif not names[0].startswith("lichen:"):
        note = "Published; one set of weights for each rate, trained by others."
    return Quality(names, note, ENERGY.get(_paper_key(subject), ()))
