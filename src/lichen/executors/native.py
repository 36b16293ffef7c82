"""Run Programs with the C kernels of `lichen.native`, the everyday executor.

The first run of a Program packs its weights; the first run at a picture size lays out buffers.
Both are kept: later runs are one C call.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import contextmanager
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.errors import DeviceError
from lichen.native import ERRORS, declare, lib
from lichen.native.pack import PLANAR_CHANNELS, PackedProgram
from lichen.native.plan import ExternalRecord, OpRecord, Plan, RunRecord, TensorRecord
from lichen.program import Program
from lichen.program.arithmetic import NUMPY_DTYPE
from lichen.program.check import Shape, check_inputs

NO_VECTORS: Mapping[str, NDArray[Any]] = MappingProxyType({})
PLANS_KEPT = 4  # picture sizes per Program
THREADS_MAX = 256


class Library:
    """The C functions of run.c with their types."""

    def __init__(self) -> None:
        library = lib()
        if library is None:
            raise DeviceError(
                "the native module is not there: install lichen where a C compiler is found, or "
                "use lichen.executors.ReferenceExecutor"
            )
        int64, pointer = ctypes.c_int64, ctypes.c_void_p
        self.isa_name = declare(library, "lichen_isa_name", ctypes.c_char_p, [int64])
        self.isa_supported = declare(library, "lichen_isa_supported", int64, [int64])
        self.isa_bytes = declare(library, "lichen_isa_bytes", int64, [int64])
        self.isa_peak = declare(library, "lichen_isa_peak", int64, [int64, int64])
        self.pool_new = declare(library, "lichen_pool_new", pointer, [int64])
        self.pool_free = declare(library, "lichen_pool_free", None, [pointer])
        self.run_plan = declare(
            library, "lichen_run_plan", int64, [int64, pointer, pointer, pointer, int64, int64]
        )
        sizes = declare(library, "lichen_plan_sizes", int64, [int64])
        for which, record in enumerate((OpRecord, TensorRecord, ExternalRecord)):
            if sizes(which) != ctypes.sizeof(record):
                raise DeviceError("the native module is of another version: build it again")

    def isas(self) -> dict[str, int]:
        """Map the instruction sets of this machine to their numbers, slowest first."""
        found: dict[str, int] = {}
        index = 0
        while name := self.isa_name(index):
            if self.isa_supported(index):
                found[name.decode()] = index
            index += 1
        return found


def check_threads(threads: int) -> None:
    """Raise DeviceError unless 1..256."""
    if not 1 <= threads <= THREADS_MAX:
        raise DeviceError(f"threads must be 1..{THREADS_MAX}, not {threads}")


def available_isas() -> list[str]:
    """List the instruction sets that this build and this machine have, slowest first."""
    return list(Library().isas())


class _Pool:
    """C threads; freed with the object, in the process that made them."""

    def __init__(self, library: Library, threads: int) -> None:
        self.pid = os.getpid()
        self.handle = library.pool_new(threads)
        if not self.handle:
            raise DeviceError(f"{threads} threads were refused by the system: ask for fewer")
        weakref.finalize(self, _free_pool, library, self.handle, self.pid)


def _free_pool(library: Library, handle: int, pid: int) -> None:
    if os.getpid() == pid:  # threads do not survive a fork
        library.pool_free(handle)


class NativeExecutor:
    """Run Programs with the C kernels. Safe to share between Python threads.

    threads: C threads per run, 1..256; results do not depend on them. isa: one of
    `available_isas()`, by default the fastest. Raises DeviceError where it is not there.
    """

    name = "native"

    def __init__(self, threads: int = 1, isa: str | None = None) -> None:
        check_threads(threads)
        self._library = Library()
        isas = self._library.isas()
        self.isa = list(isas)[-1] if isa is None else isa
        if self.isa not in isas:
            raise DeviceError(f"isa must be one of {', '.join(isas)} here, not {self.isa!r}")
        self.threads = threads
        self._index = isas[self.isa]
        self._bytes = self._library.isa_bytes(self._index)
        self._lock = Lock()
        self._programs: dict[int, tuple[weakref.ref[Program], _Prepared]] = {}
        self._pools: list[_Pool] = []

    def run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] = NO_VECTORS,
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, as `lichen.program.run` does, bit for bit.

        inputs: (C, H, W) arrays in the dtype of each Input. vectors: int32 (C,) for each Vector.
        Arrays of more than four channels are channel-last in memory, which spares transposing them
        where a caller passes them on or takes `transpose(1, 2, 0)`; inputs may have any strides.
        Raises ContractError where the Program or what it is given breaks the contract,
        MemoryError and DeviceError where the system refuses memory or threads.
        """
        return self._run(program, inputs, vectors, None)

    def profile(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]] = NO_VECTORS,
    ) -> list[tuple[str, str, float]]:
        """Run once; return (kind, name of the output, seconds) of each step.

        A step is a band of rows of one operation, in the order in which they ran.
        """
        prepared = self._prepare(program)
        plan = prepared.plan(check_inputs(program, inputs, vectors))
        stages = [prepared.packed.stages[index] for index in plan.steps[:, 0]]
        nanoseconds = np.zeros(len(stages), np.int64)
        self._run(program, inputs, vectors, nanoseconds)
        return [
            (stage.kind, stage.output.replace("\0", "."), float(time) * 1e-9)
            for stage, time in zip(stages, nanoseconds, strict=True)
        ]

    def _run(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        vectors: Mapping[str, NDArray[Any]],
        nanoseconds: NDArray[np.int64] | None,
    ) -> dict[str, NDArray[Any]]:
        prepared = self._prepare(program)
        plan = prepared.plan(check_inputs(program, inputs, vectors))
        packed = prepared.packed
        given = [_contiguous(inputs[name]) for name in packed.inputs]
        made = [
            _empty(plan.shapes[name], NUMPY_DTYPE[packed.known[name].dtype])
            for name in packed.outputs
        ]
        external = (ExternalRecord * (len(given) + len(made)))()
        for record, array in zip(external, given + made, strict=True):
            record.data = array.ctypes.data
            record.stride_c, record.stride_y, record.stride_x = array.strides
        values = [np.ascontiguousarray(vectors[name]) for name in packed.vectors]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(v.ctypes.data for v in values))
        with self._borrow_pool() as pool, prepared.borrow_arena(plan) as arena:
            record = RunRecord(
                ctypes.addressof(plan.ops),
                ctypes.addressof(plan.tensors),
                ctypes.addressof(external),
                ctypes.addressof(pointers),
                arena.ctypes.data,
                None if nanoseconds is None else nanoseconds.ctypes.data,
            )
            error = self._library.run_plan(
                self._index, pool.handle, ctypes.addressof(record), plan.steps.ctypes.data,
                len(plan.steps), plan.scratch_bytes,
            )  # fmt: skip
        if error == -2:
            raise MemoryError(f"no memory for the {plan.scratch_bytes} bytes of each thread")
        if error < 0:
            raise DeviceError(f"native run failed: {ERRORS.get(error, error)}")
        return dict(zip(packed.outputs, made, strict=True))

    def _prepare(self, program: Program) -> _Prepared:
        key = id(program)
        with self._lock:
            found = self._programs.get(key)
            if found is not None and found[0]() is program:
                return found[1]
        prepared = _Prepared(PackedProgram(program, self._bytes))
        with self._lock:
            programs = self._programs
            reference = weakref.ref(program, lambda _: programs.pop(key, None))
            programs[key] = (reference, prepared)
        return prepared

    @contextmanager
    def _borrow_pool(self) -> Any:
        """One run at a time uses a pool; concurrent runs get one each."""
        with self._lock:
            pool = self._pools.pop() if self._pools else None
        if pool is None or pool.pid != os.getpid():
            pool = _Pool(self._library, self.threads)
        try:
            yield pool
        finally:
            with self._lock:
                self._pools.append(pool)


