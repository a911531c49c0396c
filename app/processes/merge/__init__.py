"""One answer of several processes: metrics, statistics and status of fronts and models together.

A front process reports what it has counted when the model process asks, which is when somebody
reads `/metrics`, `/status` or a model's statistics. The model process adds what is new since a
front's last report to its own counters: they never go back, and a front that dies takes none along.
"""
