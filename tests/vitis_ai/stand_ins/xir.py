"""Stand-in of xir's Python module: see README.md beside."""

from __future__ import annotations

import pickle
from typing import Any


class Tensor:
    def __init__(self, name: str, dims: list[int], fix_point: int) -> None:
        self.name, self.dims, self._attributes = name, dims, {"fix_point": fix_point}

    def has_attr(self, name: str) -> bool:
        return name in self._attributes

    def get_attr(self, name: str) -> Any:
        return self._attributes[name]


class Subgraph:
    def __init__(self, attributes: dict[str, Any], children: list[Subgraph], q: Any = None) -> None:
        self._attributes, self._children, self._q = attributes, children, q
        self._shapes: Any = None

    @property
    def is_leaf(self) -> bool:
        return not self._children

    def has_attr(self, name: str) -> bool:
        return name in self._attributes

    def get_attr(self, name: str) -> Any:
        if name not in self._attributes:
            raise RuntimeError(f"no attribute {name}")
        return self._attributes[name]

    def toposort_child_subgraph(self) -> list[Subgraph]:
        return list(self._children)


class Graph:
    def __init__(self, root: Subgraph) -> None:
        self._root = root

    @staticmethod
    def deserialize(path: str) -> Graph:
        assert isinstance(path, str)
        with open(path, "rb") as file:
            held = pickle.load(file)
        dpus = []
        for _ in range(held.get("subgraphs", 1)):
            dpu = Subgraph({"device": "DPU", "dpu_fingerprint": held["fingerprint"]}, [], held["q"])
            dpu._shapes = held["shapes"]
            dpus.append(dpu)
        children = [Subgraph({"device": "USER"}, []), *dpus, Subgraph({"device": "CPU"}, [])]
        return Graph(Subgraph({}, children))

    def get_root_subgraph(self) -> Subgraph:
        return self._root
