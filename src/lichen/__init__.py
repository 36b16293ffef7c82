"""lichen: a learned image codec that runs in integers, bit for bit the same everywhere.

>>> data = lichen.encode(image, quality=50)   # Pillow image or uint8 array -> bytes
>>> image = lichen.decode(data)               # bytes -> Pillow image
"""

from lichen._version import VERSION as __version__
from lichen.api import Codec, DigestError, Encoded, TargetError, decode, encode
from lichen.errors import (
    ContractError,
    DeviceError,
    ImageError,
    LichenError,
    ModelError,
    StreamError,
)
from lichen.picture import Picture

__all__ = [
    "Codec",
    "ContractError",
    "DeviceError",
    "DigestError",
    "Encoded",
    "ImageError",
    "LichenError",
    "ModelError",
    "Picture",
    "StreamError",
    "TargetError",
    "__version__",
    "decode",
    "encode",
]
