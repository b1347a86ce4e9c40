"""What clients may ask beside generations: files, batches, background requests, usage, metrics; and what their answers
look like. Must not know: leases, engines."""
