"""The gated registry: admission, waivers, audit and evidence."""
