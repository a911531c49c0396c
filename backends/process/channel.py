"""Messages between a process executor and its child: pickled, through files in memory (memfd), with a socket for a doorbell.

Both sides write a message into their own memfd from its start, then ring with its place and size; neither writes again before the other
has answered. So nothing is ever half read, the socket never carries more than the bell, and the memory is used again and grows to
the largest message.

Arrays and large bytes pass with one copy in and one copy out, and belong to the receiver. They are copied by `pwritev` and `preadv`,
which are as fast as a copy into a mapping (30 MB: 4 ms in, 6 ms out, measured) and release the GIL all the while, as a slice of an
`mmap` does not; by one call for all of a message, because each is a wait for the GIL where other threads compute. A mapping would
also die of SIGBUS where the other side has truncated the file; a read of it is an error.

Pickle is no format for strangers. The two ends are one program: the parent has started its child with a socket that has no name.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

_BELL = struct.Struct(
    "<QQ"
)  # where the pickle begins in the sender's file (arrays stand before it), and its size


_MOST_VIEWS = 1024
"""The kernel takes no more with one call (IOV_MAX)."""


class PeerGoneError(Exception):
    """The other side has closed the socket, or ended."""


class Channel:
    """One side's end: `bell`, a connected stream socket; `outbox`, the file that this side writes; `inbox`, the one that it reads."""

    def __init__(self, bell: socket.socket, outbox: int, inbox: int) -> None:
        self.bell = bell
        self._outbox = outbox
        self._inbox = inbox

    def send(self, message: Any) -> None:
        """Raises PeerGoneError, and whatever pickling raises; then nothing has been sent."""
        parcel = _Parcel()
        _Pickler(parcel, protocol=5).dump(message)
        head = pickle.dumps([(array.dtype, array.shape) for array in parcel.arrays], protocol=5)
        # without content there is nothing to copy, and dtypes without size have no view as bytes
        content = [array.reshape(-1).view(np.uint8).data for array in parcel.arrays if array.nbytes]
        start = sum(map(len, content))
        size = len(head) + sum(map(len, parcel.chunks))
        _copy(
            os.pwritev,
            self._outbox,
            [*content, memoryview(head), *[memoryview(chunk) for chunk in parcel.chunks]],
        )
        try:
            self.bell.sendall(_BELL.pack(start, size), socket.MSG_NOSIGNAL)
        except OSError as error:
            raise PeerGoneError from error

    def receive(self) -> Any:
        """Waits for the next message. Raises PeerGoneError, and whatever unpickling raises; the message counts as received then."""
        start, size = _BELL.unpack(self._ring())
        reader = _Reader(self._inbox, start, start + size)
        arrays = [np.empty(shape, dtype) for dtype, shape in pickle.Unpickler(reader).load()]
        _copy(
            os.preadv,
            self._inbox,
            [array.reshape(-1).view(np.uint8).data for array in arrays if array.nbytes],
        )
        return _Unpickler(reader, arrays).load()

    def _ring(self) -> bytes:
        found = b""
        while len(found) < _BELL.size:
            try:
                more = self.bell.recv(_BELL.size - len(found))
            except OSError as error:
                raise PeerGoneError from error
            if not more:
                raise PeerGoneError
            found += more
        return found


class _Parcel:
    """The file that a pickler writes: keeps what it gets, of which large bytes are the caller's own and not copied."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.arrays: list[np.ndarray] = []

    def write(self, chunk: bytes) -> int:
        self.chunks.append(chunk)
        return len(chunk)

    def add(self, array: np.ndarray) -> int:
        """Its number among the arrays of the message."""
        self.arrays.append(array)
        return len(self.arrays) - 1


class _Pickler(pickle.Pickler):
    def __init__(self, parcel: _Parcel, protocol: int) -> None:
        super().__init__(parcel, protocol)
        self._parcel = parcel

    def reducer_override(self, obj: Any) -> Any:
        # NumPy's own way would make views of a buffer of arrays that own their memory, and copy what is not contiguous twice.
        if type(obj) is np.ndarray and not obj.dtype.hasobject:
            return _array, (
                self._parcel.add(obj if obj.flags.c_contiguous else np.array(obj, order="C")),
            )
        if (
            type(obj).__module__ == "torch"
            and type(obj).__name__ == "Tensor"
            and obj.is_cpu
            and not obj.is_sparse
        ):
            # Torch's own way would send the whole storage of which the tensor may be a small view.
            return _tensor, (_bytes_of(obj), obj.dtype, tuple(obj.shape))
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, reader: _Reader, arrays: list[np.ndarray]) -> None:
        super().__init__(reader)
        self._arrays = arrays

    def find_class(self, module: str, name: str, /) -> Any:
        if module == __name__ and name == _array.__name__:
            return self._arrays.__getitem__
        if module == "__main__":
            # Each side has a __main__ of its own: at best the name is missing there.
            raise pickle.UnpicklingError(
                f"{name} is defined in __main__, which no other process can import: put it into a module"
            )
        return super().find_class(module, name)


def _array(number: int) -> np.ndarray:
    """Stands for an array in a pickle: `_Unpickler` has read it."""
    raise NotImplementedError


def _bytes_of(tensor: Any) -> np.ndarray:
    import torch

    found: np.ndarray = (
        tensor.detach()
        .resolve_conj()
        .resolve_neg()
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
    )
    return found


def _tensor(content: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> Any:
    import torch

    return (
        torch.from_numpy(content).view(dtype).reshape(shape)
        if content.size
        else torch.empty(shape, dtype=dtype)
    )


class _Reader:
    """The file that an unpickler reads: `readinto` lets large bytes come without a second copy."""

    def __init__(self, file: int, place: int, end: int) -> None:
        self._file = file
        self._place = place
        self._end = end

    def read(self, size: int = -1, /) -> bytes:
        found = bytearray(size if 0 <= size <= self._end - self._place else self._end - self._place)
        self.readinto(found)
        return bytes(found)

    def readline(self) -> bytes:
        raise NotImplementedError("only protocols before 1 have lines")

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)[: self._end - self._place]
        _copy(os.preadv, self._file, [view], self._place)
        self._place += len(view)
        return len(view)


def _copy(
    call: Callable[[int, list[memoryview], int], int],
    file: int,
    views: list[memoryview],
    place: int = 0,
) -> None:
    """`pwritev` from, or `preadv` into, all views in order. Raises EOFError where the file ends before."""
    views = [view for view in views if view]
    while views:
        count = call(file, views[:_MOST_VIEWS], place)  # 2 GiB at most
        if not count:
            raise EOFError("the other side's file is shorter than its message")
        place += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
