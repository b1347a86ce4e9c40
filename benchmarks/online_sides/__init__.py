"""What `benchmarks.online` compares and measures: a file a case, and what cases share.

Role: a case starts its cluster, loads its sides in turn, adds its runs to the report and judges them.
"""
