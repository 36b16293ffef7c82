"""Channels: which of a model's channels live and die together, what they cost, and fewer of them.

`trace` follows the channels of every tensor through the model's own forward pass: a convolution
makes new ones, sums and products tie theirs pairwise, concatenation and slicing pass them on, a
pixel shuffle ties the r * r channels that become one. Channels that are tied, by skip connections,
by the subtraction of a mean from a latent, by rate gains and priors, are one unit. The units that
one layer makes are a group; a group may have any number of units, so `narrow` makes a model with
fewer. Those that carry pixels are no group.

A narrowed model is an ordinary model: its `arguments` say how many units each group has left,
`"pruned": {"g_a.0": 48, ..}`, and `catalogue.build` makes it from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lichen.errors import ModelError
from lichen.models.complexity import MODULES, Part
from lichen.models.gdn import GDN, LowerBound
from lichen.models.layers import (
    Conv2d,
    ConvTranspose2d,
    Quantizable,
    QuantizableModel,
    Requantize,
)
from lichen.models.priors import EntropyBottleneck

SIDE = 64  # of the picture that is followed: a multiple of every model's reduction
LATENT, HYPER_LATENT = "latent", "hyper_latent"  # names of groups; others are those of a layer
BITS = {"u8": 8, "s8": 8, "s16": 16}
# What gives its tensor another second axis: the channels are lost, and found again, if at all, by
# a layer. All other functions keep them where their result has as many.
RESHAPES = frozenset({"flatten", "permute", "reshape", "transpose", "unsqueeze", "view"})
Labels = NDArray[np.int64]
Counts = Mapping[str, int]  # units of groups by name


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one tensor of the state dict: the unit of each position, -1 where another's.

    makes: a weight or bias that makes the channels, so that they are zero where it is.
    """

    tensor: str
    axis: int
    units: Labels
    makes: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Units that may be left out one by one. parts: equal parts, in order, that stay equal."""

    name: str
    units: int
    parts: int
    members: tuple[Member, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that multiplies, as cost formulas see it.

    inputs, outputs: channels by group, "" for those of none. density: positions per pixel of
    picture, of the input and the output. bits: of its input. unshuffle, shuffle: factors of the
    pixel shuffles straight before and after it.
    """

    name: str
    kind: type
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    kernel: int
    stride: int
    density: tuple[float, float]
    bits: int
    unshuffle: int
    shuffle: int

    @property
    def part(self) -> Part:
        """The part of the model that it belongs to, as `complexity` names them."""
        first = self.name.partition(".")[0]
        return next(part for part, names in MODULES.items() if first in names)

    @property
    def taps(self) -> float:
        """Products per pixel of picture of each pair of an input and an output channel."""
        return self.kernel**2 * self.density[0 if self.kind is ConvTranspose2d else 1]


@dataclass(frozen=True, eq=False)
class Channels:
    """The groups of a model by name, in the order in which they come to be, and its layers."""

    groups: Mapping[str, Group]
    layers: tuple[Layer, ...]

    @property
    def counts(self) -> dict[str, int]:
        return {name: group.units for name, group in self.groups.items()}

    def width(self, channels: Mapping[str, int], counts: Counts) -> int:
        """Count a layer's channels where groups have other counts than now."""
        return sum(
            count * counts[name] // self.groups[name].units if name else count
            for name, count in channels.items()
        )

    def macs(self, layer: Layer, counts: Counts) -> float:
        """Multiply-accumulates per pixel of picture, as `complexity` counts them."""
        inputs, outputs = (self.width(c, counts) for c in (layer.inputs, layer.outputs))
        return inputs * outputs * layer.taps


class _Known(NamedTuple):
    tensor: Tensor  # kept, so that its id stays its own
    labels: Labels  # of its second axis
    bits: int
    unshuffle: int  # factor of the pixel shuffle that it comes straight from


@dataclass
class _Layer:
    """A layer while its groups are not known yet."""

    fields: dict[str, Any]
    inputs: Labels
    outputs: Labels


