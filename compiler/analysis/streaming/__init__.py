"""Running a module on samples while no more than a few of its values are held."""
