"""What people ask of a gated registry with `plantmodels-registry`, and what the server answers."""
