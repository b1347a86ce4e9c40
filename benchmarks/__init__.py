"""Benchmarks: `python -m benchmarks.NAME --json FILE [--quick]`, one module per question.

Sides are interleaved A B A B within one run; FILE has the versions, the machine, each side's exact configuration, every
run and the ratios pair by pair. README's tables are made from committed files by `benchmarks.tables`.
"""
