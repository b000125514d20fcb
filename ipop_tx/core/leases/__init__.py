"""Addresses and names: leases on the registers, who holds one, and the DHCP server for guests."""
