"""FPS of every cell."""
