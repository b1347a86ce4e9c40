"""Engines that run inside a job's processes."""
