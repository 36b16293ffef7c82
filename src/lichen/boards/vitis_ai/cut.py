"""Cut a Program in three: the host's work before, networks for the DPU, the host's work after.

    inputs -[before]-> host tensors -[feeds: int8]-> DPU -[int8]-> -[after]-> outputs
                            +------------------------------------------^

`before` and `after` are Programs: integers, on the Arm cores, exact. Convolutions, their ReLUs and
the additions between them go to the DPU, in float until they are quantised. What stays on the host:

- unless `linear`, a convolution from a host tensor straight to 16 bits (the student's linear path):
  the DPU has 8 bits (docs/decisions/0001-linear-path.md has what that costs);
- gains, sums with 16-bit tensors, and pixel shuffles at the end.

Exact rewritings, each because of a rule in `rules.py`:

- a transposed convolution with output_padding gets its kernel filled up with zeros;
- a last transposed convolution to a few channels becomes a convolution to its phases, and a pixel
  shuffle on the host (the DPU computes 16 channels at a time);
- a pixel shuffle inside becomes a transposed convolution whose weights are zeros and ones: an
  operation that the compiler surely takes;
- a convolution with more padding on one side gets zeros on the other side of its kernel;
- a constant added to the picture goes into the first bias, and the host fills the border with what
  the constant makes zero, so that the picture keeps its 8 bits;
- a convolution that reads 16 bits reads their two halves of 8 bits, and the sum is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lichen.boards.vitis_ai import network as net
from lichen.boards.vitis_ai import rules
from lichen.boards.vitis_ai.exponents import exponents
from lichen.errors import ModelError
from lichen.program import Input, Op, Output, Program, ops
from lichen.program.rewrite import subpixel

Part = Literal["whole", "high", "low"]
NARROW = rules.CHANNEL_PARALLEL  # a last transposed convolution to fewer channels is rewritten
HIGH_SHIFT = 8  # q = high * 2**8 + low


@dataclass(frozen=True)
class Source:
    """How the host makes a feed: from which tensor, and its exponent.

    part: the whole tensor, or the halves of a 16-bit one (high: rounded down, low: -128..127).
    fill: the integer beyond the picture's border.
    """

    tensor: str
    exponent: int
    part: Part = "whole"
    fill: int = 0


@dataclass(frozen=True, eq=False)
class Cut:
    """A Program in its three parts. sources: by feed. results: exponents of the DPU's outputs."""

    program: Program
    before: Program
    networks: tuple[net.Network, ...]
    sources: Mapping[str, Source]
    results: Mapping[str, int]
    after: Program


def cut(program: Program, reduction: int, model: str = "", linear: bool = False) -> Cut:
    """Cut a Program. reduction: lines of the picture per row of its inputs.

    linear: give the DPU linear paths in 16 bits, too.
    Raises ModelError naming the layers that the DPU refuses.
    """
    return _Cutter(program, reduction, model, linear).cut()


