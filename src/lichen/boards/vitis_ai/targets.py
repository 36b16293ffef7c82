"""The boards' DPUs, as the Vitis AI 3.0 toolchain and its board images know them."""

from __future__ import annotations

from dataclasses import dataclass

from lichen.errors import LichenError

VITIS_AI = "3.0"  # the last release with an IP and images for the MPSoC and Kria boards
CONTAINER = "xilinx/vitis-ai-pytorch-cpu:ubuntu2004-3.0.0.106"
# One value for both boards: B4096, RAM low, channel augmentation, ALU parallel 4 (target_factory,
# create_target_DPUCZDX8G_ISA1.cpp; arch.json of the release).
FINGERPRINT = "0x101000056010407"


@dataclass(frozen=True)
class Target:
    """A board. cores: B4096 ones of the 3.0 image. arch: the folder of its arch.json."""

    name: str
    title: str
    cores: int
    image: str

    @property
    def arch(self) -> str:
        """The compiler's description of the board, in the container."""
        return f"/opt/vitis_ai/compiler/arch/DPUCZDX8G/{self.name.upper()}/arch.json"


TARGETS = {
    "kv260": Target("kv260", "AMD Kria KV260", 1, "xilinx-kv260-dpu-v2022.2-v3.0.0.img.gz"),
    "zcu102": Target("zcu102", "AMD ZCU102", 3, "xilinx-zcu102-dpu-v2022.2-v3.0.0.img.gz"),
}


def target(name: str) -> Target:
    """Find a board by name. Raises LichenError naming those there are."""
    if name not in TARGETS:
        raise LichenError(
            f"no board with a DPU image is called {name!r}; there are {', '.join(TARGETS)}"
        )
    return TARGETS[name]
