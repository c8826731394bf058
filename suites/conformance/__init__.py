"""What an engine must keep without ground truth."""
