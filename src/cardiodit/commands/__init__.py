"""One file a command: its options, and a thin layer over functions that Python users can call too."""
