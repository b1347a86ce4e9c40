"""What people see of a job: progress, report, plots."""