class _Trace(TorchFunctionMode):
    """Follows labels of channels; `parent` ties those that are one unit (union-find)."""

    def __init__(self, model: QuantizableModel) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.known: dict[int, _Known] = {}
        self.parent: list[int] = []
        self.members: list[tuple[str, int, Labels, bool]] = []
        self.layers: list[_Layer] = []
        self.makers: dict[int, _Layer] = {}  # by the id of what they gave
        self.chunks: list[list[Labels]] = []
        self.priors: dict[nn.Module, Labels] = {}

    def fresh(self, count: int) -> Labels:
        first = len(self.parent)
        self.parent += range(first, first + count)
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = label = self.parent[self.parent[label]]
        return label

    def roots(self, labels: Labels) -> Labels:
        return np.array([self.root(int(label)) for label in labels], np.int64)

    def tie(self, a: Labels, b: Labels) -> None:
        if len(a) != len(b):
            raise ModelError(f"expected as many channels on both sides, found {len(a)}, {len(b)}")
        for one, other in zip(a, b):
            first, second = sorted((self.root(int(one)), self.root(int(other))))
            self.parent[second] = first

    def know(self, tensor: Tensor, labels: Labels, bits: int, unshuffle: int = 1) -> None:
        self.known[id(tensor)] = _Known(tensor, labels, bits, unshuffle)

    def of(self, tensor: Tensor, where: nn.Module) -> _Known:
        """Give what is known of a layer's input. Raises ModelError where nothing is."""
        if id(tensor) not in self.known:
            raise ModelError(
                f"lost track of the channels before {self.names[where]}: its model computes "
                "something there that models.channels does not follow"
            )
        return self.known[id(tensor)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else (arg,))]
        known = [self.known[id(x)] for x in flat if isinstance(x, Tensor) and id(x) in self.known]
        if known:
            self.follow(func.__name__, known, args, result)
        return result

    def follow(self, name: str, known: list[_Known], args: Any, result: Any) -> None:
        """Tell the channels of a function's result by those of its arguments."""
        labels, bits = known[0].labels, max(x.bits for x in known)
        if name in ("cat", "concat"):
            if len(known) == len(args[0]):
                self.know(result, np.concatenate([x.labels for x in known]), bits)
        elif name == "chunk":
            pieces = np.split(labels, np.cumsum([piece.shape[1] for piece in result])[:-1])
            self.chunks.append(pieces)
            for piece, part in zip(result, pieces):
                self.know(piece, part, bits)
        elif name == "pixel_unshuffle":
            self.know(result, np.repeat(labels, args[1] ** 2), bits, args[1])
        elif name == "pixel_shuffle":
            together = labels.reshape(-1, args[1] ** 2)
            for column in together.T[1:]:
                self.tie(together[:, 0], column)
            self.know(result, together[:, 0], bits)
            if id(args[0]) in self.makers:
                self.makers[id(args[0])].fields["shuffle"] = args[1]
        elif name in RESHAPES or not isinstance(result, Tensor) or result.dim() < 2:
            return
        elif result.shape[1] == len(labels):
            for other in known[1:]:
                self.tie(labels, other.labels)
            self.know(result, labels, bits)

    def after(self, layer: Quantizable, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Hook of every layer: what it makes of its input's channels."""
        name, bits = self.names[layer], BITS[layer.dtype]
        before = self.of(inputs[0], layer)
        labels = before.labels
        match layer:
            case Conv2d() | ConvTranspose2d():
                if getattr(layer, "groups", 1) != 1:
                    raise ModelError(f"{name} is a convolution in groups, which are not followed")
                transposed = isinstance(layer, ConvTranspose2d)
                labels = self.fresh(output.shape[1])
                self.members += [
                    (f"{name}.weight", 1 - transposed, before.labels, False),
                    (f"{name}.weight", int(transposed), labels, True),
                    (f"{name}.bias", 0, labels, True),
                ]
                self.multiplies(layer, inputs[0], before, output, labels)
            case GDN():
                self.members += [(f"{name}.beta", 0, labels, False)]
                self.members += [(f"{name}.gamma", axis, labels, False) for axis in (0, 1)]
                self.multiplies(layer, inputs[0], before, output, labels)
            case Requantize():
                self.members.append((f"{name}.multiplier", 0, labels, False))
        self.know(output, labels, bits)

    def multiplies(
        self, layer: Quantizable, x: Tensor, before: _Known, y: Tensor, outputs: Labels
    ) -> None:
        weight = getattr(layer, "weight", None)
        fields = {
            "name": self.names[layer],
            "kind": ConvTranspose2d if isinstance(layer, ConvTranspose2d)
            else Conv2d if isinstance(layer, Conv2d) else GDN,
            "kernel": 1 if weight is None else weight.shape[-1],
            "stride": getattr(layer, "stride", 1),
            "density": tuple(t.shape[2] * t.shape[3] / SIDE**2 for t in (x, y)),
            "bits": before.bits,
            "unshuffle": before.unshuffle,
            "shuffle": 1,
        }  # fmt: skip
        self.layers.append(_Layer(fields, before.labels, outputs))
        self.makers[id(y)] = self.layers[-1]

    def prior(self, prior: EntropyBottleneck) -> Labels:
        """Give the labels of a prior's channels."""
        if prior not in self.priors:
            self.priors[prior] = labels = self.fresh(prior.channels)
            for name, _ in prior.named_parameters():
                every = np.tile(labels, prior.levels)
                self.members.append((f"{self.names[prior]}.{name}", 0, every, False))
        return self.priors[prior]


@contextmanager
def _watched(model: QuantizableModel, trace: _Trace) -> Iterator[None]:
    """Let `trace` see what the model's parts do, in float; leave the model as it was."""
    layers = [layer for layer in model.modules() if isinstance(layer, Quantizable)]
    priors = [prior for prior in model.modules() if isinstance(prior, EntropyBottleneck)]
    bare = [layer for layer in layers if type(layer) is Quantizable]  # called by `finish` alone
    flags = [(layer, layer.quantized) for layer in layers]
    hooks = [layer.register_forward_hook(trace.after) for layer in layers if layer not in bare]

    def watch(layer: Quantizable) -> None:
        finish = layer.finish

        def finished(y: Tensor) -> Tensor:
            output = finish(y)
            trace.know(output, trace.of(y, layer).labels, BITS[layer.dtype])
            return output

        layer.finish = finished  # type: ignore[method-assign]

    def watch_prior(prior: EntropyBottleneck) -> None:
        likelihood, medians = prior.likelihood, prior.medians

        def seen(x: Tensor, *others: Tensor | None, **named: Tensor | None) -> Tensor:
            trace.tie(trace.of(x, prior).labels, trace.prior(prior))
            return likelihood(x, *others, **named)

        def middle() -> Tensor:
            found = medians()
            trace.know(found, trace.prior(prior), 8)
            return found

        prior.likelihood, prior.medians = seen, middle  # type: ignore[method-assign]

    try:
        for layer in bare:
            watch(layer)
        for prior in priors:
            watch_prior(prior)
        # torch shows functions to a mode, but not autograd's own
        LowerBound.apply = lambda x, bound: x.clamp_min(bound)  # type: ignore[method-assign]
        for layer, _ in flags:
            layer.quantized = False
        with torch.no_grad():
            yield
    finally:
        for layer, flag in flags:
            layer.quantized = flag
        del LowerBound.apply
        for prior in priors:
            del prior.likelihood, prior.medians
        for layer in bare:
            del layer.finish
        for hook in hooks:
            hook.remove()


def trace(model: QuantizableModel) -> Channels:
    """Find the groups of a model. Raises ModelError for one whose channels cannot be followed."""
    if not model.quantized_layers():
        raise ModelError(
            f"the channels of {type(model).__name__} cannot be pruned: attention and LayerNorm "
            "are not followed; give a balle2016, balle2018, minnen2020 or student"
        )
    found = _Trace(model)
    device = next(model.parameters()).device
    picture = torch.zeros(1, 3, SIDE, SIDE, device=device)
    pixels = found.fresh(3)
    found.know(picture, pixels, 8)
    gains = {name: getattr(model, name) for name in ("gain", "inverse_gain")}
    for name, gain in gains.items():
        labels = found.fresh(gain.shape[1])
        found.know(gain, labels, 16)
        found.members.append((name, 1, labels, False))
    with _watched(model, found), found:
        coded = model(picture, torch.zeros(1, device=device), noise=False)
    fixed = [pixels, found.known[id(coded.x_hat)].labels]
    return _grouped(found, np.concatenate(fixed))


def _grouped(found: _Trace, fixed: Labels) -> Channels:
    """Give the units of each layer's outputs as groups, without those that are tied to pixels."""
    members = [(name, axis, found.roots(ls), makes) for name, axis, ls, makes in found.members]
    together = _Trace.__new__(_Trace)  # a second union-find, of roots that one layer makes
    together.parent = list(range(len(found.parent)))
    for _, _, roots, makes in members:
        if makes:
            together.tie(roots, np.roll(roots, 1))
    outside = {together.root(int(root)) for root in found.roots(fixed)}
    by_group: dict[int, list[int]] = {}  # units of each group, in order of appearance
    for _, _, roots, makes in members:
        for root in roots if makes else ():
            units = by_group.setdefault(together.root(int(root)), [])
            units.append(int(root))
    groups: dict[str, Group] = {}
    name_of: dict[int, str] = {}  # of the group of a root
    for number, roots_of in by_group.items():
        if number in outside:
            continue
        units = {root: unit for unit, root in enumerate(dict.fromkeys(roots_of))}
        own = tuple(
            Member(name, axis, np.array([units.get(int(root), -1) for root in roots]), makes)
            for name, axis, roots, makes in members
            if any(int(root) in units for root in roots)
        )
        parts = {len(c) for c in found.chunks if _splits([found.roots(p) for p in c], units)}
        name = _name(own)
        groups[name] = Group(name, len(units), max(parts, default=1), own)
        name_of.update(dict.fromkeys(units, name))

    def count(labels: Labels) -> dict[str, int]:
        names = [name_of.get(int(root), "") for root in found.roots(labels)]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    layers = tuple(
        Layer(**layer.fields, inputs=count(layer.inputs), outputs=count(layer.outputs))
        for layer in found.layers
    )
    return Channels(groups, layers)


def _splits(pieces: list[Labels], units: Mapping[int, int]) -> bool:
    """Tell whether pieces of a tensor cut these units into parts, first to last."""
    flat = [units.get(int(root)) for piece in pieces for root in piece]
    return flat == list(range(len(units)))


def _name(members: tuple[Member, ...]) -> str:
    tensors = [member.tensor for member in members]
    if "gain" in tensors:
        return LATENT
    if any(tensor.endswith(".quantiles") for tensor in tensors):
        return HYPER_LATENT
    return next(m.tensor for m in members if m.makes).rpartition(".")[0]


@torch.no_grad()
def keep(
    model: QuantizableModel, channels: Channels, kept: Mapping[str, NDArray[np.bool_]]
) -> None:
    """Leave out, in place, the units that are not kept; groups that are not named stay whole.

    kept: (units,) of each group. Writes the counts to `model.arguments["pruned"]`.
    """
    masks: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for name, mask in kept.items():
        for member in channels.groups[name].members:
            own = np.where(member.units < 0, True, mask[member.units])
            place = member.tensor, member.axis
            masks[place] = masks.get(place, np.ones(len(own), bool)) & own
    for (tensor, axis), mask in masks.items():
        path, _, attribute = tensor.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, attribute)
        index = torch.from_numpy(np.flatnonzero(mask)).to(old.device)
        new = old.detach().index_select(axis, index)
        if isinstance(old, nn.Parameter):
            setattr(module, attribute, nn.Parameter(new, old.requires_grad))
        else:
            module.register_buffer(attribute, new)
    for prior in model.modules():
        if isinstance(prior, EntropyBottleneck) and hasattr(model, "hyper_channels"):
            model.hyper_channels = prior.channels
    model.latent_channels = model.gain.shape[1]  # type: ignore[union-attr, assignment]
    before = model.arguments.get("pruned", {})
    now = {name: int(mask.sum()) for name, mask in kept.items() if not mask.all()}
    if before or now:
        model.arguments = {**model.arguments, "pruned": {**before, **now}}


def narrow(model: QuantizableModel, counts: Counts) -> None:
    """Leave each named group of a model the first so many of its units, of each of its parts.

    Raises ModelError for groups that it has not, and for numbers that they cannot have.
    """
    channels = trace(model)
    kept = {}
    for name, count in counts.items():
        if name not in channels.groups:
            raise ModelError(
                f"expected groups of channels of {type(model).__name__} in `pruned`, found "
                f"{name!r}; they are {', '.join(channels.groups)}"
            )
        group = channels.groups[name]
        if type(count) is not int or not 0 < count <= group.units or count % group.parts:
            raise ModelError(
                f"expected 1..{group.units} channels of {name} in `pruned`"
                + (f", a multiple of {group.parts}," if group.parts > 1 else "")
                + f" found {count!r}"
            )
        place = np.arange(group.units) % (group.units // group.parts)
        kept[name] = place < count // group.parts
    keep(model, channels, kept)
    model.arguments["pruned"] = dict(counts)
