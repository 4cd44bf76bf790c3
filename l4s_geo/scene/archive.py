"""Folders and zips of products, and XML in them, none of which is trusted: anyone can have made them."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate
from zipfile import BadZipFile, ZipFile, ZipInfo

from l4s_geo.errors import InputError, reason
from l4s_geo.paths import check_input

#: Members of a zip, bytes of an XML file and of any file: far more than any product has.
MEMBERS, XML_MAX, FILE_MAX = 10_000, 2 << 20, 1 << 30

#: Metadata of a product, by level; the folder that holds them is the product.
METADATA = re.compile(r"MTD_MSI(L1C|L2A)\.xml")


@dataclass(frozen=True)
class Files:
    """What a folder or zip holds.

    Attributes:
        source: The folder or zip.
        name: Of the folder, or of that in the zip.
        inside: Paths in it, with ``/``.
        read: Gives the bytes of a small file by its path inside.
        gdal: Gives the path by which GDAL finds an image.
        on_disk: Gives the file on disk that holds one.
    """

    source: Path
    name: str
    inside: tuple[str, ...]
    read: Callable[[str], bytes]
    gdal: Callable[[str], str]
    on_disk: Callable[[str], str]


def in_folder(path: Path) -> Files:
    """What a SAFE folder holds: the files in it, and images of granules.

    Raises:
        InputError: It cannot be read.
    """
    with readable(path):
        found = [*path.iterdir(), *path.glob("GRANULE/*/IMG_DATA/*.jp2"), *path.glob("GRANULE/*/IMG_DATA/R?0m/*.jp2")]

    def read(inside: str) -> bytes:
        check_input(path / inside)
        with readable(path), (path / inside).open("rb") as file:
            return _bounded(file, f"{path / inside}")

    return Files(
        source=path,
        name=path.resolve().name,
        inside=tuple(sorted(p.relative_to(path).as_posix() for p in found)),
        read=read,
        gdal=lambda inside: str(path / inside),
        on_disk=lambda inside: str(path / inside),
    )


def in_zip(path: Path) -> Files:
    """What the SAFE folder in a zip holds, after a look at every member; nothing is unpacked to disk.

    Raises:
        InputError: It is damaged, holds no product or several, or is made to do harm: names that lead out of a folder
            or are there twice (which zip readers resolve in different ways), or sizes that no product has.
    """
    with readable(path), ZipFile(path) as archive:
        members = {info.orig_filename: info for info in archive.infolist()}
        count = len(archive.infolist())
    if count > MEMBERS or len(members) < count:
        what = f"{count} members" if count > MEMBERS else "members of the same name"
        raise InputError(f"{path} has {what}, as no Sentinel-2 product has. It is not read.")
    for name, info in members.items():
        _check_member(path, name, info)
    roots = sorted({name.rpartition("/")[0] for name in members if METADATA.fullmatch(name.rpartition("/")[2])})
    if len(roots) != 1:
        what = f"{len(roots)} products ({', '.join(roots[:3])})" if roots else "no MTD_MSIL1C.xml or MTD_MSIL2A.xml"
        raise InputError(
            f"{path} holds {what}; a zip with one Sentinel-2 product is expected. Unpack it and give a single SAFE "
            "folder, or the band files."
        )
    before = f"{roots[0]}/" if roots[0] else ""

    def read(inside: str) -> bytes:
        with readable(path), ZipFile(path) as archive, archive.open(before + inside) as file:
            return _bounded(file, f"{before}{inside} in {path}")

    return Files(
        source=path,
        name=roots[0].rpartition("/")[2] or path.stem,
        inside=tuple(sorted(n.removeprefix(before) for n in members if n.startswith(before))),
        read=read,
        gdal=lambda inside: f"/vsizip/{{{path}}}/{before}{inside}",
        on_disk=lambda _: str(path),
    )


def _check_member(path: Path, name: str, info: ZipInfo) -> None:
    """Raises InputError for a member that no product has."""
    odd = "\\" in name or not name.isprintable()
    if odd or ".." in name.split("/") or re.match(r"/|[A-Za-z]:", name):
        raise InputError(
            f"{path} has a member named {name[:100]!r}, which leads out of its folder or is no file name. It is not "
            "read; download the product from its source."
        )
    if info.flag_bits & 1:
        raise InputError(f"{name} in {path} is encrypted. Unpack the zip with its password and give the SAFE folder.")
    if info.file_size > FILE_MAX:
        raise InputError(
            f"{name} in {path} would have {info.file_size / 1e9:.1f} GB, more than any file of a Sentinel-2 product. "
            "It is not read."
        )


def _bounded(file: IO[bytes], where: str) -> bytes:
    """What a file holds, which is never unpacked further than ``XML_MAX``."""
    data = file.read(XML_MAX + 1)
    if len(data) > XML_MAX:
        raise InputError(f"{where} is larger than {XML_MAX >> 20} MB, as no metadata are. It is not read.")
    return data


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the standard library raises for damaged files and zips into a message."""
    try:
        yield
    except (BadZipFile, zlib.error, struct.error, EOFError) as e:
        raise InputError(f"{path} is damaged or was not downloaded completely ({reason(e)}). Download it again.") from e
    except (OSError, NotImplementedError, ValueError, OverflowError, RuntimeError) as e:
        raise InputError(
            f"{path} cannot be read ({reason(e)}). Check it, or unpack it and give the SAFE folder."
        ) from e


def parse_xml(data: bytes, where: str) -> Element:
    """Parse XML that may come from anyone.

    The standard library's expat does what is needed: a document type declaration, without which there are neither
    entities to expand nor external ones to load, is refused where it begins; so no other library has to be trusted.

    Args:
        data: UTF-8, which all products are in, whatever it says.
        where: It is from, for messages.

    Raises:
        InputError: It is no XML, or has a document type declaration.
    """

    def refuse(*_: object) -> None:
        raise InputError(f"{where} has a document type declaration, as no Sentinel-2 product has. It is not read.")

    builder, parser = TreeBuilder(), ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except ExpatError as e:
        raise InputError(f"{where} is damaged: it is no XML ({e}). Download the product again.") from e
    return builder.close()
