"""Random access to TFRecord files, which TensorFlow itself reads only in order.

A record on disk is its length (8 bytes, little-endian), a checksum of that (4), the
data, and a checksum of them (4). One pass over the lengths finds every record.
"""

import struct

import tensorflow as tf

_HEADER, _FOOTER = 12, 4


class Records:
    """The records of some TFRecord files, by number, in the order of the files."""

    def __init__(self, paths: list[str]):
        self.places: list[tuple[str, int, int]] = []
        for path in paths:
            self._index(path)

    def _index(self, path: str) -> None:
        with tf.io.gfile.GFile(path, "rb") as file:
            size, offset = file.size(), 0
            while offset < size:
                file.seek(offset)
                (length,) = struct.unpack("<Q", file.read(8))
                self.places.append((path, offset + _HEADER, length))
                offset += _HEADER + length + _FOOTER

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.places)

    def __getitem__(self, number: int) -> bytes:
        """Returns the data of one record."""
        path, offset, length = self.places[number]
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def features(self, number: int) -> dict[str, bytes]:
        """Returns the byte features of one record, which must be a tf.train.Example."""
        example = tf.train.Example.FromString(self[number])
        fields = example.features.feature
        return {
            key: fields[key].bytes_list.value[0]
            for key in fields
            if fields[key].bytes_list.value
        }
