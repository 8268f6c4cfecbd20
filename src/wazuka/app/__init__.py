"""What a person touches: the command line, the runs on disk, the report."""
