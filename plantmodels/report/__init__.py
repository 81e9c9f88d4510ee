"""The gate report as values: gates, limits, results and statistics. Needs the standard library and numpy only."""