class _Prepared:
    """A packed Program and its latest plans."""

    def __init__(self, packed: PackedProgram) -> None:
        self.packed = packed
        self._plans: OrderedDict[tuple[Shape, ...], Plan] = OrderedDict()
        self._lock = Lock()

    def plan(self, shapes: Mapping[str, Shape]) -> Plan:
        """Give the plan for these tensor shapes."""
        key = tuple(shapes[name] for name in self.packed.inputs)
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
            else:
                self._plans[key] = Plan(self.packed, shapes)
                if len(self._plans) > PLANS_KEPT:
                    self._plans.popitem(last=False)
            return self._plans[key]

    @contextmanager
    def borrow_arena(self, plan: Plan) -> Any:
        """Reuse buffers: fresh pages cost more than many an operation. One is kept per plan."""
        with self._lock:
            arena = plan.free_arenas.pop() if plan.free_arenas else None
        if arena is None:
            arena = plan.arena()
        try:
            yield arena
        finally:
            with self._lock:
                if not plan.free_arenas:
                    plan.free_arenas.append(arena)


def _empty(shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Allocate (C, H, W): planar where there are few channels, otherwise channel-last in memory."""
    channels, height, width = shape
    if channels <= PLANAR_CHANNELS:
        return np.empty(shape, dtype)
    return np.empty((height, width, channels), dtype).transpose(2, 0, 1)


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """The kernels step in any strides, but either rows or (of many) channels are contiguous."""
    rows = array.strides[2] == array.itemsize
    channels = array.strides[0] == array.itemsize and len(array) > PLANAR_CHANNELS
    return array if (rows or channels) and array.flags.aligned else np.ascontiguousarray(array)
