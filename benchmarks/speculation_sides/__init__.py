"""What `benchmarks.speculation` measures with: prompts, streams that tell tokens per event, acceptance counters."""
