"""What a run leaves on disk, and how its hosts agree."""
