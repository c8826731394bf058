"""The tests people run: accuracy, performance, and the project's own selftest."""
