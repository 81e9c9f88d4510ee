"""The commands of `plantmodels-registry`: what a client asks of a gated registry, and how the server answers."""
