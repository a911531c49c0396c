"""What holds for every test: signals as a terminal leaves them, and no deadline for examples."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A busy machine is no fault of the code. A test that hangs has pytest's time limit.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # `nohup` and background jobs start us with SIGINT ignored. Children inherit that, and a test
    # that interrupts one would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
