"""What an engine must keep without ground truth: relations between outputs, and its contract."""
