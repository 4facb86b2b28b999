"""What a discovered network costs, and what is left of it when the dead parts are gone."""
