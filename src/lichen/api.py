"""Codec: pictures <-> bytes of a .lic stream; what the command line and `import lichen` use."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from lichen import codec, container
from lichen import model as models
from lichen.errors import LichenError, ModelError, StreamError
from lichen.executors import Executor, best
from lichen.model import ORDERS, POSITIONS, Model
from lichen.picture import Picture, from_array, from_image, grey_of_rgb, to_image
from lichen.picture import check as check_picture

MAX_PIXELS = container.MAX_PIXELS
DEFAULT_QUALITY = 50.0
TARGET_TOLERANCE = 0.02  # a target size is met when the file is this much smaller at most
LIKE_MACHINE = (
    "coded in float arithmetic: it decodes only on a machine like its encoder's (the same kind of "
    "processor, the same PyTorch)"
)


class TargetError(LichenError):
    """No quality gives the size that was asked for."""


class DigestError(StreamError):
    """A stream decoded, but not to the pixels that its encoder saw."""


class FloatWarning(UserWarning):
    """A stream decodes only on a machine like its encoder's."""


@dataclass(frozen=True)
class Encoded:
    """A stream, and what was measured while making it."""

    data: bytes
    quality: float
    width: int
    height: int

    @property
    def bits_per_pixel(self) -> float:
        return 8.0 * len(self.data) / (self.width * self.height)


class Codec:
    """Encode and decode with one model or with whichever installed model a stream names.

    Immutable and safe to share between threads. `threads` is how many CPU threads one call uses.
    """

    def __init__(
        self, model: Model | None = None, *, threads: int = 1, executor: Executor | None = None
    ) -> None:
        if threads < 1:
            raise LichenError(f"threads must be 1 or more, not {threads}")
        self._model = model
        self.threads = threads
        if executor is None:
            in_float = model is not None and model.network is not None
            executor = _float_executor(threads) if in_float else best(threads)
        self.executor = executor

    @property
    def model(self) -> Model:
        """The model that encodes."""
        return _default_model() if self._model is None else self._model

    def encode(
        self,
        picture: Picture,
        *,
        quality: float | None = None,
        target_bytes: int | None = None,
        digest: bool = False,
        stripe: int = codec.DEFAULT_STRIPE,
    ) -> Encoded:
        """Encode at a quality 0..100 (in steps of 1/8), or to a size.

        With `target_bytes`, the best quality whose file is no larger; TargetError when even
        quality 0 is larger. `digest` stores a digest of the decoded pixels (this decodes once).
        Raises LichenError; warns (FloatWarning) where the model runs in float.
        """
        if quality is not None and target_bytes is not None:
            raise LichenError("give a quality or a target size, not both")
        if not 1 <= stripe <= container.MAX_STRIPE:
            raise LichenError(f"stripe must be 1..{container.MAX_STRIPE} rows of z, not {stripe}")
        check_picture(picture)
        if self.model.network is not None:
            warnings.warn(f"the stream is {LIKE_MACHINE}", FloatWarning, stacklevel=2)
        code = self._coder(picture, stripe)
        alpha = b"" if picture.alpha is None else _alpha_to_bytes(picture.alpha)

        def size(position: int) -> int:  # whatever the digest is, it takes as many bytes
            nothing = bytes(container.DIGEST_BYTES * digest)
            return len(self._wrap(picture, alpha, code(position), nothing))

        if target_bytes is None:
            position = _position(DEFAULT_QUALITY if quality is None else quality)
        else:
            position = _search(size, target_bytes)
        coded = code(position)
        checksum = self._digest(picture, coded) if digest else b""
        data = self._wrap(picture, alpha, coded, checksum)
        return Encoded(data, position * 100 / POSITIONS, picture.width, picture.height)

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
        """Decode a stream; checks every checksum and, where stored, the pixel digest.

        Raises StreamError (damaged, too large, too new), ModelError (its model is not here) and
        DigestError (decoded, but to other pixels). Warns (FloatWarning) where it needs a machine
        like the encoder's.
        """
        stream = container.read(bytes(data), max_pixels=max_pixels)
        header = stream.header
        model = self._model_of(header.weights)
        if header.float_arithmetic != (model.network is not None):
            raise StreamError("the header and the model disagree about float arithmetic: damaged")
        if header.float_arithmetic:
            warnings.warn(f"the stream was {LIKE_MACHINE}", FloatWarning, stacklevel=2)
        try:
            pixels = self._pixels(model, header, stream.stripes)
        except StreamError as error:
            if not header.float_arithmetic:
                raise
            raise StreamError(f"{error}; or another machine made it: {LIKE_MACHINE}") from error
        if header.channels == 1:
            pixels = grey_of_rgb(pixels)
        if stream.digest and codec.pixel_digest(pixels) != stream.digest:
            reason = "this decoder or the stream is wrong; please report"
            if header.float_arithmetic:
                reason = f"the stream was {LIKE_MACHINE}; decode it there"
            raise DigestError(
                f"the decoded pixels have digest {codec.pixel_digest(pixels).hex()}, the stream "
                f"says {stream.digest.hex()}: {reason}"
            )
        alpha = None
        if stream.alpha:
            alpha = _alpha_from_bytes(stream.alpha, header.width, header.height)
        return Picture(pixels, alpha, stream.icc, stream.exif, stream.xmp)

    def _coder(self, picture: Picture, stripe: int) -> Callable[[int], codec.Coded]:
        """Give what encodes a picture at a quality position."""
        model, executor = self.model, self._executor_of(self.model)
        analysis = codec.analyse(model, executor, picture.rgb)

        def code(position: int) -> codec.Coded:
            return codec.encode(model, executor, analysis, position, stripe, self.threads)

        return code

    def _pixels(
        self, model: Model, header: container.Header, stripes: tuple[tuple[bytes, bytes], ...]
    ) -> NDArray[np.uint8]:
        """Decode stripes to pixels (H, W, 3). Raises StreamError."""
        return codec.decode(model, self._executor_of(model), header, stripes, self.threads)

    def _model_of(self, weights: bytes) -> Model:
        if self._model is not None:
            if self._model.digest != weights:
                raise ModelError(
                    f"the stream was made with weights {weights.hex()}, the model given is "
                    f"{self._model.name} ({self._model.digest.hex()}); give the right model file"
                )
            return self._model
        default = _default_model()
        return default if default.digest == weights else _installed_model(weights)

    def _executor_of(self, model: Model) -> Executor:
        """Give what runs this model: a float one found by its digest has its own executor."""
        if model is self._model or model.network is None:
            return self.executor
        return _float_executor(self.threads)

    def _digest(self, picture: Picture, coded: codec.Coded) -> bytes:
        """Decode, and digest what a decoder will see."""
        size = picture.width, picture.height
        pixels = codec.synthesise(
            self.model, self._executor_of(self.model), coded.latents, coded.position, *size
        )
        return codec.pixel_digest(pixels if picture.pixels.shape[2] == 3 else grey_of_rgb(pixels))

    def _wrap(self, picture: Picture, alpha: bytes, coded: codec.Coded, digest: bytes) -> bytes:
        model = self.model
        header = container.Header(
            width=picture.width,
            height=picture.height,
            channels=int(picture.pixels.shape[2]),
            alpha=bool(alpha),
            digest=bool(digest),
            order=ORDERS.index(model.order),
            weights=model.digest,
            position=coded.position,
            stripe=coded.stripe,
            float_arithmetic=model.network is not None,
        )
        return container.write(
            container.Stream(
                header,
                coded.stripes,
                alpha=alpha,
                icc=picture.icc,
                exif=picture.exif,
                xmp=picture.xmp,
                digest=digest,
            )
        )


