"""Pillow plugin: after `import lichen.pillow`, Pillow opens and saves .lic files.

    Image.open("photo.lic")                         reads and checks, decodes when pixels are used
    image.save("photo.lic", quality=50)             0..100
    image.save("photo.lic", target_bytes=20_000)    the best quality that fits

Further options of `save`: digest=True, and exif, icc_profile and xmp (bytes; those in `image.info`
where they are not given, none where they are empty). What is wrong with a stream is an OSError,
a wrong option, or a picture that no stream can hold, a ValueError, each with the error of lichen
as its cause.
"""

from __future__ import annotations

from dataclasses import replace
from typing import IO, Any

from PIL import Image, ImageFile

from lichen import container
from lichen.api import Codec
from lichen.errors import LichenError
from lichen.picture import EXIF_PREFIX, from_image, to_image

FORMAT, MIME = "LICHEN", "image/x-lichen"


class LichenImageFile(ImageFile.ImageFile):
    """A .lic file. Its size, mode and metadata are known once it is open; decoding can wait."""

    format = FORMAT
    format_description = "lichen learned image codec"

    def _open(self) -> None:
        assert self.fp is not None
        if not _accept(self.fp.read(len(container.MAGIC))):
            raise SyntaxError("not a lichen stream")
        self.fp.seek(0)
        try:
            # Allocates no more than the file has; the number of pixels is for Pillow's own check.
            stream = container.read(self.fp.read(), max_pixels=container.MAX_SIDE**2)
        except LichenError as error:
            raise OSError(str(error)) from error
        header = stream.header
        self._size = header.width, header.height
        self._mode = ("L" if header.channels == 1 else "RGB") + "A" * header.alpha
        exif = EXIF_PREFIX + stream.exif if stream.exif else b""
        metadata = {"icc_profile": stream.icc, "exif": exif, "xmp": stream.xmp}
        self.info.update({key: value for key, value in metadata.items() if value})
        # Until `load` has decoded. (Old Pillow knows only plain tuples.)
        self.tile = [("lichen", (0, 0, *self.size), 0, None)]  # type: ignore[list-item]

    def load(self) -> Any:
        if self.tile:
            assert self.fp is not None
            self.fp.seek(0)
            try:
                # Pillow has accepted this size; the file cannot have grown since.
                picture = Codec().decode(self.fp.read(), max_pixels=self.width * self.height)
            except LichenError as error:
                raise OSError(str(error)) from error
            image = to_image(picture)
            if (image.size, image.mode) != (self.size, self.mode):
                raise OSError("the stream was changed after it had been opened; open it again")
            self.im = image.im
            self.tile = []
            if self._exclusive_fp:
                self.fp.close()
        return super().load()


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    options = image.encoderinfo
    try:
        picture = from_image(image)
    except LichenError as error:
        raise ValueError(str(error)) from error
    exif = options.get("exif", picture.exif)
    if isinstance(exif, Image.Exif):
        exif = exif.tobytes()
    xmp = options.get("xmp", picture.xmp)
    picture = replace(
        picture,
        icc=options.get("icc_profile", picture.icc) or b"",
        exif=(exif or b"").removeprefix(EXIF_PREFIX),
        xmp=(xmp.encode() if isinstance(xmp, str) else xmp) or b"",
    )
    try:
        encoded = Codec().encode(
            picture,
            quality=options.get("quality"),
            target_bytes=options.get("target_bytes"),
            digest=options.get("digest", False),
        )
    except LichenError as error:
        raise ValueError(str(error)) from error
    file.write(encoded.data)


Image.register_open(FORMAT, LichenImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".lic")
Image.register_mime(FORMAT, MIME)
