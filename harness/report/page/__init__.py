"""The page of a run: results, records, an earlier run and a history in; one HTML file that needs nothing else out."""
