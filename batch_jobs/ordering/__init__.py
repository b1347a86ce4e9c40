"""In which order known rows are run. Pure: no Ray, no files, no clock."""
