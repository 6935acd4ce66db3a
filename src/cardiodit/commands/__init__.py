"""One module per subcommand: its options, and a thin layer over functions that can also be called from Python."""
