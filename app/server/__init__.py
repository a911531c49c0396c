"""Own the process that `penstock serve` runs in: uvicorn, signals, logs."""
