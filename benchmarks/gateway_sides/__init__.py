"""What `benchmarks.gateway` compares and measures: doors to one scripted engine, a load generator, accounts of CPU.

Role: one file a noun. A *door* is an address that answers like the engine; a *group* is the doors whose processes are
started and stopped together, so that nothing runs while another group is measured. Peers run in environments of their
own (`environments.py`).
"""
