"""How good and how fast: COCO's numbers, comparisons and throughput."""
