"""One build against another, and how long commands take to start."""
