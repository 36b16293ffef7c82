"""Stripes: where the substreams of a picture end, counted value by value."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value

from lichen.rtl.chunks import STRIPE_BITS


class StripeEnds:
    """Count the values of a tensor and tell the last one of each stripe.

    per_unit: values of the tensor in a unit of the coarsest grid. unit_rows, unit_columns: the
    picture's size in units; stripe: units of height in a stripe, the last one of a picture may be
    lower. All of them stay during pictures, and are known two cycles before the first step.
    `last`: the present value ends a stripe; `step` goes on to the next one.
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
        left = Signal(bits, name=f"{name}_left")  # values of the row behind the present one
        started = Signal(name=f"{name}_started")
        row = Signal(len(unit_rows), name=f"{name}_row")
        in_stripe = Signal(STRIPE_BITS, name=f"{name}_in_stripe")
        # All that is compared is a register: a row has two values or more.
        row_ends, picture_ends, stripe_ends = (
            Signal(name=f"{name}_{what}_ends") for what in ("row", "picture", "stripe")
        )
        m.d.sync += [
            length.eq(unit_columns * per_unit),
            picture_ends.eq(row + 1 == unit_rows),
            stripe_ends.eq(in_stripe + 1 == stripe),
        ]
        m.d.comb += self.last.eq(row_ends & (picture_ends | stripe_ends))
        with m.If(self.step):
            m.d.sync += [left.eq(left - 1), row_ends.eq(left == 1), started.eq(1)]
        with m.If((self.step & row_ends) | ~(self.step | started)):
            m.d.sync += [left.eq(length - 1), row_ends.eq(length == 1)]
        with m.If(self.step & row_ends):
            m.d.sync += [row.eq(row + 1), in_stripe.eq(in_stripe + 1)]
            with m.If(picture_ends):
                m.d.sync += row.eq(0)
            with m.If(self.last):
                m.d.sync += in_stripe.eq(0)