class _Cutter:
    """Decides where each operation runs and writes the parts down."""

    def __init__(self, program: Program, reduction: int, model: str, linear: bool) -> None:
        self.program, self.model, self.linear = program, model, linear
        self.ops: list[Op] = []
        for op in program.ops:
            trailing = isinstance(op, ops.TransposedConv) and not _readers(program, op.output)
            if isinstance(op, ops.TransposedConv) and trailing and op.weight.shape[1] < NARROW:
                self.ops += subpixel(op)
            else:
                self.ops.append(op)
        self.exponents = exponents(replace(program, ops=tuple(self.ops)))
        self.maker = {op.output: op for op in self.ops}
        self.dtypes: dict[str, Any] = {x.name: x.dtype for x in program.inputs}
        self.channels = {x.name: x.channels for x in program.inputs}
        self.reduction = {x.name: Fraction(reduction) for x in program.inputs}
        for op in self.ops:
            self._describe(op)
        self.leads: set[str] = set()  # tensors that some convolution of the DPU reads, in the end
        self.on_dpu: set[str] = set()
        self.deep: set[str] = set()  # tensors that depend on the DPU
        self.aliases: dict[str, str] = {}  # what the DPU fuses away: what stands for it
        self._place()

    def _describe(self, op: Op) -> None:
        """Note type, channels and grid of an operation's output."""
        first = sources(op)[0]
        channels, grid = self.channels[first], self.reduction[first]
        match op:
            case ops.Conv():
                channels, grid = len(op.bias), grid * op.stride
            case ops.TransposedConv():
                channels, grid = len(op.bias), grid / op.stride
            case ops.PixelShuffle():
                channels, grid = channels // op.factor**2, grid / op.factor
            case ops.PixelUnshuffle():
                channels, grid = channels * op.factor**2, grid * op.factor
            case ops.Concat():
                channels = sum(self.channels[name] for name in op.inputs)
            case ops.Slice():
                channels = op.stop - op.start
        self.channels[op.output], self.reduction[op.output] = channels, grid
        self.dtypes[op.output] = getattr(op, "dtype", self.dtypes[first])

    # Where things run

    def _place(self) -> None:
        convolutions = self._convolutions()
        self.on_dpu = set(convolutions)
        for op in reversed(self.ops):
            if op.output in convolutions or op.output in self.leads:
                self.leads.update(sources(op))
        refused = []
        for op in self.ops:
            if op.output in convolutions:
                self.deep.add(op.output)
                continue
            if not self.deep.intersection(sources(op)):
                continue
            self.deep.add(op.output)
            if self.on_dpu.issuperset(sources(op)) and self._inner(op):
                self.on_dpu.add(op.output)
            elif op.output in self.leads:
                refused.append(op)
        refused += [op for op in self.ops if op.output in convolutions and self._verdict(op)]
        if refused:
            raise ModelError(self._complaint(refused))

    def _convolutions(self) -> set[str]:
        """Name the convolutions of the DPU: all but preparations and linear paths in 16 bits."""
        found: set[str] = set()
        deep: set[str] = set()
        for op in self.ops:
            wanted = isinstance(op, ops.Conv | ops.TransposedConv) and not self._prepares(op)
            straight = isinstance(op, ops.Conv) and op.dtype == "s16" and op.input not in deep
            if wanted and (self.linear or not (straight and self._ends(op.output))):
                found.add(op.output)
                deep.add(op.output)
            elif any(name in deep for name in sources(op)):
                deep.add(op.output)
        return found

    def _ends(self, name: str) -> bool:
        """Whether nothing that follows a tensor is a convolution or a GDN."""
        weighted = (ops.Conv, ops.TransposedConv, ops.GDN)
        return all(
            not isinstance(op, weighted) and self._ends(op.output) for op in self._read_by(name)
        )

    def _read_by(self, name: str) -> list[Op]:
        return [op for op in self.ops if name in sources(op)]

    def _prepares(self, op: Op) -> bool:
        """Whether a convolution only adds a constant to each channel of an input."""
        if not isinstance(op, ops.Conv) or op.input in self.maker or op.weight.shape[2:] != (1, 1):
            return False
        weight = op.weight[:, :, 0, 0]
        return op.groups == 1 and np.array_equal(weight, np.eye(len(weight))) and not op.shift.any()

    def _inner(self, op: Op) -> bool:
        """Whether an operation on tensors of the DPU runs there, or is fused there."""
        match op:
            case ops.Add():
                return not op.subtract
            case ops.PixelShuffle():
                return op.output in self.leads
            case ops.Clamp():
                return op.high >= 127 and (op.low == 0 or op.low <= -127)
        return False

    def _verdict(self, op: Op) -> rules.LayerVerdict | None:
        """Give the verdict of what the DPU does not take, or None."""
        found = rules.verdict(self._layer(op))
        return None if found.place in ("dpu", "free") else found

    def _layer(self, op: Op) -> _Layer:
        """Describe an operation as the rules know it, as it will be written."""
        before = self.channels[sources(op)[0]]
        layer = _Layer(_kind(op), before, self.channels[op.output])
        match op:
            case ops.Conv():
                weight, _ = _even_padding(op)
                if op.groups > 1:
                    layer = replace(layer, kind="depthwise" if op.groups == before else "grouped")
                kernel = weight.shape[2], weight.shape[3]
                return replace(layer, kernel=kernel, stride=op.stride, groups=op.groups)
            case ops.TransposedConv():
                k = op.weight.shape[2] + op.output_padding
                return replace(layer, kernel=(k, k), stride=op.stride)
        return layer

    def _complaint(self, refused: list[Op]) -> str:
        """Name the layers of the first kind refused, the limit, its source and a way out."""
        kinds = [_kind(op) for op in refused]
        first = refused[0]
        same = [op.output for op, kind in zip(refused, kinds, strict=True) if kind == kinds[0]]
        others = sorted(set(kinds) - {kinds[0]})
        v = rules.verdict(self._layer(first))
        why = f"{v.reason}; the limit: {v.limit}, {v.source}"
        if v.place in ("dpu", "free"):
            why = "the DPU may take it, but this export has no form of it inside a network"
        text = (
            f"{self.model + ': ' if self.model else ''}layers of {self.program.name} do not run on "
            f"the DPU: {', '.join(same)} ({kinds[0].replace('_', ' ')}: {why})"
        )
        if others:
            text += f"; also {', '.join(others)}"
        remedy = v.rewrite or "a model without it"
        return f"{text}. In its place: {remedy}. `lichen study` predicts what that brings"

    # Writing the parts down

    def cut(self) -> Cut:
        """Write the three parts down."""
        nodes: list[net.Node] = []
        feeds: dict[str, net.Feed] = {}
        found: dict[str, Source] = {}
        for op in self.ops:
            if op.output in self.on_dpu:
                nodes += self._nodes(op, nodes, feeds, found)
        host_after = [op for op in self.ops if op.output in self.deep - self.on_dpu]
        needed = {name for op in host_after for name in sources(op)}
        needed |= {output.name for output in self.program.outputs}
        results = sorted(needed & self.on_dpu)
        before = [op for op in self.ops if op.output not in self.deep]
        wanted = {source.tensor for source in found.values()} | (needed - self.deep)
        return Cut(
            self.program,
            self._before(before, wanted),
            _components(self.program.name, nodes, feeds, [self._named(r) for r in results]),
            found,
            {self._named(name): self.exponents[name] for name in results},
            self._after(host_after, needed, results),
        )

    def _named(self, name: str) -> str:
        """Give the node that computes a tensor."""
        while name in self.aliases:
            name = self.aliases[name]
        return name

    def _nodes(
        self,
        op: Op,
        nodes: list[net.Node],
        feeds: dict[str, net.Feed],
        found: dict[str, Source],
    ) -> list[net.Node]:
        """Write an operation as nodes; note the feeds that it needs."""
        match op:
            case ops.Add():
                return [net.Add(op.output, self._named(op.a), self._named(op.b), op.dtype == "u8")]
            case ops.Clamp():
                self.aliases[op.output] = self._named(op.input)
                if op.low == 0:  # the ReLU of a layer in 16 bits; else a saturation that int8 has
                    place = [node.name for node in nodes].index(self._named(op.input))
                    nodes[place] = replace(nodes[place], relu=True)
                return []
            case ops.PixelShuffle():
                source = self._named(op.input)
                return [_shuffle(op.output, source, self.channels[op.output], op.factor)]
            case ops.Conv() | ops.TransposedConv():
                return self._weighted(op, feeds, found)
        raise AssertionError(op)

    def _weighted(
        self,
        op: ops.Conv | ops.TransposedConv,
        feeds: dict[str, net.Feed],
        found: dict[str, Source],
    ) -> list[net.Node]:
        node = self._real(op)
        if op.input in self.deep:
            return [replace(node, input=self._named(op.input))]
        maker = self.maker.get(op.input)
        if isinstance(maker, ops.Conv) and self._prepares(maker) and isinstance(node, net.Conv):
            raised = 2.0 ** -self.exponents[maker.output] * maker.bias  # when the input is 0
            ratio = 2.0 ** (self.exponents[maker.input] - self.exponents[maker.output])
            bias = node.bias + (node.weight.sum((2, 3)) @ raised)
            node = replace(
                node, input=maker.input, weight=net.float32(node.weight * ratio),
                bias=net.float32(bias), padding=0,
            )  # fmt: skip
            padding = _even_padding(op)[1]  # type: ignore[arg-type]
            self._feed(maker.input, "whole", feeds, found, padding, -int(maker.bias[0]))
            return [node]
        if self.dtypes[op.input] != "s16":
            return [replace(node, input=self._feed(op.input, "whole", feeds, found))]
        high = self._feed(op.input, "high", feeds, found)
        low = self._feed(op.input, "low", feeds, found)
        parts = f"{op.output}.high", f"{op.output}.low"
        return [
            replace(node, name=parts[0], input=high, bias=np.zeros_like(node.bias), relu=False),
            replace(node, name=parts[1], input=low, relu=False),
            net.Add(op.output, *parts, node.relu),
        ]

    def _feed(
        self,
        tensor: str,
        part: Part,
        feeds: dict[str, net.Feed],
        found: dict[str, Source],
        margin: int = 0,
        fill: int = 0,
    ) -> str:
        """Note that the host gives a tensor, or half of one; gives the feed's name."""
        name = tensor if part == "whole" else f"{tensor}.{part}"
        grid = self.reduction[tensor]
        if grid.denominator != 1:
            raise ModelError(f"{tensor} is on a finer grid than the picture")
        feeds[name] = net.Feed(name, self.channels[tensor], grid.numerator, margin)
        found[name] = Source(tensor, self.exponents[tensor], part, fill)
        return name

    def _real(self, op: ops.Conv | ops.TransposedConv) -> net.Conv | net.Deconv:
        """Give a convolution in float: what its integers stand for."""
        e_in = self.exponents[op.input]
        e_weight = op.shift.astype(np.int64) + self.exponents[op.output] - e_in
        scale = np.exp2(-e_weight.astype(np.float64))
        bias = net.float32(op.bias * scale * 2.0**-e_in)
        relu = op.dtype == "u8"
        if isinstance(op, ops.Conv):
            weight, padding = _even_padding(op)
            real = net.float32(weight * scale[:, None, None, None])
            return net.Conv(op.output, op.input, real, bias, op.stride, padding, op.groups, relu)
        ends = (0, op.output_padding)
        weight = np.pad(op.weight, ((0, 0), (0, 0), ends, ends)) * scale[:, None, None]
        return net.Deconv(
            op.output, op.input, net.float32(weight), bias, op.stride, op.padding, relu
        )

    def _before(self, host: list[Op], wanted: set[str]) -> Program:
        """The host's work for the feeds and for what `_after` reads, no more."""
        needed, kept = set(wanted), []
        for op in reversed(host):
            if op.output in needed:
                needed.update(sources(op))
                kept.append(op)
        outputs = [x for x in sorted(wanted) if x in self.maker]
        return self._program("before", kept[::-1], needed, outputs, self.program.inputs)

    def _after(self, host: list[Op], needed: set[str], results: list[str]) -> Program:
        given = sorted(results) + sorted(needed - self.deep)
        inputs = tuple(
            Input(name, self.channels[name], self.dtypes[name], self.exponents[name])
            for name in given
        )
        outputs = [output.name for output in self.program.outputs]
        return self._program("after", host, {*given, *needed}, outputs, inputs)

    def _program(
        self, part: str, host: list[Op], needed: set[str], outputs: list[str],
        inputs: tuple[Input, ...],
    ) -> Program:  # fmt: skip
        used = {op.multiplier for op in host if isinstance(op, ops.Scale)
                and isinstance(op.multiplier, str)}  # fmt: skip
        return Program(
            f"{self.program.name}.{part}",
            tuple(x for x in inputs if x.name in needed),
            tuple(v for v in self.program.vectors if v.name in used),
            tuple(host),
            tuple(Output(name, self.exponents[name]) for name in outputs),
        )


