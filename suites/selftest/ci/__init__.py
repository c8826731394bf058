"""The CI examples' steps, carried out here: what a forge does between them is emulated, what it runs is run."""
