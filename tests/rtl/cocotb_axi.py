"""What test_axi.py runs inside the simulator: cocotbext-axi's models at the ports."""

from __future__ import annotations

import itertools
import logging
import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiResp,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

from lichen.rtl.registers import REGISTERS, register


def waits(rng, chance):
    return itertools.cycle([rng.random() < chance for _ in range(997)])


async def start(dut):
    logging.getLogger("cocotb").setLevel(logging.WARNING)
    cocotb.start_soon(Clock(dut.clk, 2, "ns").start())
    dut.rst.value = 1
    dut.pixels_beats.value = 10
    for entry in REGISTERS:
        if entry.access == "read":
            getattr(dut, entry.name).value = (0x9E3779B9 * (entry.address + 1)) % (1 << entry.bits)
    dut.load__ready.value = 0
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0


@cocotb.test()
async def streams(dut):
    """Frames of every length come out as they went in, whatever either side waits for."""
    await start(dut)
    rng = random.Random(1)
    for name, sizes in (("bytes", [*range(1, 40), 200, 64, 63, 65]), ("pixels", [60] * 20)):
        source = AxiStreamSource(AxiStreamBus.from_prefix(dut, f"{name}_s_axis"), dut.clk, dut.rst)
        sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, f"{name}_m_axis"), dut.clk, dut.rst)
        source.log.setLevel(logging.WARNING)
        sink.log.setLevel(logging.WARNING)
        for chances in ((0, 0), (0.6, 0.2), (0.2, 0.6)):
            source.set_pause_generator(waits(rng, chances[0]))
            sink.set_pause_generator(waits(rng, chances[1]))
            sent = [bytes(rng.randbytes(size)) for size in sizes]
            for data in sent:
                await source.send(AxiStreamFrame(data))
            for data in sent:
                frame = await sink.recv()
                assert bytes(frame.tdata) == data
            assert sink.empty()


@cocotb.test()
async def registers(dut):
    """Every register reads what it should; what is not there, or not to be written, says so."""
    await start(dut)
    rng = random.Random(2)
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
    for interface in (master.write_if, master.read_if):
        interface.log.setLevel(logging.WARNING)
    for chance in (0, 0.5):
        for channel in ("aw", "w"):
            getattr(master.write_if, f"{channel}_channel").set_pause_generator(waits(rng, chance))
        master.write_if.b_channel.set_pause_generator(waits(rng, chance))
        master.read_if.ar_channel.set_pause_generator(waits(rng, chance))
        master.read_if.r_channel.set_pause_generator(waits(rng, chance))
        await every_register(dut, master, rng)


async def every_register(dut, master, rng):
    async def write(address, data):
        return (await master.write(address, data)).resp

    async def read(address):
        answer = await master.read(address, 4)
        return int.from_bytes(answer.data, "little"), answer.resp

    listed = {entry.address: entry for entry in REGISTERS}
    for address in range(0, 0x100, 4):
        entry = listed.get(address)
        if entry is None:
            assert (await read(address))[1] == AxiResp.SLVERR
            assert await write(address, b"abcd") == AxiResp.SLVERR
        elif entry.access == "read":
            given = (0x9E3779B9 * (address + 1)) % (1 << entry.bits)
            assert await write(address, b"abcd") == AxiResp.SLVERR
            assert await read(address) == (given, AxiResp.OKAY)
        elif entry.access == "write":
            for _ in range(3):
                value = rng.randrange(1 << 32)
                assert await write(address, value.to_bytes(4, "little")) == AxiResp.OKAY
                value %= 1 << entry.bits
                assert await read(address) == (value, AxiResp.OKAY)
                assert int(getattr(dut, entry.name).value) == value
            # One byte of the word: the others stay.
            assert await write(address + 1, b"\xa5") == AxiResp.OKAY
            value = (value & ~0xFF00 | 0xA500) % (1 << entry.bits)
            assert await read(address) == (value, AxiResp.OKAY)
    await load(dut, master, rng)


async def load(dut, master, rng):
    """A write to the stream waits until the beat is taken, once."""
    address = register("load").address
    words = [rng.randrange(1 << 32) for _ in range(20)]
    taken = []

    async def consume():
        while len(taken) < len(words):
            dut.load__ready.value = rng.random() < 0.4
            await RisingEdge(dut.clk)
            if dut.load__valid.value and dut.load__ready.value:
                taken.append(int(dut.load__payload.value))
        dut.load__ready.value = 0

    task = cocotb.start_soon(consume())
    for word in words:
        assert (await master.write(address, word.to_bytes(4, "little"))).resp == AxiResp.OKAY
    await task
    assert taken == words
    assert (await master.write(address, b"ab")).resp == AxiResp.SLVERR
    assert (await master.read(address, 4)).resp == AxiResp.SLVERR
