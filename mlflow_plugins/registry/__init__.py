"""The gated registry: what may be promoted, waivers, the audit, and the evidence in a version's files."""
