"""A backend of pure Python that keeps a processor, and the GIL where there is one to keep, for about five milliseconds."""

from __future__ import annotations

import os
import time

from penstock.backends.base import Backend, Params
from penstock.backends.item import Item

ROUNDS = 150_000


class Busy(Backend):
    """`result`: the process that did it, and the processor seconds of this thread until then."""

    parameters = Params

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            total = 0
            for number in range(ROUNDS):
                total += number * number
            item["result"] = os.getpid(), time.thread_time()
