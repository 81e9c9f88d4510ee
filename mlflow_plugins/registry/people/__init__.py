"""What people may do: who may promote, how many must ask for it, and what a waiver is asked for with."""
