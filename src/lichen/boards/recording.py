"""Recording: a session with a core, written down once and replayed by tests without it.

A line of JSON for each call of the link, in order. What is sent is kept by its SHA-256, what is
received as it was: a session with a board that found the right bytes keeps finding them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lichen.boards.link import Link
from lichen.errors import DeviceError

FORMAT = 1


class RecordingLink:
    """Pass every call on to another link, and write it down in a file as it happens."""

    def __init__(self, link: Link, path: Path) -> None:
        self.link = link
        self.name, self.timeout_s = link.name, link.timeout_s
        self._file = path.open("w", encoding="ascii")
        self._write({"lichen session": FORMAT, "name": self.name, "timeout_s": self.timeout_s})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()  # a session that hangs is worth reading, too

    def read(self, address: int) -> int:
        value = self.link.read(address)
        self._write({"read": address, "gives": value})
        return value

    def write(self, address: int, value: int) -> None:
        self.link.write(address, value)
        self._write({"write": address, "value": value})

    def delay_page(self, number: int, size_bytes: int) -> int:
        page = self.link.delay_page(number, size_bytes)
        self._write({"delay_page": number, "size_bytes": size_bytes, "gives": page})
        return page

    def send(self, data: NDArray[np.uint8]) -> None:
        self.link.send(data)
        self._write({"send": len(data), "sha256": _digest(data)})

    def receive(self, size_bytes: int) -> None:
        self.link.receive(size_bytes)
        self._write({"receive": size_bytes})

    def wait(self, timeout_s: float, *, sent: bool = True, received: bool = True) -> bool:
        done = self.link.wait(timeout_s, sent=sent, received=received)
        self._write({"wait": timeout_s, "sent": sent, "came": received, "gives": done})
        return done

    def received(self) -> NDArray[np.uint8]:
        data = self.link.received()
        text = base64.b64encode(zlib.compress(data.tobytes())).decode("ascii")
        self._write({"received": len(data), "gives": text})
        return data

    def stop(self) -> None:
        self.link.stop()
        self._write({"stop": True})

    def state(self) -> str:
        text = self.link.state()
        self._write({"state": True, "gives": text})
        return text

    def close(self) -> None:
        self.link.close()
        self._write({"close": True})
        self._file.close()


class ReplayLink:
    """Give the answers of a recorded session to a driver that does the same calls again.

    Raises DeviceError where a call is another one than the recorded one, and for a damaged file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[dict[str, Any]] = []
        for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
            try:
                self._lines.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DeviceError(f"{path}, line {number}, is damaged: {error}") from error
        head = self._lines[0] if self._lines else {}
        if head.get("lichen session") != FORMAT:
            raise DeviceError(f"{path} is no recorded session of format {FORMAT}")
        self.name, self.timeout_s = str(head["name"]), float(head["timeout_s"])
        self._next = 1

    @property
    def finished(self) -> bool:
        """Whether the whole session has been replayed."""
        return self._next == len(self._lines)

    def _call(self, **call: Any) -> Any:
        """Compare a call with the recorded one; give what that gave."""
        if self.finished:
            raise DeviceError(f"{self.path} ends, the driver now does {json.dumps(call)}")
        line = self._lines[self._next]
        recorded = {key: value for key, value in line.items() if key != "gives"}
        if recorded != call:
            raise DeviceError(
                f"{self.path}, line {self._next + 1}: the recorded session has "
                f"{json.dumps(recorded)}, the driver now does {json.dumps(call)}: record it anew "
                "if that is meant"
            )
        self._next += 1
        return line.get("gives")

    def read(self, address: int) -> int:
        return int(self._call(read=address))

    def write(self, address: int, value: int) -> None:
        self._call(write=address, value=value)

    def delay_page(self, number: int, size_bytes: int) -> int:
        return int(self._call(delay_page=number, size_bytes=size_bytes))

    def send(self, data: NDArray[np.uint8]) -> None:
        self._call(send=len(data), sha256=_digest(data))

    def receive(self, size_bytes: int) -> None:
        self._call(receive=size_bytes)

    def wait(self, timeout_s: float, *, sent: bool = True, received: bool = True) -> bool:
        return bool(self._call(wait=timeout_s, sent=sent, came=received))

    def received(self) -> NDArray[np.uint8]:
        if self.finished or "received" not in self._lines[self._next]:
            self._call(received=None)
        size = self._lines[self._next]["received"]
        data = zlib.decompress(base64.b64decode(self._call(received=size)))
        return np.frombuffer(data, np.uint8).copy()

    def stop(self) -> None:
        self._call(stop=True)

    def state(self) -> str:
        return str(self._call(state=True))

    def close(self) -> None:
        self._call(close=True)


def _digest(data: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()
