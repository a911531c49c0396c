"""Messages between a process executor and its child: pickled, in memfd files or in the socket.

A socket, the bell, announces them by their sizes. A small message follows right there. Each side
writes a larger one at the start of its own memfd before it rings. Neither sends again before the
other has answered. So no message is ever read half-written, the bell never has more than one small
message, and the memory is used again, up to `KEPT_BYTES`.

Arrays and large bytes take one copy in and one copy out, and belong to the receiver. `pwritev` and
`preadv` copy them: they are as fast as a copy into a mapping (30 MB: 4 ms in, 6 ms out, measured)
and release the GIL meanwhile, which a slice of an `mmap` does not. One call copies all of a
message, because each call is a wait for the GIL while other threads compute. A mapping would also
die of SIGBUS if the other side truncated the file; a read of it is an error.

Pickle is unsafe between strangers. Here both ends are one program: the parent starts its child with
a socket that has no name.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

_BELL = struct.Struct("<QQQ")
"""The sizes of all arrays, of the list of them and of the pickle, which come in this order."""

_SMALL_BYTES = 1 << 15
"""A message of up to so many bytes goes through the socket, by one call. In the file, a batch of a
small array took three calls more on each side, and a third of its time there.
"""

_MAX_VIEWS_PER_CALL = 1024
"""The most views that the kernel takes in one call (IOV_MAX)."""


KEPT_BYTES = 16 << 20
"""The memory of a file is used again up to this size. That of a larger message is given back."""


READ_AT_ONCE_BYTES = 1 << 16
"""A pickle of so many bytes is read by one call, not in pieces, as the unpickler asks for it."""


class PeerGoneError(Exception):
    """Raised when the other side has closed the socket or ended."""


class Channel:
    """One end of the channel.

    `bell` is a connected stream socket, `outbox` the file that this side writes, `inbox` the file
    that it reads.
    """

    def __init__(
        self,
        bell: socket.socket,
        outbox: int,
        inbox: int,
        allocate: Callable[[tuple[int, ...], Any], np.ndarray] = np.empty,
    ) -> None:
        """`allocate` makes the arrays that messages bring, from a shape and a dtype."""
        self._allocate = allocate
        self.bell = bell
        self._outbox = outbox
        self._inbox = inbox

    def send(self, message: Any) -> None:
        """Send a message.

        Raises PeerGoneError, and whatever pickling raises; then nothing was sent.
        """
        parcel = Parcel()
        Pickler(parcel, protocol=5).dump(message)
        heads = pickle.dumps([(_described(one.dtype), one.shape) for one in parcel.arrays])
        # Empty arrays have nothing to copy, and dtypes of size 0 can't be viewed as bytes.
        content = [array.reshape(-1).view(np.uint8).data for array in parcel.arrays if array.nbytes]
        sizes = sum(map(len, content)), len(heads), sum(map(len, parcel.chunks))
        bell = _BELL.pack(*sizes)
        if sum(sizes) <= _SMALL_BYTES:
            bell = b"".join([bell, *content, heads, *parcel.chunks])
        else:
            chunks = [memoryview(chunk) for chunk in (heads, *parcel.chunks)]
            _copy(os.pwritev, self._outbox, [*content, *chunks])
        try:
            self.bell.sendall(bell, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise PeerGoneError from error

    def receive(self) -> Any:
        """Wait for the next message and return it.

        Raises PeerGoneError, and whatever unpickling raises; the message then counts as received.
        """
        bell = self._ring(b"", _BELL.size)
        start, heads_size, size = _BELL.unpack_from(bell)
        end = start + heads_size + size
        if end <= _SMALL_BYTES:
            message = memoryview(self._ring(bell, _BELL.size + end))[_BELL.size :]
            arrays = self._arrays(message[start:])
            place = 0
            for array in arrays:
                if array.nbytes:
                    array.reshape(-1).view(np.uint8).data[:] = message[place : place + array.nbytes]
                    place += array.nbytes
            return Unpickler(io.BytesIO(message[start + heads_size :]), arrays).load()
        try:
            arrays = self._arrays(_Reader(self._inbox, start, start + heads_size).read())
            _copy(
                os.preadv,
                self._inbox,
                [array.reshape(-1).view(np.uint8).data for array in arrays if array.nbytes],
            )
            reader: _Reader | io.BytesIO = _Reader(self._inbox, start + heads_size, end)
            if size <= READ_AT_ONCE_BYTES:
                reader = io.BytesIO(reader.read())
            return Unpickler(reader, arrays).load()
        finally:
            if end > KEPT_BYTES:
                os.ftruncate(self._inbox, 0)

    def _arrays(self, heads: Any) -> list[np.ndarray]:
        """Make the arrays of a message, still without their values."""
        return [self._allocate(shape, np.dtype(dtype)) for dtype, shape in pickle.loads(heads)]

    def _ring(self, received: bytes, size: int) -> bytes:
        """Receive until there are so many bytes. Raises PeerGoneError."""
        while len(received) < size:
            try:
                more = self.bell.recv(_BELL.size + _SMALL_BYTES)
            except OSError as error:
                raise PeerGoneError from error
            if not more:
                raise PeerGoneError
            received = received + more if received else more
        return received


class Parcel:
    """The file that a pickler writes to.

    It keeps the chunks that it gets. Large bytes are still the caller's own: they are not copied.
    """

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.arrays: list[np.ndarray] = []

    def write(self, chunk: bytes) -> int:
        self.chunks.append(chunk)
        return len(chunk)

    def add(self, array: np.ndarray) -> int:
        """Add an array and return its number in the message."""
        self.arrays.append(array)
        return len(self.arrays) - 1


class Pickler(pickle.Pickler):
    def __init__(self, parcel: Parcel, protocol: int) -> None:
        super().__init__(parcel, protocol)
        self._parcel = parcel

    def reducer_override(self, obj: Any) -> Any:
        # NumPy's own pickling would turn arrays that own their memory into views of a buffer, and
        # copy non-contiguous ones twice.
        kind = type(obj)
        if kind is np.ndarray and not obj.dtype.hasobject:
            return _array, (
                self._parcel.add(obj if obj.flags.c_contiguous else np.array(obj, order="C")),
            )
        if (
            kind.__module__ == "torch"
            and kind.__name__ == "Tensor"
            and obj.is_cpu
            and not obj.is_sparse
        ):
            # torch's own pickling would send the whole storage of a tensor that is a small view.
            return _tensor, (_bytes_of(obj), obj.dtype, tuple(obj.shape))
        return NotImplemented


class Unpickler(pickle.Unpickler):
    def __init__(self, reader: Any, arrays: list[np.ndarray]) -> None:
        super().__init__(reader)
        self._arrays = arrays

    def find_class(self, module: str, name: str, /) -> Any:
        if module == __name__ and name == _array.__name__:
            return self._arrays.__getitem__
        if module == "__main__":
            # Each process has its own __main__: at best the name is missing in the other one.
            raise pickle.UnpicklingError(
                f"{name} is defined in __main__, which no other process can import: move it to a "
                "module"
            )
        found = _found.get((module, name))
        if found is None:
            found = super().find_class(module, name)
            if module.startswith("penstock."):  # a user's may be loaded again
                _found[module, name] = found
        return found


_found: dict[tuple[str, str], Any] = {}
"""Classes and functions of Penstock's that messages have named: looking one up takes longer than
using it.
"""


def _described(dtype: np.dtype[Any]) -> Any:
    """Return a dtype, as its short text if that says all: it is much quicker to send."""
    return dtype.str if dtype.isbuiltin == 1 else dtype


def _array(number: int) -> np.ndarray:
    """Stand for an array in a pickle. `Unpickler` replaces it by the array that it has read."""
    raise NotImplementedError


def _bytes_of(tensor: Any) -> np.ndarray:
    import torch

    content: np.ndarray = (
        tensor.detach()
        .resolve_conj()
        .resolve_neg()
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
    )
    return content


def _tensor(content: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> Any:
    import torch

    return (
        torch.from_numpy(content).view(dtype).reshape(shape)
        if content.size
        else torch.empty(shape, dtype=dtype)
    )


class _Reader:
    """The file that an unpickler reads from. `readinto` brings large bytes in one copy."""

    def __init__(self, file: int, position: int, end: int) -> None:
        self._file = file
        self._position = position
        self._end = end

    def read(self, size: int = -1, /) -> bytes:
        buffer = bytearray(
            size if 0 <= size <= self._end - self._position else self._end - self._position
        )
        self.readinto(buffer)
        return bytes(buffer)

    def readline(self) -> bytes:
        raise NotImplementedError("only pickle protocol 0 reads lines")

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)[: self._end - self._position]
        _copy(os.preadv, self._file, [view], self._position)
        self._position += len(view)
        return len(view)


def _copy(
    call: Callable[[int, list[memoryview], int], int],
    file: int,
    views: list[memoryview],
    position: int = 0,
) -> None:
    """Copy from (`pwritev`) or into (`preadv`) all views in order.

    Raises EOFError if the file is too short.
    """
    views = [view for view in views if view]
    while views:
        count = call(file, views[:_MAX_VIEWS_PER_CALL], position)  # at most 2 GiB per call
        if not count:
            raise EOFError("the other side's file is shorter than its message")
        position += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
