"""The worker that carries out what was accepted to be done later: batches and background requests.

It claims rows of the state store, runs requests through the same queue as everybody's, and makes results final. Any
number of workers may run; what one that died had claimed is taken over when its heartbeat is stale. Owns: the course
of deferred work. Must not know: HTTP towards clients.
"""
