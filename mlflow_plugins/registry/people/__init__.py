"""Rules for users: who may promote, how many users must ask for a promotion, and how a waiver is requested."""
