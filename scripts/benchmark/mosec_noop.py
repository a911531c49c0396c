"""The no-op pipeline in mosec, whose front end is in Rust. It runs in an environment of its own."""

from __future__ import annotations

from mosec import Server, Worker


class Size(Worker):
    """Answer with the number of bytes of each body."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[int]:
        return [len(body) for body in data]

    def serialize(self, data: int) -> bytes:
        return b'{"result":%d}' % data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Size, num=1, max_batch_size=32, max_wait_time=2)
    server.run()
