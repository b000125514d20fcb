"""What the DHT and its leases promise, put to the test: `make bench-dht`."""
