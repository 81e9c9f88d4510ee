"""The registry's own tables: decisions, stamps and waivers, beside MLflow's tables or in a database of their own."""
