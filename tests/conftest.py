"""What holds for every test: signals as a terminal leaves them."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # `nohup` and background jobs start us with SIGINT ignored. Children inherit that, and a test
    # that interrupts one would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
