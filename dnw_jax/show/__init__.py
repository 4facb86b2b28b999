"""Pictures of wirings."""
