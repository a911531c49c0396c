"""OpenVINO on the CPU: models are read, compiled once for all instances, and run."""
