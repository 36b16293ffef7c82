"""The DPU of this board, in another process: see `templates/dpu_worker.py`, which it runs."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, cast

import numpy as np

from lichen.boards.vitis_ai.dpu import Int8
from lichen.boards.vitis_ai.executor import Size
from lichen.boards.vitis_ai.network import Network
from lichen.errors import DeviceError

TIMEOUT_S = 60.0  # for one call
END_S = 3.0  # for the worker to end when it is told to


class WorkerDevice:
    """Networks on the DPU over VART: an `executor.Device`, safe to share between threads."""

    name = "dpu"

    def __init__(
        self,
        script: Path,
        networks: Mapping[str, Network],
        xmodels: Mapping[str, Path],
        tile: Size,
        python: Sequence[str] = ("/usr/bin/python3",),
        threads: int = 1,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Start the worker. Raises DeviceError where it does not start or has other networks.

        python: the command that runs the image's Python. threads: runners of each network.
        """
        self.tile, self.timeout_s = tile, timeout_s
        self.networks = networks
        command = [*python, str(script), str(threads)]
        command += [f"{name}={path}" for name, path in xmodels.items()]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise DeviceError(f"cannot start {command[0]} for the DPU: {error.strerror}") from error
        self.said = b""
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self.lock, self.pending = threading.Lock(), dict[int, "Future[list[bytes]]"]()
        self.next, self.closed = 0, False
        first = cast("Any", self.process.stdout).readline()
        if not first:
            self.process.wait()
            raise DeviceError(self._end())
        try:
            listed = json.loads(first)["networks"]
            self.order = {
                name: (
                    matched(network, listed[name]["inputs"], [f.name for f in network.feeds], tile),
                    matched(network, listed[name]["outputs"], list(network.outputs), tile),
                )
                for name, network in networks.items()
            }
        except DeviceError:
            self.close()
            raise
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def fix(self, network: str, tensor: str) -> int:
        for entries in self.order[network]:
            for name, entry in entries:
                if name == tensor:
                    return int(entry["fix_point"])
        raise DeviceError(f"{network} has no tensor {tensor}")

    def run(self, network: str, inputs: Mapping[str, Int8]) -> dict[str, Int8]:
        given, results = self.order[network]
        data = b"".join(
            np.ascontiguousarray(inputs[name].transpose(1, 2, 0)).tobytes() for name, _ in given
        )
        future: Future[list[bytes]] = Future()
        with self.lock:
            if self.closed:
                raise DeviceError(self._end())
            number, self.next = self.next, self.next + 1
            self.pending[number] = future
            pipe = cast("Any", self.process.stdin)
            try:
                pipe.write(json.dumps({"id": number, "network": network}).encode() + b"\n" + data)
                pipe.flush()
            except OSError as error:
                raise DeviceError(self._end()) from error
        try:
            answer = future.result(self.timeout_s)
        except FutureTimeout as error:
            raise DeviceError(
                f"the DPU gave no answer for {network} within {self.timeout_s:g} s; `xdputil "
                "status` shows its registers, `dmesg` what the driver said; start again"
            ) from error
        return {
            name: np.frombuffer(part, np.int8).reshape(entry["dims"][1:]).transpose(2, 0, 1)
            for (name, entry), part in zip(results, answer, strict=True)
        }

    def close(self) -> None:
        """End the worker."""
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> WorkerDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        """Hand answers to who waits for them."""
        pipe = cast("Any", self.process.stdout)
        for line in iter(pipe.readline, b""):
            head = json.loads(line)
            parts = [pipe.read(size) for size in head.get("bytes", [])]
            with self.lock:
                future = self.pending.pop(head["id"])
            if "error" in head:
                future.set_exception(DeviceError(f"the DPU failed: {head['error']}"))
            else:
                future.set_result(parts)
        self.process.wait()
        with self.lock:
            self.closed = True
            left, self.pending = list(self.pending.values()), {}
        for future in left:
            future.set_exception(DeviceError(self._end()))

    def _listen(self) -> None:
        """Keep the last of what the worker says, for errors."""
        for line in iter(cast("Any", self.process.stderr).readline, b""):
            self.said = (self.said + line)[-2000:]

    def _end(self) -> str:
        self.listener.join(1)
        said = self.said.decode(errors="replace").strip().splitlines()
        why = said[-1] if said else "it said nothing"
        return f"the DPU's process ended with status {self.process.poll()}: {why}"


def matched(
    network: Network, entries: list[dict[str, Any]], names: list[str], tile: Size
) -> list[tuple[str, dict[str, Any]]]:
    """Pair a compiled network's tensors, in their order, with ours. Raises DeviceError.

    By shape; tensors of one shape by the number that the quantizer gave them ("..input_1..").
    """
    channels, reductions = network.channels(), network.reductions()
    margins = {feed.name: feed.margin for feed in network.feeds}

    def shape(name: str) -> list[int]:
        lines = [int(n / reductions[name]) + 2 * margins.get(name, 0) for n in tile]
        return [1, *lines, channels[name]]

    found = []
    for entry in entries:
        alike = [name for name in names if shape(name) == entry["dims"]]
        if len(alike) > 1:
            numbers = re.findall(r"input_(\d+)", entry["name"])
            place = int(numbers[-1]) if numbers else -1
            alike = [names[place]] if 0 <= place < len(names) and names[place] in alike else []
        if len(alike) != 1:
            raise DeviceError(
                f"the compiled {network.name} has a tensor {entry['name']} of shape "
                f"{entry['dims']}, expected one of {[shape(name) for name in names]}: it is of "
                "another export; compile again"
            )
        found.append((alike[0], entry))
    if sorted(name for name, _ in found) != sorted(names):
        raise DeviceError(
            f"the compiled {network.name} has the tensors {[e['name'] for e in entries]}, "
            f"expected ones for {', '.join(names)}: it is of another export; compile again"
        )
    return found
