"""Links to peers: how they come up, their paths, what is said over them."""
