"""Engines on PyTorch: TorchScript, exported programs and nn.Modules."""
