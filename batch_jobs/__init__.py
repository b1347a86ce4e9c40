"""Offline jobs: read a data set, answer every row once with an in-process engine, commit the answers.

Role: the offline tribe (tokens per dollar). Runs as a Ray job: `python -m batch_jobs.generate`.
Owns: input reading, the output folder and everything in it, the engine actors of a job.
Must not know: the gateway, the dispatcher, HTTP.

`generate` is the command line, `job` the order of events, `plan` what the config allows; `input` makes rows into
requests, `ordering` decides which go first, `work` has the ledger and the engines' processes, `engines` the engines
themselves, `output` the exactly-once parts, `reporting` what people see. docs/offline.md tells it from the outside.
"""
