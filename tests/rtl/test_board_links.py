"""The driver over PYNQ and over Linux's devices: fakes that check each call, a simulated core."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_board
from fake_board import FakeBoard, FakePynq, FakeSystem
from tiny_board import END_BYTES, MODEL, POSITION, picture, stream

from lichen.boards.axi_dma import S2MM
from lichen.boards.board_link import BoardLink
from lichen.boards.driver import Driver
from lichen.boards.linux_board import LinuxBoard, System
from lichen.boards.pynq_board import PynqBoard
from lichen.errors import DeviceError

BITFILE = Path("/usr/share/lichen-kv260.bit")


@pytest.fixture(params=["encoder", "decoder"])
def kind(request):
    return request.param


def fake(kind):
    tiny_board.simulation(kind).power_up()
    return FakeBoard(kind, tiny_board.simulation(kind))


def pynq_on(monkeypatch, board, **names):
    module = FakePynq(board, {"core": board.map.cell, "dma": board.map.dma_cell} | names)
    monkeypatch.setitem(sys.modules, "pynq", module)
    return module


def check(driver, seed, height=70, width=61):
    pixels = picture(seed, height, width)
    chunks, decoded = stream(pixels)
    if driver.image.core == "encoder":
        assert driver.encode(pixels, POSITION) == chunks[:-END_BYTES]
    else:
        assert (driver.decode(chunks, width, height, POSITION) == decoded).all()


def session(link, kind):
    """What a user does: pictures, one after the other, of several sizes; a reset in between."""
    with Driver(link, tiny_board.image(kind), MODEL, board="kv260") as driver:
        assert driver.loads == 1
        check(driver, 1)
        check(driver, 2)
        check(driver, 3, 20, 90)
        driver.recover()
        check(driver, 4)


def test_pynq(monkeypatch, kind):
    board = fake(kind)
    module = pynq_on(monkeypatch, board)
    session(BoardLink(PynqBoard(BITFILE, kind)), kind)
    assert module.downloads == [str(BITFILE)]
    assert board.buffers and all(buffer.freed for buffer in board.buffers)
    # The next process finds the overlay loaded, and the weights in it.
    link = BoardLink(PynqBoard(BITFILE, kind))
    driver = Driver(link, tiny_board.image(kind), MODEL)
    assert driver.loads == 0 and len(module.downloads) == 1
    check(driver, 5)


def test_pynq_that_fails(monkeypatch):
    board = fake("encoder")
    monkeypatch.setitem(sys.modules, "pynq", None)
    with pytest.raises(DeviceError, match="PYNQ is not here: install it"):
        PynqBoard(BITFILE, "encoder")
    pynq_on(monkeypatch, board)
    with pytest.raises(DeviceError, match=r"cannot load /x\.bit: Bitstream file .* does not exist"):
        PynqBoard(Path("/x.bit"), "encoder")
    pynq_on(monkeypatch, board, core="other")
    with pytest.raises(DeviceError, match=r"the overlay has no encoder; it has encoder_dma, other"):
        PynqBoard(BITFILE, "encoder")
    pynq_on(monkeypatch, board)
    with pytest.raises(DeviceError, match=r"no 33554432 bytes of contiguous memory for the input"):
        PynqBoard(BITFILE, "encoder").buffer("input", 1 << 25)


@pytest.mark.parametrize("uio", [True, False], ids=["uio", "devmem"])
def test_linux(kind, uio):
    system = FakeSystem(fake(kind), 1 << 18, uio=uio)
    session(BoardLink(LinuxBoard(kind, system)), kind)
    registers = [path for path in system.opened if "lichen" not in path]
    assert registers == (["dev/uio1", "dev/uio2"] if uio else ["dev/mem", "dev/mem"])
    assert (system.interrupts > 0) == uio


def test_linux_that_fails():
    board = fake("encoder")
    system = FakeSystem(board, 1 << 12, kind="udmabuf")  # the name before version 3
    link = BoardLink(LinuxBoard("encoder", system))
    with pytest.raises(DeviceError, match=r"lichen-encoder-in has 4096 bytes, \d+ are needed"):
        Driver(link, tiny_board.image("encoder"), MODEL)
    system = FakeSystem(board, 1 << 18, kind="nothing")
    with pytest.raises(DeviceError, match=r"no buffer lichen-encoder-in: load the module"):
        LinuxBoard("encoder", system).buffer("input", 1)


def test_errors_of_the_dma(kind):
    board = fake(kind)
    link = BoardLink(LinuxBoard(kind, FakeSystem(board, 1 << 18)))
    driver = Driver(link, tiny_board.image(kind), MODEL)
    check(driver, 1)
    board.dma.fail = 1 << 5
    with pytest.raises(DeviceError, match=r"met a slave error \(.*\): DMA: MM2S control 0x1"):
        check(driver, 2)
    board.dma.fail = 0
    check(driver, 3)  # the driver has reset it
    with pytest.raises(DeviceError, match=r"must have 1\.\.67108863 bytes, not 67108864"):
        link.dma.start(S2MM, 0, 1 << 26)


def test_timeout_says_what_the_dma_does(kind):
    board = fake(kind)
    driver = Driver(
        BoardLink(LinuxBoard(kind, FakeSystem(board, 1 << 18))), tiny_board.image(kind), MODEL
    )
    check(driver, 1)
    board.simulation.chances(m_axis=0.0)
    driver.timeout_s = 0.2
    with pytest.raises(DeviceError, match=r"took longer than 0\.2 s\. .*; DMA: MM2S control 0x1 "):
        check(driver, 2)
    board.simulation.chances(m_axis=1.0)
    driver.timeout_s = 5.0
    check(driver, 3)


def test_files_of_linux(tmp_path):
    """The real files, in a folder instead of the root."""

    class Here(System):
        root = tmp_path

    system = Here()
    (tmp_path / "sys/class/uio/uio0").mkdir(parents=True)
    (tmp_path / "sys/class/uio/uio0/name").write_text("lichen-encoder\n")
    assert system.names("sys/class/uio") == ["uio0"] and system.names("sys/class/none") == []
    assert system.text("sys/class/uio/uio0/name") == "lichen-encoder"
    system.set("sys/class/uio/uio0/name", 5)
    assert system.text("sys/class/uio/uio0/name") == "5"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/uio0").write_bytes(bytes(8192))
    words = system.words("dev/uio0", 4096, 4096)
    words.write(8, 0x8765_4321)
    assert words.read(8) == 0x8765_4321
    data = np.frombuffer((tmp_path / "dev/uio0").read_bytes(), "<u4")
    assert data[(4096 + 8) // 4] == 0x8765_4321 and np.count_nonzero(data) == 1
    with pytest.raises(DeviceError, match=r"cannot reach the registers lichen-encoder by /dev/m"):
        LinuxBoard("encoder", system)
