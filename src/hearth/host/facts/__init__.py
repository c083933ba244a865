"""What the host has and how it is set: a module an area, gathered in `report`."""
