"""Which layer lost it: a cell's graph, in the engine and in a reference, compared inside."""
