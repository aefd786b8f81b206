"""Benchmarks against nn.LSTM and the reference: ``make bench``, or ``pytest benchmarks``."""
