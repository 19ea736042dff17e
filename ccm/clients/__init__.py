"""The clients that come with the manager, and the load that a lab puts on them."""
