"""Models other than the paper's: the laptop's (tiny, muon), and those it compares with (per_frame)."""
