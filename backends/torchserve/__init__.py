"""Runs TorchServe's handlers: code written for `handle(data, context)`."""