@dataclass(frozen=True)
class _Layer:
    """An operation as `rules` judges it."""

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    output_padding: int = 0
    slope: float = 0.0


def sources(op: Op) -> tuple[str, ...]:
    """Name the tensors that an operation reads."""
    match op:
        case ops.Add():
            return op.a, op.b
        case ops.Concat():
            return op.inputs
    return (op.input,)


def _readers(program: Program, name: str) -> list[Op]:
    return [op for op in program.ops if name in sources(op)]


def _kind(op: Op) -> str:
    """Name an operation as the rules do."""
    match op:
        case ops.Conv():
            return "conv"
        case ops.TransposedConv():
            return "deconv"
        case ops.PixelShuffle():
            return "pixel_shuffle"
        case ops.PixelUnshuffle():
            return "pixel_unshuffle"
        case ops.Add():
            return "sub" if op.subtract else "add"
        case ops.TableIndex():
            return "round"
    return type(op).__name__.lower()


def _even_padding(op: ops.Conv) -> tuple[NDArray[np.int8], int]:
    """Give weights and one padding for all sides: taps of weight 0 in the place of less padding."""
    top, left, bottom, right = op.padding
    most = max(op.padding)
    before, after = ((most - top, most - left), (most - bottom, most - right))
    rows, columns = zip(before, after, strict=True)
    # zeros behind the kernel read what the padding behind adds
    return np.pad(op.weight, ((0, 0), (0, 0), rows, columns)), most


