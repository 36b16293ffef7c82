"""What test_axi.py runs inside the simulator: cocotbext-axi's models at the ports."""

from __future__ import annotations

import itertools
import logging
import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import (
    AxiBus,
    AxiLiteBus,
    AxiLiteMaster,
    AxiRam,
    AxiResp,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

from lichen.rtl.registers import PAGE_BYTES, REGISTERS, register

BASE_PAGE = 3  # of the ring


def waits(rng, chance):
    return itertools.cycle([rng.random() < chance for _ in range(997)])


async def start(dut):
    logging.getLogger("cocotb").setLevel(logging.WARNING)
    cocotb.start_soon(Clock(dut.clk, 2, "ns").start())
    dut.rst.value = 1
    for size in (3, 4, 8):
        getattr(dut, f"pixels{size}_width").value = 1
        getattr(dut, f"pixels{size}_height").value = 1
    dut.fifo_clear.value = 0
    dut.fifo_input__valid.value = 0
    dut.fifo_output__ready.value = 0
    dut.fifo_base.value = BASE_PAGE
    for entry in REGISTERS:
        if entry.access == "read":
            getattr(dut, entry.name).value = (0x9E3779B9 * (entry.address + 1)) % (1 << entry.bits)
    dut.load__ready.value = 0
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0


def ends(dut, name):
    source = AxiStreamSource(AxiStreamBus.from_prefix(dut, f"{name}_s_axis"), dut.clk, dut.rst)
    sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, f"{name}_m_axis"), dut.clk, dut.rst)
    source.log.setLevel(logging.WARNING)
    sink.log.setLevel(logging.WARNING)
    return source, sink


@cocotb.test()
async def streams(dut):
    """Frames of every length come out as they went in, whatever either side waits for."""
    await start(dut)
    rng = random.Random(1)
    source, sink = ends(dut, "bytes")
    for chances in ((0, 0), (0.6, 0.2), (0.2, 0.6)):
        source.set_pause_generator(waits(rng, chances[0]))
        sink.set_pause_generator(waits(rng, chances[1]))
        sent = [bytes(rng.randbytes(size)) for size in [*range(1, 40), 200, 64, 63, 65]]
        for data in sent:
            await source.send(AxiStreamFrame(data))
        for data in sent:
            frame = await sink.recv()
            assert bytes(frame.tdata) == data
        assert sink.empty()


@cocotb.test()
async def pixels(dut):
    """Pictures of any size come out as they went in, in as many packets."""
    await start(dut)
    rng = random.Random(3)
    for size in (3, 4, 8):
        source, sink = ends(dut, f"pixels{size}")
        for chances in ((0, 0), (0.6, 0.2), (0.2, 0.6)):
            source.set_pause_generator(waits(rng, chances[0]))
            sink.set_pause_generator(waits(rng, chances[1]))
            for width, height in ((1, 1), (2, 1), (1, 3), (5, 4), (7, 3), (4, 4)):
                getattr(dut, f"pixels{size}_width").value = width
                getattr(dut, f"pixels{size}_height").value = height
                for _ in range(2):
                    await RisingEdge(dut.clk)
                sent = [bytes(rng.randbytes(3 * width * height)) for _ in range(3)]
                for data in sent:
                    await source.send(AxiStreamFrame(data))
                for data in sent:
                    frame = await sink.recv()
                    assert bytes(frame.tdata) == data
                assert sink.empty()


@cocotb.test()
async def dram_fifo(dut):
    """What goes into the ring comes out, round and round, in bursts that a memory accepts."""
    await start(dut)
    rng = random.Random(4)
    ram = AxiRam(AxiBus.from_prefix(dut, "fifo_m_axi"), dut.clk, dut.rst, size=5 * PAGE_BYTES)
    for interface in (ram.write_if, ram.read_if):
        interface.log.setLevel(logging.WARNING)
    # 64 words of 6 beats, and queues: 6 * (64 + 64) beats are all that it can hold.
    for sends, takes, pause in ((1, 1, 0), (1, 0.3, 0.5), (0.3, 1, 0.5), (0.05, 0.05, 0)):
        for channel in (
            ram.write_if.aw_channel, ram.write_if.w_channel, ram.write_if.b_channel,
            ram.read_if.ar_channel, ram.read_if.r_channel,
        ):  # fmt: skip
            channel.set_pause_generator(waits(rng, pause))
        count = 6 * (300 if sends < 0.1 else 700)
        sent = [rng.randrange(1 << 16) for _ in range(count)]
        assert await through(dut, rng, sent, sends, takes) == sent
        assert not dut.fifo_error.value
    area = ram.read(0, 5 * PAGE_BYTES)
    ring = range(BASE_PAGE * PAGE_BYTES, BASE_PAGE * PAGE_BYTES + 16 * 64)
    assert not any(byte for place, byte in enumerate(area) if place not in ring)
    # Cleared with transfers on the way: they end, what was in it is gone, and it works again.
    for _ in range(20):
        lost = [rng.randrange(1 << 16) for _ in range(6 * rng.randrange(1, 80))]
        await through(dut, rng, lost, 1, 0, cycles=rng.randrange(40, 300))
        dut.fifo_clear.value = 1
        await RisingEdge(dut.clk)
        for _ in range(200):
            await RisingEdge(dut.clk)
            if not dut.fifo_busy.value:
                break
        assert not dut.fifo_busy.value
        await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        dut.fifo_clear.value = 0
        sent = [rng.randrange(1 << 16) for _ in range(60)]
        assert await through(dut, rng, sent, 1, 0.5) == sent


async def through(dut, rng, sent, sends, takes, cycles=100_000):
    """Put beats into the FIFO and take them from it, each by chance; give what was taken."""
    at, taken = 0, []
    offered = False
    for _ in range(cycles):
        offered = at < len(sent) and (offered or rng.random() < sends)
        dut.fifo_input__valid.value = offered
        dut.fifo_input__payload.value = sent[min(at, len(sent) - 1)]
        ready = rng.random() < takes
        dut.fifo_output__ready.value = ready
        await RisingEdge(dut.clk)
        if offered and dut.fifo_input__ready.value:
            at, offered = at + 1, False
        if ready and dut.fifo_output__valid.value:
            taken.append(int(dut.fifo_output__payload.value))
        if len(taken) == len(sent):
            break
    dut.fifo_input__valid.value = 0
    dut.fifo_output__ready.value = 0
    return taken


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
