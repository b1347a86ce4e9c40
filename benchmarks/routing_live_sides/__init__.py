"""What `benchmarks.routing_live` compares and measures: chats, a load generator, doors to the same two engines.

Role: one file a noun. A *door* is an address that chooses one of the engines for each request.
"""
