"""A backend in pure Python that holds a processor, and the GIL, for about five milliseconds."""

from __future__ import annotations

import os
import time

from penstock.backends.base import Backend, Params
from penstock.backends.item import Item

ADDITIONS = 150_000


class Busy(Backend):
    """Sets `result` to its process id and the processor seconds that its thread has used so far."""

    parameters = Params

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            total = 0
            for number in range(ADDITIONS):
                total += number * number
            item["result"] = os.getpid(), time.thread_time()
