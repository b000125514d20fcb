"""The control plane of one node, sans-IO: `now`, chance, sessions and the disk are passed in; datagrams and events are handed out."""
