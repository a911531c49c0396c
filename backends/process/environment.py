"""The environment variables of child processes."""

from __future__ import annotations

import os
import sys

SECRET_VARIABLES = (
    "PENSTOCK_SSL_KEYFILE_PASSWORD",
    "PENSTOCK_API_KEY",
    "PENSTOCK_ADMIN_TOKEN",
    "PENSTOCK_RESTRICTED_API",
    "PENSTOCK_CACHE_REDIS",
)
"""The variables that no child process inherits: they hold secrets of the server and its clients."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)
"""Set to 1 each, unless the environment sets them.

`instance_num` decides how many processors a node uses.
"""


def child_environment() -> dict[str, str]:
    """Return our environment, with all of `sys.path`, such as a script's directory.

    Libraries that would start a thread per processor get one thread each.
    """
    path = os.pathsep.join(folder or str(os.getcwd()) for folder in sys.path)  # noqa: PTH109
    ours = {key: value for key, value in os.environ.items() if key.upper() not in SECRET_VARIABLES}
    return {**dict.fromkeys(_THREAD_VARIABLES, "1"), **ours, "PYTHONPATH": path}
