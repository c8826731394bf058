"""What it sees: data sets, preprocessing, the run through an engine, decoding, detections."""
