"""Offline jobs: read a data set, answer every row once with an in-process engine, commit the answers.

Role: the offline tribe (tokens per dollar). Runs as a Ray job: `python -m batch_jobs.generate`.
Owns: input reading, the output folder and everything in it, the engine actors of a job.
Must not know: the gateway, the dispatcher, HTTP.

One line per module: `generate` is the command line, `job` the order of events, `plan` what the config allows,
`inputs`/`scan`/`reading` the rows, `engine`/`vllm_engine`/`engine_actor` the work,
`parts`/`part_buffer`/`commit_log`/`lock` the exactly-once output, `progress`/`report` what people see.
"""
