"""What the gated registry costs: models that it does not guard, many promotions at once, growth, and a bucket."""
