"""Files of PyTorch weights, byte by byte, in both layouts; written without PyTorch."""

import io
import struct
import zipfile

TYPES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def text(s):
    data = s.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(n):
    return b"J" + struct.pack("<i", n)


def pickled(body):
    return b"\x80\x02" + body + b"."


def long(n):
    data = n.to_bytes((n.bit_length() + 8) // 8, "little")
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind, key, size, *, older=False):
    view = b"N" if older else b""
    at = b"(" + text("storage") + b"ctorch\n" + TYPES[kind].encode() + b"\n"
    return at + text(key) + text("cpu") + number(size) + view + b"tQ"


def tensor(kind, key, size, offset, shape, strides, *, older=False):
    """A call of PyTorch's own function that makes a view of a storage."""
    parts = storage(kind, key, size, older=older) + number(offset)
    hooks = b"\x89" + b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + parts
        + numbers(shape)
        + numbers(strides)
        + hooks
        + b"tR"
    )


def state(tensors):
    """A dictionary with the attribute that PyTorch adds to it."""
    items = b"".join(
        (text(name) if isinstance(name, str) else number(name)) + value
        for name, value in tensors.items()
    )
    attribute = b"}" + text("_metadata") + b"}sb"
    return b"ccollections\nOrderedDict\n)R(" + items + b"u" + attribute


def zipped(body, data, *, compression=zipfile.ZIP_STORED):
    """The layout of PyTorch 1.6 and later: a pickle and its storages in a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("net/data.pkl", pickled(body))
        archive.writestr("net/byteorder", b"little")
        for key, content in data.items():
            archive.writestr(f"net/data/{key}", content)
    return file.getvalue()


def older(body, data, sizes):
    """The layout before it: five pickles, then the storages, each behind its size."""
    keys = b"](" + b"".join(map(text, data)) + b"e"
    head = [long(0x1950A86A20F9469CFC6C), number(1001), b"}", body, keys]
    tail = (struct.pack("<q", sizes[key]) + content for key, content in data.items())
    return b"".join(map(pickled, head)) + b"".join(tail)
