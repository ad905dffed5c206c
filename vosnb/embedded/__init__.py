"""The small SAM 2 that ships with vosnb: its training clips, its training, and the benchmark that it is measured on."""
