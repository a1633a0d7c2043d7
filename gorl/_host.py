"""Python functions that compiled programs call on a CPU, on the very memory of their arrays.

`jax.pure_callback` copies its operands by way of JAX, which may wait for ever where the cores that would copy are those
that wait for the callback; and no program that has one is kept in JAX's compilation cache. XLA's foreign function
interface has neither fault. Its structures are declared here as in the header that jaxlib ships
(`xla/ffi/api/c_api.h`), as far as a call that only reads and writes arrays needs them.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# A handler of the interface's version 0.1 is understood by every later one for at least a year.
_VERSION = (0, 1)
_METADATA_EXTENSION = 1
_INTERNAL_ERROR = 13
_DTYPES = {1: np.dtype(np.bool_), 4: np.dtype(np.int32), 11: np.dtype(np.float32), 12: np.dtype(np.float64)}

# Python's own way to a view of memory. Arrays of ctypes would take ten times as long.
_WRITABLE = 0x200
_memory_view = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_view.restype = ctypes.py_object
_memory_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)

_Handler = Callable[[dict[str, int], list[np.ndarray], list[np.ndarray]], None]


class _Extensible(ctypes.Structure):
    """What most of the structures begin with."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p)]


class _Extension(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p)]


class _Version(_Extensible):
    _fields_ = [
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32)]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [("base", _Extension), ("metadata", ctypes.POINTER(_Metadata))]


class _Buffer(_Extensible):
    _fields_ = [
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


class _Buffers(_Extensible):
    _fields_ = [
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    ]


class _ByteSpan(ctypes.Structure):
    _fields_ = [("pointer", ctypes.POINTER(ctypes.c_char)), ("size", ctypes.c_size_t)]


class _Scalar(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("value", ctypes.POINTER(ctypes.c_int64))]


class _Attributes(_Extensible):
    _fields_ = [
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("names", ctypes.POINTER(ctypes.POINTER(_ByteSpan))),
        ("scalars", ctypes.POINTER(ctypes.POINTER(_Scalar))),
    ]


class _ErrorArguments(_Extensible):
    _fields_ = [
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    ]


class _Api(_Extensible):
    _fields_ = [
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))),
    ]


class _CallFrame(_Extensible):
    _fields_ = [
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("inputs", _Buffers),
        ("outputs", _Buffers),
        ("attributes", _Attributes),
    ]


_C_HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
_registered: dict[str, Any] = {}  # what is not referred to any more would be freed under XLA's hands


def register(target: str, handler: _Handler) -> None:
    """Lets compiled programs call a function by a name, by `call`.

    **Arguments:**

    - `target`: the name, by which programs in the compilation cache find it too.
    - `handler`: called with the attributes by their names, the inputs, which it may only read, and the outputs, which
        it fills. They are valid while it runs. It must not use JAX, and may run in several threads at once. What it
        raises is raised by the program.
    """

    def handle(frame: Any) -> int | None:
        try:
            return _handle(frame.contents, handler)
        except BaseException as error:
            return _error(frame.contents, f"{type(error).__name__}: {error}")

    pointer = _C_HANDLER(handle)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(pointer), platform="cpu")
    _registered[target] = pointer


def call(
    target: str, inputs: Sequence[jax.Array], outputs: Sequence[jax.ShapeDtypeStruct], **attributes: int
) -> Sequence[jax.Array]:
    """Calls what is registered, once for all elements of a batch: all arrays then have the batch's axes in front."""
    called = jax.ffi.ffi_call(target, list(outputs), vmap_method="broadcast_all")
    return called(*inputs, **{name: np.int64(value) for name, value in attributes.items()})


def _handle(frame: _CallFrame, handler: _Handler) -> None:
    if frame.extension and _Extension.from_address(frame.extension).type == _METADATA_EXTENSION:
        extension = _MetadataExtension.from_address(frame.extension)
        extension.metadata.contents.version.major, extension.metadata.contents.version.minor = _VERSION
        return
    handler(_attributes(frame.attributes), _arrays(frame.inputs), _arrays(frame.outputs))


def _arrays(buffers: _Buffers) -> list[np.ndarray]:
    """Views of arrays of a program."""
    found = []
    for pointer in buffers.buffers[: buffers.size]:
        buffer = pointer.contents
        shape, dtype = buffer.dims[: buffer.rank], _DTYPES[buffer.dtype]
        size = math.prod(shape) * dtype.itemsize
        memory = _memory_view(buffer.data, size, _WRITABLE) if size else b""
        found.append(np.frombuffer(memory, dtype).reshape(shape))
    return found


def _attributes(attributes: _Attributes) -> dict[str, int]:
    found = {}
    for index in range(attributes.size):
        name = attributes.names[index].contents
        found[name.pointer[: name.size].decode()] = attributes.scalars[index].contents.value[0]
    return found


def _error(frame: _CallFrame, message: str) -> int | None:
    arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message.encode(), _INTERNAL_ERROR)
    return frame.api.contents.create_error(ctypes.byref(arguments))
