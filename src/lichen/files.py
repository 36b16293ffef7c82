"""Files of the command line: pictures through Pillow, and outputs that are whole or not there."""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import PIL
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from lichen import container
from lichen.errors import ImageError, LichenError
from lichen.picture import Picture, from_image

SUFFIX = ".lic"
STDOUT_NAMES = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
# What a pipe may send: a plain PPM of 16 bits takes the most of all pictures, and metadata.
PIXEL_BYTES_MAX = 18
METADATA_BYTES_MAX = 1 << 26
READ_BYTES = 1 << 20
# A decoded picture should be what the decoder made of it, or near it, in every format.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 3},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95},
}


class UsageError(Exception):
    """What was asked for is not possible, whatever the files hold."""


def output_name(given: str | None, source: str, suffix: str) -> str:
    """Give the name of the output: the one given, or the input's with another suffix."""
    if given in STDOUT_NAMES:  # a report goes elsewhere then
        return "-"
    return given or ("-" if source == "-" else os.path.splitext(source)[0] + suffix)


def read(source: str, magic: bytes = b"", max_pixels: int = container.MAX_PIXELS) -> bytes:
    """Read a file, or stdin; no more than the start of one that does not start with `magic`.

    Pipes and devices, which may have no end, are read as far as a picture of so many pixels can
    reach. Raises OSError (EFBIG) where they go on.
    """
    limit = PIXEL_BYTES_MAX * max_pixels + METADATA_BYTES_MAX
    with _opened(source) as file:
        start = file.read(len(magic))
        if start != magic:
            return start
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return start + file.read()
        found = io.BytesIO(start)
        found.seek(0, os.SEEK_END)
        while part := file.read(READ_BYTES):
            found.write(part)
            if found.tell() > limit:
                raise OSError(
                    errno.EFBIG,
                    f"goes on after {limit} bytes, more than a picture of {max_pixels} pixels "
                    "takes; put it in a file, or raise --max-pixels",
                    "standard input" if source == "-" else source,
                )
        return found.getvalue()


def _opened(source: str) -> AbstractContextManager[BinaryIO]:
    if source != "-":
        return open(source, "rb")
    if sys.stdin is None:
        raise OSError(errno.EBADF, "is closed", "standard input")
    return nullcontext(sys.stdin.buffer)


def check_output(target: str, source: str, overwrite: bool) -> None:
    """Refuse early what would fail after the work."""
    if target == "-":
        if sys.stdout is None:
            raise OSError(errno.EBADF, "is closed", "standard output")
        if sys.stdout.isatty():
            raise UsageError("the output is binary and stdout is a terminal: name a file")
        return
    path = Path(target)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the output is a folder", target)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no folder for the output", target)
    if source != "-" and path.exists() and os.path.exists(source) and path.samefile(source):
        raise FileExistsError(errno.EEXIST, "is the input", target)
    if path.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "would be overwritten", target)
    if path.exists() and not os.access(path, os.W_OK):  # replacing it would not ask
        raise PermissionError(errno.EACCES, "is read-only", target)


def check_stream_name(target: str) -> None:
    """Refuse to call a stream a picture, as `lichen encode *.png` with two of them would."""
    suffix = Path(target).suffix.lower()
    Image.preinit()
    if suffix in Image.EXTENSION and suffix != SUFFIX:
        raise UsageError(
            f"{target!r} is the name of a picture, a stream's ends in {SUFFIX}; `lichen encode` "
            "takes one picture at a time"
        )


@contextmanager
def output_file(target: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield a file that gets its name when the block has succeeded, and else vanishes."""
    if target == "-":
        buffer = io.BytesIO()  # Pillow seeks; and nothing comes out if it fails
        yield buffer
        sys.stdout.buffer.write(buffer.getbuffer())
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    if path.exists() and not path.is_file():  # a device or a pipe, which may have no other name
        try:
            with open(path, "wb") as file:
                yield file
        except OSError as error:
            error.filename = target
            raise
        return
    path = Path(os.path.realpath(target))  # a link stays, what it points to is replaced
    temporary = path.with_name(f".{secrets.token_hex(8)}.lichen.part")
    try:
        with open(temporary, "xb") as file:
            if path.exists():  # who may read it stays as it was
                os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            yield file
        if overwrite:
            os.replace(temporary, path)
        else:
            _name(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = target, None  # not the temporary name
        if isinstance(error, FileExistsError):
            error.strerror = "would be overwritten"
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _name(temporary: Path, path: Path) -> None:
    """Give a whole file its name, unless one has it already, however late that one came."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: take the name first
        path.open("xb").close()
        os.replace(temporary, path)


def read_picture(data: bytes, name: str, max_pixels: int) -> Picture:
    """Read a picture file with Pillow, within its check against decompression bombs."""
    if data.startswith(container.MAGIC):
        raise ImageError(f"{name} is a lichen stream already; `lichen decode` reads it")
    if not data:
        raise ImageError(f"{name} is empty; expected a picture (PNG, JPEG, WebP, TIFF ...)")
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = max_pixels
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return from_image(image)
    except (LichenError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{name} has more pixels than the limit of {max_pixels}; raise --max-pixels if that "
            "is wanted"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a picture that Pillow {PIL.__version__} can read; expected PNG, "
            "JPEG, WebP, TIFF or the like"
        ) from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise ImageError(f"{name} is damaged or unusual: {error}; save it anew") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def format_of(target: str) -> str:
    """Find Pillow's name of the format to write, from the suffix."""
    suffix = Path(target).suffix.lower()
    Image.preinit()
    if suffix not in Image.EXTENSION:
        Image.init()  # imports all of Pillow's plugins
    found = Image.EXTENSION.get(suffix, "")
    if found not in Image.SAVE or suffix == SUFFIX:
        raise UsageError(
            f"cannot tell the format of {target!r} by its suffix {suffix!r}; use .png, .jpg, "
            ".webp, .tif, .ppm or another that Pillow writes"
        )
    return found


def save(image: Image.Image, file: BinaryIO, file_format: str) -> None:
    """Write a picture with its metadata, as far as the format has room for it."""
    options = SAVE_OPTIONS.get(file_format, {}) | {
        key: image.info[key] for key in ("exif", "icc_profile", "xmp") if key in image.info
    }
    if file_format == "PNG" and "xmp" in options:
        text = PngImagePlugin.PngInfo()
        xmp = options.pop("xmp").decode("utf-8", "replace")
        text.add_itxt("XML:com.adobe.xmp", xmp)
        options["pnginfo"] = text
    try:
        image.save(file, file_format, **options)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's writers have no one exception for "not in this format"
        if isinstance(error, OSError) and error.errno:  # the disk, not the format
            raise
        raise UsageError(
            f"{file_format} cannot hold this {image.width}x{image.height} {image.mode} picture: "
            f"{error}; write .png, or give --strip if it is the metadata"
        ) from error
