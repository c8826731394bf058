"""mAP of every cell."""
