"""Two sides of a speed comparison: processes of their own that take turns."""