def encode(
    image: Image.Image | NDArray[np.uint8],
    *,
    quality: float | None = None,
    target_bytes: int | None = None,
    digest: bool = False,
    threads: int = 1,
) -> bytes:
    """Encode a Pillow image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4), to a stream.

    quality: 0..100, about 0.1 to 1.2 bits per pixel for photographs; default 50. `target_bytes`:
    the best quality that fits. Raises LichenError.
    """
    picture = from_image(image) if isinstance(image, Image.Image) else from_array(image)
    encoded = _codec(threads).encode(
        picture, quality=quality, target_bytes=target_bytes, digest=digest
    )
    return encoded.data


def decode(data: bytes, *, threads: int = 1, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a stream to a Pillow image (L, LA, RGB or RGBA). Raises LichenError."""
    return to_image(_codec(threads).decode(bytes(data), max_pixels=max_pixels))


@cache  # the executor keeps what it has prepared for each model and picture size
def _codec(threads: int) -> Codec:
    return Codec(threads=threads)


@cache  # it keeps the modules that it has made of models
def _float_executor(threads: int) -> Executor:
    try:
        from lichen.neural import FloatExecutor  # PyTorch: heavy, and optional
    except ModuleNotFoundError as error:
        raise ModelError(
            f"this model runs in float and needs the package {error.name}: pip install "
            "'lichen[train]'"
        ) from error
    return FloatExecutor(threads)


@cache
def _default_model() -> Model:
    return models.default()


@cache
def _installed_model(digest: bytes) -> Model:
    return models.find(digest)


def _position(quality: float) -> int:
    if not 0 <= quality <= 100:
        raise LichenError(f"quality must be 0..100, not {quality}")
    return round(quality * POSITIONS / 100)


def _search(size: Callable[[int], int], target_bytes: int) -> int:
    """Find the highest position whose stream has at most `target_bytes`, by bisection.

    Sizes rise steadily with the position up to small ripples between neighbours, so that a few
    neighbours above the result are tried as well.
    """
    low, high = 0, POSITIONS
    smallest = size(low)
    if smallest > target_bytes:
        raise TargetError(
            f"the smallest file of this picture has {smallest} bytes, more than the "
            f"{target_bytes} asked for; scale the picture down or allow more"
        )
    while low < high:
        middle = (low + high + 1) // 2
        if size(middle) <= target_bytes:
            low = middle
        else:
            high = middle - 1
    above = range(low + 1, min(low + 3, POSITIONS) + 1)
    return max([low, *(position for position in above if size(position) <= target_bytes)])


def _alpha_to_bytes(alpha: NDArray[np.uint8]) -> bytes:
    """Code alpha losslessly: PNG of 8-bit grey, which every Pillow reads."""
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _alpha_from_bytes(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """Decode what `_alpha_to_bytes` wrote, and nothing larger than the header said."""
    try:
        # Not Image.open: its limit for bombs is below ours, which the header has passed.
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        if image.size != (width, height) or image.mode != "L":
            raise StreamError(f"expected L {(width, height)}, found {image.mode} {image.size}")
        return np.array(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise StreamError(f"the alpha plane is damaged: {error}; get the file again") from error
