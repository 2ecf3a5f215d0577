"""A GGUF file, and a copy of it with a few metadata keys and small tensors changed.

What stays is copied as bytes and never decoded: metadata in every type there is, tensors in every quantisation. Only
the table of tensors is written anew, because it holds offsets, which move. The ``gguf`` package reads the layout.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from longrope.exceptions import InvalidInputError, SettingsError
from longrope.files import whole_file

# Bytes done, bytes in all.
Report = Callable[[int, int], None]

_CHUNK = 16 << 20
_OFFSET_BYTES = 8  # the last field of a tensor's entry
_HEADER_BYTES = 24  # magic, version, count of tensors, count of keys


class GGUFFile:
    """The layout of a GGUF file; its tensors stay on disk.

    Raises:
        InvalidInputError: if the file is missing, or is not a little-endian GGUF file that holds tensors.
        SettingsError: if the ``gguf`` package is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise SettingsError(
                'GGUF files need the package gguf, which is not installed; run `pip install "longrope[gguf]"`'
            ) from error
        self.path = Path(path)
        if not self.path.is_file():
            raise InvalidInputError(f"{self.path} is not a file; give a GGUF file")
        with self.path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise InvalidInputError(
                    f"{self.path} is not a GGUF file; convert the model with llama.cpp's convert_hf_to_gguf.py first"
                )
        try:
            self._reader = gguf.GGUFReader(self.path)
        except (ValueError, IndexError, KeyError) as error:
            problem = " ".join(str(error).split())
            raise InvalidInputError(
                f"{self.path} cannot be read as a GGUF file: {problem}; is it whole, and the package gguf up to date?"
            ) from error
        if self._reader.endianess != gguf.GGUFEndian.LITTLE:
            raise InvalidInputError(
                f"{self.path} is a big-endian GGUF file; convert it with `gguf-convert-endian` of the package gguf"
            )
        if self.value("split.count", 1) > 1:
            raise InvalidInputError(
                f"{self.path} is one of {self.value('split.count')} parts of a model; merge them with llama.cpp's "
                "`llama-gguf-split --merge` and give the result"
            )
        if not self._reader.tensors:
            raise InvalidInputError(f"{self.path} holds no tensors; give the GGUF file of a whole model")

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata under ``key``, as Python's own types."""
        field = self._reader.get_field(key)
        try:
            return default if field is None else field.contents()
        except UnicodeDecodeError:
            raise InvalidInputError(f"{self.path} holds text under {key} that is not UTF-8; is it whole?") from None

    def tensor(self, name: str) -> npt.NDArray[np.float64] | None:
        """The elements of a float tensor, flat; None where the file has no such tensor."""
        found = [tensor.data for tensor in self._reader.tensors if tensor.name == name]
        return found[0].reshape(-1).astype(np.float64) if found else None

    def write_changed(
        self,
        output: Path,
        metadata: Mapping[str, str | int | float],
        tensors: Mapping[str, npt.NDArray[np.float32]],
        dropped: Collection[str] = (),
        report: Report | None = None,
    ) -> None:
        """Write a copy with other metadata and tensors under a temporary name, then move it into place.

        Args:
            output: the copy; one that exists is replaced, whole or not at all.
            metadata: keys to set: text, whole numbers (uint32) and numbers (float32).
            tensors: small float32 tensors to set, (n,) each.
            dropped: keys and tensors to leave out, where the file has them.
            report: told how many bytes of tensors are done, and how many there are.
        """
        kept = [each for each in self._reader.tensors if each.name not in {*tensors, *dropped}]
        alignment = int(self._reader.alignment)
        header, offset = bytearray(), 0
        entries = self._kept_metadata({*metadata, *dropped})
        entries += [_metadata_entry(key, value) for key, value in metadata.items()]
        for entry in entries:
            header += entry
        for tensor in kept:
            entry = b"".join(part.tobytes() for part in tensor.field.parts)
            header += entry[:-_OFFSET_BYTES] + struct.pack("<Q", offset)
            offset += _padded(tensor.n_bytes, alignment)
        for name, values in tensors.items():
            # One dimension of so many elements, of type 0: float32.
            header += _text(name) + struct.pack("<IQIQ", 1, len(values), 0, offset)
            offset += _padded(values.nbytes, alignment)
        counts = struct.pack("<QQ", len(kept) + len(tensors), len(entries))
        header[:0] = self._reader.data[:8].tobytes() + counts

        with whole_file(output) as target, self.path.open("rb") as source:
            target.write(header)
            _pad(target, alignment)
            done = 0
            for tensor in kept:
                source.seek(tensor.data_offset)
                for size in _chunks(tensor.n_bytes):
                    done += target.write(source.read(size))
                    if report is not None:
                        report(done, offset)
                _pad(target, alignment)
            for values in tensors.values():
                target.write(values.astype("<f4").tobytes())
                _pad(target, alignment)

    def _kept_metadata(self, without: Collection[str]) -> list[bytes]:
        """The bytes of every metadata entry, each reaching to the next one or to the table of tensors."""
        fields = [field for field in self._reader.fields.values() if not field.name.startswith("GGUF.")]
        stops = [field.offset for field in fields[1:]] + [self._reader.tensors[0].field.offset]
        return [
            self._reader.data[field.offset : stop].tobytes()
            for field, stop in zip(fields, stops, strict=True)
            if field.name not in without
        ]


def _metadata_entry(key: str, value: str | int | float) -> bytes:
    from gguf import GGUFValueType

    if isinstance(value, str):
        return _text(key) + struct.pack("<I", GGUFValueType.STRING) + _text(value)
    if isinstance(value, int):
        return _text(key) + struct.pack("<II", GGUFValueType.UINT32, value)
    return _text(key) + struct.pack("<If", GGUFValueType.FLOAT32, value)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _chunks(size: int) -> list[int]:
    return [_CHUNK] * (size // _CHUNK) + ([size % _CHUNK] if size % _CHUNK else [])


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _pad(stream: IO[bytes], alignment: int) -> None:
    stream.write(bytes(-stream.tell() % alignment))
