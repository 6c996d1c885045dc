"""PyTorch helpers that know nothing about training: pickling, custom operators, small tools."""
