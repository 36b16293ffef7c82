"""Window buffer: the lines that a convolution looks at, in the order in which its array reads.

        stream --> ring of lines --load--> patch (two halves) --play--> x, first, last, address

The *ring* is one memory in raster order: a word is `word` channels, the oldest word that any later
window needs is the only thing that holds the writer back. For each *group* of `pixels` positions of
the output, the *loader* copies the columns that the group looks at to the *patch*, zeros where it
hangs over the picture's edge. The *player* reads the patch once per tile of outputs, `lanes`
channels of all columns per beat, and shifts the columns by one from tap to tap of a kernel row:

    for tile: for kernel row: for channel: for kernel column: x[p] = column[p * stride + tap]

A tile of a depthwise layer is `outputs` channels, and all of them are in each beat.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from lichen.rtl import layer as layers
from lichen.rtl.lanes import Relane, beat, connect
from lichen.rtl.layer import BITS, Folding, Layer
from lichen.rtl.leaf import LUT_RAM, Home, Memory

RING_LATENCY = 2
FRAMES_AHEAD = 3  # frames that may lie in the ring behind the one that is read


class Window(wiring.Component):
    """Buffer the input of a convolution and play it to the array.

    rows, columns: the size of the input, multiples of the stride; they stay during a frame and may
    change only in reset. columns: at most `max_columns`, and at least 1.

    Ports to the array, without ready; a group is played only while `room` says that its outputs
    have a place: `start` takes that place. `x` comes with `valid`, and `first` and `last` of a
    tile; the word of its weights, `address`, and the number of the beat in their packing, `part`,
    come `layers.PIPELINE` cycles before it.

    Throughput: a group per `layers.group_cycles` cycles, or `layers.load_cycles` if that is more,
    without gaps between tiles and groups. Latency: the first group of a row begins load_cycles
    after its last column has come in.
    """

    def __init__(
        self,
        layer: Layer,
        folding: Folding,
        *,
        lanes: int,
        max_columns: int,
        max_rows: int,
        home: Home | None = None,
    ) -> None:
        layers.check(layer, folding)
        self.layer, self.folding, self.lanes = layer, folding, lanes
        self.max_columns, self.max_rows = max_columns, max_rows
        self.home = home
        self.bits = BITS[layer.x]
        self.ring_words = layers.ring_words(layer, folding, max_columns)
        super().__init__(
            {
                "input": In(beat(self.bits * lanes)),
                "rows": In(range(max_rows + 1)),
                "columns": In(range(max_columns + 1)),
                "room": In(1),
                "start": Out(1),
                "valid": Out(1),
                "first": Out(1),
                "last": Out(1),
                "x": Out(folding.pixels * layers.beat_channels(layer, folding) * self.bits),
                "address": Out(range(layers.weight_words(layer, folding))),
                "part": Out(range(max(2, layers.packing(folding).beats))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layer, folding = self.layer, self.folding
        self.words = layer.channels // folding.word  # of a column
        self.patch_words = layer.kernel[0] * self.words
        count = layers.window_columns(layer, folding)
        self.ring = Memory(
            folding.word * self.bits, self.ring_words, home=self.home, latency=RING_LATENCY
        )
        m.submodules.ring = self.ring.instance()
        self.patch = [
            Memory(folding.word * self.bits, 2 * self.patch_words, home=LUT_RAM)
            for _ in range(count)
        ]
        for number, memory in enumerate(self.patch):
            m.submodules[f"patch_{number}"] = memory.instance()
        self.full = Signal(2)  # halves of the patch that wait to be played, or are
        self._write(m)
        self._load(m)
        self._play(m)
        return m

    def _write(self, m: Module) -> None:
        """Write the stream to the ring, and count what is there."""
        ring, size = self.ring, self.ring_words
        m.submodules.relane = relane = Relane(self.bits, self.lanes, self.folding.word)
        connect(m, self.input, relane.input)
        place, word = Signal(range(size)), Signal(range(max(2, self.words)))
        self.oldest = Signal(range(size))  # the ring's last word stays empty: full is not empty
        self.written_row = Signal(range(self.max_rows + 1))
        self.written_column = Signal(range(self.max_columns + 1))
        self.ahead = Signal(range(FRAMES_AHEAD + 2))
        self.frame_read, ended = Signal(), Signal()
        self.begun = Signal()  # the configuration is valid, addresses are computed
        # A cycle late, so that it is a register: room for two words, and for one frame more.
        free = Signal()
        after, behind = Signal(range(size), init=1 % size), Signal(range(size), init=2 % size)
        m.d.sync += free.eq(
            self.begun
            & (after != self.oldest)
            & (behind != self.oldest)
            & (self.ahead < FRAMES_AHEAD)
        )
        put = Signal()
        m.d.comb += [
            relane.output.ready.eq(free),
            put.eq(relane.output.valid & free),
            ring.write_enable.eq(put),
            ring.write_address.eq(place),
            ring.write_data.eq(relane.output.payload),
        ]
        self.waiting = relane.output.valid
        self.last_row, self.last_column = Signal.like(self.rows), Signal.like(self.columns)
        m.d.sync += [self.last_row.eq(self.rows - 1), self.last_column.eq(self.columns - 1)]
        with m.If(put):
            m.d.sync += [place.eq(after), after.eq(behind), behind.eq(_after(behind, size))]
            m.d.sync += word.eq(word + 1)
            with m.If(word == self.words - 1):
                m.d.sync += [word.eq(0), self.written_column.eq(self.written_column + 1)]
                with m.If(self.written_column == self.last_column):
                    m.d.sync += [
                        self.written_column.eq(0),
                        self.written_row.eq(self.written_row + 1),
                    ]
                    with m.If(self.written_row == self.last_row):
                        m.d.sync += self.written_row.eq(0)
                        m.d.comb += ended.eq(1)
        ended_late = Signal()  # nobody minds a cycle
        m.d.sync += ended_late.eq(ended)
        # One LUT a bit where a sum would be a chain of carries.
        frames = range(FRAMES_AHEAD + 2)
        with m.If(ended_late & ~self.frame_read):
            m.d.sync += self.ahead.eq(Array(min(n + 1, frames[-1]) for n in frames)[self.ahead])
        with m.If(~ended_late & self.frame_read):
            m.d.sync += self.ahead.eq(Array(max(n - 1, 0) for n in frames)[self.ahead])

    def _load(self, m: Module) -> None:
        """Copy the columns of group after group from the ring to a half of the patch."""
        layer, size, words = self.layer, self.ring_words, self.words
        (kernel_h, _), (stride_y, stride_x) = layer.kernel, layer.stride
        top, left = layer.padding
        group_columns = self.folding.pixels * stride_x
        count = len(self.patch)

        # In words, modulo the ring: of a row; of `stride` rows; back to the first window's corner.
        row_words, step, corner = (Signal(range(size + 1)) for _ in range(3))
        m.d.sync += [
            row_words.eq(_times(self.columns, words)),
            step.eq(_times(row_words, stride_y)),
            corner.eq(_times(row_words, top) + left * words),
        ]
        a_row, a_step = _Distance(m, row_words, size), _Distance(m, step, size)
        # Places of the windows' top left corners: of the row, of the group, and of its lines.
        row_at, group_at, line_at, at = (Signal(range(size)) for _ in range(4))
        # The group's first row and column in the picture without padding, and the last ones of all.
        row, column = Signal(range(self.max_rows + 1)), Signal(range(self.max_columns + 1))
        # Rows and columns of the picture down to the group's last ones; beyond its edge, too.
        first_rows, first_columns = kernel_h - 1 - top, count - 1 - left
        need_row = Signal(range(self.max_rows + kernel_h), init=first_rows)
        need_column = Signal(range(self.max_columns + count + group_columns), init=first_columns)
        turn = Signal(range(max(2, layer.passes)))
        half = Signal()
        line, j = Signal(range(max(2, kernel_h))), Signal(range(max(2, count)))
        q = Signal(range(max(2, words)))
        there, past_column = Signal(), Signal()
        # What is written never exceeds the last row and column: beyond them, those are waited for.
        m.d.comb += past_column.eq(self.written_column > need_column)
        m.d.sync += there.eq(
            (self.ahead != 0)
            | (self.written_row > need_row)
            | ((self.written_row == need_row) & past_column)
            | ((need_row >= self.last_row) & (self.written_row == self.last_row) & past_column)
        )
        # Zeros outside of the picture: where the word that is read lies, padding included.
        here_row = Signal(range(self.max_rows + kernel_h))
        here_column = Signal(range(self.max_columns + count + group_columns))
        end_row, end_column = Signal.like(here_row), Signal.like(here_column)
        m.d.sync += [end_row.eq(self.rows + top), end_column.eq(self.columns + left)]
        inside = (
            (here_row >= top)
            & (here_row < end_row)
            & (here_column >= left)
            & (here_column < end_column)
        )
        reading = Signal()
        m.d.comb += [self.ring.read_enable.eq(1), self.ring.read_address.eq(at)]
        # The same, as the word comes out of the ring.
        late = [Signal(1 + 1 + len(j) + len(self.patch[0].write_address)) for _ in range(2)]
        slot = Signal(range(2 * self.patch_words))
        m.d.sync += late[0].eq(Cat(slot, j, inside, reading)), late[1].eq(late[0])
        bits = len(slot)
        slot_late, j_late = late[1][:bits], late[1][bits : bits + len(j)]
        inside_late, write = late[1][-2], late[1][-1]
        data = Mux(inside_late, self.ring.read_data, 0)
        for number, memory in enumerate(self.patch):
            m.d.comb += [
                memory.write_enable.eq(write & (j_late == number)),
                memory.write_address.eq(slot_late),
                memory.write_data.eq(data),
            ]
        # Where the ring is shorter than a row, the next row begins where this one ends.
        flat = kernel_h == 1 and stride_y == 1 and layer.passes == 1
        if flat:
            rest = Signal(range(group_columns * words + 1))  # words up to the end of the row
            m.d.sync += rest.eq(_times((self.columns - column)[: bits_for(group_columns)], words))
            a_step = _Distance(m, rest, size)
        a_group = _Distance(m, Const(group_columns * words), size)
        # Of the group at hand, for "move": they stand since the group began.
        last_group, last_row, last_turn = Signal(), Signal(), Signal()
        last = Signal()  # of the frame: it stands a cycle later
        next_group, next_row = Signal(range(size)), Signal(range(size))
        next_line = Signal(range(size))
        if count * words > 1:
            m.d.sync += next_line.eq(a_row.after(line_at))
        else:  # a line is one word: a register would come too late
            m.d.comb += next_line.eq(a_row.after(line_at))
        m.d.sync += [
            next_group.eq(a_group.after(group_at)),
            next_row.eq(a_step.after(group_at if flat else row_at)),
            last_group.eq(column + group_columns >= self.columns),
            last_row.eq(row + stride_y >= self.rows),
            last_turn.eq(turn == layer.passes - 1),
            last.eq(last_group & last_row & last_turn),
        ]
        loaded = Signal(2)  # on its way to `full`, behind the last word
        filled = [Signal(2) for _ in range(3)]
        m.d.sync += [filled[0].eq(loaded), filled[1].eq(filled[0]), filled[2].eq(filled[1])]
        self.filled, self.taken = filled[2], Signal(2)
        m.d.sync += self.full.eq((self.full | filled[2]) & ~self.taken)
        busy = self.full | filled[0] | filled[1] | filled[2]

        with m.FSM():
            with m.State("begin"):  # the first beat after reset: rows and columns are valid
                with m.If(self.waiting):
                    m.next = "multiply"
            with m.State("multiply"):
                m.next = "multiply more"
            with m.State("multiply more"):
                m.next = "corner"
            with m.State("corner"):
                m.d.sync += row_at.eq(_before(corner, size)), group_at.eq(_before(corner, size))
                m.d.sync += self.oldest.eq(_before(corner, size))
                m.next = "open"
            with m.State("open"):
                m.d.sync += self.begun.eq(1)
                m.next = "settle"
            with m.State("settle"):  # `there` is a cycle late
                m.d.sync += [line_at.eq(group_at), at.eq(group_at)]
                m.d.sync += slot.eq(Mux(half, self.patch_words, 0))
                m.d.sync += [here_row.eq(row), here_column.eq(column)]
                m.next = "wait"
            with m.State("wait"):
                with m.If(there & ~busy.bit_select(half, 1)):
                    m.next = "read"
            with m.State("read"):
                m.d.comb += reading.eq(1)
                m.d.sync += [at.eq(_after(at, size)), slot.eq(slot + 1), q.eq(q + 1)]
                with m.If(q == words - 1):
                    m.d.sync += [q.eq(0), j.eq(j + 1), slot.eq(slot - (words - 1))]
                    m.d.sync += here_column.eq(here_column + 1)
                    with m.If(j == count - 1):
                        m.d.sync += [line_at.eq(next_line), at.eq(next_line)]
                        m.d.sync += [j.eq(0), line.eq(line + 1), slot.eq(slot + 1)]
                        m.d.sync += [here_column.eq(column), here_row.eq(here_row + 1)]
                        with m.If(line == kernel_h - 1):
                            m.d.sync += line.eq(0)
                            m.d.comb += loaded.eq(Mux(half, 2, 1))
                            m.next = "move"
            with m.State("move"):
                m.d.sync += half.eq(~half)
                m.d.comb += self.frame_read.eq(last)
                m.d.sync += [column.eq(column + group_columns), group_at.eq(next_group)]
                m.d.sync += need_column.eq(need_column + group_columns)
                with m.If(last_turn):
                    m.d.sync += self.oldest.eq(next_group)
                with m.If(last_group):
                    m.d.sync += [column.eq(0), need_column.eq(first_columns)]
                    m.d.sync += [group_at.eq(row_at), turn.eq(turn + 1)]
                    with m.If(last_turn):
                        m.d.sync += [turn.eq(0), row.eq(row + stride_y)]
                        m.d.sync += need_row.eq(need_row + stride_y)
                        m.d.sync += [row_at.eq(next_row), group_at.eq(next_row)]
                        m.d.sync += self.oldest.eq(next_row)
                        with m.If(last_row):
                            m.d.sync += [row.eq(0), need_row.eq(first_rows)]
                m.next = "settle"

    def _play(self, m: Module) -> None:
        """Read each full half of the patch once per tile, a beat in every cycle."""
        layer, folding = self.layer, self.folding
        kernel_w, stride_x = layer.kernel[1], layer.stride[1]
        beat_channels = layers.beat_channels(layer, folding)
        subs = folding.word // beat_channels
        lane_bits = beat_channels * self.bits
        active, half = Signal(), Signal()  # `half` is the one that is played, or comes next
        tap, sub = Signal(range(max(2, kernel_w))), Signal(range(max(2, subs)))
        slot = Signal(range(self.patch_words))
        tile = Signal(range(max(2, layers.tiles(layer, folding))))
        last_tap, last_sub = tap == kernel_w - 1, sub == subs - 1
        # A tile has three beats or more and no gaps: its last beat is seen one before.
        beats = layers.tile_beats(layer, folding)
        beat_number = Signal(range(beats))
        last_beat, final, go = Signal(), Signal(), Signal()
        nearly = active & (beat_number == beats - 2)
        m.d.sync += [
            last_beat.eq(nearly),
            final.eq(nearly & (tile == layers.tiles(layer, folding) - 1)),
        ]
        m.d.comb += [
            go.eq((~active | final) & self.full.bit_select(half ^ final, 1) & self.room),
            self.start.eq(go),
            self.taken.eq(Mux(final, Mux(half, 2, 1), 0)),
        ]
        m.d.sync += half.eq(half ^ final)
        with m.If(go):
            m.d.sync += active.eq(1)
        with m.Elif(final):
            m.d.sync += active.eq(0)
        first_slot = Signal(range(max(2, self.words)))  # of the present channels, if depthwise
        with m.If(active):
            m.d.sync += [tap.eq(tap + 1), beat_number.eq(beat_number + 1)]
            with m.If(last_tap):
                m.d.sync += tap.eq(0)
                if layer.depthwise:
                    m.d.sync += slot.eq(slot + self.words)
                else:
                    m.d.sync += sub.eq(sub + 1)
                    with m.If(last_sub):
                        m.d.sync += [sub.eq(0), slot.eq(slot + 1)]
            with m.If(last_beat):
                m.d.sync += [slot.eq(0), beat_number.eq(0), tile.eq(tile + 1)]
                if layer.depthwise:
                    following = Mux(last_sub, first_slot + 1, first_slot)
                    m.d.sync += [first_slot.eq(following), slot.eq(following)]
                    m.d.sync += sub.eq(Mux(last_sub, 0, sub + 1))
            with m.If(final):
                m.d.sync += [tile.eq(0), slot.eq(0), first_slot.eq(0), sub.eq(0)]

        # The weights of a pass follow those of the one before; a pass is the groups of a row.
        base = pass_counter(
            m, layer, folding, self.columns, final, layers.pass_words(layer, folding)
        )
        packing = layers.packing(folding)
        ends = self.part == packing.beats - 1
        # A shared beat comes out of the words before it.
        moves = self.part != packing.sharing - 1 if packing.sharing else ends
        with m.If(active):
            m.d.sync += self.part.eq(Mux(ends, 0, self.part + 1))
            with m.If(moves):
                m.d.sync += self.address.eq(self.address + 1)
        with m.If(final):
            m.d.sync += [self.part.eq(0), self.address.eq(base)]

        address = Signal(range(2 * self.patch_words))
        m.d.comb += address.eq(Mux(half, self.patch_words, 0) + slot)
        load, sub_late = Signal(), Signal.like(sub)
        m.d.sync += [load.eq(tap == 0), sub_late.eq(sub)]
        columns = [Signal(lane_bits, name=f"column_{i}") for i in range(len(self.patch) + 1)]
        for number, memory in enumerate(self.patch):
            m.d.comb += [memory.read_enable.eq(1), memory.read_address.eq(address)]
            fresh = memory.read_data.word_select(sub_late, lane_bits)
            m.d.sync += columns[number].eq(Mux(load, fresh, columns[number + 1]))
        for pixel in range(folding.pixels):
            place = slice(pixel * lane_bits, (pixel + 1) * lane_bits)
            m.d.comb += self.x[place].eq(columns[pixel * stride_x])
        flags = [Signal(3), Signal(3)]
        m.d.sync += [
            flags[0].eq(Cat(active, beat_number == 0, last_beat)),
            flags[1].eq(flags[0]),
        ]
        m.d.comb += Cat(self.valid, self.first, self.last).eq(flags[1])


def pass_counter(
    m: Module, layer: Layer, folding: Folding, columns: Value, strobe: Value, size: int
) -> Value:
    """Count groups; give `size` times the number of the pass that the *next* group belongs to.

    strobe: a group has ended, at the earliest three cycles after the one before; what is given
    counts with it. With one pass that is 0.
    """
    if layer.passes == 1:
        return Const(0)
    step = folding.pixels * layer.stride[1]
    place, row_ends = Signal(len(columns) + 1), Signal()
    m.d.sync += row_ends.eq(place + step >= columns)
    base = Signal(range(layer.passes * size))
    following, after = Signal.like(base), Signal.like(base)
    m.d.sync += after.eq(Mux(base == (layer.passes - 1) * size, 0, base + size))
    m.d.comb += following.eq(Mux(row_ends, after, base))
    with m.If(strobe):
        m.d.sync += [place.eq(Mux(row_ends, 0, place + step)), base.eq(following)]
    return following


def _times(value: Value, factor: int) -> Value:
    """Multiply by a constant with adders: a `*` by anything but a power of two may cost a DSP."""
    if factor & (factor - 1) == 0:
        return value * factor
    total: Value = Const(0)
    for bit in range(factor.bit_length()):
        if factor >> bit & 1:
            total = total + (value << bit)
    return total


def _after(place: Value, size: int) -> Value:
    return Mux(place == size - 1, 0, place + 1)


def _before(distance: Value, size: int) -> Value:
    """The place `distance` words before place 0 of a ring, distance <= size."""
    return Mux(distance == 0, 0, size - distance)


class _Distance:
    """A distance around a ring, at most its size; it counts a cycle after it is set.

    Both ways are added at once, and the sign of one of them chooses: an adder and a choice.
    """

    def __init__(self, m: Module, distance: Value, size: int) -> None:
        bits = max(len(distance), (size - 1).bit_length()) + 2
        self.whole = distance
        if isinstance(distance, Const):
            self.less: Value = Const(distance.value - size, signed(bits))
        else:
            self.less = Signal(signed(bits))
            m.d.sync += self.less.eq(distance - size)

    def after(self, place: Signal) -> Value:
        """Give the place that far behind `place`."""
        less = place + self.less
        return Mux(less[-1], place + self.whole, less)[: len(place)]
