"""Stripes: where the substreams of a picture end, counted value by value."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value

from lichen.rtl.chunks import STRIPE_BITS


class StripeEnds:
    """Count the values of a tensor and tell the last one of each stripe.

    per_unit: values of the tensor in a unit of the coarsest grid. unit_rows, unit_columns: the
    picture's size in units; stripe: units of height in a stripe, the last one of a picture may be
    lower. All of them stay during pictures. `last`: the present value ends a stripe; `step` goes on
    to the next one.
    """

    def __init__(
        self,
        m: Module,
        name: str,
        per_unit: int,
        unit_rows: Value,
        unit_columns: Value,
        stripe: Value,
    ) -> None:
        self.step, self.last = Signal(name=f"{name}_step"), Signal(name=f"{name}_last")
        bits = len(unit_columns) + per_unit.bit_length()
        length = Signal(bits, name=f"{name}_row_length")  # of a row of units
        place = Signal(bits, name=f"{name}_place")
        row = Signal(len(unit_rows), name=f"{name}_row")
        in_stripe = Signal(STRIPE_BITS, name=f"{name}_in_stripe")
        row_ends, picture_ends = place + 1 == length, row + 1 == unit_rows
        m.d.sync += length.eq(unit_columns * per_unit)
        m.d.comb += self.last.eq(row_ends & (picture_ends | (in_stripe + 1 == stripe)))
        with m.If(self.step):
            m.d.sync += place.eq(place + 1)
            with m.If(row_ends):
                m.d.sync += [place.eq(0), row.eq(row + 1), in_stripe.eq(in_stripe + 1)]
                with m.If(picture_ends):
                    m.d.sync += row.eq(0)
                with m.If(self.last):
                    m.d.sync += in_stripe.eq(0)
