"""Make a Model of a network that has no integer form: it runs in float.

The entropy coder's side is that of every other model (integer tables, gains as integers, z and
symbols as integers); what lies between is the module itself, its weights in float32. Streams of
such a model say so: docs/stream.md, flags bit 4; docs/decisions/0004-float-models.md.
"""

from __future__ import annotations

import numpy as np

from lichen.errors import ModelError
from lichen.floating import Network, programs_of
from lichen.lower.parts import gain_rows, tables_of
from lichen.model import Model
from lichen.models import catalogue
from lichen.models.complexity import complexity
from lichen.models.zou2022 import FloatCodec


def float_model(module: FloatCodec, name: str, metadata: dict[str, str]) -> Model:
    """Make the Model of WACNN or STF, trained here or loaded from the authors' release.

    Raises ModelError where a weight is not finite.
    """
    state = {key: value.detach().cpu().numpy().copy() for key, value in module.state_dict().items()}
    for key, array in state.items():
        if not np.isfinite(array).all():
            raise ModelError(f"weight {key} is not finite: training has failed; take another file")
    gain, gain_exponent = gain_rows(module, 0)
    inverse, inverse_exponent = gain_rows(module, 1)
    counts = complexity(module)
    network = Network(
        catalogue.name_of(module),
        module.arguments,
        state,
        module.latent_channels,
        module.hyper_channels,
        module.slices,
        (gain_exponent, inverse_exponent),
        (counts.encode.macs_per_pixel / 1000, counts.decode.macs_per_pixel / 1000),
    )
    tables, first = tables_of(module.entropy_bottleneck, module.entropy_bottleneck.medians())
    return Model(
        name=name,
        order="channel-wise",
        reduction=module.REDUCTION,
        programs=programs_of(network),
        tables=tables,
        z_tables=first + np.arange(module.hyper_channels, dtype=np.uint16),
        gain=gain,
        inverse_gain=inverse,
        metadata=metadata,
    )
