"""The parts of ``benchmarks.selection``."""
