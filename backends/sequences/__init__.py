"""Sequences as backends see them: their states, the control inputs of models, their ends."""
