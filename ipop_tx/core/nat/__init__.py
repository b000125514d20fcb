"""What a node finds out about its own NAT, and how it helps others to."""
