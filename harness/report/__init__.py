"""What people look at: the results file, and the table at the end of a run."""