def _shuffle(name: str, source: str, channels: int, factor: int) -> net.Deconv:
    """A pixel shuffle as a transposed convolution: channel c * r * r + dy * r + dx to (dy, dx)."""
    weight = np.zeros((channels, factor, factor, channels, factor, factor), np.float32)
    for c in range(channels):
        for dy in range(factor):
            for dx in range(factor):
                weight[c, dy, dx, c, dy, dx] = 1.0
    kernel = weight.reshape(channels * factor**2, channels, factor, factor)
    return net.Deconv(name, source, kernel, np.zeros(channels, np.float32), factor, 0, False)


def _components(
    name: str, nodes: list[net.Node], feeds: Mapping[str, net.Feed], results: list[str]
) -> tuple[net.Network, ...]:
    """Group nodes that are joined: each group is a subgraph of its own, hence a network."""
    group: dict[str, int] = {}
    for number, node in enumerate(nodes):
        inputs = (node.a, node.b) if isinstance(node, net.Add) else (node.input,)
        group[node.name] = number
        for joined in {group[x] for x in inputs if x in group}:
            group = {k: number if v == joined else v for k, v in group.items()}
        for x in inputs:
            group.setdefault(x, number)
    found: list[net.Network] = []
    for number in dict.fromkeys(group[node.name] for node in nodes):
        own = tuple(node for node in nodes if group[node.name] == number)
        own_feeds = tuple(feed for feed in feeds.values() if group[feed.name] == number)
        own_results = tuple(r for r in results if group[r] == number)
        label = name if not found else f"{name}_{len(found) + 1}"
        found.append(net.Network(label, own_feeds, own, own_results))
    return tuple(found)
