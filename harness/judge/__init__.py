"""Is it worse: verdicts on accuracy and speed against published and recorded baselines."""
