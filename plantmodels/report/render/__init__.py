"""The gate report for people: one HTML page and its plots."""
