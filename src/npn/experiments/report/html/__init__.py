"""The page of a run, and the page that compares runs: one file each, which needs no network."""
