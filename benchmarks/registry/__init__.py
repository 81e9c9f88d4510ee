"""What the gated registry costs: its overhead on models that it does not guard."""
