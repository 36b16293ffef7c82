"""Integers <-> bytes: integer frequency tables and the rANS coder.

`rans` is the definition, `native` its fast twin; encode, decode and Decoder here are the native
ones where the native module is built, else the definition's: the same bytes, some hundred times
slower.
"""

from lichen.entropy import native, rans
from lichen.entropy.tables import Tables, default_scales

__all__ = ["Decoder", "Tables", "decode", "default_scales", "encode"]

_coder = native if native.available() else rans

encode = _coder.encode
decode = _coder.decode
Decoder = _coder.Decoder
