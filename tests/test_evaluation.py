"""BD-rate against arithmetic and against published curves; curves from real files."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="evaluation needs the [eval] extra")

import itertools

from lichen import Codec
from lichen.errors import LichenError
from lichen.evaluation.bd_rate import bd_rate
from lichen.evaluation.curves import lichen_curve, load, pillow_curve, psnr

SAMPLES = Path(__file__).parent / "samples"
PEERS = Path(__file__).parents[2] / "shared" / "reference" / "kodak_rd.json"
BPP, PSNR = [0.1, 0.2, 0.4, 0.8, 1.6], [28.0, 30.5, 33.0, 36.0, 39.0]


@pytest.mark.parametrize("method", ["pchip", "akima"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_a_scaled_curve_differs_by_its_factor(method, factor):
    result = bd_rate(BPP, PSNR, np.multiply(BPP, factor), PSNR, method)
    assert result.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert (result.low, result.high) == (28.0, 39.0)


def test_overlap_decides_the_range():
    result = bd_rate(BPP, PSNR, BPP, np.add(PSNR, 2))
    assert (result.low, result.high) == (30.0, 39.0) and result.percent < 0


def test_curves_must_overlap_and_have_points():
    with pytest.raises(LichenError, match="overlap"):
        bd_rate(BPP, PSNR, BPP, np.add(PSNR, 20))
    with pytest.raises(LichenError, match="four or more"):
        bd_rate(BPP[:3], PSNR[:3], BPP, PSNR)


@pytest.mark.skipif(not PEERS.exists(), reason=f"the published curves are not at {PEERS}")
def test_published_bd_rates_are_reproduced():
    """peers.md: mbt2018-mean (CompressAI) against VTM +21.3 %, JPEG +208.5 %, WACNN -4.6 %."""
    curves = json.loads(PEERS.read_text())
    curves = curves.get("curves", curves)

    def curve(name):
        entry = curves[name]
        return entry["bpp"], entry["psnr"]

    names = {
        "mbt2018-mean (CompressAI, MSE)": 21.3,
        "JPEG (Pillow 7.1.2, 4:2:0)": 208.5,
        "WACNN (Zou2022 CNN)": -4.6,
    }
    for name, expected in names.items():
        result = bd_rate(*curve("VTM"), *curve(name))
        assert result.percent == pytest.approx(expected, abs=0.1), name


def test_psnr():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a) == np.inf
    assert psnr(a, a + np.uint8(255)) == 0.0


def test_curves_of_real_files_rise():
    pictures = [picture[:128, :192] for picture in load(SAMPLES)]
    for points in (lichen_curve(pictures, Codec(), (0, 40, 80)), pillow_curve(pictures, "jpeg")):
        assert all(a.bpp < b.bpp and a.psnr < b.psnr for a, b in itertools.pairwise(points))
    with pytest.raises(LichenError, match="'jxl'"):
        pillow_curve(pictures, "jxl")
