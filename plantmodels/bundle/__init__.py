"""Ground floor: what lies on disk in a bundle. Needs numpy only."""
